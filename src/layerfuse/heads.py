"""The classifier that ships: a linear head over fused features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.scoring import leave_one_out, one_hot, spectrum

__all__ = ["HEADS", "ClassWeight", "LinearHead", "fit_head"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
ClassWeight: TypeAlias = Literal["balanced"] | Mapping[Any, float] | None

HEADS = ("logistic", "ridge")

_GRID = tuple(float(C) for C in np.logspace(0, 4, 9))
"""Values of C that are tried, smallest (strongest penalty) first."""


@dataclass(frozen=True)
class LinearHead:
    """Logits ``X @ coef + intercept``: ``coef`` (dim, n_classes), ``intercept`` (n_classes,).

    ``penalty`` is the strength found: 1/C for ``logistic``, alpha for ``ridge``.
    """

    kind: str
    coef: Floats
    intercept: Floats
    penalty: float

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_classes)."""
        return np.asarray(X @ self.coef + self.intercept)


def fit_head(
    kind: str,
    X: Floats,
    y: Labels,
    n_classes: int,
    *,
    class_weight: npt.NDArray[np.floating] | None = None,
    penalty: float | None = None,
    seed: int = 0,
) -> LinearHead:
    """Fit a head, its penalty found by cross-validation unless it is given.

    Parameters
    ----------
    kind
        ``"logistic"``: multinomial logistic regression; ``"ridge"``: ridge regression on one-hot
        labels, the penalty by exact leave-one-out.
    X, y
        Block-scaled features (n, dim) and class indices (n,).
    class_weight
        A weight for each class (n_classes,), or None.

    Raises
    ------
    ConfigError
        For an unknown kind.
    """
    if kind not in HEADS:
        raise ConfigError(
            f"Unknown head {kind!r}. Choose from {', '.join(HEADS)}." + did_you_mean(kind, HEADS)
        )
    weights = None if class_weight is None else class_weight[y].astype(np.float32)
    if kind == "ridge":
        return _fit_ridge(X, y, n_classes, weights, penalty)
    return _fit_logistic(X, y, n_classes, weights, penalty, seed)
