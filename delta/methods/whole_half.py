"""A cloud half that holds a whole model: it answers records with logits and, where it may, trains on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from delta.errors import CloudAnswerError, RequestError
from delta.methods.schema import Operation, TensorSpec
from delta.methods.stepping import Stepper, StepPlan

__all__ = ["LOGITS", "TRAIN", "WEIGHTS", "WholeHalf", "weights_from_vector"]

LOGITS, TRAIN, WEIGHTS = "logits", "train", "weights"
"""Names of the operations: records to logits; records and labels to the loss of one step; all weights."""


class WholeHalf:
    """Serves one whole model.

    Args:
        model: `[n, *shape] → [n, classes]`.
        shape: of a record.
        classes: logits a record.
        device: where it computes.
        plan: how it may be trained; none for a model that only answers. Whoever reaches a cloud that trains can
            change its model: serve such a bundle to its owner alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shape: Sequence[int],
        classes: int,
        device: torch.device,
        plan: StepPlan | None = None,
    ) -> None:
        self._model = model.to(device).eval()
        self._device, self._classes = device, classes
        self._plan = plan
        self._stepper: Stepper | None = None
        x, logits = TensorSpec(torch.float32, ("n", *shape)), TensorSpec(torch.float32, ("n", classes))
        self.operations: dict[str, Operation] = {
            LOGITS: Operation({"x": x}, {"logits": logits}, self._logits, batchable=True)
        }
        if plan is not None:
            size = sum(t.numel() for t in model.state_dict().values())
            loss, labels = TensorSpec(torch.float32, ()), TensorSpec(torch.int64, ("n",))
            self.operations[TRAIN] = Operation({"x": x, "y": labels}, {"loss": loss}, self._train)
            self.operations[WEIGHTS] = Operation(
                {}, {"weights": TensorSpec(torch.float32, (size,))}, self._weights
            )

    def _logits(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits: Tensor = self._model(tensors["x"].to(self._device))
        return {"logits": logits.float().cpu()}

    def _train(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not bool(tensors["x"].isfinite().all()):
            raise RequestError("train: 'x' holds NaN or infinite values; clean the data first")
        if not bool(((tensors["y"] >= 0) & (tensors["y"] < self._classes)).all()):
            raise RequestError(f"train: a label in 'y' is outside of 0 to {self._classes - 1}")
        if self._stepper is None:
            # Weights of a model built in inference mode take no gradient: they are made anew outside of it.
            with torch.inference_mode(False):
                self._model.requires_grad_(True)
                self._stepper = Stepper(self._model, self._plan or StepPlan())
        loss = self._stepper.step(tensors["x"].to(self._device), tensors["y"].to(self._device))
        return {"loss": torch.tensor(loss)}

    def _weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = self._model.state_dict()
        return {"weights": torch.cat([state[name].float().flatten().cpu() for name in sorted(state)])}


def weights_from_vector(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The answer of `weights` by name, in the shapes and types of `like`.

    Raises:
        CloudAnswerError: it has another size.
    """
    if vector.numel() != sum(t.numel() for t in like.values()):
        raise CloudAnswerError("the cloud's weights are of another model")
    found, start = {}, 0
    for name in sorted(like):
        size = like[name].numel()
        found[name] = vector[start : start + size].view(like[name].shape).to(like[name].dtype)
        start += size
    return found
