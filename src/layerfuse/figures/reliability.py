"""Whether probabilities are true."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, percentages

__all__ = ["reliability"]


def reliability(rows: Sequence[Row], *, height: int = 300) -> Chart:
    """Accuracy by confidence, against the line of perfect calibration.

    ``rows`` are bins with ``confidence`` (mean), ``value`` (accuracy), ``low``, ``high`` (shares
    from 0 to 1) and ``count``.
    """
    own = percentages(list(rows), "confidence", "value", "low", "high")
    title = "accuracy of the bin, %"
    scale = alt.Scale(domain=[0, 100])
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("confidence:Q")
        .title("confidence (largest probability), %")
        .axis(tickCount=10)
        .scale(scale),
        tooltip=[
            alt.Tooltip("confidence:Q", title="confidence, %", format=".1f"),
            alt.Tooltip("value:Q", title="accuracy, %", format=".1f"),
            alt.Tooltip("low:Q", title="low", format=".1f"),
            alt.Tooltip("high:Q", title="high", format=".1f"),
            alt.Tooltip("count:Q", title="rows"),
        ],
    )
    ends = [{"from": 0, "to": 0}, {"from": 100, "to": 100}]
    perfect = alt.Chart(alt.Data(values=ends)).mark_line(style="reference", strokeWidth=1.5)
    most = max(row["count"] for row in own)
    legend = alt.Legend(values=[max(1, most // 100), max(1, most // 10), most], format=",d")
    size = alt.Size("count:Q", title="rows in the bin", legend=legend)
    size = size.scale(range=[30, 400], domain=[0, most])
    layered: Chart = alt.layer(
        perfect.encode(x="from:Q", y=alt.Y("to:Q").title(title)),
        base.mark_rule(style="interval").encode(
            y=alt.Y("low:Q").title(title).axis(tickCount=5).scale(scale), y2="high:Q"
        ),
        base.mark_point(style="plain", filled=True, opacity=0.9).encode(
            y=alt.Y("value:Q").title(title), size=size
        ),
    ).properties(width="container", height=height)
    return layered
