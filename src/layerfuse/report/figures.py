"""Every chart: typed points in, Vega-Lite charts that serve the page and files alike out.

Shares from 0 to 1 come in and are drawn in percent. Needs the extra ``report``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.report.theme import Chart, Row, percentages

_NORMAL = 1.96  # standard errors on either side that hold 95%
_MIDDLE = 0.55  # of the color scale, above which text in a cell is written in the ground's color
_NAME = (0.2, 0.06)  # about a name's width and height, as shares of the figure
_COSTS = {"ms": "ms/text", "dims": "dimensions fused"}
_STATES = {"selected": "chosen-fill", "computed": "read-fill", "not loaded": "idle-fill"}
_SPAN = (("low", "low", ".1f"), ("high", "high", ".1f"))
_TILES = {"ticks": False, "domain": False, "grid": False}  # axes of matrices
_LAYERS = "layer (0 is the embedding output)"
_NESTED = "nested accuracy, % of rows"


@dataclass(frozen=True)
class LayerPoint:
    """Accuracy of one layer, in one series such as a pooling."""

    series: str
    layer: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StackPoint:
    """One layer of an encoder: a state of selected, computed or not loaded, its selected poolings
    and the places of these in the order of selection."""

    encoder: str
    layer: int
    state: str
    poolings: str
    places: str


@dataclass(frozen=True)
class GainPoint:
    """The pipeline's accuracy minus that of a baseline (shares from -1 to 1)."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PathPoint:
    """Accuracy after ``step`` blocks; ``gain`` is the drop in leave-one-out loss."""

    step: int
    block: str
    value: float
    low: float
    high: float
    gain: float
    ships: bool


@dataclass(frozen=True)
class ParetoPoint:
    """A pipeline's accuracy and cost for one text; those on the ``front`` are drawn filled."""

    name: str
    blocks: str
    value: float
    low: float
    high: float
    ms: float
    memory_mb: float
    dims: int
    front: bool
    ships: bool


@dataclass(frozen=True)
class PairPoint:
    """A measure of two blocks, and a text with more of them."""

    a: str
    b: str
    measure: float
    detail: str


@dataclass(frozen=True)
class CellPoint:
    """A cell of a confusion matrix; ``share`` is that of the true class, 0 to 1."""

    truth: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class BinPoint:
    """Rows of about one confidence: mean confidence, accuracy with its interval, and how many."""

    confidence: float
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy of one way with so many labels."""

    way: str
    n_rows: int
    value: float
    low: float
    high: float


def layer_curves(
    points: Sequence[LayerPoint],
    selected: Collection[tuple[str, int]] = (),
    *,
    series: str = "pooling",
    measure: str = "accuracy, % of rows",
    domain: tuple[float, float] | None = None,
    height: int = 240,
) -> Chart:
    """One line for each series over the layers, its band, the last layer and selected ones marked.

    Parameters
    ----------
    points
        In the order of the legend.
    selected
        Pairs of a series and a layer.
    series, measure
        What the series are, and the title of the vertical axis.
    domain
        Ends of the vertical axis in percent; from the points by default.
    height
        Pixels.
    """
    names = list(dict.fromkeys(point.series for point in points))
    last = {name: max(p.layer for p in points if p.series == name) for name in names}
    rows = _rows(points)
    for row, point in zip(rows, points, strict=True):
        is_last, picked = point.layer == last[point.series], (point.series, point.layer) in selected
        note = ", ".join(["selected"] * picked + ["last layer"] * is_last) or "–"
        row |= {"selected": picked, "last": is_last, "note": note}
    low, high = domain or (100 * min(p.low for p in points), 100 * max(p.high for p in points))
    scale = alt.Scale(domain=[low, high], zero=False, nice=True)
    layers = [point.layer for point in points]
    x = alt.X("layer:Q").title(_LAYERS).axis(tickMinStep=1, format="d")
    base = _base(rows).encode(x=x.scale(domain=[min(layers), max(layers)], nice=False, padding=8))
    y = alt.Y("value:Q").title(measure).scale(scale)
    legend = alt.Legend(title=series) if len(names) > 1 else None
    color = alt.Color("series:N", sort=names, legend=legend)
    tips = _tips(
        ("series", series), ("layer", "layer"), ("value", measure, ".1f"), *_SPAN,
        ("note", "marked as"),
    )  # fmt: skip
    dots = base.encode(y=y, tooltip=tips)
    layered: Chart = alt.layer(
        base.mark_area(style="band").encode(
            y=alt.Y("low:Q").title(measure).scale(scale), y2="high:Q", color=color
        ),
        base.mark_line().encode(
            y=y, color=color, strokeDash=alt.StrokeDash("series:N", sort=names, legend=None)
        ),
        dots.mark_point(filled=True, size=30, opacity=1).encode(color=color),
        dots.transform_filter("datum.last").mark_point(
            style="ring", shape="square", size=140, aria=False
        ),
        dots.transform_filter("datum.selected").mark_point(
            style="chosen", shape="diamond", size=150, filled=True, opacity=1, aria=False
        ),
    ).properties(width="container", height=height)
    return layered


def encoder_curves(scores: BlockScores, selected: Collection[BlockRef] = ()) -> dict[str, Chart]:
    """A figure of `layer_curves` for each encoder, all on one scale, with 95% bands."""
    curves = {
        encoder: [
            LayerPoint(
                score.block.pooling,
                score.block.layer,
                score.accuracy,
                max(0.0, score.accuracy - _NORMAL * score.accuracy_se),
                min(1.0, score.accuracy + _NORMAL * score.accuracy_se),
            )
            for score in scores.of(encoder)
        ]
        for encoder in scores.encoders
    }
    every = [point for points in curves.values() for point in points]
    domain = (100 * min(p.low for p in every), 100 * max(p.high for p in every))
    return {
        encoder: layer_curves(
            points,
            {(block.pooling, block.layer) for block in selected if block.encoder == encoder},
            domain=domain,
        )
        for encoder, points in curves.items()
    }


def layer_stacks(points: Sequence[StackPoint], *, row_height: int = 46) -> Chart:
    """Each encoder as a row of layers, from its input to its last block; ``row_height`` pixels."""
    encoders = list(dict.fromkeys(point.encoder for point in points))
    base = _base(_rows(points)).encode(
        x=alt.X("layer:O", sort=sorted({point.layer for point in points}))
        .title(_LAYERS)
        .axis(labelAngle=0, labelOverlap="greedy", labelSeparation=5, ticks=False, domain=False)
        .scale(paddingInner=0.12),
        y=alt.Y("encoder:N", sort=encoders)
        .title(None)
        .axis(ticks=False, domain=False, grid=False, labelFontSize=13, labelPadding=8)
        .scale(paddingInner=0.3),
        tooltip=_tips(
            ("encoder", "encoder"), ("layer", "layer"), ("state", "state"), ("poolings", "pooling")
        ),
    )
    found = {point.state for point in points}
    cells = [
        base.transform_filter(alt.datum.state == state).mark_rect(style=style, cornerRadius=4)
        for state, style in _STATES.items()
        if state in found
    ]
    marks = base.transform_filter(alt.datum.state == "selected").mark_text(
        style="on-mark", aria=False
    )
    layered: Chart = alt.layer(*cells, marks.encode(text="places:N")).properties(
        width="container", height=row_height * len(encoders)
    )
    return layered


def gain_intervals(points: Sequence[GainPoint], *, row_height: int = 30) -> Chart:
    """Gains with their intervals, one line each, and a line at no gain."""
    ends = [0.0, *(100 * end for point in points for end in (point.low, point.high))]
    base = _base(_rows(points)).encode(
        y=alt.Y("name:N", sort=[point.name for point in points])
        .title(None)
        .axis(ticks=False, domain=False, grid=False, labelPadding=8),
        tooltip=_tips(
            ("name", "against"), ("value", "gain, points", "+.1f"),
            ("low", "low", "+.1f"), ("high", "high", "+.1f"),
        ),
    )  # fmt: skip
    x = alt.X("value:Q").title("gain, points of accuracy")
    x = x.axis(grid=True, tickCount=8).scale(domain=[min(ends), max(ends)], nice=True)
    layered: Chart = alt.layer(
        _base([{"at": 0}]).mark_rule(style="reference").encode(x="at:Q"),
        base.mark_rule(style="plain", strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(style="plain", filled=True, size=80, opacity=1).encode(x=x),
    ).properties(width="container", height=row_height * len(points))
    return layered


def selection_path(points: Sequence[PathPoint], *, height: int = 240) -> Chart:
    """Accuracy after each added block."""
    low, high = (100 * min(p.low for p in points), 100 * max(p.high for p in points))
    base = _base(_rows(points)).encode(
        x=alt.X("step:O").title("blocks fused").axis(labelAngle=0),
        tooltip=_tips(
            ("step", "blocks"), ("block", "added"), ("value", "accuracy, %", ".1f"), *_SPAN,
            ("gain", "gain in loss", ".4f"),
        ),
    )  # fmt: skip
    y = alt.Y("value:Q").title(_NESTED).scale(domain=[low, high], zero=False, nice=True)
    dots = base.encode(y=y)
    layered: Chart = alt.layer(
        base.mark_rule(style="interval").encode(
            y=alt.Y("low:Q").title(_NESTED).scale(zero=False), y2="high:Q"
        ),
        dots.mark_line(style="plain"),
        dots.mark_point(style="plain", filled=True, size=80, opacity=1),
        dots.transform_filter("datum.ships").mark_point(
            style="chosen", filled=True, shape="diamond", size=180, opacity=1
        ),
    ).properties(width="container", height=height)
    return layered


def pareto(points: Sequence[ParetoPoint], *, by: str = "ms", height: int = 300) -> Chart:
    """Pipelines by cost (``"ms"`` or ``"dims"``) and accuracy, the best for each cost joined."""
    costs = [float(getattr(point, by)) for point in points]
    ends = [100 * end for point in points for end in (point.low, point.high)]
    low, high = min(costs), max(costs)
    if low == high:  # an axis needs some room
        low, high = 0.5 * low, 1.5 * low or 1.0
    rows = _rows(points)
    leads = _leads(points, costs)
    labelled = _labelled(points, costs, leads, high - low, max(ends) - min(ends))
    for number, row in enumerate(rows):
        row |= {"leads": number in leads, "labelled": number in labelled}
    scale = alt.Scale(domain=[min(ends), max(ends)], zero=False, nice=True)
    base = _base(rows).encode(
        x=alt.X(f"{by}:Q")
        .title(_COSTS[by])
        .axis(tickCount=6)
        .scale(domain=[low, high], zero=False, nice=True, padding=24),
        tooltip=_tips(
            ("name", "pipeline"), ("blocks", "blocks"), ("value", "accuracy, %", ".1f"), *_SPAN,
            ("ms", "ms/text", ".2f"), ("memory_mb", "memory, MB", ".0f"), ("dims", "dimensions"),
        ),
    )  # fmt: skip
    dots = base.encode(y=alt.Y("value:Q").title(_NESTED).scale(scale))
    others = [
        dots.transform_filter(f"!datum.ships && {sign}datum.front").mark_point(
            style="plain", filled=filled, size=80, opacity=1, strokeWidth=2
        )
        for sign, filled in (("", True), ("!", False))
        if any(point.front == filled and not point.ships for point in points)
    ]
    names = dots.transform_filter("datum.labelled").encode(text="name:N")
    middle = (low + high) / 2
    layered: Chart = alt.layer(
        base.mark_rule(style="interval", strokeWidth=1.5, opacity=0.5).encode(
            y=alt.Y("low:Q").title(_NESTED).scale(scale), y2="high:Q"
        ),
        dots.transform_filter("datum.leads").mark_line(
            style="plain", interpolate="step-after", strokeDash=[5, 3]
        ),
        *others,
        dots.transform_filter("datum.ships").mark_point(
            style="chosen", filled=True, shape="diamond", size=200, opacity=1
        ),
        names.transform_filter(f"datum.{by} >= {middle}").mark_text(
            style="label", align="right", dx=-12, dy=-9, aria=False
        ),
        names.transform_filter(f"datum.{by} < {middle}").mark_text(
            style="label", align="left", dx=12, dy=-9, aria=False
        ),
    ).properties(width="container", height=height)
    return layered


def _leads(points: Sequence[ParetoPoint], costs: Sequence[float]) -> set[int]:
    """Those more accurate than all that cost no more."""
    best, found = -1.0, set()
    for number in sorted(range(len(points)), key=lambda n: (costs[n], -points[n].value)):
        if points[number].value > best:
            best = points[number].value
            found.add(number)
    return found


def _labelled(
    points: Sequence[ParetoPoint],
    costs: Sequence[float],
    leads: Collection[int],
    wide: float,
    tall: float,
) -> list[int]:
    """Those that get a name: what ships and what leads, unless names would overlap."""
    kept: list[int] = []
    for number in sorted(range(len(points)), key=lambda n: not points[n].ships):
        free = not any(
            abs(costs[number] - costs[other]) < _NAME[0] * wide
            and 100 * abs(points[number].value - points[other].value) < _NAME[1] * tall
            for other in kept
        )
        if points[number].ships or (number in leads and free):
            kept.append(number)
    return kept


def heat_map(
    points: Sequence[PairPoint], names: Sequence[str], *, measure: str, number: str = ".2f"
) -> Chart:
    """A symmetric measure of pairs, both halves given; ``number`` is the format of a cell."""
    axis: dict[str, Any] = {**_TILES, "labelPadding": 6, "labelLimit": 170}
    base = _base(_rows(points)).encode(
        x=alt.X("a:N", sort=list(names)).title(None).axis(**axis, labelAngle=-40),
        y=alt.Y("b:N", sort=list(names)).title(None).axis(**axis),
        tooltip=_tips(
            ("a", "block"), ("b", "with"), ("measure", measure, number), ("detail", "more")
        ),
    )
    color = alt.Color("measure:Q", title=measure, legend=alt.Legend(gradientLength=160))
    values = [point.measure for point in points]
    middle = min(values) + _MIDDLE * (max(values) - min(values))
    layered: Chart = alt.layer(
        base.mark_rect(style="tile").encode(color=color),
        *_numbers(base, "measure", number, f"datum.measure > {middle}"),
    ).properties(width="container", height=46 * len(names) + 10)
    return layered


def confusion_matrix(
    points: Sequence[CellPoint], names: Sequence[str], *, numbers: bool = True
) -> Chart:
    """Rows are true classes, columns predicted ones, color the share of the true class.

    An empty cell may be left out. ``numbers`` writes the counts into the cells; without them cells
    are small and of one size whatever the space.
    """
    size = 34 if numbers else 13
    axis: dict[str, Any] = {
        **_TILES,
        "labelPadding": 5,
        "labelOverlap": False,
        "labelFontSize": 12 if numbers else 10,
        "labelLimit": 120,
    }
    names = list(names)
    base = _base(_rows(points)).encode(
        x=alt.X("predicted:N", sort=names)
        .title("predicted class")
        .scale(domain=names)
        .axis(**axis, labelAngle=-45 if numbers else -90),
        y=alt.Y("truth:N", sort=names).title("true class").scale(domain=names).axis(**axis),
        tooltip=_tips(
            ("truth", "true class"), ("predicted", "predicted"), ("count", "rows"),
            ("share", "of the true class", ".1%"),
        ),
    )  # fmt: skip
    color = alt.Color(
        "share:Q",
        title="share of the true class",
        scale=alt.Scale(domain=[0, 1]),
        legend=alt.Legend(format=".0%", gradientLength=160),
    )
    filled = base.transform_filter("datum.count > 0")
    texts = _numbers(filled, "count", "d", f"datum.share > {_MIDDLE}") if numbers else []
    layered: Chart = alt.layer(base.mark_rect(style="tile").encode(color=color), *texts)
    return layered.properties(
        width="container" if numbers else size * len(names), height=max(size * len(names), 120)
    )


def reliability(points: Sequence[BinPoint], *, height: int = 300) -> Chart:
    """Accuracy by confidence, against the line of perfect calibration."""
    title = "accuracy of the bin, %"
    scale = alt.Scale(domain=[0, 100])
    base = _base(_rows(points)).encode(
        x=alt.X("confidence:Q")
        .title("confidence (largest probability), %")
        .axis(tickCount=10)
        .scale(scale),
        tooltip=_tips(
            ("confidence", "confidence, %", ".1f"), ("value", "accuracy, %", ".1f"), *_SPAN,
            ("count", "rows"),
        ),
    )  # fmt: skip
    perfect = _base([{"from": 0, "to": 0}, {"from": 100, "to": 100}])
    most = max(point.count for point in points)
    legend = alt.Legend(values=[max(1, most // 100), max(1, most // 10), most], format=",d")
    size = alt.Size("count:Q", title="rows in the bin", legend=legend)
    layered: Chart = alt.layer(
        perfect.mark_line(style="reference", strokeWidth=1.5).encode(
            x="from:Q", y=alt.Y("to:Q").title(title)
        ),
        base.mark_rule(style="interval").encode(
            y=alt.Y("low:Q").title(title).axis(tickCount=5).scale(scale), y2="high:Q"
        ),
        base.mark_point(style="plain", filled=True, opacity=0.9).encode(
            y=alt.Y("value:Q").title(title), size=size.scale(range=[30, 400], domain=[0, most])
        ),
    ).properties(width="container", height=height)
    return layered


def learning_curves(points: Sequence[CurvePoint], *, height: int = 280) -> Chart:
    """One line for each way over the number of labels, with its band."""
    ways = list(dict.fromkeys(point.way for point in points))
    title = "accuracy, % of rows"
    low, high = (100 * min(p.low for p in points), 100 * max(p.high for p in points))
    base = _base(_rows(points)).encode(
        x=alt.X("n_rows:Q").title("labelled rows (logarithmic)").scale(type="log", nice=False),
        color=alt.Color("way:N", sort=ways, title=None),
    )
    y = alt.Y("value:Q").title(title).scale(domain=[low, high], zero=False, nice=True)
    tips = _tips(("way", "way"), ("n_rows", "labels", ",d"), ("value", title, ".1f"), *_SPAN)
    layered: Chart = alt.layer(
        base.mark_area(style="band").encode(y=alt.Y("low:Q").title(title), y2="high:Q"),
        base.mark_line().encode(y=y, strokeDash=alt.StrokeDash("way:N", sort=ways, legend=None)),
        base.mark_point(filled=True, size=44, opacity=1).encode(y=y, tooltip=tips),
    ).properties(width="container", height=height)
    return layered


def _rows(points: Sequence[Any]) -> list[Row]:
    """Points as the rows of a chart, shares in percent."""
    shares = [name for name in ("confidence", "value", "low", "high") if hasattr(points[0], name)]
    return percentages([dict(vars(point)) for point in points], *shares)


def _base(rows: list[Row]) -> alt.Chart:
    return alt.Chart(alt.Data(values=rows))


def _tips(*fields: tuple[str, str] | tuple[str, str, str]) -> list[alt.Tooltip]:
    """Tooltips by field, title and, for numbers, format."""
    return [
        alt.Tooltip(f"{name}:Q", title=title, format=number[0])
        if number
        else alt.Tooltip(f"{name}:N", title=title)
        for name, title, *number in fields
    ]


def _numbers(base: alt.Chart, name: str, number: str, dark: str) -> list[alt.Chart]:
    """The cells' numbers, in ink on pale cells and in the ground's color on ``dark`` ones."""
    text = alt.Text(f"{name}:Q", format=number)
    return [
        base.transform_filter(f"!({dark})").mark_text(style="label", aria=False).encode(text),
        base.transform_filter(dark).mark_text(style="on-mark", aria=False).encode(text),
    ]
