"""How every figure looks in light and dark, and how it becomes a specification or a file.

Figures name styles, never colors. Needs the extra ``report``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias

import altair as alt

from layerfuse.errors import ConfigError, check_choice
from layerfuse.files import atomic_write

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart

DRAWING = RLock()
"""Held while charts are built: altair numbers them by counters that threads would share."""

_SCALE = 2  # device pixels of a PNG for each pixel of the figure
_GROUND = {"light": "#ffffff", "dark": "#15181b"}
_WIDTH = 560  # pixels of a figure in a notebook


def _themes() -> dict[str, dict[str, Any]]:
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


def vega_spec(chart: Chart, theme: str | None = None, width: int | None = None) -> dict[str, Any]:
    """A figure as a Vega-Lite object, without a theme and as wide as its container by default."""
    spec: dict[str, Any] = chart.to_dict(validate=False)  # tests validate each figure
    spec.pop("config", None)
    if width is not None and spec.get("width") == "container":
        spec |= {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    return spec if theme is None else {**spec, "config": THEMES[theme]}


def for_notebook(charts: Mapping[str, Chart]) -> alt.VConcatChart:
    """Figures by their titles under each other, in the light theme and of a fixed width."""
    panels = [chart.properties(title=title, width=_WIDTH) for title, chart in charts.items()]
    whole: alt.VConcatChart = alt.vconcat(*panels, background="#ffffff").resolve_scale(
        color="independent", strokeDash="independent"
    )
    whole.config = THEMES["light"] | {"background": "#ffffff"}
    return whole


def save_chart(chart: Chart, path: Path, *, theme: str = "light", width: int = 640) -> Path:
    """Write a figure as ``.svg`` or ``.png``, ``width`` pixels wide (a PNG twice as many).

    Raises
    ------
    ConfigError
        For another ending or an unknown theme.
    StorageError
        When the disk refuses.
    """
    import vl_convert

    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"{path.name} should end in .svg or .png.")
    check_choice(theme, THEMES, "theme")
    spec = vega_spec(chart, theme, width) | {"background": _GROUND[theme]}
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
