"""How good each block is for the labels."""

from layerfuse.scoring.axes import PrincipalAxes
from layerfuse.scoring.folds import stratified_folds, stratified_rows
from layerfuse.scoring.probe import (
    SCORERS,
    Probed,
    check_scorer,
    probe_blocks,
    probe_rows,
    score_blocks,
)
from layerfuse.scoring.ridge import (
    LeaveOneOut,
    Spectrum,
    decompose,
    leave_one_out,
    one_hot,
    spectrum,
    standardisation,
)

__all__ = [
    "SCORERS",
    "LeaveOneOut",
    "PrincipalAxes",
    "Probed",
    "Spectrum",
    "check_scorer",
    "decompose",
    "leave_one_out",
    "one_hot",
    "probe_blocks",
    "probe_rows",
    "score_blocks",
    "spectrum",
    "standardisation",
    "stratified_folds",
    "stratified_rows",
]
