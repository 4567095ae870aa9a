"""Figures are valid Vega-Lite, and files of them hold what they should."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfuse import figures
from layerfuse.errors import ConfigError

SPAN = {"value": 0.8, "low": 0.7, "high": 0.9}
HOSTILE = "</script><script>alert(1)</script> \"'& שלום"

CHARTS: dict[str, Callable[[], figures.Chart]] = {
    "layer_curves": lambda: figures.layer_curves(
        [{"series": s, "layer": n, **SPAN} for s in ("mean", "last") for n in range(4)],
        {("mean", 2), ("last", 3)},
    ),
    "one_layer": lambda: figures.layer_curves([{"series": "mean", "layer": 3, **SPAN}]),
    "layer_stacks": lambda: figures.layer_stacks(
        [
            {"encoder": HOSTILE, "layer": n, "state": state, "mark": "mean", "place": "1"}
            for n, state in enumerate(("chosen", "run through", "not needed"))
        ]
    ),
    "gain_intervals": lambda: figures.gain_intervals([{"name": HOSTILE, **SPAN}]),
    "selection_path": lambda: figures.selection_path(
        [{"step": 1, "block": "a:1:mean", **SPAN, "gain": 0.1, "ships": True}]
    ),
    "pareto": lambda: figures.pareto(
        [
            {
                "name": name,
                "blocks": "a:1:mean",
                **SPAN,
                "ms": ms,
                "memory_mb": 5.0,
                "dims": 32,
                "front": front,
                "ships": name == "layerfuse",
            }
            for name, ms, front in (("layerfuse", 2.0, True), ("last", 1.0, False))
        ]
    ),
    "heat_map": lambda: figures.heat_map(
        [{"a": "x", "b": "y", "value": 1.0, "detail": HOSTILE}], ["x", "y"], measure="Q"
    ),
    "confusion": lambda: figures.confusion(
        [{"truth": HOSTILE, "predicted": "b", "count": 3, "share": 0.3}], [HOSTILE, "b"]
    ),
    "reliability": lambda: figures.reliability([{"confidence": 0.75, **SPAN, "count": 9}]),
    "learning_curves": lambda: figures.learning_curves(
        [{"way": "fusion", "n_rows": n, **SPAN} for n in (10, 100)]
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_every_figure_is_drawn_as_svg(name: str, tmp_path: Path):
    chart = CHARTS[name]()
    chart.to_dict(validate=True)
    path = figures.save_chart(chart, tmp_path / "figure.svg", width=500)
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  # ours
    assert float(root.attrib["width"]) == pytest.approx(500, abs=30)
    marks = [e for e in root.iter() if e.attrib.get("aria-roledescription", "").endswith("mark")]
    assert marks or root.findall(".//{*}path")
    assert not root.findall(".//{*}script")


@pytest.mark.parametrize("theme", figures.THEMES)
def test_a_png_has_twice_the_pixels(theme: str, tmp_path: Path):
    path = figures.save_chart(CHARTS["layer_curves"](), tmp_path / "f.png", theme=theme, width=300)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == pytest.approx(600, abs=30)


def test_chosen_and_last_layers_are_marked():
    spec = figures.vega_spec(CHARTS["layer_curves"]())
    rows = next(layer["data"]["values"] for layer in [spec, *spec["layer"]] if "data" in layer)
    assert {(r["series"], r["layer"]) for r in rows if r["chosen"]} == {("mean", 2), ("last", 3)}
    assert {(r["series"], r["layer"]) for r in rows if r["last"]} == {("mean", 3), ("last", 3)}
    assert {r["value"] for r in rows} == {80.0}


@pytest.mark.parametrize("theme", figures.THEMES)
def test_layers_that_never_run_are_grey(theme: str, tmp_path: Path):
    chart = CHARTS["layer_stacks"]()
    svg = figures.save_chart(chart, tmp_path / "stack.svg", theme=theme).read_text("utf-8")
    styles = figures.THEMES[theme]["style"]
    for style in ("chosen-fill", "read-fill", "idle-fill"):
        assert svg.count(f'fill="{styles[style]["fill"]}"') >= 1, style


def test_names_of_pipelines_do_not_overlap():
    def row(name: str, ms: float, value: float) -> dict[str, Any]:
        rest = {"blocks": "", "memory_mb": 1.0, "dims": 1, "front": True}
        span = {"value": value, "low": value - 0.05, "high": value + 0.05}
        return {"name": name, "ms": ms, **span, **rest, "ships": name == "layerfuse"}

    rows = [row("layerfuse", 26.0, 0.960), row("first 3", 26.0, 0.962), row("last", 3.0, 0.955)]
    spec = figures.vega_spec(figures.pareto(rows))
    values = next(layer["data"]["values"] for layer in [spec, *spec["layer"]] if "data" in layer)
    assert {one["name"] for one in values if one["labelled"]} == {"layerfuse", "last"}


def test_a_theme_changes_colours_only():
    chart = CHARTS["pareto"]()
    light, dark = (figures.vega_spec(chart, theme) for theme in ("light", "dark"))
    assert light.pop("config") != dark.pop("config")
    assert light == dark == figures.vega_spec(chart)


@pytest.mark.parametrize(("name", "theme"), [("f.jpg", "light"), ("f.svg", "sepia")])
def test_an_unknown_ending_or_theme_is_refused(name: str, theme: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sepia|should end"):
        figures.save_chart(CHARTS["pareto"](), tmp_path / name, theme=theme)
