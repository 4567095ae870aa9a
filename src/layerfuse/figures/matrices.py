"""Tables of numbers as colours: complementarity of blocks, confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from layerfuse.figures.theme import Chart, Row

__all__ = ["confusion", "heat_map"]

_MIDDLE = 0.55  # of the colour scale, above which text in a cell is written in the ground's colour


def heat_map(
    rows: Sequence[Row], names: Sequence[str], *, measure: str, text_format: str = ".2f"
) -> Chart:
    """A symmetric measure of pairs; ``rows`` have ``a``, ``b``, ``value`` and a text ``detail``."""
    own = [dict(row) for row in rows]
    axis: dict[str, Any] = {
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelPadding": 6,
        "labelLimit": 170,
    }
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("a:N", sort=list(names)).title(None).axis(**axis, labelAngle=-40),
        y=alt.Y("b:N", sort=list(names)).title(None).axis(**axis),
        tooltip=[
            alt.Tooltip("a:N", title="block"),
            alt.Tooltip("b:N", title="with"),
            alt.Tooltip("value:Q", title=measure, format=text_format),
            alt.Tooltip("detail:N", title="more"),
        ],
    )
    colour = alt.Color("value:Q", title=measure, legend=alt.Legend(gradientLength=160))
    layers = [base.mark_rect(style="tile").encode(color=colour), *_numbers(own, base, text_format)]
    layered: Chart = alt.layer(*layers).properties(width="container", height=46 * len(names) + 10)
    return layered


def confusion(rows: Sequence[Row], names: Sequence[str], *, numbers: bool = True) -> Chart:
    """Rows are true classes, columns predicted ones, colour the share of the true class.

    ``rows`` have ``truth``, ``predicted``, ``count`` and ``share`` (0 to 1 of the true class) for
    the cells to draw; an empty cell may be left out. ``numbers`` writes the counts into the cells;
    without them cells are small and of one size whatever the space.
    """
    own = [dict(row) | {"value": row["share"]} for row in rows]
    size = 34 if numbers else 13
    axis: dict[str, Any] = {
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelPadding": 5,
        "labelOverlap": False,
        "labelFontSize": 12 if numbers else 10,
        "labelLimit": 120,
    }
    names = list(names)
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("predicted:N", sort=names)
        .title("predicted class")
        .scale(domain=names)
        .axis(**axis, labelAngle=-45 if numbers else -90),
        y=alt.Y("truth:N", sort=names).title("true class").scale(domain=names).axis(**axis),
        tooltip=[
            alt.Tooltip("truth:N", title="true class"),
            alt.Tooltip("predicted:N", title="predicted"),
            alt.Tooltip("count:Q", title="rows"),
            alt.Tooltip("share:Q", title="of the true class", format=".1%"),
        ],
    )
    colour = alt.Color(
        "value:Q",
        title="share of the true class",
        scale=alt.Scale(domain=[0, 1]),
        legend=alt.Legend(format=".0%", gradientLength=160),
    )
    layers = [base.mark_rect(style="tile").encode(color=colour)]
    if numbers:
        layers += _numbers(own, base.transform_filter("datum.count > 0"), "d", "count")
    layered: Chart = alt.layer(*layers).properties(
        width="container" if numbers else size * len(names),
        height=max(size * len(names), 120),
    )
    return layered


def _numbers(
    own: Sequence[Row], base: alt.Chart, text_format: str, name: str = "value"
) -> list[alt.Chart]:
    """The cells' numbers, in ink on pale cells and in the ground's colour on dark ones."""
    values = [row["value"] for row in own if row["value"] is not None]
    low, high = (0.0, 1.0) if name == "count" else (min(values), max(values))
    middle = low + _MIDDLE * (high - low)
    text = alt.Text(f"{name}:Q", format=text_format)
    return [
        base.transform_filter(f"datum.value <= {middle}")
        .mark_text(style="label", aria=False)
        .encode(text),
        base.transform_filter(f"datum.value > {middle}")
        .mark_text(style="on-mark", aria=False)
        .encode(text),
    ]
