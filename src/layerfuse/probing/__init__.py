"""How good each block is for the labels."""

from layerfuse.probing.axes import PrincipalAxes
from layerfuse.probing.diversity import Agreement, linear_cka, measure_agreement
from layerfuse.probing.forward import RidgeState
from layerfuse.probing.interactions import find_interaction, find_pair, prior_errors
from layerfuse.probing.probe import (
    SCORERS,
    Probed,
    check_scorer,
    probe_blocks,
    probe_rows,
    probe_space,
    score_blocks,
)
from layerfuse.probing.ridge import (
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
]
