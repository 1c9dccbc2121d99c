"""`delta bench latency`: the same network under every method, client and cloud as processes of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from delta.bench.contenders import Contender
from delta.bench.jobs import Link, PrivateJob, Subject
from delta.bench.rows import Row, rows_of
from delta.bench.timing import Timed
from delta.bundle.store import save_bundle
from delta.errors import ConfigError
from delta.methods.registry import method_class
from delta.models.runtime import Runtime

__all__ = ["Launchers", "Schedule", "cores_of", "run_latency"]


@dataclass(frozen=True)
class Launchers:
    """How the benchmark starts its processes; the library itself starts none.

    Attributes:
        cloud: a cloud that serves these bundles, trains, and is held to these cores (none: to no cores), as a
            context; it gives HOST:PORT.
        private: runs a job in so many private processes, which begin their rounds together, progress told; the
            samples of each.
    """

    cloud: Callable[[Sequence[Path], tuple[int, ...] | None], AbstractContextManager[str]]
    private: Callable[[PrivateJob, int, Callable[[str], None]], list[list[Timed]]]


@dataclass(frozen=True)
class Schedule:
    """What is varied, and how often it is timed.

    Attributes:
        batches: records a call.
        threads: of the private side; each gets a process of its own.
        link: between the two sides; none: as it is.
        rounds: at most.
        seconds: that one case may take over all rounds.
        train: whether training steps are timed, too.
        runtime: of the private models that have a choice; see `delta.models.runtime`.
        clients: private processes at a time, on no cores of their own; none: one, held to its cores.
        seed: of the records.
    """

    batches: tuple[int, ...] = (32,)
    threads: tuple[int, ...] = (1,)
    link: Link | None = None
    rounds: int = 7
    seconds: float = 30.0
    train: bool = True
    runtime: Runtime = "eager"
    clients: int | None = None
    seed: int = 0


def cores_of(
    available: Sequence[int], threads: Sequence[int]
) -> tuple[dict[int, tuple[int, ...] | None], tuple[int, ...] | None]:
    """Cores of the private side by its threads, and those of the cloud; none for whom there are too few to share.

    The cloud keeps the same cores throughout: those that the largest private side leaves which leaves any.

    Raises:
        ConfigError: more threads than cores.
    """
    if max(threads) > len(available):
        raise ConfigError(
            f"{max(threads)} threads of the private side on {len(available)} cores would only wait for each other; "
            f"give at most {len(available)}"
        )
    most = max((count for count in threads if count < len(available)), default=None)
    if most is None:
        return dict.fromkeys(threads), None
    own = {count: tuple(available[:count]) if count <= most else None for count in threads}
    return own, tuple(available[most:])


def run_latency(
    contenders: Sequence[Contender],
    schedule: Schedule,
    launchers: Launchers,
    *,
    available: Sequence[int],
    told: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Time all contenders; rows as `delta.bench.rows.rows_of` has them.

    Args:
        contenders: bundles.
        schedule: what is varied.
        launchers: of the processes.
        available: cores of this machine.
        told: what happens, a line each.

    Raises:
        CloudError: the cloud does not start, or a method did without it.
    """
    cores, cloud_cores = cores_of(available, schedule.threads)
    if (
        schedule.clients is not None
    ):  # several private sides cannot all have the same cores, nor one by itself
        cores, cloud_cores = dict.fromkeys(schedule.threads), None
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        subjects = [
            Subject(key=one.key, bundle=save_bundle(one.bundle, Path(folder) / one.key)) for one in contenders
        ]
        served = [
            subject.bundle
            for subject, one in zip(subjects, contenders, strict=True)
            if method_class(one.method).facts.offloads
        ]
        with launchers.cloud(served, cloud_cores) as address:
            for threads in schedule.threads:
                job = PrivateJob(
                    address=address,
                    subjects=tuple(subjects),
                    batches=schedule.batches,
                    threads=threads,
                    cores=cores[threads],
                    rounds=schedule.rounds,
                    seconds=schedule.seconds,
                    link=schedule.link,
                    train=schedule.train,
                    runtime=schedule.runtime,
                    seed=schedule.seed,
                )
                told(f"private side with {threads} thread(s)")
                found = rows_of(
                    _joined(launchers.private(job, schedule.clients or 1, told)),
                    contenders={one.key: one for one in contenders},
                    threads=threads,
                    link="none" if schedule.link is None else str(schedule.link),
                    runtime=schedule.runtime,
                )
                held = {"private_cores": cores[threads], "cloud_cores": cloud_cores}
                rows += [row | held for row in found]
    return rows


def _joined(clients: list[list[Timed]]) -> list[Timed]:
    """The samples of all clients, by case."""
    return [
        Timed(same[0].key, same[0].phase, same[0].batch, [sample for one in same for sample in one.samples])
        for same in zip(*clients, strict=True)
    ]
