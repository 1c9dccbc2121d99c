"""A training that is killed at any moment goes on to bit-identical weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

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
                    os.kill(pid, signal.SIGKILL)
            elif word == "warning":
                self.warnings.append(rest)
            elif word == "weights":
                self.weights = rest
            elif word == "ended":
                self.status = int(rest)
                return
        raise AssertionError("the target ended before its child did")


def _killed_until_done(folder: Path, *, kills: int, epochs: int, seed: int, fresh: bool) -> str:
    """Kill so many children in a row, let the next one finish; its weights.

    Args:
        folder: of the checkpoints.
        kills: how many.
        epochs: of the training.
        seed: of the moments.
        fresh: whether each child gets a new interpreter, or is a fork of one that has imported torch.
    """
    choose, moments = random.Random(seed), []
    reached = untold = 0  # last step that a child told; children since then may each have stored one more

    def run(target: subprocess.Popen[str], how: str) -> _Run:
        nonlocal reached, untold
        # A checkpoint a step, two files each: killed from outside some steps on, or by itself inside a write.
        die = (how, choose.randint(1, 8)) if how in POINTS else None
        kill_at = choose.randint(1, 3) if how == "outside" else None
        found = _Run(target, {"folder": str(folder), "epochs": epochs, "die": die}, kill_at=kill_at)
        assert found.status == (0 if how == "not" else -signal.SIGKILL)
        assert found.warnings == []  # a kill damages nothing
        if found.steps:
            assert reached < found.steps[0] <= reached + 1 + untold
            assert found.steps == list(range(found.steps[0], found.steps[-1] + 1))
            reached, untold = found.steps[-1], 1
        else:
            untold += 1
        moments.append(how)
        return found

    ends = [*(choose.choice(("outside", *POINTS)) for _ in range(kills)), "not"]
    with ExitStack() as stack:
        shared = None if fresh else stack.enter_context(_target())
        for how in ends:
            with _target() if shared is None else nullcontext(shared) as target:
                last = run(target, how)
    assert len(set(moments)) > 2
    return last.weights


def test_a_training_killed_five_times_ends_in_the_same_weights(tmp_path):
    found = _killed_until_done(tmp_path / "run", kills=5, epochs=8, seed=1, fresh=False)
    assert found == small_fit(None, epochs=8)
    # The finished training is all that is left, nothing of the killed writers.
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir()) == [".json", ".safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "fresh"), [(60, False), (12, True)])
def test_a_training_killed_many_times_ends_in_the_same_weights(tmp_path, kills, fresh):
    epochs = kills * 5 // STEPS
    found = _killed_until_done(tmp_path / "run", kills=kills, epochs=epochs, seed=2, fresh=fresh)
    assert found == small_fit(None, epochs=epochs)
