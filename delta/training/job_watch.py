"""Watching a job's states: a cloud may neither tell what cannot be, nor hold whoever watches for ever (I4)."""

from __future__ import annotations

import time
from collections.abc import Callable

from delta.errors import CloudAnswerError, CloudDeadlineError
from delta.training.cloud import JobState

__all__ = ["PATIENCE_S", "JobWatch"]

PATIENCE_S = 3600.0
"""Seconds that a job may wait its turn, or take for a step, unless somebody says otherwise."""


class JobWatch:
    """Takes in the states of one job and ends a watch that comes to nothing.

    What a server that was started again tells is no fault: the job then waits once more, at an earlier step.

    Args:
        most_steps: of the job, as the private side knows; several processes may take fewer.
        patience_s: seconds without getting further.
        clock: monotonic, seconds.
    """

    def __init__(
        self, most_steps: int, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_steps = most_steps
        self._patience_s = patience_s
        self._clock = clock
        self._steps = 0  # in all, as told first
        self._furthest = (False, 0)  # whether its turn has come, and the most steps done
        self._since = clock()

    def take(self, state: JobState) -> None:
        """Take in one more state.

        Raises:
            CloudAnswerError: more steps than there can be, or another number of them than before.
            CloudDeadlineError: the job gets no further.
        """
        if state.steps > self._most_steps or (self._steps and state.steps not in (0, self._steps)):
            expected = f"{self._steps}, as before" if self._steps else f"at most {self._most_steps}"
            raise CloudAnswerError(
                f"the cloud says that the job has {state.steps} steps; expected {expected}"
            )
        self._steps = self._steps or state.steps
        most = self._steps or self._most_steps
        if state.step > most:
            raise CloudAnswerError(f"the cloud says that the job has done {state.step} steps of {most}")
        now = self._clock()
        reached = state.state != "waiting", max(state.step, self._furthest[1])
        if reached > self._furthest:  # never by falling back and coming again
            self._furthest, self._since = reached, now
        elif state.state in ("waiting", "running") and now - self._since > self._patience_s:
            began, step = self._furthest
            what = f"has stayed at step {step}" if began else "has waited its turn"
            raise CloudDeadlineError(
                f"the job in the cloud {what} for {self._patience_s:g} s; what was uploaded stays there: run again "
                "to go on, with more patience if the cloud is busy"
            )
