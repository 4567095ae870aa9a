"""Numbers with intervals: what is gained over each rival, and what each added block brings."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, ordered, percentages

__all__ = ["gain_intervals", "selection_path"]


def gain_intervals(rows: Sequence[Row], *, row_height: int = 30) -> Chart:
    """The pipeline's accuracy minus each rival's, with its interval and a line at no gain.

    ``rows`` have ``name``, ``value``, ``low`` and ``high`` (shares from -1 to 1).
    """
    own = percentages(list(rows), "value", "low", "high")
    ends = [0.0, *(row["low"] for row in own), *(row["high"] for row in own)]
    base = alt.Chart(alt.Data(values=own)).encode(
        y=alt.Y("name:N", sort=ordered(own, "name"))
        .title(None)
        .axis(ticks=False, domain=False, grid=False, labelPadding=8),
        tooltip=[
            alt.Tooltip("name:N", title="against"),
            alt.Tooltip("value:Q", title="gain, points", format="+.1f"),
            alt.Tooltip("low:Q", title="low", format="+.1f"),
            alt.Tooltip("high:Q", title="high", format="+.1f"),
        ],
    )
    x = alt.X("value:Q").title("gain, points of accuracy")
    x = x.axis(grid=True, tickCount=8).scale(domain=[min(ends), max(ends)], nice=True)
    zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(style="reference").encode(x="at:Q")
    layered: Chart = alt.layer(
        zero,
        base.mark_rule(style="plain", strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(style="plain", filled=True, size=80, opacity=1).encode(x=x),
    ).properties(width="container", height=row_height * len(own))
    return layered


def selection_path(rows: Sequence[Row], *, height: int = 240) -> Chart:
    """Accuracy after each added block.

    ``rows`` have ``step`` (1 for the first block), ``block``, ``value``, ``low``, ``high`` (shares
    from 0 to 1), ``gain`` (drop in leave-one-out loss) and ``ships``, true for what was trained.
    """
    own = percentages(list(rows), "value", "low", "high")
    low, high = min(row["low"] for row in own), max(row["high"] for row in own)
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("step:O").title("blocks fused").axis(labelAngle=0),
        tooltip=[
            alt.Tooltip("step:O", title="blocks"),
            alt.Tooltip("block:N", title="added"),
            alt.Tooltip("value:Q", title="accuracy, %", format=".1f"),
            alt.Tooltip("low:Q", title="low", format=".1f"),
            alt.Tooltip("high:Q", title="high", format=".1f"),
            alt.Tooltip("gain:Q", title="gain in loss", format=".4f"),
        ],
    )
    y = alt.Y("value:Q").title("nested accuracy, % of rows")
    y = y.scale(domain=[low, high], zero=False, nice=True)
    points = base.encode(y=y)
    layered: Chart = alt.layer(
        base.mark_rule(style="interval").encode(
            y=alt.Y("low:Q").title("nested accuracy, % of rows").scale(zero=False), y2="high:Q"
        ),
        points.mark_line(style="plain"),
        points.mark_point(style="plain", filled=True, size=80, opacity=1),
        points.transform_filter("datum.ships").mark_point(
            style="chosen", filled=True, shape="diamond", size=180, opacity=1
        ),
    ).properties(width="container", height=height)
    return layered
