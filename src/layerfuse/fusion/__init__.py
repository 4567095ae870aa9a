"""Combining the embeddings of several blocks into one feature matrix."""

from layerfuse.fusion.protocol import RESIDUAL, FittedFusion, Fusion, FusionKind
from layerfuse.fusion.registry import FUSIONS, check_fusion, fit_fusion, load_fusion

__all__ = [
    "FUSIONS",
    "RESIDUAL",
    "FittedFusion",
    "Fusion",
    "FusionKind",
    "check_fusion",
    "fit_fusion",
    "load_fusion",
]
