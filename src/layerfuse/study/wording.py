"""How numbers of the study are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONFIRMED",
    "REFINED",
    "REFUTED",
    "UNTESTED",
    "Claim",
    "count",
    "markdown",
    "p_text",
    "percent",
    "points",
    "set_name",
]

CONFIRMED, REFINED, REFUTED = "confirmed", "refined", "refuted"
UNTESTED = "not tested"

_SETS = {"mr": "MR", "sst2": "SST-2", "r8": "R8", "r52": "R52"}


@dataclass(frozen=True)
class Claim:
    """A published claim, what became of it, and the numbers that say so."""

    number: int
    statement: str
    outcome: str
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "statement": self.statement,
            "outcome": self.outcome,
            "evidence": " ".join(self.sentences),
        }


def set_name(dataset: str) -> str:
    return _SETS.get(dataset, dataset)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def points(found: Mapping[str, float]) -> str:
    """A difference of shares in points with its interval, such as ``+2.1 (+1.0 to +3.2)``."""
    value, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int, of: int, what: str) -> str:
    """Such as ``3 of 4 sets``."""
    return f"{n} of {of} {what}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table; the first ``left`` columns to the left, the others to the right."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows)]
