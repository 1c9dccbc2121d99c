"""The worker processes of a sweep: one a point, each ended by its own id, and by itself if its starter is gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from delta.errors import ConfigError, InternalError
from delta.files import write_whole

if TYPE_CHECKING:
    from delta.frontier.cell import Cell

__all__ = ["Workers", "end_with_starter", "read_job"]

_GRACE_S = 10.0


class Workers:
    """Starts a process for each cell.

    Args:
        out: folder of the sweep.
        parallel: how many there are at a time; they share the cores.
        cards: numbers of GPUs that they take in turn; none: as the environment says.
        told: what they are at, a line each.
    """

    def __init__(
        self, out: Path, *, parallel: int, cards: Sequence[str], told: Callable[[str], None]
    ) -> None:
        self._out, self._cards, self._told = out, cards, told
        self._threads = max(1, len(os.sched_getaffinity(0)) // parallel)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def measure(self, cell: Cell, slot: int) -> None:
        """Measure a cell in a process, and wait for it.

        Raises:
            InternalError: it failed; the text is its last line.
        """
        from delta.frontier.cell import CellFolder

        folder = CellFolder(self._out, cell)
        job = {"folder": str(self._out), "cell": cell.model_dump(mode="json")}
        write_whole(folder.job, json.dumps(job).encode())
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        if self._cards:
            environment["CUDA_VISIBLE_DEVICES"] = self._cards[slot % len(self._cards)]
        with folder.log.open("w", encoding="utf-8") as log:
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-m", "delta.cli", "frontier-point", str(folder.job)],
                    stdin=subprocess.PIPE,  # held open: its end tells the worker that we are gone
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                )
                self._running.add(process)
            with process:
                try:
                    for line in process.stdout or ():
                        self._told(line.strip())
                    status = process.wait()
                except BaseException:  # Ctrl-C: leaving the block waits for its end
                    process.terminate()
                    raise
        with self._lock:
            self._running.discard(process)
        if status and not self._stopped:
            lines = folder.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
            how = f"ended by signal {-status}: " if status < 0 else ""
            raise InternalError(f"{how}{said} (log: {folder.log})")

    def stop(self) -> None:
        """End all workers; what they have stored stays."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def end_with_starter() -> None:
    """End this process, whatever it is at, when its standard input ends: its starter was killed.

    Checkpoints and figures are written whole or not at all, so that nothing is damaged.
    """

    def watch() -> None:
        # Not sys.stdin: its lock, held by this thread, would abort the interpreter when it ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="delta-frontier-starter", daemon=True).start()


def read_job(path: Path) -> tuple[Path, Cell]:
    """The folder of a sweep, and the cell to measure.

    Raises:
        ConfigError: the file is not what `Workers` writes.
    """
    from delta.frontier.cell import Cell

    try:
        job = json.loads(path.read_bytes())
        folder, cell = Path(job["folder"]), job["cell"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no job of delta frontier") from None
    return folder, Cell.parse(cell, what=f"job {path}")
