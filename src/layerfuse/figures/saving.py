"""Figures as files, drawn without a browser."""

from __future__ import annotations

from pathlib import Path

import altair as alt

from layerfuse.errors import ConfigError
from layerfuse.figures.theme import THEMES, Chart, vega_spec
from layerfuse.files import atomic_write

__all__ = ["save_chart", "vega_lite_version"]

_SCALE = 2  # device pixels of a PNG for each pixel of the figure


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
    if theme not in THEMES:
        raise ConfigError(f"Unknown theme {theme!r}. Choose from {', '.join(THEMES)}.")
    spec = vega_spec(chart, theme, width)
    spec["background"] = {"light": "#ffffff", "dark": "#15181b"}[theme]
    version = vega_lite_version()
    if path.suffix == ".svg":
        data = vl_convert.vegalite_to_svg(spec, vl_version=version).encode()
    else:
        data = vl_convert.vegalite_to_png(spec, vl_version=version, scale=_SCALE)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


def vega_lite_version() -> str:
    """Major and minor version of the Vega-Lite that figures are written for, such as ``"6.4"``."""
    return ".".join(str(alt.SCHEMA_VERSION).lstrip("v").split(".")[:2])
