"""How every figure looks in light and dark, and how it becomes a specification or a file.

Figures name styles, never colors. Needs the extra ``report``.
"""

from __future__ import annotations

from collections.abc import Mapping
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
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

# Okabe and Ito, "Color Universal Design" (2008), the yellow left out; on dark ground its lighter
# relatives. Vermilion is kept for what was chosen.
_LIGHT = ("#0072b2", "#00825f", "#a8507f", "#b07a00", "#5b5b5b", "#2f93c9")
_DARK = ("#6cb8e6", "#3fcf9f", "#e69ac3", "#f0c04a", "#b4b4b4", "#a5d8f3")


def _theme(
    colors: tuple[str, ...],
    chosen: str,
    ink: str,
    soft: str,
    grid: str,
    ground: str,
    ramp: list[str],
) -> dict[str, Any]:
    plain = colors[0]
    return {
        "background": "transparent",
        "font": _FONT,
        "view": {"stroke": None, "continuousWidth": 560, "continuousHeight": 240},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "domainColor": grid,
            "tickColor": grid,
            "gridColor": grid,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 8,
            "labelLimit": 220,
        },
        "axisX": {"grid": False, "labelFlush": False},
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "orient": "top",
            "labelLimit": 260,
        },
        "title": {"color": ink, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
        "range": {"category": list(colors), "heatmap": ramp, "ramp": ramp},
        "mark": {"color": plain},
        "line": {"strokeWidth": 2},
        "style": {
            "band": {"opacity": 0.16},
            "interval": {"color": soft, "strokeWidth": 2},
            "plain": {"color": plain, "stroke": plain},
            "chosen": {"color": chosen, "stroke": chosen},
            "ring": {"filled": False, "color": ink, "stroke": ink, "strokeWidth": 2},
            "reference": {"color": soft, "strokeDash": [4, 3]},
            "label": {"color": ink, "fill": ink, "fontSize": 12},
            "on-mark": {"color": ground, "fill": ground, "fontSize": 12, "fontWeight": 600},
            "tile": {"stroke": ground, "strokeWidth": 1},
        },
    }


THEMES: dict[str, dict[str, Any]] = {
    "light": _theme(
        _LIGHT,
        chosen="#c4540a",
        ink="#1c2126",
        soft="#59626b",
        grid="#dde1e5",
        ground=_GROUND["light"],
        ramp=["#f3f6f9", "#b5d3ea", "#5c9fd0", "#1f6aa5", "#083a66"],
    ),
    "dark": _theme(
        _DARK,
        chosen="#ff9d5c",
        ink="#e8eaed",
        soft="#a3abb3",
        grid="#363d44",
        ground=_GROUND["dark"],
        ramp=["#1d2329", "#1c4466", "#2a73a8", "#64aedd", "#d4ecfb"],
    ),
}
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
