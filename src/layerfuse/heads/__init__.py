"""The classifier that ships, over fused features."""

from layerfuse.heads.kernel import KernelHead
from layerfuse.heads.linear import NEVER, LinearHead, fit_ridge
from layerfuse.heads.mlp import PUBLISHED, MlpHead, fit_mlp
from layerfuse.heads.registry import (
    HEADS,
    Head,
    check_head,
    fit_head,
    load_head,
    search_penalty,
    unit_mean,
)

__all__ = [
    "HEADS",
    "NEVER",
    "PUBLISHED",
    "Head",
    "KernelHead",
    "LinearHead",
    "MlpHead",
    "check_head",
    "fit_head",
    "fit_mlp",
    "fit_ridge",
    "load_head",
    "search_penalty",
    "unit_mean",
]
