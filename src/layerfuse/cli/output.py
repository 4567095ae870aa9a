"""Where what is said goes: results to standard output, notes and progress to standard error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from layerfuse.progress import Reporter

__all__ = ["finish", "print_json", "reporter"]


def reporter(quiet: bool, verbose: bool) -> Reporter:
    """Says everything on standard error, or nothing, or also what each step took.

    Raises
    ------
    ConfigError
        When both are asked for.
    """
    from layerfuse.errors import ConfigError
    from layerfuse.progress import SILENT
    from layerfuse.terminal import TerminalReporter

    if quiet and verbose:
        raise ConfigError("--quiet and --verbose go against each other. Give one of them.")
    return SILENT if quiet else TerminalReporter(verbose=verbose)


def finish(
    result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any], Any], None]
) -> None:
    """Print a command's result, for people or as one JSON object."""
    if as_json:
        print_json(result)
        return
    from layerfuse.terminal import console

    render(result, console())


def print_json(result: dict[str, Any]) -> None:
    """One object on one line; NaN is refused, which JSON does not have."""
    typer.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))
