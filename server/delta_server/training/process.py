"""A worker process of the server: it ends when the server does, however that ends."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from delta_server.config import ServerConfig

__all__ = ["FRAME", "Worker"]

FRAME = struct.Struct("<I")
"""Length of a message that follows, between the server and an interactive worker."""

_LINE_BYTES = 1 << 16
_GRACE_S = 5.0  # a process that was told to end and has not is killed


class Worker:
    """A running module of this package, its standard input and output pipes of the server.

    Not a process of asyncio's: uvloop now and then loses the pipes of one that is started beside gRPC's threads.

    Args:
        process: as started.
        output: what it writes.
        transport: that reads it.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], output: asyncio.StreamReader, transport: asyncio.BaseTransport
    ) -> None:
        self._process = process
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
            processes: how many of it, joined by torchrun.
            options: further arguments.

        Raises:
            OSError: the system starts no more processes.
        """
        command = [sys.executable]
        env = {**os.environ}
        # What makes cuBLAS give the same numbers again; it is read once, when the device is first used.
        env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            if config.device == "cpu":
                env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        command += ["-m", f"delta_server.training.{module}", "--job", str(folder), "--device", config.device]
        command += ["--threads", str(config.threads)] if config.threads is not None else []
        command += [part for target in sorted(config.allow) for part in ("--allow", target)]
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=env,
            start_new_session=True,  # an interrupt at the terminal is the server's to handle
        )
        output = asyncio.StreamReader(limit=_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(output)
        try:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_read_pipe(lambda: protocol, process.stdout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return cls(process, output, transport)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

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
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                await asyncio.to_thread(process.wait, _GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        status = await asyncio.to_thread(process.wait)
        await asyncio.to_thread(self._close)
        self._transport.close()
        return status

    async def ended(self) -> int:
        """Its exit status; of a process whose output has ended, or that is about to end."""
        return await asyncio.to_thread(self._process.wait)

    def _write(self, data: bytes) -> None:
        stdin, rest = self._process.stdin, memoryview(data)
        with self._writing:
            try:
                while stdin is not None and not stdin.closed and rest:
                    rest = rest[stdin.write(rest) :]
            except OSError:  # it has ended
                return

    def _close(self) -> None:
        """End its input, with which every process of torchrun ends, too."""
        with self._writing:
            if self._process.stdin is not None:
                self._process.stdin.close()
