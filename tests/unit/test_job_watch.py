"""Watching a job's states: what cannot be is refused, and what comes to nothing ends."""

import itertools

import pytest

from delta.errors import CloudAnswerError, CloudDeadlineError
from delta.training.batches import batch_starts, steps_of
from delta.training.cloud import JobState
from delta.training.config import FitConfig
from delta.training.job_watch import JobWatch

WAITING, FINAL = JobState("waiting"), ("done", "failed", "cancelled")


def running(step, steps=10):
    return JobState("running", step, steps)


class Clock:
    """Stands still until it is told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def watch_of(clock=None):
    return JobWatch(10, patience_s=60.0, clock=clock or Clock())


@pytest.mark.parametrize(
    "states",
    [
        [WAITING, running(0, 0), running(1), running(10), JobState("done", 10, 10)],
        [JobState("done", 8, 8)],  # of several processes
        [running(0, 8), running(8, 8), JobState("done", 8, 8)],
        [running(5), WAITING, running(0, 0), running(4), running(6)],  # its server was started again
        [running(5, 0), JobState("failed", message="out of memory")],
        [],
    ],
    ids=range(6),
)
def test_what_an_honest_cloud_tells_is_taken(states):
    watch = watch_of()
    for state in states:
        watch.take(state)


@pytest.mark.parametrize(
    "states",
    [
        [running(11, 0)],
        [running(2, 1)],
        [running(5000, 1)],
        [running(1, 11)],
        [running(1, 2**64 - 1)],
        [running(1, 8), running(2, 9)],
        [running(1, 8), running(2, 7)],
        [running(1, 8), running(9, 0)],
        [JobState("done", 11, 11)],
        [JobState("failed", 3, 2)],
    ],
    ids=range(10),
)
def test_what_cannot_be_is_a_bad_answer(states):
    watch = watch_of()
    for state in states[:-1]:
        watch.take(state)
    with pytest.raises(CloudAnswerError, match="the cloud says that the job has"):
        watch.take(states[-1])


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([WAITING], "has waited its turn for 60 s"),
        ([running(0)], "has stayed at step 0 for 60 s"),
        ([running(3)], "has stayed at step 3 for 60 s"),
        ([running(3), running(2)], "has stayed at step 3"),
        ([running(3, 0), running(3)], "has stayed at step 3"),
        ([running(3), WAITING, running(0), running(3)], "has stayed at step 3"),
        ([WAITING, JobState("waiting", 4, 10), JobState("waiting", 5, 10)], "has waited its turn"),
    ],
    ids=range(7),
)
def test_a_job_that_gets_no_further_is_left(states, text):
    """Falling back and coming again is no progress."""
    clock = Clock()
    watch = watch_of(clock)
    for state in states:
        watch.take(state)
    again = itertools.cycle(states)
    for state in itertools.islice(again, 8):
        clock.now += 7.0
        watch.take(state)
    clock.now += 7.0
    with pytest.raises(CloudDeadlineError, match=f"{text}.*run again to go on"):
        watch.take(next(again))


def test_a_slow_job_is_waited_for_as_long_as_it_gets_further():
    clock = Clock()
    watch = watch_of(clock)
    watch.take(WAITING)
    for step in range(11):
        clock.now += 59.0
        watch.take(running(step))
    clock.now += 1000.0
    for state in FINAL:  # the end is taken whenever it comes
        watch.take(JobState(state, 10, 10))


@pytest.mark.parametrize(
    ("records", "batch", "starts", "of_two"),
    [
        (48, 16, [0, 16, 32], [0, 16, 32]),
        (49, 16, [0, 16, 32], [0, 16, 32]),
        (50, 16, [0, 16, 32, 48], [0, 16, 32]),
        (52, 16, [0, 16, 32, 48], [0, 16, 32, 48]),
        (5, 16, [0], [0]),
        (1, 16, [], []),
        (0, 16, [], []),
    ],
)
def test_a_last_batch_of_too_few_is_dropped(records, batch, starts, of_two):
    config = FitConfig(epochs=3, batch=batch)
    assert batch_starts(records, config) == starts
    assert batch_starts(records, config, processes=2) == of_two
    assert steps_of(records, config) == 3 * len(starts)
