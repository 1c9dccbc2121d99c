"""A worker process of the server: it ends when the server does, however that ends."""

from __future__ import annotations

import asyncio
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from delta_server.config import ServerConfig
from delta_server.training.ranks import Ranks

__all__ = ["FRAME", "Worker"]

FRAME = struct.Struct("<I")
"""Length of a message that follows, between the server and an interactive worker."""

_LINE_BYTES = 1 << 16


class Worker:
    """A running module of this package, its standard input and output pipes of the server.

    Not a process of asyncio's: uvloop now and then loses the pipes of one that is started beside gRPC's threads.

    Args:
        ranks: as started.
        output: what the first of them writes.
        transport: that reads it.
    """

    def __init__(self, ranks: Ranks, output: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self._ranks = ranks
        self._output = output
        self._transport = transport
        self._writing = threading.Lock()

    @classmethod
    async def start(
        cls,
        module: str,
        folder: Path,
        config: ServerConfig,
        *,
        processes: int = 1,
        options: Sequence[str] = (),
    ) -> Self:
        """Start `python -m delta_server.training.<module>` on a job's folder.

        Args:
            module: name of the module.
            folder: of the job.
            config: device, threads and allowed targets.
            processes: how many of it, which train together.
            options: further arguments.

        Raises:
            OSError: the system starts no more processes, or lets none meet in the job's folder.
        """
        command = [sys.executable, "-m", f"delta_server.training.{module}"]
        command += ["--job", str(folder), "--device", config.device]
        command += ["--threads", str(config.threads)] if config.threads is not None else []
        if config.train_memory is not None and config.device == "cpu":  # CUDA maps far more than it uses
            command += ["--memory", str(config.train_memory)]
        command += [part for target in sorted(config.allow) for part in ("--allow", target)]
        ranks = Ranks.start([*command, *options], folder, size=processes)
        output = asyncio.StreamReader(limit=_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(output)
        try:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_read_pipe(lambda: protocol, ranks.leader.stdout)
        except BaseException:
            ranks.kill()
            ranks.close()
            raise
        ranks.watch()
        return cls(ranks, output, transport)

    @property
    def pids(self) -> list[int]:
        """Of the processes; the first one's is the one that tells."""
        return self._ranks.pids

    async def line(self) -> bytes:
        """The next line that it writes; empty at its end."""
        try:
            return await self._output.readline()
        except ValueError:  # longer than any line of ours
            return b"\n"

    async def send(self, message: bytes) -> None:
        """Send a message; to a process that has ended it goes nowhere."""
        await asyncio.to_thread(self._write, FRAME.pack(len(message)) + message)

    async def message(self) -> bytes | None:
        """The next message that it sends; none once it has ended."""
        try:
            (length,) = FRAME.unpack(await self._output.readexactly(FRAME.size))
            return await self._output.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def stop(self) -> int:
        """End it, kindly at first; returns its exit status, negative for a signal. Idempotent."""
        status = await self._ranks.stop()
        await asyncio.to_thread(self._close)
        self._transport.close()
        return status

    async def ended(self) -> int:
        """Its exit status; of a process whose output has ended, or that is about to end."""
        return await self._ranks.ended()

    def _write(self, data: bytes) -> None:
        stdin, rest = self._ranks.leader.stdin, memoryview(data)
        with self._writing:
            try:
                while stdin is not None and not stdin.closed and rest:
                    rest = rest[stdin.write(rest) :]
            except OSError:  # it has ended
                return

    def _close(self) -> None:
        with self._writing:
            self._ranks.close()
