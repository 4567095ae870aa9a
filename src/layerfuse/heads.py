"""The classifier that ships: a linear head over fused features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.scoring import decompose, leave_one_out, one_hot, stratified_folds

__all__ = ["HEADS", "LinearHead", "check_head", "fit_head", "search_penalty"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

HEADS = ("logistic", "ridge")

_FOLDS = 3
_SEARCH_DIMS = 256
_NEVER = -30.0  # the logit of a class that was not seen

_GRID = tuple(float(C) for C in np.logspace(-1.5, 3, 10))
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


def search_penalty(
    kind: str,
    Z: Floats,
    y: Labels,
    *,
    class_weight: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> float:
    """Find the penalty of a head: exact leave-one-out for ridge, stratified folds for logistic.

    Parameters
    ----------
    kind
        ``"logistic"`` or ``"ridge"``.
    Z, y
        Centred, block-scaled features (n, dim), of which the leading principal coordinates are
        enough, and class indices (n,).
    class_weight
        A weight for each class (n_classes,), or None.

    Returns
    -------
    float
        1/C for logistic, alpha for ridge.
    """
    check_head(kind)
    if kind == "ridge":
        return leave_one_out(decompose(Z), one_hot(y, int(y.max()) + 1)).penalty
    # The penalty is the same for features that were turned, and small directions hardly matter.
    turned = decompose(Z).rotated[:, :_SEARCH_DIMS]
    # Constant features fit alike at any penalty; folds need two classes of two rows or more.
    if not turned.shape[1] or np.sort(np.bincount(y, minlength=2))[-2] < 2:
        return 1.0 / _GRID[0]
    return 1.0 / _search_c(turned, y, _row_weights(class_weight, y), seed)


def fit_head(
    kind: str,
    X: Floats,
    y: Labels,
    n_classes: int,
    penalty: float,
    *,
    class_weight: npt.NDArray[np.floating] | None = None,
) -> LinearHead:
    """Fit a head.

    Parameters
    ----------
    kind
        ``"logistic"``: multinomial logistic regression; ``"ridge"``: ridge regression on one-hot
        labels.
    X, y
        Block-scaled features (n, dim) and class indices (n,).
    penalty
        From `search_penalty`.
    class_weight
        A weight for each class (n_classes,), or None.
    """
    check_head(kind)
    weights = _row_weights(class_weight, y)
    if kind == "ridge":
        coef, intercept = _fit_ridge(X, one_hot(y, n_classes), weights, penalty)
    else:
        coef, intercept = _fit_logistic(X, y, n_classes, weights, penalty)
    return LinearHead(
        kind, np.ascontiguousarray(coef.T, dtype=np.float32), intercept.astype(np.float32), penalty
    )


def check_head(kind: str) -> None:
    """Raise a ConfigError for an unknown kind of head."""
    if kind not in HEADS:
        raise ConfigError(
            f"Unknown head {kind!r}. Choose from {', '.join(HEADS)}." + did_you_mean(kind, HEADS)
        )


def _row_weights(class_weight: npt.NDArray[np.floating] | None, y: Labels) -> Floats | None:
    return None if class_weight is None else class_weight[y].astype(np.float32)


def _fit_ridge(
    X: Floats, targets: Floats, weights: Floats | None, penalty: float
) -> tuple[Floats, Floats]:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=penalty).fit(X, targets, sample_weight=weights)
    return model.coef_, model.intercept_


def _fit_logistic(
    X: Floats, y: Labels, n_classes: int, weights: Floats | None, penalty: float
) -> tuple[Floats, Floats]:
    model = _logistic(1.0 / penalty).fit(X, y, sample_weight=weights)
    coef, intercept = model.coef_, model.intercept_
    if len(coef) == 1:  # scikit-learn keeps one row, a sigmoid; as two rows it is a softmax
        coef, intercept = (np.concatenate([-part, part]) / 2 for part in (coef, intercept))
    if len(coef) == n_classes:
        return coef, intercept
    # A class without a row here (a rare one, within a fold) is never predicted.
    every_coef = np.zeros((n_classes, X.shape[1]), dtype=np.float32)
    every_intercept = np.full(n_classes, _NEVER, dtype=np.float32)
    every_coef[model.classes_], every_intercept[model.classes_] = coef, intercept
    return every_coef, every_intercept


def _logistic(C: float, *, warm_start: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000, tol=1e-4, warm_start=warm_start)


def _search_c(X: Floats, y: Labels, weights: Floats | None, seed: int) -> float:
    """The C with the lowest log loss over stratified folds; stops once it has risen."""
    folds = stratified_folds(y, _FOLDS, seed)
    n_classes = int(y.max()) + 1
    models = [_logistic(_GRID[0], warm_start=True) for _ in folds]
    losses: list[float] = []
    for C in _GRID:
        loss = 0.0
        for model, (train, held) in zip(models, folds, strict=True):
            chosen = None if weights is None else weights[train]
            model.set_params(C=C).fit(X[train], y[train], sample_weight=chosen)
            proba = np.full((len(held), n_classes), np.exp(_NEVER))
            proba[:, model.classes_] = model.predict_proba(X[held])
            loss -= float(np.log(np.maximum(proba[np.arange(len(held)), y[held]], 1e-12)).sum())
        losses.append(loss)
        if loss > min(losses):
            break
    return _GRID[int(np.argmin(losses))]
