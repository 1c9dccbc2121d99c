"""A training to be killed: `python -m tests.kill_target`.

Each line of standard input, `{"folder", "epochs", "die"}`, starts a child that trains, or goes on where the one
before it was killed; its lines on standard output tell its process id, every step, every warning and the final
weights. `die` names the call of its own at which it kills itself: `["replace", 3]` is right before the third
rename, `["replaced", 3]` right after it, `["sync", 3]` before the third sync with half of its file written.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimiser imports it, which takes a second: once, not in every child

from delta.training.checkpoint import CheckpointStore
from tests.small_fit import small_fit


def say(*words: object) -> None:
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def arm(point: str, count: int) -> None:
    """Make the `count`-th call end this process as SIGKILL does at any moment."""
    calls = 0
    replace, sync = os.replace, os.fsync

    def due(here: bool) -> bool:
        nonlocal calls
        calls += here
        return here and calls == count

    def replacing(source: Any, target: Any) -> None:
        if due(point == "replace"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if due(point == "replaced"):
            os.kill(os.getpid(), signal.SIGKILL)

    def syncing(handle: int) -> None:
        if due(point == "sync"):
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(handle, status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.replace, os.fsync = replacing, syncing


def train(folder: Path, epochs: int, die: tuple[str, int] | None) -> None:
    if die is not None:
        arm(*die)
    store = CheckpointStore(folder, identity="small", every_steps=1, warn=lambda text: say("warning", text))
    say("weights", small_fit(store, epochs=epochs, progress=lambda _, step, total: say("step", step)))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()  # torch is imported, and has started no thread yet
        if child == 0:
            say("pid", os.getpid())
            train(Path(request["folder"]), request["epochs"], request["die"])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        say("ended", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
