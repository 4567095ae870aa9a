"""The study's figures: small multiples, one for each dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from benchmarks.markdown import set_name
from benchmarks.study.evidence import Evidence
from layerfuse.report.theme import Chart, save_chart

_WIDTH, _HEIGHT = 290, 170  # pixels of one of two columns
_HEADER: dict[str, Any] = {"labelFontSize": 13, "labelFontWeight": 600}
_ROW = 22  # pixels of a line in a figure of intervals
_VERDICTS = ["better", "equal", "unclear", "worse"]
_WAYS = {"last_layer": "last layer", "best_block": "best block", "fusion": "fusion"}
_COSTS = {
    "latency_ms": "one text, ms",
    "peak_mb": "peak memory, MB",
    "texts_per_s": "texts per second",
}


def draw_all(evidence: Evidence, folder: Path) -> None:
    """Write each figure as ``folder/NAME.svg`` and ``.png``; those without data are left out."""
    for name, chart in _charts(evidence).items():
        for ending in (".svg", ".png"):
            save_chart(chart, folder / f"{name}{ending}")


def _charts(evidence: Evidence) -> dict[str, Chart]:
    charts: dict[str, Chart] = {}
    if len(layers := evidence.layers):
        x = alt.X("depth:Q", title="depth (0 embedding output, 1 last layer)")
        rows = layers.rename(columns={"accuracy": "value"})
        charts["layers"] = _lines(rows, "encoder", x.axis(format=".1f", tickCount=5), 24)
        charts["best_against_last"] = _differences(
            evidence.best_layers, "encoder", "accuracy of the best layer minus the last, points"
        )
    if len(gains := evidence.group_gains):
        title = "accuracy of several encoders minus the best one, points"
        charts["group_gains"] = _differences(gains, "group", title)
    if len(points := evidence.points):
        x = alt.X("promised:Q", title="drop in leave-one-out loss, training rows")
        y = alt.Y("gain:Q", title="gain on held-out rows, points")
        dots = alt.Chart().mark_point(filled=True, size=18, opacity=0.45)
        layered = alt.layer(_zero("y"), dots.encode(x=x.axis(tickCount=4), y=y))
        panels = _panels(layered, _in_percent(points, "gain"))
        charts["complementarity"] = panels.resolve_scale(x="independent", y="independent")
    if len(curves := evidence.curves):
        parts = []
        for way, name in _WAYS.items():
            names = {f"{way}_{end}": end for end in ("value", "low", "high")}
            part = curves[["dataset", "n_rows", *names]].rename(columns=names)
            parts.append(part.assign(way=name))
        x = alt.X("n_rows:Q", title="labels (logarithmic)").axis(tickCount=4)
        x = x.scale(type="log", nice=False)
        charts["curves"] = _lines(pd.concat(parts), "way", x, 40)
    if len(evidence.resources):
        charts["resources"] = _costs(evidence.resources)
    return charts


def _lines(rows: pd.DataFrame, series: str, x: alt.X, size: int) -> Any:
    """One line of ``value`` for each series, with a band from ``low`` to ``high``."""
    columns = ["value", "low", "high"]
    rows = _in_percent(rows[["dataset", series, x.shorthand.partition(":")[0], *columns]], *columns)
    names = list(rows[series].unique())
    color = alt.Color(f"{series}:N", sort=names, title=None)
    dash = alt.StrokeDash(f"{series}:N", sort=names, legend=None)
    low, value = (
        alt.Y(f"{name}:Q", title="test accuracy, %").scale(zero=False) for name in ("low", "value")
    )
    base = alt.Chart().encode(x=x, color=color)
    line = base.mark_line(point=alt.OverlayMarkDef(size=size)).encode(y=value, strokeDash=dash)
    return _panels(alt.layer(base.mark_area(style="band").encode(y=low, y2="high:Q"), line), rows)


def _differences(rows: pd.DataFrame, name: str, title: str) -> Chart:
    """Differences with 95 % intervals, one line each, grouped by dataset."""
    columns = ["difference", "low", "high"]
    rows = _in_percent(rows[["dataset", name, *columns, "verdict"]], *columns)
    rows[name] = rows[name].str.replace("+", " + ")
    y = alt.Y(f"{name}:N", sort=list(rows[name].unique()), title=None).axis(grid=False)
    base = alt.Chart().encode(y=y)
    verdict: dict[str, Any] = {"sort": _VERDICTS, "title": "after correction"}
    bar = base.mark_rule(style="interval", strokeDash=[1, 0]).encode(
        x=alt.X("low:Q", title=f"{title} (95 % interval)"), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("difference:Q"),
        color=alt.Color("verdict:N", **verdict).scale(domain=_VERDICTS),
        shape=alt.Shape("verdict:N", **verdict).scale(
            domain=_VERDICTS, range=["circle", "triangle", "diamond", "square"]
        ),
    )
    layered = alt.layer(_zero("x"), bar, dot, data=rows)
    header = alt.Header(labelAngle=0, labelAlign="left", **_HEADER)
    row = alt.Row("dataset:N", sort=list(rows["dataset"].unique()), title=None, header=header)
    sized: Any = layered.properties(width=430, height={"step": _ROW})
    chart: Chart = sized.facet(row=row, spacing=8).resolve_scale(y="independent")
    return chart


def _costs(table: pd.DataFrame) -> Chart:
    """Time, memory and rate of pipelines, side by side, whole encoders and cut ones."""
    names = table["group"].str.replace("+", " + ") + ", " + table["way"]
    reading = table["cut"].map({True: "cut at the layer in use", False: "whole encoders"})
    rows = table[list(_COSTS)].assign(name=names, reading=reading)
    panels: list[alt.Chart] = []
    for name, title in _COSTS.items():
        first = not panels
        y = alt.Y("name:N", sort=list(names.unique()), title=None)
        dots = alt.Chart(rows).mark_point(filled=True, size=80, opacity=0.9)
        panel = dots.encode(
            y=y.axis(grid=True, labels=first, ticks=first, labelLimit=260),
            x=alt.X(f"{name}:Q", title=title).scale(zero=True).axis(tickCount=4, grid=True),
            color=alt.Color("reading:N", title=None),
            shape=alt.Shape("reading:N", title=None),
        )
        panels.append(panel.properties(width=150, height={"step": _ROW + 2}))
    return alt.hconcat(*panels, spacing=12)


def _panels(layered: Any, rows: pd.DataFrame) -> Any:
    """Two columns; accuracies have each panel's own axis, as datasets differ more than layers."""
    order = list(rows["dataset"].unique())
    facet = alt.Facet("dataset:N", sort=order, title=None, header=alt.Header(**_HEADER))
    sized = layered.properties(width=_WIDTH, height=_HEIGHT, data=rows)
    panels = sized.facet(facet=facet, columns=2).resolve_axis(x="independent")
    return panels.resolve_scale(x="shared", y="independent")


def _zero(axis: str) -> Any:
    return alt.Chart().mark_rule(style="rule").encode(**{axis: alt.datum(0)})


def _in_percent(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Rows with the named shares in percent, and datasets by the names that people know."""
    shares = {name: 100 * rows[name] for name in names}
    return rows.assign(dataset=rows["dataset"].map(set_name), **shares)
