"""Markdown tables, and how numbers in them are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SETS = {"mr": "MR", "sst2": "SST-2", "r8": "R8", "r52": "R52"}


def set_name(dataset: str) -> str:
    return SETS.get(dataset, dataset)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
) -> list[str]:
    """Lines of a table; the first ``left`` columns are aligned left, the others right."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]
