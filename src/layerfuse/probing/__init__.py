"""How good each block is for the targets."""

from layerfuse.probing.centroids import ClassCentroids
from layerfuse.probing.probe import (
    SCORERS,
    Axes,
    PrincipalAxes,
    ProbeResults,
    check_scorer,
    probe_blocks,
    probe_rows,
    probe_space,
    score_blocks,
)

__all__ = [
    "SCORERS",
    "Axes",
    "ClassCentroids",
    "PrincipalAxes",
    "ProbeResults",
    "check_scorer",
    "probe_blocks",
    "probe_rows",
    "probe_space",
    "score_blocks",
]
