"""How many labels it takes."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, ordered, percentages

__all__ = ["learning_curves"]


def learning_curves(rows: Sequence[Row], *, height: int = 280) -> Chart:
    """One line for each way over the number of labels, with its band.

    ``rows`` have ``way``, ``n_rows`` (labels), ``value``, ``low`` and ``high`` (shares from 0
    to 1).
    """
    own = percentages(list(rows), "value", "low", "high")
    ways = ordered(own, "way")
    title = "accuracy, % of rows"
    low, high = min(row["low"] for row in own), max(row["high"] for row in own)
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("n_rows:Q").title("labelled rows (logarithmic)").scale(type="log", nice=False),
        color=alt.Color("way:N", sort=ways, title=None),
    )
    tooltip = [
        alt.Tooltip("way:N", title="way"),
        alt.Tooltip("n_rows:Q", title="labels", format=",d"),
        alt.Tooltip("value:Q", title=title, format=".1f"),
        alt.Tooltip("low:Q", title="low", format=".1f"),
        alt.Tooltip("high:Q", title="high", format=".1f"),
    ]
    y = alt.Y("value:Q").title(title).scale(domain=[low, high], zero=False, nice=True)
    layered: Chart = alt.layer(
        base.mark_area(style="band").encode(y=alt.Y("low:Q").title(title), y2="high:Q"),
        base.mark_line().encode(y=y, strokeDash=alt.StrokeDash("way:N", sort=ways, legend=None)),
        base.mark_point(filled=True, size=44, opacity=1).encode(y=y, tooltip=tooltip),
    ).properties(width="container", height=height)
    return layered
