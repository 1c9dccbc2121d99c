"""Start a server as a process of its own, and stop it again."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from delta.errors import CloudUnavailableError

__all__ = ["EchoProcess", "ServerProcess"]

_READY = " listening on "


class ServerProcess:
    """A running `python -m delta_server` on a free port of this machine; a context manager.

    It drains and ends when this process does, however that ends: its standard input is a pipe from here.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self._told = False
        self.address = address

    @classmethod
    def start(
        cls,
        bundle_dir: Path | Sequence[Path] = (),
        *,
        training: Path | None = None,
        train_workers: int | None = None,
        allow: Sequence[str] = (),
        plugins: Sequence[str] = (),
        device: str = "cpu",
        threads: int | None = None,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        timeout_s: float = 60.0,
        options: Sequence[str] = (),
    ) -> Self:
        """Start a server and wait until it listens.

        Args:
            bundle_dir: one bundle, or several; none for a server that only trains.
            training: folder of the store; none for a server that does not train.
            train_workers: processes of one training job.
            allow: import targets that a manifest or a job may name.
            plugins: modules that register methods.
            device: `cpu` or `cuda`.
            threads: of torch; none for its own choice.
            env: variables beside this process's.
            log_path: where its log goes; none for a temporary file.
            timeout_s: how long it may take, seconds.
            options: further arguments, such as `--max-batch 8`.

        Raises:
            CloudUnavailableError: it ended or did not listen in time; the text is its last line of log.
        """
        bundles = [bundle_dir] if isinstance(bundle_dir, Path) else list(bundle_dir)
        command = [sys.executable, "-m", "delta_server", "--listen", "127.0.0.1:0", "--device", device]
        command.append("--stop-on-stdin")
        command += [part for bundle in bundles for part in ("--bundle", str(bundle))]
        command += ["--training", str(training)] if training is not None else []
        command += ["--train-workers", str(train_workers)] if train_workers is not None else []
        command += [part for target in allow for part in ("--allow", target)]
        command += [part for module in plugins for part in ("--plugin", module)]
        command += ["--threads", str(threads)] if threads is not None else []
        return cls._spawn([*command, *options], env=env, log_path=log_path, timeout_s=timeout_s)

    @classmethod
    def _spawn(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        timeout_s: float = 60.0,
    ) -> Self:
        log: IO[bytes] = tempfile.TemporaryFile() if log_path is None else log_path.open("w+b")  # noqa: SIM115
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(env or {})},
        )
        server = cls(process, "", log)
        try:
            line = server._first_line(timeout_s)
        except BaseException:
            server.stop()
            raise
        server.address = line.partition(_READY)[2].split(" ", 1)[0]
        return server

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status; none while it runs."""
        return self._process.poll()

    def log_text(self) -> str:
        """What it has logged."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def terminate(self) -> None:
        """Ask it to drain (SIGTERM) and return at once; it is asked once."""
        if self._process.poll() is None and not self._told:
            self._told = True  # a second signal might meet a process that is past handling any
            self._process.terminate()

    def stop(self, *, grace_s: float = 30.0) -> int:
        """Drain it, kill it after `grace_s`; returns the exit status. Idempotent."""
        self.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()
        return self._process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _first_line(self, timeout_s: float) -> str:
        """The ready line, read as it comes."""
        deadline = time.monotonic() + timeout_s
        stdout = self._process.stdout
        if stdout is None:
            raise CloudUnavailableError("the server has no standard output")
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise CloudUnavailableError(f"the server did not listen within {timeout_s:g} s")
                piece = os.read(stdout.fileno(), 4096)
                if not piece:
                    self._process.wait()
                    raise CloudUnavailableError(
                        f"the server ended with status {self._process.returncode}: {self._last_line()}"
                    )
                data += piece
        return data.decode().strip()

    def _last_line(self) -> str:
        lines = self.log_text().strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"


class EchoProcess(ServerProcess):
    """A running `python -m delta_server.bench_echo`: the bare echo that benchmarks compare with."""

    @classmethod
    def launch(cls) -> Self:
        """Start an echo and wait until it listens."""
        return cls._spawn([sys.executable, "-m", "delta_server.bench_echo"])
