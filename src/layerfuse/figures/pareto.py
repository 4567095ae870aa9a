"""Accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, percentages

__all__ = ["pareto"]

_NAME = (0.2, 0.06)  # about a name's width and height, as shares of the figure
_COSTS = {"ms": "time for one text, ms", "dims": "dimensions fused"}


def pareto(rows: Sequence[Row], *, by: str = "ms", height: int = 300) -> Chart:
    """Pipelines by cost (``ms`` or ``dims``) and accuracy, the best for each cost joined.

    ``rows`` have ``name``, ``blocks`` (a text), ``value``, ``low`` and ``high`` (shares from 0 to
    1, the interval possibly None), ``ms`` (for one text), ``memory_mb``, ``dims``, ``front`` (drawn
    filled) and ``ships``, true for the pipeline that was trained.
    """
    own = percentages(list(rows), "value", "low", "high")
    values = [
        row[name] for row in own for name in ("value", "low", "high") if row[name] is not None
    ]
    costs = [row[by] for row in own]
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X(f"{by}:Q")
        .title(_COSTS[by])
        .axis(tickCount=6)
        .scale(domain=_around(costs), zero=False, nice=True, padding=24),
        tooltip=[
            alt.Tooltip("name:N", title="pipeline"),
            alt.Tooltip("blocks:N", title="blocks"),
            alt.Tooltip("value:Q", title="accuracy, %", format=".1f"),
            alt.Tooltip("low:Q", title="low", format=".1f"),
            alt.Tooltip("high:Q", title="high", format=".1f"),
            alt.Tooltip("ms:Q", title="ms a text", format=".2f"),
            alt.Tooltip("memory_mb:Q", title="memory, MB", format=".0f"),
            alt.Tooltip("dims:Q", title="dimensions"),
        ],
    )
    title = "nested accuracy, % of rows"
    scale = alt.Scale(domain=[min(values), max(values)], zero=False, nice=True)
    points = base.encode(y=alt.Y("value:Q").title(title).scale(scale))
    best = -1.0
    for row in sorted(own, key=lambda row: (row[by], -row["value"])):
        row["leads"] = row["value"] > best  # than all that cost no more
        best = max(best, row["value"])
    _label(own, by, max(values) - min(values))
    others = [
        points.transform_filter(f"!datum.ships && {kind}datum.front").mark_point(
            style="plain", filled=filled, size=80, opacity=1, strokeWidth=2
        )
        for kind, filled in (("", True), ("!", False))
        if any(row["front"] == filled and not row["ships"] for row in own)
    ]
    middle = sum(_around(costs)) / 2
    names = points.transform_filter("datum.labelled").encode(text="name:N")
    labels = [
        names.transform_filter(f"datum.{by} >= {middle}").mark_text(
            style="label", align="right", dx=-12, dy=-9, aria=False
        ),
        names.transform_filter(f"datum.{by} < {middle}").mark_text(
            style="label", align="left", dx=12, dy=-9, aria=False
        ),
    ]
    layered: Chart = alt.layer(
        base.mark_rule(style="interval", strokeWidth=1.5, opacity=0.5).encode(
            y=alt.Y("low:Q").title(title).scale(scale), y2="high:Q"
        ),
        points.transform_filter("datum.leads").mark_line(
            style="plain", interpolate="step-after", strokeDash=[5, 3]
        ),
        *others,
        points.transform_filter("datum.ships").mark_point(
            style="chosen", filled=True, shape="diamond", size=200, opacity=1
        ),
        *labels,
    ).properties(width="container", height=height)
    return layered


def _label(rows: list[Row], by: str, tall: float) -> None:
    """Mark those that get a name: what ships and what leads, unless names would overlap."""
    low, high = _around([row[by] for row in rows])
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: not row["ships"]):
        free = not any(
            abs(row[by] - other[by]) < _NAME[0] * (high - low)
            and abs(row["value"] - other["value"]) < _NAME[1] * tall
            for other in kept
        )
        row["labelled"] = row["ships"] or (row["leads"] and free)
        if row["labelled"]:
            kept.append(row)


def _around(costs: Sequence[float]) -> list[float]:
    """Ends of an axis that holds all of them, even where they are one."""
    low, high = min(costs), max(costs)
    return [low, high] if high > low else [0.5 * low, 1.5 * low or 1.0]
