"""One of the processes that train a toy together: `torchrun … -m tests.distributed_target OUT [--only NAME]`.

Writes `OUT/NAME-R.json` of rank R for each run: final weights, losses, accuracy, and the steps that were told.
Runs: `whole`, with batch normalisation; `plain`, without; `cut`, as `whole`, but thrown out of a step and gone on
with from its checkpoint. `--die N` kills rank 1 in step N.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from delta.bundle.store import serialise_weights
from delta.training.checkpoint import CheckpointStore
from delta.training.config import FitConfig
from delta.training.fit import fit, placed
from delta.training.world import World

RECORDS, BATCH, EPOCHS = 256, 32, 6
STEPS = EPOCHS * RECORDS // BATCH
CUT = 23  # a step; the last checkpoint is of step 20


class CutError(Exception):
    """The end of a run that was cut."""


def train(
    world: World,
    *,
    plain: bool = False,
    folder: Path | None = None,
    cut: int | None = None,
    die: int | None = None,
) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (RECORDS,), generator=drawn)
    x = torch.randn(RECORDS, 1, 6, 6, generator=drawn)
    x[y == 1, :, :3] += 1.0  # the classes differ in their upper half
    torch.manual_seed(0)
    norm = nn.Identity() if plain else nn.BatchNorm2d(8)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    told: list[int] = []
    losses: list[float] = []

    def forward(net: nn.Module, index: torch.Tensor) -> torch.Tensor:
        if cut == len(losses) + 1:
            raise CutError
        if die == len(losses) + 1 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return net(x[index])

    def loss(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        value = nn.functional.cross_entropy(logits, y[index])
        losses.append(float(value.detach()))
        return value

    fit(
        placed(model, world.device),
        forward,
        loss,
        records=RECORDS,
        config=FitConfig(epochs=EPOCHS, batch=BATCH),
        generator=torch.Generator().manual_seed(0),
        progress=lambda _, done, total: told.append(done),
        checkpoints=None if folder is None else CheckpointStore(folder, identity="toy", every_steps=5),
        world=world,
    )
    with torch.inference_mode():
        accuracy = float((model(x).argmax(1) == y).float().mean())
    weights = serialise_weights(model.state_dict()).hex()
    return {"weights": weights, "losses": losses, "accuracy": accuracy, "told": told, "size": world.size}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--die", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with World.from_environment(torch.device("cpu")) as world:
        for name in [given.only] if given.only else ["whole", "plain", "cut"]:
            folder = given.out / name
            if name == "cut":
                try:
                    train(world, folder=folder, cut=CUT)
                except CutError:
                    world.meet()  # all have let go of it
            found = train(world, plain=name == "plain", folder=folder, die=given.die)
            (given.out / f"{name}-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
