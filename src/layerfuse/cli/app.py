"""The application: its commands, its exit codes, and what is said when something goes wrong."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated

import typer

from layerfuse import __version__
from layerfuse.cli import keeping, running
from layerfuse.cli.options import PLAIN
from layerfuse.errors import LayerfuseError, is_out_of_memory

__all__ = ["main"]

_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it

_RESUMED = {"fit", "profile", "compare", "curve", "demo"}  # their embeddings go to the store

_app = typer.Typer(
    add_completion=False,
    help="Find, fuse and ship the layers of frozen language models that classify your texts best.",
    **PLAIN,
)
for _command in (
    running.fit,
    running.profile,
    running.compare,
    running.curve,
    running.predict,
    running.evaluate,
    running.report,
    running.demo,
):
    _app.command()(_command)
_app.add_typer(keeping.models, name="models")
_app.add_typer(keeping.datasets, name="datasets")
_app.add_typer(keeping.store, name="store")


@_app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"layerfuse {__version__}")
        raise typer.Exit


def main() -> int:
    """Run the command line; 0 on success, 2 on a user's mistake, 1 on an internal fault."""
    try:
        # the code of a typer.Exit inside a command is returned, not raised; Ctrl-C is 130
        code = int(_app(standalone_mode=False, prog_name="layerfuse") or 0)
    except LayerfuseError as error:
        typer.echo(f"layerfuse: {error}", err=True)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader has gone (`| head`), which typer and rich answer with SystemExit. What is still
        # buffered goes nowhere, so that Python does not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        if is_out_of_memory(error):
            typer.echo(
                "layerfuse: there is no memory left. Read fewer --layers, poolings or encoders, "
                "use part of the rows with --sample, or a machine with more memory.\n"
                "Finished embeddings are kept.",
                err=True,
            )
            return 2
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own errors
            error.show()
            return 2
        if os.environ.get("LAYERFUSE_TRACEBACK") or {"--verbose", "-v"} & set(sys.argv):
            raise
        typer.echo(
            f"layerfuse: internal fault, {type(error).__name__}: {error}\n"
            "This should not happen. --verbose (or LAYERFUSE_TRACEBACK=1) shows where it did.",
            err=True,
        )
        return 1
    if code == _INTERRUPTED:
        arguments = sys.argv[1:]
        resumes = bool(_RESUMED & set(arguments[:1]))
        kept = "What is stored is kept. To go on:" if resumes else "To start again:"
        typer.echo(
            f"layerfuse: interrupted. {kept}\n  {shlex.join(['layerfuse', *arguments])}", err=True
        )
    return code
