"""Figures from plain rows, as Vega-Lite charts that serve the page and files alike.

They need the extra ``report``; `layerfuse.errors.require` says so before this package is imported.
"""

from layerfuse.figures.layer_curves import layer_curves
from layerfuse.figures.saving import save_chart, vega_lite_version
from layerfuse.figures.theme import THEMES, vega_spec

__all__ = ["THEMES", "layer_curves", "save_chart", "vega_lite_version", "vega_spec"]
