"""The scikit-learn estimator."""

from layerfuse.classifier.classifier import LayerFusionClassifier
from layerfuse.classifier.persistence import load
from layerfuse.classifier.transformer import LayerFusionTransformer

__all__ = ["LayerFusionClassifier", "LayerFusionTransformer", "load"]
