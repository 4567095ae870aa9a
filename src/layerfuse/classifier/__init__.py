"""The scikit-learn estimator."""

from layerfuse.classifier.classifier import LayerFusionClassifier
from layerfuse.classifier.persistence import load

__all__ = ["LayerFusionClassifier", "load"]
