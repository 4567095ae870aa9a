"""How numbers and names are written, in the terminal and on the page alike."""

from __future__ import annotations

_BASELINES = {
    "pipeline": "layerfuse",
    "majority": "most frequent label",
    "tfidf": "TF-IDF + logistic",
}
_PER_ENCODER = ("last_layer", "last_four")  # baselines that each encoder has


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1, such as ``"94.5%"``; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """Two shares in percent, such as ``"93.1 to 95.6"``."""
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign, such as ``"−1.2"``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def points_interval(low: float, high: float) -> str:
    """Two differences of shares in percentage points."""
    return f"{points(low)} to {points(high)}"


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``"1 row"``, ``"1,200 rows"``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def baseline_name(name: str, encoder: str | None = None) -> str:
    """A baseline's display name, with its encoder where each encoder has one of that name.

    An encoder that ``name`` holds in brackets already stays as it is.
    """
    own, bracket, rest = name.partition(" (")
    if own.startswith("first_"):  # the pipeline's own blocks, in the order of selection
        return f"first {own.removeprefix('first_')} selected"
    shown = _BASELINES.get(own, own.replace("_", " ")) + bracket + rest
    return f"{shown} ({encoder})" if encoder is not None and name in _PER_ENCODER else shown
