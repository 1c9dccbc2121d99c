"""Commands to be killed: `python -m tests.command_target` runs each in a fork of a process that has imported torch.

Each line of standard input is a request, the fields of `Request`. The child's standard error is this process's
output, line by line; between marks, its process id comes first and its exit status last.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.commands import Outcome

MARK = "\x01"
POINTS = ("replace", "replaced", "sync")
"""Of a write, at which a command can kill itself."""
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Request:
    """A command to run.

    Attributes:
        arguments: of `delta`.
        out: file that its standard output goes to.
        die: the call at which it kills itself, as of `tests.kill_target.arm`; none for never.
        die_before: a pattern of paths: it kills itself before it puts the first such file in its place.
        file_bytes: beyond which no file of its grows: a full disk; none for no limit.
        env: variables beside this process's.
    """

    arguments: list[str]
    out: str
    die: tuple[str, int] | None = None
    die_before: str | None = None
    file_bytes: int | None = None
    env: dict[str, str] = field(default_factory=dict)


class Commands:
    """A running target; runs one command at a time."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(
        self,
        *arguments: object,
        die: tuple[str, int] | None = None,
        die_before: str | None = None,
        file_bytes: int | None = None,
        env: Mapping[str, str] | None = None,
        told: Callable[[int, str], None] = lambda pid, line: None,
    ) -> Outcome:
        """Run a command to its end.

        Args:
            arguments: of `delta`.
            die: see `Request`.
            die_before: likewise.
            file_bytes: likewise.
            env: likewise.
            told: given the process id and each line of standard error as it comes.

        Returns:
            Its exit status, negative for a signal, and what it wrote.
        """
        out = self._folder / "out"
        texts = [str(part) for part in arguments]
        request = Request(texts, str(out), die, die_before, file_bytes, dict(env or {}))
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        pid, lines = 0, []
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == f"{MARK}pid":
                pid = int(rest)
            elif word == f"{MARK}ended":
                return Outcome(int(rest), out.read_text(), "".join(lines))
            else:
                lines.append(line)
                told(pid, line.strip())
        raise AssertionError("the target ended before its child did")


@contextmanager
def commands() -> Iterator[Commands]:
    """A target, ended afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.command_target"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, tempfile.TemporaryDirectory() as folder:
        yield Commands(process, Path(folder))
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def killing(beginning: str) -> Callable[[int, str], None]:
    """A listener that kills the command by SIGKILL at a line that begins so."""

    def told(pid: int, line: str) -> None:
        if line.startswith(beginning):
            with suppress(ProcessLookupError):  # it was killed at the line before
                os.kill(pid, signal.SIGKILL)

    return told


def _arm_before(pattern: str) -> None:
    replace = os.replace

    def replacing(source: Any, target: Any) -> None:
        if re.search(pattern, str(target)):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replacing


def _carry_out(request: Request) -> None:
    from delta.cli.app import main
    from tests.kill_target import arm

    os.environ |= request.env
    os.dup2(1, 2)
    os.dup2(os.open(request.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
    if request.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.file_bytes, resource.RLIM_INFINITY))
    if request.die is not None:
        arm(*request.die)
    if request.die_before is not None:
        _arm_before(request.die_before)
    try:
        main(request.arguments)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(ended.code or 0))


def _say(*words: object) -> None:
    os.write(1, (MARK + " ".join(str(word) for word in words) + "\n").encode())


def main() -> None:
    """Carry out what is asked for, until standard input ends."""
    _import_all()
    for line in sys.stdin:
        request = Request(**json.loads(line))
        child = os.fork()  # torch is imported, and has started no thread yet
        if child == 0:
            _say("pid", os.getpid())
            _carry_out(request)
        _, status = os.waitpid(child, 0)
        _say("ended", os.waitstatus_to_exitcode(status))


def _import_all(
    modules: Sequence[str] = ("torch", "torch._dynamo", "delta_client", "delta_server.launch"),
) -> None:
    import importlib

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for name in (*modules, "delta.training.run", "delta.training.report", "delta.data.load"):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
