"""How good each block is for the labels."""

from layerfuse.scoring.agreement import Agreement, measure_agreement
from layerfuse.scoring.axes import PrincipalAxes
from layerfuse.scoring.folds import stratified_folds, stratified_rows
from layerfuse.scoring.forward import RidgeState
from layerfuse.scoring.probe import (
    SCORERS,
    Probed,
    check_scorer,
    probe_blocks,
    probe_rows,
    probe_space,
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
from layerfuse.scoring.screening import find_interaction, find_pair, prior_errors
from layerfuse.scoring.similarity import linear_cka

__all__ = [
    "SCORERS",
    "Agreement",
    "LeaveOneOut",
    "PrincipalAxes",
    "Probed",
    "RidgeState",
    "Spectrum",
    "check_scorer",
    "decompose",
    "find_interaction",
    "find_pair",
    "leave_one_out",
    "linear_cka",
    "measure_agreement",
    "one_hot",
    "prior_errors",
    "probe_blocks",
    "probe_rows",
    "probe_space",
    "score_blocks",
    "spectrum",
    "standardisation",
    "stratified_folds",
    "stratified_rows",
]
