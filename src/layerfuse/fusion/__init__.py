"""Combining the embeddings of several blocks into one feature matrix."""

from layerfuse.fusion.base import FittedFusion, Fusion
from layerfuse.fusion.fitting import FUSIONS, check_fusion, fit_fusion, load_fusion
from layerfuse.fusion.scaling import BlockScaler

__all__ = [
    "FUSIONS",
    "BlockScaler",
    "FittedFusion",
    "Fusion",
    "check_fusion",
    "fit_fusion",
    "load_fusion",
]
