"""Figures are valid Vega-Lite, and files of them hold what they should."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfuse.errors import ConfigError
from layerfuse.report import figures, theme
from layerfuse.report.theme import save_chart, vega_spec

SPAN = {"value": 0.8, "low": 0.7, "high": 0.9}
HOSTILE = "</script><script>alert(1)</script> \"'& שלום"


def pareto_point(
    name: str, ms: float, value: float = 0.8, *, front: bool = True
) -> figures.ParetoPoint:
    """Only "layerfuse" ships."""
    return figures.ParetoPoint(
        name, "a:1:mean", value, value - 0.05, value + 0.05, ms, 5.0, 32, front, name == "layerfuse"
    )


CHARTS: dict[str, Callable[[], theme.Chart]] = {
    "layer_curves": lambda: figures.layer_curves(
        [figures.LayerPoint(s, n, **SPAN) for s in ("mean", "last") for n in range(4)],
        {("mean", 2), ("last", 3)},
    ),
    "one_layer": lambda: figures.layer_curves([figures.LayerPoint("mean", 3, **SPAN)]),
    "layer_stacks": lambda: figures.layer_stacks(
        [
            figures.StackPoint(HOSTILE, n, state, "mean", "1")
            for n, state in enumerate(("selected", "computed", "not loaded"))
        ]
    ),
    "gain_intervals": lambda: figures.gain_intervals([figures.GainPoint(HOSTILE, **SPAN)]),
    "selection_path": lambda: figures.selection_path(
        [figures.PathPoint(1, "a:1:mean", **SPAN, gain=0.1, ships=True)]
    ),
    "pareto": lambda: figures.pareto(
        [pareto_point("layerfuse", 2.0), pareto_point("last", 1.0, front=False)]
    ),
    "heat_map": lambda: figures.heat_map(
        [figures.PairPoint("x", "y", 1.0, HOSTILE)], ["x", "y"], measure="Q"
    ),
    "confusion_matrix": lambda: figures.confusion_matrix(
        [figures.CellPoint(HOSTILE, "b", 3, 0.3)], [HOSTILE, "b"]
    ),
    "reliability": lambda: figures.reliability([figures.BinPoint(0.75, **SPAN, count=9)]),
    "learning_curves": lambda: figures.learning_curves(
        [figures.CurvePoint("fusion", n, **SPAN) for n in (10, 100)]
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_figure_is_drawn_as_svg(name: str, tmp_path: Path):
    chart = CHARTS[name]()
    chart.to_dict(validate=True)
    path = save_chart(chart, tmp_path / "figure.svg", width=500)
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  # ours
    assert float(root.attrib["width"]) == pytest.approx(500, abs=30)
    marks = [e for e in root.iter() if e.attrib.get("aria-roledescription", "").endswith("mark")]
    assert marks or root.findall(".//{*}path")
    assert not root.findall(".//{*}script")


@pytest.mark.parametrize("name", theme.THEMES)
def test_a_png_has_twice_the_pixels(name: str, tmp_path: Path):
    path = save_chart(CHARTS["layer_curves"](), tmp_path / "f.png", theme=name, width=300)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == pytest.approx(600, abs=30)


def test_chosen_and_last_layers_are_marked():
    spec = vega_spec(CHARTS["layer_curves"]())
    rows = next(layer["data"]["values"] for layer in [spec, *spec["layer"]] if "data" in layer)
    assert {(r["series"], r["layer"]) for r in rows if r["selected"]} == {("mean", 2), ("last", 3)}
    assert {(r["series"], r["layer"]) for r in rows if r["last"]} == {("mean", 3), ("last", 3)}
    assert {r["value"] for r in rows} == {80.0}


@pytest.mark.parametrize("name", theme.THEMES)
def test_layers_that_never_run_are_grey(name: str, tmp_path: Path):
    chart = CHARTS["layer_stacks"]()
    svg = save_chart(chart, tmp_path / "stack.svg", theme=name).read_text("utf-8")
    styles = theme.THEMES[name]["style"]
    for style in ("chosen-fill", "read-fill", "idle-fill"):
        assert svg.count(f'fill="{styles[style]["fill"]}"') >= 1, style


def test_names_of_pipelines_do_not_overlap():
    points = [
        pareto_point("layerfuse", 26.0, 0.960),
        pareto_point("first 3", 26.0, 0.962),
        pareto_point("last", 3.0, 0.955),
    ]
    spec = vega_spec(figures.pareto(points))
    values = next(layer["data"]["values"] for layer in [spec, *spec["layer"]] if "data" in layer)
    assert {one["name"] for one in values if one["labelled"]} == {"layerfuse", "last"}


def test_a_theme_changes_colors_only():
    chart = CHARTS["pareto"]()
    light, dark = (vega_spec(chart, name) for name in ("light", "dark"))
    assert light.pop("config") != dark.pop("config")
    assert light == dark == vega_spec(chart)


@pytest.mark.parametrize(("name", "look"), [("f.jpg", "light"), ("f.svg", "sepia")])
def test_an_unknown_ending_or_theme_is_refused(name: str, look: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sepia|should end"):
        save_chart(CHARTS["pareto"](), tmp_path / name, theme=look)
