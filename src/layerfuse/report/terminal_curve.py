"""What ``curve`` tells a person in the terminal, from the same data that ``--json`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from layerfuse.report.terminal_rows import percent, plain_table

__all__ = ["render_curve"]

_WIDTH = 80  # columns of a terminal that nobody has widened


def render_curve(result: Mapping[str, Any], out: Console) -> None:
    """The verdict, the table by number of labels, and what its intervals cover."""
    out.print(Text.assemble(("Verdict: ", "bold"), result["verdict"]["sentence"]), width=_WIDTH)
    out.print()
    rows = "test rows" if result["measured_on"] == "test" else result["measured_on"]
    table = plain_table(f"Accuracy on {result['n_test']:,} {rows}, in %")
    for name in ("labels", "share", "last layer", "best block", "fusion", "fusion minus last"):
        table.add_column(name, justify="right")
    for point in result["points"]:
        gain = point["gain"]
        value, low, high = (100 * gain[key] for key in ("value", "low", "high"))
        table.add_row(
            f"{point['n_rows']:,}",
            f"{100 * point['n_rows'] / result['n_train']:.3g} %",
            *(percent(point[way]["value"]) for way in ("last_layer", "best_block", "fusion")),
            f"{value:+.1f} ({low:+.1f} to {high:+.1f})",
        )
    out.print(table, width=_WIDTH)
    counts = [point["repeats"] for point in result["points"]]
    draws = f"{max(counts)} draw{'s' if max(counts) > 1 else ''}"
    if counts[-1] < max(counts):
        draws += " (one of all labels)"
    out.print(
        f"Means over {draws}; in brackets 95 % intervals over test rows and draws. Blocks, fusion "
        "and penalties are chosen anew from the labels of each draw.",
        width=_WIDTH,
    )
