"""Accuracy against cost."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, percentages

__all__ = ["pareto"]


def pareto(rows: Sequence[Row], *, height: int = 300) -> Chart:
    """Pipelines by time and accuracy, the front joined, details on hover.

    ``rows`` have ``name``, ``blocks`` (a text), ``value``, ``low`` and ``high`` (shares from 0 to
    1, the interval possibly None), ``ms`` (for one text), ``memory_mb``, ``dims``, ``front`` and
    ``ships``, true for the pipeline that was trained.
    """
    own = percentages(list(rows), "value", "low", "high")
    values = [
        row[name] for row in own for name in ("value", "low", "high") if row[name] is not None
    ]
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("ms:Q").title("time for one text, ms").scale(zero=False, nice=True, padding=24),
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
    # what has the same time as a better one is labelled by that one only
    best: dict[float, float] = {}
    for row in own:
        best[round(row["ms"], 3)] = max(best.get(round(row["ms"], 3), 0.0), row["value"])
    for row in own:
        row["labelled"] = row["value"] == best[round(row["ms"], 3)] or row["ships"]
    layered: Chart = alt.layer(
        base.mark_rule(style="interval", strokeWidth=1.5, opacity=0.5).encode(
            y=alt.Y("low:Q").title(title).scale(scale), y2="high:Q"
        ),
        points.transform_filter("datum.front").mark_line(
            style="plain", interpolate="step-after", strokeDash=[5, 3]
        ),
        points.transform_filter("!datum.ships").mark_point(
            style="plain", filled=True, size=80, opacity=1
        ),
        points.transform_filter("datum.ships").mark_point(
            style="chosen", filled=True, shape="diamond", size=200, opacity=1
        ),
        points.transform_filter("datum.labelled")
        .mark_text(style="label", align="right", dx=-12, dy=-9)
        .encode(text="name:N"),
    ).properties(width="container", height=height)
    return layered
