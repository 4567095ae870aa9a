"""``python docs/reference.py``: write cli.md from the program; with ``--check`` only compare."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App
from rich.console import Console

from layerfuse.cli.commands import app

_PAGE = Path(__file__).parent / "cli.md"
_WIDTH = 88  # columns of the help texts

_HEAD = """\
<!-- Written by `python docs/reference.py` from the program; do not edit. -->

# Command line

What each command says with `--help`. All exit with 0 on success, with 2 on a mistake (the message
says what to do), with 1 on an internal error, and with 130 after Ctrl-C. Results go to standard
output, notes and progress to standard error.
"""


def main(arguments: list[str]) -> int:
    page = make_page()
    if "--check" not in arguments:
        _PAGE.write_text(page, encoding="utf-8")
    elif not _PAGE.exists() or _PAGE.read_text(encoding="utf-8") != page:
        print("docs/cli.md differs from the program; run: python docs/reference.py")
        return 1
    return 0


def make_page() -> str:
    """The whole page, one section for each command."""
    return _HEAD + "".join(_section(words) for words in _commands(app))


def _commands(group: App, *words: str) -> Iterator[tuple[str, ...]]:
    for name in group:
        if name.startswith("-"):
            continue
        command = group[name]
        if command.default_command is None:
            yield from _commands(command, *words, name)
        else:
            yield (*words, name)


def _section(words: tuple[str, ...]) -> str:
    out = io.StringIO()
    app.help_print(words, console=Console(file=out, width=_WIDTH, color_system=None))
    text = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
    return f"\n## layerfuse {' '.join(words)}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
