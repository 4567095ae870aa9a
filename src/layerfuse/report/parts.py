"""What sections are made of, and how numbers are written on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Figure", "Section", "Table", "interval", "percent", "plural", "points", "readable"]


@dataclass(frozen=True)
class Table:
    """Cells are texts; ``numeric`` columns are set to the right, ``wide`` ones hold running text.

    Rows above ``open_rows`` are folded away.
    """

    caption: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    wide: frozenset[int] = frozenset()
    open_rows: int = 12
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A chart with its title, what it says in words, and the numbers behind it.

    ``chart`` comes from `layerfuse.figures`; ``folded`` charts are drawn when they are opened.
    """

    id: str
    title: str
    summary: str
    chart: Any
    table: Table | None = None
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One question of a reader; ``lead`` are paragraphs, ``parts`` figures, tables and code."""

    id: str
    title: str
    lead: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    code: Mapping[str, str] = field(default_factory=dict)


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1, such as ``"94.5 %"``."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """Two shares in percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``"1 row"``, ``"1,200 rows"``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def readable(name: str) -> str:
    """A baseline's name as a person would write it; an encoder in brackets stays as it is."""
    known = {"tfidf": "TF-IDF + logistic", "majority": "most frequent label"}
    own, bracket, encoder = name.partition(" (")
    if own.startswith("first_"):  # the pipeline's own blocks, in the order of choosing
        return f"first {own.removeprefix('first_')} chosen"
    return known.get(own, own.replace("_", " ")) + bracket + encoder
