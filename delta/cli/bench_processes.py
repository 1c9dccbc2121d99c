"""The processes of a benchmark: a cloud on cores of its own, and private sides held to theirs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta.errors import CloudError

if TYPE_CHECKING:
    from delta.bench.jobs import PrivateJob
    from delta.bench.latency import Launchers
    from delta.bench.timing import Timed

__all__ = ["environment", "launchers", "own_cores"]

_SESSIONS = "512"
"""Interactive trainings that the cloud lets be open: one for each budget and batch size, all of one tenant."""


def own_cores() -> list[int]:
    """Processors that this process may use, one of each core: a sibling's load would slow the side on it."""
    allowed = sorted(os.sched_getaffinity(0))
    found: dict[str, int] = {}
    for number in allowed:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(number)
        found.setdefault(siblings, number)
    cores = list(found.values())
    return cores if len(cores) > 1 else allowed


def launchers(*, device: str, allow: Sequence[str] = ()) -> Launchers:
    """How `delta bench` starts its processes.

    Args:
        device: of the cloud.
        allow: import targets that the cloud may build.
    """
    from delta_server.launch import ServerProcess

    from delta.bench.latency import Launchers

    @contextmanager
    def cloud(bundles: Sequence[Path], cores: tuple[int, ...] | None) -> Iterator[str]:
        with tempfile.TemporaryDirectory() as training, _held_to(cores):
            server = ServerProcess.start(
                bundles,
                training=Path(training),
                device=device,
                threads=len(cores) if cores is not None else None,
                allow=allow,
                plugins=["delta.bench.zero_method"],
                timeout_s=300.0,
                options=("--max-batch", "256", "--train-sessions", _SESSIONS),
            )
        with server:
            yield server.address

    return Launchers(cloud, _private)


def _private(job: PrivateJob, clients: int, told: Callable[[str], None]) -> list[list[Timed]]:
    """Run a job in so many processes to their ends; their rounds begin together.

    Raises:
        CloudError: one failed; the text is its last line.
    """
    from delta.bench.jobs import READY, timed_from_json

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        path = folder / "job.json"
        path.write_text(job.model_dump_json())
        processes = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-m", "delta_client.bench_latency", str(path)],
                    stdin=subprocess.PIPE,
                    stdout=stack.enter_context((folder / f"samples-{index}.json").open("wb")),
                    stderr=subprocess.PIPE,
                    env={**os.environ, "OMP_NUM_THREADS": str(job.threads)},
                    text=True,
                )
            )
            for index in range(clients)
        ]
        for process in processes:
            stack.callback(process.kill)  # no harm to one that has ended
        for process in processes:
            _follow(process, told, until=READY)
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in processes:
            _follow(process, told)
        return [
            timed_from_json(json.loads((folder / f"samples-{index}.json").read_text()))
            for index in range(clients)
        ]


def _follow(process: subprocess.Popen[str], told: Callable[[str], None], *, until: str | None = None) -> None:
    """Pass on what a process tells until it says a word, or until its end.

    Raises:
        CloudError: it ended before the word, or with another status than 0.
    """
    last = ""
    for line in process.stderr or ():
        last = line.strip()
        if last == until:
            return
        told(last)
    status = process.wait()
    if status or until is not None:
        said = last.removeprefix("error: ") or "it said nothing"
        how = f", signal {-status}" if status < 0 else ""
        raise CloudError(f"the private process failed{how}: {said}")


@contextmanager
def _held_to(cores: tuple[int, ...] | None) -> Iterator[None]:
    """What is started meanwhile is held to these cores."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(device: str) -> dict[str, Any]:
    """The machine of a benchmark."""
    import torch

    cuda = device.startswith("cuda")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "cloud_device": torch.cuda.get_device_name(torch.device(device)) if cuda else "cpu",
        "tee": "simulated",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
