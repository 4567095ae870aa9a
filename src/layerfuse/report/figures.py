"""Every chart of a run: typed results in, Vega-Lite charts for the page and for files out.

Shares from 0 to 1 are drawn in percent. Needs the extra ``report``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt
import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.evaluation.learning_curve import CurvePoint
from layerfuse.evaluation.verdict import Tradeoff
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.report.run_report import CalibrationBin
from layerfuse.report.tables import baseline_name
from layerfuse.report.theme import Chart

Row: TypeAlias = dict[str, Any]

_NORMAL = 1.96  # standard errors on either side that hold 95%
_MIDDLE = 0.55  # of the color scale, above which text in a cell is written in the ground's color
_NAME = 0.2  # about a name's width, as a share of the figure
_SPAN = (("low", "low", ".1f"), ("high", "high", ".1f"))
_TILES = {"ticks": False, "domain": False, "grid": False}  # axes of matrices
_LAYERS = "layer (0 is the embedding output)"
_ACCURACY = "accuracy, % of rows"
_NESTED = "nested accuracy, % of rows"


def layer_curves(
    scores: BlockScores, selected: Collection[BlockRef] = (), domain: Collection[float] = ()
) -> Chart:
    """Accuracy of one encoder's layers, a line with its 95% band for each pooling.

    Selected layers and the last one are marked; ``domain`` holds the ends of the vertical axis in
    percent, by default those of the scores.
    """
    layers = [score.block.layer for score in scores]
    ends = [min(layers), max(layers)]
    rows = []
    for score in scores:
        picked, is_last = score.block in selected, score.block.layer == ends[1]
        marks = ["selected"] * picked + ["last layer"] * is_last
        rows.append(
            {"pooling": score.block.pooling, "layer": score.block.layer, **_band(score)}
            | {"selected": picked, "last": is_last, "note": ", ".join(marks) or "–"}
        )
    x = alt.X("layer:Q").title(_LAYERS).axis(tickMinStep=1, format="d")
    base = _base(rows).encode(x=x.scale(domain=ends, nice=False, padding=8))
    scale = alt.Scale(domain=list(domain or _domain(scores)), zero=False, nice=True)
    y = alt.Y("value:Q").title(_ACCURACY).scale(scale)
    names = list(dict.fromkeys(score.block.pooling for score in scores))
    legend = alt.Legend(title="pooling") if len(names) > 1 else None
    color = alt.Color("pooling:N", sort=names, legend=legend)
    dash = alt.StrokeDash("pooling:N", sort=names, legend=None)
    tips = (("pooling", "pooling"), ("layer", "layer"), ("value", _ACCURACY, ".1f"), *_SPAN)
    dots = base.encode(y=y, tooltip=_tips(*tips, ("note", "marked as")))
    low = alt.Y("low:Q").title(_ACCURACY).scale(scale)
    return _layer(
        240,
        base.mark_area(style="band").encode(y=low, y2="high:Q", color=color),
        base.mark_line().encode(y=y, color=color, strokeDash=dash),
        dots.mark_point(filled=True, size=30, opacity=1).encode(color=color),
        dots.transform_filter("datum.last").mark_point(
            style="ring", shape="square", size=140, aria=False
        ),
        dots.transform_filter("datum.selected").mark_point(
            style="chosen", shape="diamond", size=150, filled=True, opacity=1, aria=False
        ),
    )


def encoder_curves(scores: BlockScores, selected: Collection[BlockRef] = ()) -> dict[str, Chart]:
    """A figure of `layer_curves` for each encoder, all on one scale."""
    domain = _domain(scores)
    return {
        encoder: layer_curves(scores.of(encoder), selected, domain) for encoder in scores.encoders
    }


def _band(score: BlockScore) -> Row:
    spread, own = _NORMAL * score.accuracy_se, score.accuracy
    return _percent(Estimate(own, max(0.0, own - spread), min(1.0, own + spread)))


def _domain(scores: BlockScores) -> list[float]:
    bands = [_band(score) for score in scores]
    return [min(band["low"] for band in bands), max(band["high"] for band in bands)]


def gain_intervals(gains: Mapping[str, PairedDifference]) -> Chart:
    """Gains over baselines with their intervals, one line each, and a line at no gain."""
    rows = [
        {"name": name, **_percent(Estimate(gain.difference, gain.low, gain.high))}
        for name, gain in gains.items()
    ]
    ends = [0.0, *(100 * end for gain in gains.values() for end in (gain.low, gain.high))]
    base = _base(rows).encode(
        y=alt.Y("name:N", sort=list(gains))
        .title(None)
        .axis(ticks=False, domain=False, grid=False, labelPadding=8),
        tooltip=_tips(
            *(("name", "against"), ("value", "gain, points", "+.1f")),
            *(("low", "low", "+.1f"), ("high", "high", "+.1f")),
        ),
    )
    x = alt.X("value:Q").title("gain, points of accuracy")
    x = x.axis(grid=True, tickCount=8).scale(domain=[min(ends), max(ends)], nice=True)
    return _layer(
        30 * len(rows),
        _base([{"at": 0}]).mark_rule(style="reference").encode(x="at:Q"),
        base.mark_rule(style="plain", strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(style="plain", filled=True, size=80, opacity=1).encode(x=x),
    )


def pareto(pipelines: Sequence[Tradeoff], *, by_time: bool = True) -> Chart:
    """Pipelines by cost (time, or dimensions) and accuracy, the best for each cost joined.

    Those on the Pareto front are filled, what ships is a diamond.
    """
    by, title = ("ms", "ms/text") if by_time else ("dims", "dimensions fused")
    costs = [float(p.cost.ms_per_text if by_time else p.cost.dims) for p in pipelines]
    leads, low, high = _leaders(pipelines, costs), min(costs), max(costs)
    if high == low:
        low, high = 0.5 * low, 1.5 * low or 1.0
    ships = next(n for n, pipeline in enumerate(pipelines) if pipeline.name == "pipeline")
    labeled = {ships}
    if abs(costs[leads[0]] - costs[ships]) > _NAME * (high - low):  # else names would overlap
        labeled.add(leads[0])
    rows = [
        {
            "name": baseline_name(pipeline.name),
            "blocks": ", ".join(map(str, pipeline.blocks)),
            **_percent(pipeline.accuracy),
            "ms": pipeline.cost.ms_per_text,
            "memory_mb": pipeline.cost.memory_mb,
            "dims": pipeline.cost.dims,
            "front": pipeline.on_front,
            "ships": number == ships,
            "leads": number in leads,
            "labeled": number in labeled,
        }
        for number, pipeline in enumerate(pipelines)
    ]
    x = alt.X(f"{by}:Q").title(title).axis(tickCount=6)
    base = _base(rows).encode(
        x=x.scale(domain=[low, high], zero=False, nice=True, padding=24),
        tooltip=_tips(
            *(("name", "pipeline"), ("blocks", "blocks"), ("value", "accuracy, %", ".1f"), *_SPAN),
            *(("ms", "ms/text", ".2f"), ("memory_mb", "memory, MB", ".0f")),
            ("dims", "dimensions"),
        ),
    )
    low_end = alt.Y("low:Q").title(_NESTED).scale(_scale(rows))
    dots = base.encode(y=alt.Y("value:Q").title(_NESTED).scale(_scale(rows)))
    others = [
        dots.transform_filter(f"!datum.ships && {sign}datum.front").mark_point(
            style="plain", filled=filled, size=80, opacity=1, strokeWidth=2
        )
        for sign, filled in (("", True), ("!", False))
        if any(row["front"] == filled and not row["ships"] for row in rows)
    ]
    names = dots.transform_filter("datum.labeled").encode(text="name:N")
    right = names.transform_filter(f"datum.{by} >= {(low + high) / 2}")
    left = names.transform_filter(f"datum.{by} < {(low + high) / 2}")
    return _layer(
        300,
        base.mark_rule(style="interval", opacity=0.5).encode(y=low_end, y2="high:Q"),
        dots.transform_filter("datum.leads").mark_line(
            style="plain", interpolate="step-after", strokeDash=[5, 3]
        ),
        *others,
        dots.transform_filter("datum.ships").mark_point(
            style="chosen", filled=True, shape="diamond", size=200, opacity=1
        ),
        right.mark_text(style="label", align="right", dx=-12, dy=-9, aria=False),
        left.mark_text(style="label", align="left", dx=12, dy=-9, aria=False),
    )


def _leaders(pipelines: Sequence[Tradeoff], costs: Sequence[float]) -> list[int]:
    """Numbers of those more accurate than all that cost no more, by rising cost."""
    leads: list[int] = []
    order = sorted(range(len(costs)), key=lambda n: (costs[n], -pipelines[n].accuracy.value))
    for number in order:
        if all(pipelines[number].accuracy.value > pipelines[n].accuracy.value for n in leads):
            leads.append(number)
    return leads


def confusion_matrix(
    counts: npt.NDArray[np.intp], classes: Sequence[str], shown: npt.NDArray[np.intp]
) -> Chart:
    """Rows are true classes, columns predicted ones, color the share of the true class.

    ``counts`` (n_classes, n_classes) are rows of each class by prediction, ``shown`` (n_shown,) the
    indices of the classes to draw.
    """
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    names = [classes[number] for number in shown]
    rows = [
        {"truth": classes[t], "predicted": classes[p]}
        | {"count": int(counts[t, p]), "share": float(shares[t, p])}
        for t in shown
        for p in shown
    ]
    axis: dict[str, Any] = {**_TILES, "labelPadding": 5, "labelOverlap": False, "labelLimit": 120}
    base = _base(rows).encode(
        x=alt.X("predicted:N", sort=names).title("predicted class").axis(**axis, labelAngle=-45),
        y=alt.Y("truth:N", sort=names).title("true class").axis(**axis),
        tooltip=_tips(
            *(("truth", "true class"), ("predicted", "predicted"), ("count", "rows")),
            ("share", "of the true class", ".1%"),
        ),
    )
    color = alt.Color(
        "share:Q",
        title="share of the true class",
        scale=alt.Scale(domain=[0, 1]),
        legend=alt.Legend(format=".0%", gradientLength=160),
    )
    pale = base.transform_filter(f"datum.count > 0 && datum.share <= {_MIDDLE}")
    dark = base.transform_filter(f"datum.share > {_MIDDLE}")
    return _layer(
        max(34 * len(names), 120),
        base.mark_rect(style="tile").encode(color=color),
        # in ink on pale cells, in the ground's color on dark ones
        pale.mark_text(style="label", aria=False).encode(text="count:Q"),
        dark.mark_text(style="on-mark", aria=False).encode(text="count:Q"),
    )


def reliability(bins: Sequence[CalibrationBin]) -> Chart:
    """Accuracy by confidence, against the line of perfect calibration."""
    rows = [
        {"confidence": 100 * own.confidence, "count": own.count, **_percent(own.accuracy)}
        for own in bins
    ]
    scale = alt.Scale(domain=[0, 100])
    x = alt.X("confidence:Q").title("confidence (largest probability), %").axis(tickCount=10)
    y = alt.Y("value:Q").title("accuracy of the bin, %").axis(tickCount=5).scale(scale)
    base = _base(rows).encode(
        x=x.scale(scale),
        tooltip=_tips(
            *(("confidence", "confidence, %", ".1f"), ("value", "accuracy, %", ".1f"), *_SPAN),
            ("count", "rows"),
        ),
    )
    perfect = _base([{"confidence": 0, "value": 0}, {"confidence": 100, "value": 100}])
    most = max(own.count for own in bins)
    legend = alt.Legend(values=[max(1, most // 100), max(1, most // 10), most], format=",d")
    size = alt.Size("count:Q", title="rows in the bin", legend=legend)
    return _layer(
        300,
        perfect.mark_line(style="reference", strokeWidth=1.5).encode(x="confidence:Q", y=y),
        base.mark_rule(style="interval").encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(style="plain", filled=True, opacity=0.9).encode(
            y=y, size=size.scale(range=[30, 400], domain=[0, most])
        ),
    )


def learning_curves(curve: Sequence[CurvePoint]) -> Chart:
    """Accuracy of fusion, the best block and the last layer over the number of labels."""
    rows = [
        {"pipeline": name, "n_rows": point.n_rows, **_percent(own)}
        for point in curve
        for name, own in (
            *(("fusion", point.fusion), ("best block", point.best_block)),
            ("last layer", point.last_layer),
        )
    ]
    names = ["fusion", "best block", "last layer"]
    base = _base(rows).encode(
        x=alt.X("n_rows:Q").title("labeled rows (logarithmic)").scale(type="log", nice=False),
        color=alt.Color("pipeline:N", sort=names, title=None),
    )
    y = alt.Y("value:Q").title(_ACCURACY).scale(_scale(rows))
    dash = alt.StrokeDash("pipeline:N", sort=names, legend=None)
    tips = (("pipeline", "pipeline"), ("n_rows", "labels", ",d"), ("value", _ACCURACY, ".1f"))
    return _layer(
        280,
        base.mark_area(style="band").encode(y=alt.Y("low:Q").title(_ACCURACY), y2="high:Q"),
        base.mark_line().encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=44, opacity=1).encode(y=y, tooltip=_tips(*tips, *_SPAN)),
    )


def _percent(own: Estimate) -> Row:
    """An estimate as columns of a chart, in percent."""
    return {"value": 100 * own.value, "low": 100 * own.low, "high": 100 * own.high}


def _scale(rows: Sequence[Row]) -> alt.Scale:
    """A vertical scale that holds all intervals."""
    ends = [min(row["low"] for row in rows), max(row["high"] for row in rows)]
    return alt.Scale(domain=ends, zero=False, nice=True)


def _base(rows: list[Row]) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows))


def _layer(height: int, *charts: alt.Chart) -> Chart:
    layered: Chart = alt.layer(*charts).properties(width="container", height=height)
    return layered


def _tips(*fields: tuple[str, str] | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltips by field, title and, for numbers, format."""
    return [
        alt.Tooltip(f"{name}:Q", title=title, format=number[0])
        if number
        else alt.Tooltip(f"{name}:N", title=title)
        for name, title, *number in fields
    ]
