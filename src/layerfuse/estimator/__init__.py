"""The classifier with scikit-learn's manners; the only place where the stages meet."""

from layerfuse.estimator.classifier import LayerFusionClassifier, load
from layerfuse.estimator.gathering import Gathered, gather

__all__ = ["Gathered", "LayerFusionClassifier", "gather", "load"]
