"""Figures of a study of several datasets: small multiples, one for each set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt

from layerfuse.report.theme import Chart, Row, ordered, percentages

__all__ = ["accuracy_curves", "cost_dots", "differences", "layer_depths", "promise_scatter"]

_WIDE, _TALL = 290, 170  # pixels of one of two columns
_HEADER: dict[str, Any] = {"labelFontSize": 13, "labelFontWeight": 600}
_ROW = 22  # pixels of a line in a figure of intervals


def layer_depths(rows: Sequence[Row]) -> Chart:
    """Accuracy over relative depth, one line for each encoder, one panel for each set.

    ``rows`` have ``set``, ``encoder``, ``depth`` (0 to 1), and shares ``value``, ``low``, ``high``.
    """
    own = percentages(list(rows), "value", "low", "high")
    names = ordered(own, "encoder")
    colour = alt.Color("encoder:N", sort=names, title="encoder")
    dash = alt.StrokeDash("encoder:N", sort=names, legend=None)
    base = alt.Chart().encode(
        x=alt.X("depth:Q", title="depth (0 embedding output, 1 last layer)").axis(
            format=".1f", tickCount=5
        )
    )
    y = alt.Y("value:Q", title="test accuracy, %").scale(zero=False)
    band = base.mark_area(style="band").encode(
        y=alt.Y("low:Q", title="test accuracy, %").scale(zero=False), y2="high:Q", color=colour
    )
    line = base.mark_line(point=alt.OverlayMarkDef(size=24)).encode(
        y=y, color=colour, strokeDash=dash
    )
    return _panels(alt.layer(band, line), own)


def accuracy_curves(rows: Sequence[Row]) -> Chart:
    """Accuracy over the number of labels, one line for each way, one panel for each set.

    ``rows`` have ``set``, ``way``, ``labels``, and shares ``value``, ``low``, ``high``.
    """
    own = percentages(list(rows), "value", "low", "high")
    names = ordered(own, "way")
    colour = alt.Color("way:N", sort=names, title=None)
    x = (
        alt.X("labels:Q", title="labels (logarithmic)")
        .scale(type="log", nice=False)
        .axis(tickCount=4)
    )
    base = alt.Chart().encode(x=x)
    y = alt.Y("value:Q", title="test accuracy, %").scale(zero=False)
    band = base.mark_area(style="band").encode(
        y=alt.Y("low:Q", title="test accuracy, %").scale(zero=False), y2="high:Q", color=colour
    )
    line = base.mark_line(point=alt.OverlayMarkDef(size=40)).encode(
        y=y, color=colour, strokeDash=alt.StrokeDash("way:N", sort=names, legend=None)
    )
    return _panels(alt.layer(band, line), own)


def differences(rows: Sequence[Row], title: str) -> Chart:
    """Differences with 95 % intervals, one line each, grouped by set; clear ones are filled.

    ``rows`` have ``set``, ``name``, ``verdict`` (better, worse or unclear), and shares
    ``difference``, ``low``, ``high``.
    """
    own = percentages(list(rows), "difference", "low", "high")
    verdicts = ["better", "unclear", "worse"]
    base = alt.Chart().encode(
        y=alt.Y("name:N", sort=ordered(own, "name"), title=None).axis(grid=False)
    )
    bar = base.mark_rule(style="interval", strokeDash=[1, 0]).encode(
        x=alt.X("low:Q", title=f"{title} (95 % interval)"), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("difference:Q"),
        color=alt.Color("verdict:N", sort=verdicts, title="after correction").scale(
            domain=verdicts
        ),
        shape=alt.Shape("verdict:N", sort=verdicts, title="after correction").scale(
            domain=verdicts, range=["circle", "diamond", "square"]
        ),
    )
    zero = alt.Chart().mark_rule(style="rule").encode(x=alt.datum(0))
    layered = alt.layer(zero, bar, dot, data=alt.Data(values=own))
    layered = layered.properties(width=430, height={"step": _ROW})
    chart: Chart = layered.facet(
        row=alt.Row(
            "set:N",
            sort=ordered(own, "set"),
            title=None,
            header=alt.Header(labelAngle=0, labelAlign="left", **_HEADER),
        ),
        spacing=8,
    ).resolve_scale(y="independent")
    return chart


def promise_scatter(rows: Sequence[Row]) -> Chart:
    """What fusing pairs of blocks promised and what it brought, one panel for each set.

    ``rows`` have ``set``, ``promised`` (a drop in loss) and ``came`` (a share).
    """
    own = percentages(list(rows), "came")
    dots = (
        alt.Chart()
        .mark_point(filled=True, size=18, opacity=0.45)
        .encode(
            x=alt.X("promised:Q", title="drop in leave-one-out loss, training rows").axis(
                tickCount=4
            ),
            y=alt.Y("came:Q", title="gain on held-out rows, points"),
        )
    )
    zero = alt.Chart().mark_rule(style="rule").encode(y=alt.datum(0))
    return _panels(alt.layer(zero, dots), own, x="independent")


def cost_dots(rows: Sequence[Row]) -> Chart:
    """Time, memory and rate of pipelines, side by side, whole encoders and cut ones.

    ``rows`` have ``name``, ``reading``, ``latency`` (ms), ``memory`` (MB) and ``throughput``
    (texts a second).
    """
    own = list(rows)
    measures = (
        ("latency", "one text, ms"),
        ("memory", "peak memory, MB"),
        ("throughput", "texts per second"),
    )
    panels = []
    for number, (field, title) in enumerate(measures):
        y = alt.Y("name:N", sort=ordered(own, "name"), title=None).axis(
            grid=True, labels=not number, ticks=not number, labelLimit=260
        )
        dots = alt.Chart(alt.Data(values=own)).mark_point(filled=True, size=80, opacity=0.9)
        panels.append(
            dots.encode(
                y=y,
                x=alt.X(f"{field}:Q", title=title).scale(zero=True).axis(tickCount=4, grid=True),
                color=alt.Color("reading:N", title=None),
                shape=alt.Shape("reading:N", title=None),
            ).properties(width=150, height={"step": _ROW + 2})
        )
    chart: Chart = alt.hconcat(*panels, spacing=12)
    return chart


def _panels(layered: Any, rows: list[Row], x: Literal["shared", "independent"] = "shared") -> Chart:
    """Two columns; axes of accuracy are each panel's own, for sets differ more than layers do."""
    chart: Chart = (
        layered.properties(width=_WIDE, height=_TALL, data=alt.Data(values=rows))
        .facet(
            facet=alt.Facet(
                "set:N", sort=ordered(rows, "set"), title=None, header=alt.Header(**_HEADER)
            ),
            columns=2,
        )
        .resolve_scale(y="independent", x=x)
        .resolve_axis(x="independent")
    )
    return chart
