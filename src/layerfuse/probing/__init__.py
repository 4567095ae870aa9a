"""How good each block is for the targets."""

from layerfuse.probing.pairs import (
    Agreement,
    find_interaction,
    find_pair,
    linear_cka,
    measure_agreement,
)
from layerfuse.probing.probe import (
    SCORERS,
    PrincipalAxes,
    ProbeResults,
    check_scorer,
    fit_logistic,
    probe_blocks,
    probe_rows,
    probe_space,
    score_blocks,
)
from layerfuse.probing.ridge import (
    LeaveOneOut,
    RidgeState,
    Spectrum,
    decompose,
    leave_one_out,
    prior_errors,
    spectrum,
    standardization,
    unit_mean_weights,
    weight_rows,
)

__all__ = [
    "SCORERS",
    "Agreement",
    "LeaveOneOut",
    "PrincipalAxes",
    "ProbeResults",
    "RidgeState",
    "Spectrum",
    "check_scorer",
    "decompose",
    "find_interaction",
    "find_pair",
    "fit_logistic",
    "leave_one_out",
    "linear_cka",
    "measure_agreement",
    "prior_errors",
    "probe_blocks",
    "probe_rows",
    "probe_space",
    "score_blocks",
    "spectrum",
    "standardization",
    "unit_mean_weights",
    "weight_rows",
]
