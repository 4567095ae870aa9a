"""Every chart of a run: typed results in, Vega-Lite charts for the page and for files out.

Shares from 0 to 1 are drawn in percent. Charts name styles of ``theme.json``, never colors. Needs
the extra ``report``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from threading import RLock
from typing import TypeAlias

import altair as alt
import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.evaluation.learning_curve import CurvePoint
from layerfuse.evaluation.verdict import Tradeoff
from layerfuse.files import atomic_write
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.report.run_report import CalibrationBin
from layerfuse.report.tables import baseline_name

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart
Row: TypeAlias = Mapping[str, object]
Spec: TypeAlias = dict[str, object]

DRAWING = RLock()
"""Held while charts are built: altair numbers them by counters that threads would share."""

_NORMAL = 1.96  # standard errors on either side that hold 95%
_MIDDLE = 0.55  # of the color scale, above which text in a cell is written in the ground's color
_SPAN = (("low", "low", ".1f"), ("high", "high", ".1f"))
_ACCURACY = "accuracy, % of rows"
_METRIC = "accuracy"
_SCALE = 2  # device pixels of a PNG for each pixel of the figure
_WIDTH = 560  # pixels of a figure in a notebook
_WHITE = "#ffffff"
_SAME = 1.05  # times that differ by less than this factor tell nothing apart
_PLACE = {True: "front", False: "behind"}  # of a pipeline in the chart of costs


def layer_curves(
    scores: BlockScores, selected: Collection[BlockRef] = (), scale: alt.Scale | None = None
) -> Chart:
    """Accuracy of one encoder's layers, a line with its 95% band for each pooling.

    Selected layers and the last one are marked; ``scale`` is that of the vertical axis.
    """
    layers = [score.block.layer for score in scores]
    ends = [min(layers), max(layers)]
    rows = []
    for score in scores:
        picked, is_last = score.block in selected, score.block.layer == ends[1]
        marks = ["selected"] * picked + ["last layer"] * is_last
        rows.append(
            {"pooling": score.block.pooling, "layer": score.block.layer, **_percent(_band(score))}
            | {"selected": picked, "last": is_last, "note": ", ".join(marks) or "–"}
        )
    x = alt.X("layer:Q").title("layer (0 is the embedding output)")
    x = x.axis(tickMinStep=1, format="d").scale(domain=ends, nice=False, padding=8)
    names = list(dict.fromkeys(score.block.pooling for score in scores))
    legend = alt.Legend(title="pooling") if len(names) > 1 else None
    color = alt.Color("pooling:N", sort=names, legend=legend)
    y_scale = scale or _scale(map(_band, scores))
    y, low = (alt.Y(f"{end}:Q").title(_ACCURACY).scale(y_scale) for end in ("value", "low"))
    tips = (("pooling", "pooling"), ("layer", "layer"), ("value", _ACCURACY, ".1f"), *_SPAN)
    base = _base(rows).encode(x=x)
    dots = base.encode(y=y, tooltip=_tips(*tips, ("note", "marked as")))
    return _layer(
        240,
        base.mark_area(style="band").encode(y=low, y2="high:Q", color=color),
        base.mark_line().encode(y=y, color=color, strokeDash=_dash("pooling", names)),
        dots.mark_point(size=30).encode(color=color),
        dots.transform_filter("datum.last").mark_point(
            style="ring", shape="square", size=140, aria=False
        ),
        dots.transform_filter("datum.selected").mark_point(
            style="chosen", shape="diamond", size=150, aria=False
        ),
    )


def encoder_curves(scores: BlockScores, selected: Collection[BlockRef] = ()) -> dict[str, Chart]:
    """A figure of `layer_curves` for each encoder, all on one scale."""
    scale = _scale(map(_band, scores))
    return {
        encoder: layer_curves(scores.of(encoder), selected, scale) for encoder in scores.encoders
    }


def _band(score: BlockScore) -> Estimate:
    spread, own = _NORMAL * score.accuracy_se, score.accuracy
    return Estimate(own, max(0.0, own - spread), min(1.0, own + spread))


def gain_intervals(gains: Mapping[str, PairedDifference], metric: str = _METRIC) -> Chart:
    """Gains over baselines with their intervals, one line each, and a line at no gain."""
    rows = [
        {"name": name, **_percent(Estimate(gain.difference, gain.low, gain.high))}
        for name, gain in gains.items()
    ]
    ends = [0.0, *(100 * end for gain in gains.values() for end in (gain.low, gain.high))]
    y = alt.Y("name:N", sort=list(gains)).title(None)
    base = _base(rows).encode(
        y=y.axis(ticks=False, domain=False, grid=False, labelPadding=8),
        tooltip=_tips(
            *(("name", "against"), ("value", "gain, points", "+.1f")),
            *(("low", "low", "+.1f"), ("high", "high", "+.1f")),
        ),
    )
    x = alt.X("value:Q").title(f"gain, points of {metric}")
    x = x.axis(grid=True, tickCount=8).scale(domain=[min(ends), max(ends)], nice=True)
    return _layer(
        30 * len(rows),
        _base([{"at": 0}]).mark_rule(style="reference").encode(x="at:Q"),
        base.mark_rule(style="plain", strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point().encode(x=x),
    )


def pareto(pipelines: Sequence[Tradeoff], metric: str = _METRIC) -> Chart:
    """Pipelines by cost and accuracy: those on the Pareto front are filled, a diamond ships.

    Cost is time, or dimensions where all take about the same time.
    """
    times = [pipeline.cost.ms_per_text for pipeline in pipelines]
    by, title = ("ms", "ms/text")
    if max(times) <= _SAME * min(times):
        by, title = ("dims", "dimensions fused")
    costs = [p.cost.ms_per_text if by == "ms" else float(p.cost.dims) for p in pipelines]
    low, high = min(costs), max(costs)
    if high == low:
        low, high = 0.5 * low, 1.5 * low or 1.0
    rows = [
        {
            "name": baseline_name(pipeline.name),
            "blocks": ", ".join(map(str, pipeline.blocks)),
            **_percent(pipeline.accuracy),
            "ms": pipeline.cost.ms_per_text,
            "memory_mb": pipeline.cost.memory_mb,
            "dims": pipeline.cost.dims,
            "kind": "ships" if pipeline.name == "pipeline" else _PLACE[pipeline.on_front],
        }
        for pipeline in pipelines
    ]
    base = _base(rows).encode(
        x=alt.X(f"{by}:Q", title=title, axis=alt.Axis(tickCount=6)).scale(
            domain=[low, high], zero=False, nice=True, padding=24
        ),
        tooltip=_tips(
            *(("name", "pipeline"), ("blocks", "blocks"), ("value", f"{metric}, %", ".1f"), *_SPAN),
            *(("ms", "ms/text", ".2f"), ("memory_mb", "memory, MB", ".0f")),
            ("dims", "dimensions"),
        ),
    )
    scale = _scale(pipeline.accuracy for pipeline in pipelines)
    y, low_end = (
        alt.Y(f"{end}:Q").title(f"nested {metric}, %").scale(scale) for end in ("value", "low")
    )
    dots = base.encode(y=y)
    ships = dots.transform_filter("datum.kind == 'ships'")
    # A layer without points would be an image without a name to screen readers.
    others = [
        dots.transform_filter(f"datum.kind == '{kind}'").mark_point(
            filled=kind == "front", strokeWidth=2
        )
        for kind in ("front", "behind")
        if any(row["kind"] == kind for row in rows)
    ]
    shipped = costs[[pipeline.name for pipeline in pipelines].index("pipeline")]
    side = -1 if shipped >= (low + high) / 2 else 1  # where its name stands
    return _layer(
        300,
        base.mark_rule(style="interval", opacity=0.5).encode(y=low_end, y2="high:Q"),
        *others,
        ships.mark_point(style="chosen", shape="diamond", size=200),
        ships.encode(text="name:N").mark_text(
            style="label", align="left" if side > 0 else "right", dx=12 * side, dy=-9, aria=False
        ),
    )


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
    axis = partial(alt.Axis, ticks=False, domain=False, grid=False, labelPadding=5)
    axis = partial(axis, labelOverlap=False, labelLimit=120)
    x = alt.X("predicted:N", sort=names, title="predicted class", axis=axis(labelAngle=-45))
    base = _base(rows).encode(
        x=x,
        y=alt.Y("truth:N", sort=names, title="true class", axis=axis()),
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
        base.mark_point().encode(y=y, size=size.scale(range=[30, 400], domain=[0, most])),
    )


def learning_curves(curve: Sequence[CurvePoint], metric: str = _METRIC) -> Chart:
    """Accuracy of fusion, the best block and the last layer over the number of labels."""
    names = ["fusion", "best block", "last layer"]
    found = [
        (name, point.n_rows, own)
        for point in curve
        for name, own in zip(names, (point.fusion, point.best_block, point.last_layer), strict=True)
    ]
    rows = [{"pipeline": name, "n_rows": n_rows, **_percent(own)} for name, n_rows, own in found]
    base = _base(rows).encode(
        x=alt.X("n_rows:Q").title("labeled rows (logarithmic)").scale(type="log", nice=False),
        color=alt.Color("pipeline:N", sort=names, title=None),
    )
    y = alt.Y("value:Q").title(f"{metric}, %").scale(_scale(own for _, _, own in found))
    tips = (("pipeline", "pipeline"), ("n_rows", "labels", ",d"), ("value", f"{metric}, %", ".1f"))
    return _layer(
        280,
        base.mark_area(style="band").encode(y=alt.Y("low:Q").title(f"{metric}, %"), y2="high:Q"),
        base.mark_line().encode(y=y, strokeDash=_dash("pipeline", names)),
        base.mark_point(size=44).encode(y=y, tooltip=_tips(*tips, *_SPAN)),
    )


def _percent(own: Estimate) -> dict[str, float]:
    """An estimate as columns of a chart, in percent."""
    return {"value": 100 * own.value, "low": 100 * own.low, "high": 100 * own.high}


def _scale(shown: Iterable[Estimate]) -> alt.Scale:
    """A vertical scale that holds all intervals."""
    lows, highs = zip(*((100 * own.low, 100 * own.high) for own in shown), strict=True)
    return alt.Scale(domain=[min(lows), max(highs)], zero=False, nice=True)


def _dash(field: str, names: list[str]) -> alt.StrokeDash:
    return alt.StrokeDash(f"{field}:N", sort=names, legend=None)


def _base(rows: Sequence[Row]) -> alt.Chart:
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


def _themes() -> dict[str, Spec]:
    """The configuration of ``theme.json`` in the colors of each theme.

    Okabe and Ito, "Color Universal Design" (2008), the yellow left out; on dark ground its lighter
    relatives. Vermilion is kept for what was selected.
    """
    text = (files("layerfuse.report") / "assets" / "theme.json").read_text(encoding="utf-8")
    found, parts = {}, json.loads(text)
    for theme, colors in parts["colors"].items():
        config = json.dumps(parts["config"])
        for name, value in colors.items():
            config = config.replace(f'"${name}"', json.dumps(value))
        found[theme] = json.loads(config)
    return found


THEMES = _themes()
"""Vega-Lite configurations by name."""


def vega_spec(chart: Chart) -> Spec:
    """A figure as a Vega-Lite object, without a theme and as wide as its container."""
    spec: Spec = chart.to_dict(validate=False)  # tests validate each figure
    spec.pop("config", None)
    return spec


def for_notebook(charts: Mapping[str, Chart]) -> alt.VConcatChart:
    """Figures by their titles under each other, in the light theme and of a fixed width."""
    panels = [chart.properties(title=title, width=_WIDTH) for title, chart in charts.items()]
    whole: alt.VConcatChart = alt.vconcat(*panels, background=_WHITE).resolve_scale(
        color="independent", strokeDash="independent"
    )
    whole.config = THEMES["light"] | {"background": _WHITE}
    return whole


def save_chart(chart: Chart, path: Path, *, width: int = 640) -> Path:
    """Write a figure as ``.svg`` or ``.png``, ``width`` pixels wide (a PNG twice as many)."""
    import vl_convert

    spec = vega_spec(chart) | {"config": THEMES["light"], "background": _WHITE}
    if spec.get("width") == "container":
        spec |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    version = vega_lite_version()
    with atomic_write(path) as temporary:
        if path.suffix == ".svg":
            svg = vl_convert.vegalite_to_svg(spec, vl_version=version)
            temporary.write_text(svg, encoding="utf-8")
        else:
            temporary.write_bytes(
                vl_convert.vegalite_to_png(spec, vl_version=version, scale=_SCALE)
            )
    return path


def vega_lite_version() -> str:
    """Major and minor version of the Vega-Lite that figures are written for, such as ``"6.4"``."""
    return ".".join(str(alt.SCHEMA_VERSION).lstrip("v").split(".")[:2])
