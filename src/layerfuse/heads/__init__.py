"""The classifier that ships, over fused features."""

from layerfuse.heads.kernel import KernelHead
from layerfuse.heads.linear import (
    BalancedRidgeHead,
    LinearHead,
    LogisticHead,
    RidgeHead,
    ridge_leave_one_out,
)
from layerfuse.heads.mlp import PAPER_SCHEDULE, MlpHead
from layerfuse.heads.protocol import ANY_LINK, UNSEEN_CLASS_LOGIT, Floats, Head
from layerfuse.heads.registry import HEADS, fit_head, load_head, search_penalty

__all__ = [
    "ANY_LINK",
    "HEADS",
    "PAPER_SCHEDULE",
    "UNSEEN_CLASS_LOGIT",
    "BalancedRidgeHead",
    "Floats",
    "Head",
    "KernelHead",
    "LinearHead",
    "LogisticHead",
    "MlpHead",
    "RidgeHead",
    "fit_head",
    "load_head",
    "ridge_leave_one_out",
    "search_penalty",
]
