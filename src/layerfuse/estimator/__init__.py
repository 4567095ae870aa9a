"""The classifier with scikit-learn's manners; the only place where the stages meet."""

from layerfuse.estimator.classifier import LayerFusionClassifier
from layerfuse.estimator.gathering import Gathered, gather
from layerfuse.estimator.loading import load

__all__ = ["Gathered", "LayerFusionClassifier", "gather", "load"]
