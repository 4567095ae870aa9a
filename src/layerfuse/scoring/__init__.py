"""How good each block is for the labels."""

from layerfuse.scoring.probe import SCORERS, Probed, probe_blocks, score_blocks
from layerfuse.scoring.ridge import LeaveOneOut, Spectrum, leave_one_out, one_hot, spectrum

__all__ = [
    "SCORERS",
    "LeaveOneOut",
    "Probed",
    "Spectrum",
    "leave_one_out",
    "one_hot",
    "probe_blocks",
    "score_blocks",
    "spectrum",
]
