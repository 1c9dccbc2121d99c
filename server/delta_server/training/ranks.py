"""The processes of one job on this machine: one, or several that train together. All end when one of them dies.

Several are started here, not through torchrun's launcher: its agents meet at a port of every interface, and
unpickle what they find there. Ours meet in a file, and talk over the loopback interface only.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from delta.training.world import RENDEZVOUS

__all__ = ["Ranks"]

_LOOPBACK = "lo"
_PREFIX = "rendezvous-"  # of folders in a job's, which nobody else may enter
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", RENDEZVOUS)
_GRACE_S = 5.0  # a process that was told to end, or whose first one is done, and that has not ended is killed
_LOOK_S = 0.1


class Ranks:
    """Started processes, the first of which leads; each has a pipe of the server as its standard input.

    Args:
        processes: as started, by rank.
        meeting: folder in which they find each other; none for one alone.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], meeting: Path | None) -> None:
        self._processes = processes
        self._meeting = meeting
        self._watch: asyncio.Task[int] | None = None

    @classmethod
    def start(cls, command: Sequence[str], folder: Path, *, size: int) -> Self:
        """Start a command so many times.

        Args:
            command: our own interpreter and module.
            folder: of the job.
            size: how many processes.

        Raises:
            OSError: the system starts no more processes, or the folder cannot be written.
        """
        env = {name: value for name, value in os.environ.items() if name not in _TORCHRUN}
        # What makes cuBLAS give the same numbers again; it is read once, when the device is first used.
        env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _clear(folder)  # what a server that was killed has left
        meeting: Path | None = None
        if size > 1:
            meeting = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
            env |= {RENDEZVOUS: str(meeting / "store"), "WORLD_SIZE": str(size)}
            env |= {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
            # They share the cores; each would take all of them.
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
        started: list[subprocess.Popen[bytes]] = []
        ranks = cls(started, meeting)
        try:
            for rank in range(size):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                    bufsize=0,
                    env={**env, **own},
                    start_new_session=True,  # an interrupt at the terminal is the server's to handle
                )
                started.append(process)
        except BaseException:
            ranks.kill()
            ranks.close()
            raise
        return ranks

    @property
    def leader(self) -> subprocess.Popen[bytes]:
        """The process of rank 0, whose standard output the server reads."""
        return self._processes[0]

    @property
    def pids(self) -> list[int]:
        """Of all processes, by rank."""
        return [process.pid for process in self._processes]

    def watch(self) -> None:
        """End all from now on once one dies; on the event loop."""
        if len(self._processes) > 1:
            self._watch = asyncio.create_task(self._together())

    async def ended(self) -> int:
        """Wait for the end of all; the exit status, negative for a signal, of the one that died first."""
        if self._watch is None:
            return await asyncio.to_thread(self.leader.wait)
        return await asyncio.shield(self._watch)

    async def stop(self) -> int:
        """End all, kindly at first; returns the exit status of the first rank. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
        for process in self._processes:
            process.terminate()  # no harm to one that has ended
        await asyncio.to_thread(self._reap)
        return self.leader.returncode

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Close their standard inputs and remove where they met."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        if self._meeting is not None:
            shutil.rmtree(self._meeting, ignore_errors=True)

    async def _together(self) -> int:
        late = float("inf")
        while True:
            statuses = [process.poll() for process in self._processes]
            died = [status for status in statuses if status]
            if None not in statuses and not died:
                return 0
            if statuses[0] == 0:  # nothing is left to do for the others
                late = min(late, time.monotonic() + _GRACE_S)
            if died or time.monotonic() >= late:
                await asyncio.to_thread(self.kill)
                # Whoever a signal ended came first: the others fail for want of it.
                return min(died, default=0)
            await asyncio.sleep(_LOOK_S)

    def _reap(self) -> None:
        end = time.monotonic() + _GRACE_S
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        self.kill()


def _clear(folder: Path) -> None:
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
