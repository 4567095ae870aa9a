"""Figures are valid Vega-Lite, and files of them hold what they should."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report import make_run
from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.evaluation.learning_curve import CurvePoint
from layerfuse.evaluation.verdict import Tradeoff
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.report import figures
from layerfuse.report.figures import save_chart, vega_spec
from layerfuse.report.run_report import RunReport
from layerfuse.resources import PipelineCost

HOSTILE = "</script><script>alert(1)</script> \"'& שלום"


def scores_of(layers: Sequence[int], *poolings: str) -> BlockScores:
    """All layers as good."""
    blocks = [BlockRef(HOSTILE, layer, pooling) for pooling in poolings for layer in layers]
    return BlockScores(
        tuple(BlockScore(b, 0.8, 0.05, 0.8, 0.2, 0.01, 1.0) for b in blocks), "ridge"
    )


def tradeoff(name: str, ms: float, value: float, *, front: bool = True) -> Tradeoff:
    """Only "pipeline" ships."""
    cost = PipelineCost(1, 1, 32, 1000, 5.0, ms)
    blocks = (BlockRef("a", 1, "mean"),)
    return Tradeoff(name, blocks, Estimate(value, value - 0.05, value + 0.05), cost, front)


def curve_point(n_rows: int) -> CurvePoint:
    own = Estimate(0.8, 0.7, 0.9)
    return CurvePoint(n_rows / 100, n_rows, own, own, own, own, ())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return make_run(tmp_path_factory.mktemp("run"), rows=200)


CHARTS: dict[str, Callable[[RunReport], figures.Chart]] = {
    "layer_curves": lambda _: figures.layer_curves(
        scores_of(range(4), "mean", "last"),
        {BlockRef(HOSTILE, 2, "mean"), BlockRef(HOSTILE, 3, "last")},
    ),
    "one_layer": lambda _: figures.layer_curves(scores_of([3], "mean")),
    "gain_intervals": lambda _: figures.gain_intervals(
        {HOSTILE: PairedDifference(0.1, 0.05, 0.15, 0.01)}
    ),
    "pareto": lambda report: figures.pareto(report.pareto),
    "confusion_matrix": lambda _: figures.confusion_matrix(
        np.array([[3, 1], [0, 2]]), [HOSTILE, "b"], np.arange(2)
    ),
    "reliability": lambda report: figures.reliability(report.diagnosis.calibration),
    "learning_curves": lambda _: figures.learning_curves([curve_point(10), curve_point(100)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_every_figure_is_drawn_as_svg(name: str, report: RunReport, tmp_path: Path):
    chart = CHARTS[name](report)
    chart.to_dict(validate=True)
    path = save_chart(chart, tmp_path / "figure.svg", width=500)
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  # ours
    assert float(root.attrib["width"]) == pytest.approx(500, abs=30)
    marks = [e for e in root.iter() if e.attrib.get("aria-roledescription", "").endswith("mark")]
    assert marks or root.findall(".//{*}path")
    assert not root.findall(".//{*}script")


def test_a_png_has_twice_the_pixels(report: RunReport, tmp_path: Path):
    chart = CHARTS["layer_curves"](report)
    path = save_chart(chart, tmp_path / "f.png", width=300)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == pytest.approx(600, abs=30)


def values_of(chart: figures.Chart) -> list[dict[str, Any]]:
    """The rows of a chart, the first that it has."""
    spec = vega_spec(chart)
    return next(layer["data"]["values"] for layer in [spec, *spec["layer"]] if "data" in layer)


def test_selected_and_last_layers_are_marked(report: RunReport):
    rows = values_of(CHARTS["layer_curves"](report))
    assert {(r["pooling"], r["layer"]) for r in rows if r["selected"]} == {("mean", 2), ("last", 3)}
    assert {(r["pooling"], r["layer"]) for r in rows if r["last"]} == {("mean", 3), ("last", 3)}
    assert {r["value"] for r in rows} == {80.0}


def test_what_ships_and_the_front_are_marked():
    rows = values_of(
        figures.pareto(
            [
                tradeoff("pipeline", 26.0, 0.960),
                tradeoff("first_3", 26.0, 0.962),
                tradeoff("last_layer", 3.0, 0.955, front=False),
            ]
        )
    )
    found = {row["name"]: row["kind"] for row in rows}
    assert found == {"layerfuse": "ships", "first 3 selected": "front", "last layer": "behind"}


@pytest.mark.parametrize(("ms", "axis"), [(3.0, "ms"), (26.0, "dims")])
def test_equal_times_tell_nothing_apart(ms: float, axis: str):
    chart = figures.pareto([tradeoff("pipeline", 26.0, 0.96), tradeoff("last_layer", ms, 0.95)])
    assert vega_spec(chart)["layer"][0]["encoding"]["x"]["field"] == axis
