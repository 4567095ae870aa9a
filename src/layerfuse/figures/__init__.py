"""Figures from plain rows, as Vega-Lite charts that serve the page and files alike.

They need the extra ``report``; `layerfuse.errors.require` says so before this package is imported.
"""

from layerfuse.figures.gains import gain_intervals, selection_path
from layerfuse.figures.layer_curves import encoder_curves, layer_curves
from layerfuse.figures.learning import learning_curves
from layerfuse.figures.matrices import confusion, heat_map
from layerfuse.figures.pareto import pareto
from layerfuse.figures.reliability import reliability
from layerfuse.figures.saving import save_chart, vega_lite_version
from layerfuse.figures.stack import layer_stacks
from layerfuse.figures.theme import THEMES, Chart, for_notebook, vega_spec

__all__ = [
    "THEMES",
    "Chart",
    "confusion",
    "encoder_curves",
    "for_notebook",
    "gain_intervals",
    "heat_map",
    "layer_curves",
    "layer_stacks",
    "learning_curves",
    "pareto",
    "reliability",
    "save_chart",
    "selection_path",
    "vega_lite_version",
    "vega_spec",
]
