"""What ``reproduce`` tells a person in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["render_study"]

_WIDTH = 80


def render_study(result: Mapping[str, Any], out: Console) -> None:
    """Each claim with what became of it, what was skipped, and where the rest is."""
    for claim in result["claims"]:
        head = (f"{claim['number']}. {claim['statement']} {claim['outcome'].capitalize()}.", "bold")
        out.print(Text.assemble(head, f" {claim['evidence']}"), width=_WIDTH)
        out.print()
    for name, reason in result["skipped"].items():
        out.print(f"skipped: {name}: {reason}", width=_WIDTH)
    seconds = result["seconds"]
    made = len(seconds) - 2
    out.print(
        f"{made} units measured and {result['reused_units']} found in {result['out']}, in "
        f"{seconds['all']:.0f} s; read {result['out']}/summary.md",
        soft_wrap=True,
    )
