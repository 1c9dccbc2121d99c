"""The commands, and what becomes of an error: one line, the right exit code, never a stack trace."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, ParamSpec, cast

import typer

from delta.cli import (
    attack,
    audit,
    bench,
    bench_latency,
    bench_scale,
    choose,
    convert,
    demo,
    export,
    frontier,
    infer,
    ledger,
    methods,
    plan,
    report,
    serve,
    train,
)
from delta.cli.output import complain
from delta.errors import ConfigError, DeltaError, InternalError, spec_of

__all__ = ["app", "main"]

P = ParamSpec("P")


def _guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors become one line on standard error and the exit code of the catalog."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except DeltaError as error:
            _fail(str(error), spec_of(error).exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            # The reader of our output has gone; what is left to flush goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except MemoryError:
            _fail("out of memory; use a smaller batch, image or model", spec_of(InternalError).exit_code)
        except typer.Exit:
            raise
        except Exception as error:
            # A defect. Its text and trace may hold private values: they are shown only where asked for.
            if os.environ.get("DELTA_TRACEBACK") == "1":
                traceback.print_exc()
            kind = type(error).__name__
            _fail(
                f"internal error ({kind}); set DELTA_TRACEBACK=1 to see where, and report it",
                spec_of(InternalError).exit_code,
            )

    return run


def _fail(message: str, code: int) -> None:
    complain(message)
    raise typer.Exit(code)


app = typer.Typer(
    name="delta",
    help="Split private inference between a private client and an untrusted cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    demo.demo, plan.plan, plan.check, methods.methods, convert.convert, train.train, serve.serve, infer.infer,
    export.export, attack.attack, audit.audit, report.report,
):  # fmt: skip
    app.command(command.__name__)(_guarded(command))
app.command("frontier")(_guarded(frontier.frontier))
app.command("frontier-point", hidden=True)(_guarded(frontier.frontier_point))
app.command("choose")(_guarded(choose.choose))
_bench = typer.Typer(help="Measure Delta on this machine.", no_args_is_help=True)
_bench.command("micro")(_guarded(bench.micro))
_bench.command("latency")(_guarded(bench_latency.latency))
_bench.command("scale")(_guarded(bench_scale.scale))
app.add_typer(_bench, name="bench")
_ledger = typer.Typer(help="Show, export and join privacy ledgers.", no_args_is_help=True)
_ledger.command("show")(_guarded(ledger.show))
_ledger.command("export")(_guarded(ledger.export))
_ledger.command("replay")(_guarded(ledger.replay))
app.add_typer(_ledger, name="ledger")


_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])
"""The base of wrong options and arguments: typer brings it, and does not export it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `delta` and `delta-split`.

    Args:
        arguments: of the command; none for those of the process.
    """
    # gRPC's core writes lines of its own to standard error; it reads this when it is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    name = "delta-split" if Path(sys.argv[0]).name == "delta-split" else "delta"
    try:
        code = app(args=arguments, prog_name=name, standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # the help itself
        else:
            where = error.ctx.command_path if error.ctx is not None else name
            complain(f"{error.format_message().rstrip('.')}; see: {where} --help")
        code = spec_of(ConfigError).exit_code
    sys.exit(code or 0)
