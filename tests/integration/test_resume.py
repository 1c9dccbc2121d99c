"""A training that is killed at any moment goes on to bit-identical weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from delta.training.folder_lock import LOCK
from tests.small_fit import STEPS, small_fit

ROOT = Path(__file__).parents[2]
POINTS = ("replace", "replaced", "sync")  # of a write: see tests/kill_target.py


@contextmanager
def _target() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kill_target"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.stdin.close()
        assert process.wait(timeout=60) == 0


class _Run:
    """One child, from its start to its end."""

    def __init__(
        self, target: subprocess.Popen[str], request: dict[str, Any], *, kill_at: int | None
    ) -> None:
        self.steps: list[int] = []
        self.warnings: list[str] = []
        self.weights = ""
        self.first = 0  # step that it went on from
        target.stdin.write(json.dumps(request) + "\n")
        target.stdin.flush()
        pid = 0
        for line in target.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "pid":
                pid = int(rest)
            elif word == "step":
                self.steps.append(int(rest))
                if len(self.steps) == kill_at:
                    with suppress(ProcessLookupError):  # it was quicker
                        os.kill(pid, signal.SIGKILL)
            elif word == "warning":
                self.warnings.append(rest)
            elif word == "weights":
                self.weights = rest
            elif word == "ended":
                self.status = int(rest)
                return
        raise AssertionError("the target ended before its child did")


def _kill_until_done(folder: Path, *, kills: int, epochs: int, seed: int, fresh: bool) -> None:
    """Kill so many children in a row; each end, one without a kill the last, must be the uninterrupted one's.

    Args:
        folder: of the checkpoints.
        kills: how many.
        epochs: of the training.
        seed: of the moments.
        fresh: whether each child gets a new interpreter, or is a fork of one that has imported torch.
    """
    choose, moments = random.Random(seed), []
    reference, total = small_fit(None, epochs=epochs), epochs * STEPS
    reached = untold = 0  # last step that a child told; children since then may each have stored one more
    with ExitStack() as stack:
        shared = None if fresh else stack.enter_context(_target())
        done = False
        while not done:
            how = "not" if len(moments) == kills else choose.choice(("outside", *POINTS))
            # A checkpoint a step, two files each: killed from outside some steps on, or by itself inside a write.
            die = (how, choose.randint(1, 8)) if how in POINTS else None
            kill_at = choose.randint(1, 3) if how == "outside" else None
            with _target() if shared is None else nullcontext(shared) as target:
                found = _Run(target, {"folder": str(folder), "epochs": epochs, "die": die}, kill_at=kill_at)
            assert found.warnings == []  # a kill damages nothing
            if found.steps:
                # The last step is told before the end is stored.
                assert min(reached, total - 1) < found.steps[0] <= reached + 1 + untold
                assert found.steps == list(range(found.steps[0], found.steps[-1] + 1))
                reached, untold = found.steps[-1], 0
            untold += 1
            if found.weights:
                assert found.weights == reference
            if found.status == 0 and how != "not":  # it was quicker than its end: begin again
                assert found.weights
                shutil.rmtree(folder)
                reached = untold = 0
                continue
            assert found.status == (0 if how == "not" else -signal.SIGKILL)
            moments.append(how)
            done = how == "not"
    assert found.weights == reference
    assert len(moments) == kills + 1
    assert len(set(moments)) > 2


def test_a_training_killed_five_times_ends_in_the_same_weights(tmp_path):
    _kill_until_done(tmp_path / "run", kills=5, epochs=15, seed=1, fresh=False)
    # The finished training and the checkpoint before it are all that is left, nothing of the killed writers.
    left = sorted(path.suffix for path in (tmp_path / "run").iterdir() if path.name != LOCK)
    assert left == [".json"] * 2 + [".safetensors"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "fresh"), [(60, False), (12, True)])
def test_a_training_killed_many_times_ends_in_the_same_weights(tmp_path, kills, fresh):
    _kill_until_done(tmp_path / "run", kills=kills, epochs=max(20, kills * 6 // STEPS), seed=2, fresh=fresh)
