"""How good each block is for the targets."""

from layerfuse.probing.probe import (
    SCORERS,
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
    "PrincipalAxes",
    "ProbeResults",
    "check_scorer",
    "probe_blocks",
    "probe_rows",
    "probe_space",
    "score_blocks",
]
