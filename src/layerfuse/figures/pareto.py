"""Accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, percentages

__all__ = ["pareto"]


def pareto(rows: Sequence[Row], *, height: int = 300) -> Chart:
    """Pipelines by time and accuracy, the best for each time joined, details on hover.

    ``rows`` have ``name``, ``blocks`` (a text), ``value``, ``low`` and ``high`` (shares from 0 to
    1, the interval possibly None), ``ms`` (for one text), ``memory_mb``, ``dims``, ``front`` (drawn
    filled) and ``ships``, true for the pipeline that was trained.
    """
    own = percentages(list(rows), "value", "low", "high")
    values = [
        row[name] for row in own for name in ("value", "low", "high") if row[name] is not None
    ]
    times = [row["ms"] for row in own]
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("ms:Q")
        .title("time for one text, ms")
        .axis(tickCount=6)
        .scale(domain=[min(times), max(times)], zero=False, nice=True, padding=24),
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
    for row in sorted(own, key=lambda row: (row["ms"], -row["value"])):
        row["leads"] = row["value"] > best  # than all that take no longer
        best = max(best, row["value"])
    for row in own:
        row["labelled"] = row["leads"] or row["ships"]
    others = [
        points.transform_filter(f"!datum.ships && {kind}datum.front").mark_point(
            style="plain", filled=filled, size=80, opacity=1, strokeWidth=2
        )
        for kind, filled in (("", True), ("!", False))
        if any(row["front"] == filled and not row["ships"] for row in own)
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
        points.transform_filter("datum.labelled")
        .mark_text(style="label", align="right", dx=-12, dy=-9, aria=False)
        .encode(text="name:N"),
    ).properties(width="container", height=height)
    return layered
