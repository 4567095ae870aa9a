"""``python docs/reference.py``: write cli.md from the program; with ``--check`` only compare."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from layerfuse.cli.app import _app

_PAGE = Path(__file__).parent / "cli.md"
_WIDTH = 88  # columns of the help texts

_HEAD = """\
<!-- Written by `python docs/reference.py` from the program; do not edit. -->

# Command line

What each command says with `--help`. All exit with 0 on success, with 2 on a mistake (the message
says what to do), with 1 on an internal fault, and with 130 after Ctrl-C. Results go to standard
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
    return _HEAD + "".join(_sections(get_command(_app), "layerfuse"))


def _sections(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for own, child in command.commands.items():
            yield from _sections(child, f"{name} {own}")
        return
    settings = {"terminal_width": _WIDTH, "max_content_width": _WIDTH}
    with command.make_context(name, [], resilient_parsing=True, **settings) as context:
        text = command.get_help(context).strip()
    lines = (line.rstrip() for line in text.splitlines())
    yield f"\n## {name}\n\n```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
