"""Small networks for encrypted inference, trained on the digits of the test run."""

from __future__ import annotations

import torch

from delta.methods.stepping import Stepper, StepPlan
from delta.methods.whole import WholeModel
from delta.models.square_net import he_cnn
from tests.trained import Trained

_made: dict[tuple[int, int], WholeModel] = {}


def square_digits(trained: Trained, *, hidden: int = 0, epochs: int = 12) -> WholeModel:
    """`he_cnn` for 1×16×16 digits: of depth 3, or of 5 with a hidden layer; made once."""
    key = (hidden, epochs)
    if key not in _made:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = he_cnn(classes=10, in_channels=1, width=4, hidden=hidden, kernel=4, stride=4, grid=4)
            x, y = trained.private.fit.x, trained.private.fit.y
            batches = len(x) // 32
            stepper = Stepper(model, StepPlan(steps=epochs * batches, learning_rate=1e-2))
            for _ in range(epochs):
                for part in torch.randperm(len(x))[: batches * 32].split(32):
                    stepper.step(x[part], y[part])
        _made[key] = WholeModel.of(
            model,
            input=trained.private.input,
            class_names=trained.data.train.class_names,
            name="square-digits",
            calibration=x[:64],
        )
    return _made[key]
