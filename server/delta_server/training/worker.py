"""`python -m delta_server.training.worker`: one one-shot job, in one process or one of several.

It tells the server how far it is on standard output, one JSON object a line: `step`, `steps` and `loss`, or
`failed` with a text that the tenant may read.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from delta.training.cloud_trainer import held_out_logits, train_on_releases
from delta.training.world import World
from delta_server.log import log_to_stderr
from delta_server.training.result import write_result
from delta_server.training.store import ReleaseStore
from delta_server.training.workplace import Workplace, end_with_input, explained, own_output

__all__ = ["main"]


class _Teller:
    """The running loss, as the server is told of it."""

    def __init__(self) -> None:
        self._output = own_output()
        self.last: tuple[int, float | None] | None = None

    def report(self, step: int, steps: int, loss: float) -> None:
        known = loss if math.isfinite(loss) else None
        self.last = (step, known)
        self.tell({"step": step, "steps": steps, "loss": known})

    def tell(self, line: dict[str, Any]) -> None:
        self._output.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._output.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the job that the arguments name; returns the exit status."""
    log_to_stderr()
    end_with_input()
    teller = _Teller()
    place: Workplace | None = None
    try:
        place = Workplace.of(arguments)
        with World.from_environment(place.device) as world:
            _train(place, world, teller)
    except BrokenPipeError:  # the server is gone
        return 1
    except Exception as error:
        text = explained(error, place.job.architecture.target if place is not None else "")
        if os.environ.get("RANK", "0") == "0":
            teller.tell({"failed": text})
        return 1
    return 0


def _train(place: Workplace, world: World, teller: _Teller) -> None:
    if world.leads:
        place.occupy()
    world.meet()
    releases = ReleaseStore(place.home, place.dataset).read()
    checkpoints = place.checkpoints()
    model = train_on_releases(
        place.dataset,
        place.job,
        releases,
        device=world.device,
        allowed=place.allowed,
        checkpoints=checkpoints,
        report=teller.report if world.leads else None,
        world=world,
    )
    if not world.leads:
        return
    if teller.last is None:  # it was trained before, and its result not yet written
        stored = checkpoints.latest()
        teller.last = (stored.step if stored is not None else 0, None)
    steps, loss = teller.last
    logits = held_out_logits(model, releases, device=world.device)
    if not len(logits):
        logits = logits.reshape(0, place.dataset.classes)
    write_result(place.folder, dict(model.state_dict()), steps=steps, loss=loss, logits=logits)


if __name__ == "__main__":
    sys.exit(main())
