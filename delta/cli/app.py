"""The commands, and what becomes of an error: one line, the right exit code, never a stack trace."""

from __future__ import annotations

import os
import sys
import traceback

import click
import typer

from delta.cli import bench, demo, export, infer, plan, serve
from delta.cli.output import complain
from delta.errors import DeltaError, InternalError, spec_of

__all__ = ["app", "main"]

app = typer.Typer(
    name="delta",
    help="Split private inference between a private client and an untrusted cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("check")(plan.check)
app.command("serve")(serve.serve)
app.command("infer")(infer.infer)
app.command("export")(export.export)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of `delta` and `delta-split`."""
    try:
        status = app(standalone_mode=False)
    except DeltaError as error:
        complain(str(error))
        status = spec_of(error).exit_code
    except click.exceptions.Abort:
        complain("interrupted")
        status = 130
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        status = 130
    except BrokenPipeError:
        # The reader of our output has gone; what is left to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except MemoryError:
        complain("out of memory; use a smaller batch, image or model")
        status = spec_of(InternalError).exit_code
    except Exception as error:
        # A defect. The trace may hold private values, so it is shown only where it is asked for.
        if os.environ.get("DELTA_TRACEBACK") == "1":
            traceback.print_exc()
        complain(f"internal error ({type(error).__name__}); set DELTA_TRACEBACK=1 to see where, and report it")
        status = spec_of(InternalError).exit_code
    sys.exit(status if isinstance(status, int) else 0)
