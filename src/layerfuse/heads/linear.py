"""Linear heads: multinomial logistic regression, and ridge regression on one-hot labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.probing import decompose, leave_one_out
from layerfuse.targets import Targets

__all__ = ["NEVER", "LinearHead", "fit_linear", "fit_ridge", "search_linear"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

NEVER = -30.0
"""The logit of a class that was not seen."""

_FOLDS = 3
_SEARCH_DIMS = 256

_GRID = tuple(float(C) for C in np.logspace(-1.5, 3, 10))
"""Values of C that are tried, smallest (strongest penalty) first."""


@dataclass(frozen=True)
class LinearHead:
    """Logits ``X @ coef + intercept``: ``coef`` (dim, n_classes), ``intercept`` (n_classes,).

    ``kind`` is ``ridge`` or ``logistic``, or that of a head that came with a fusion: ``softmax``
    (trained jointly) or ``voting`` (fixed). ``penalty`` is the strength found: 1/C for
    ``logistic``, alpha for ``ridge``, 0 for the others.
    """

    kind: str
    coef: Floats
    intercept: Floats
    penalty: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(dim, n_classes)."""
        return self.coef.shape[0], self.coef.shape[1]

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_classes)."""
        return np.asarray(X @ self.coef + self.intercept)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``coef`` and ``intercept``."""
        return {"coef": self.coef, "intercept": self.intercept}

    @classmethod
    def from_arrays(cls, kind: str, arrays: Mapping[str, Floats], penalty: float) -> LinearHead:
        """The inverse of `arrays`; a FormatError when they do not fit together."""
        coef = take_tensor(arrays, "coef", None, None)
        return cls(kind, coef, take_tensor(arrays, "intercept", coef.shape[1]), penalty)


def search_linear(
    kind: str, Z: Floats, targets: Targets, weights: Floats | None, seed: int
) -> float:
    """The penalty of ``"ridge"`` or ``"logistic"``; ``weights`` (n,) are those of rows, or None."""
    if kind == "ridge":
        return leave_one_out(decompose(Z), targets.matrix).penalty
    # The penalty is the same for features that were turned, and small directions hardly matter.
    turned = decompose(Z).rotated[:, :_SEARCH_DIMS]
    # Constant features fit alike at any penalty; folds need two classes of two rows or more.
    if not turned.shape[1] or np.count_nonzero(targets.counts >= 2) < 2:
        return 1.0 / _GRID[0]
    return 1.0 / _search_c(turned, targets, weights, seed)


def fit_linear(
    kind: str, X: Floats, targets: Targets, penalty: float, weights: Floats | None
) -> LinearHead:
    """Fit ``"ridge"`` or ``"logistic"``; ``weights`` (n,) are those of rows, or None."""
    if kind == "ridge":
        coef, intercept = fit_ridge(X, targets.matrix, weights, penalty)
    else:
        coef, intercept = _fit_logistic(X, targets.codes, targets.space.n_outputs, weights, penalty)
        coef, intercept = np.ascontiguousarray(coef.T), intercept.astype(np.float32)
    return LinearHead(kind, coef.astype(np.float32), intercept, penalty)


def fit_ridge(
    X: Floats, targets: Floats, weights: Floats | None, penalty: float
) -> tuple[Floats, Floats]:
    """Ridge regression of targets (n, n_targets): ``coef`` (dim, n_targets) and intercept."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=penalty).fit(X, targets, sample_weight=weights)
    coef = np.ascontiguousarray(model.coef_.T, dtype=np.float32)
    return coef, model.intercept_.astype(np.float32)


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
    every_intercept = np.full(n_classes, NEVER, dtype=np.float32)
    every_coef[model.classes_], every_intercept[model.classes_] = coef, intercept
    return every_coef, every_intercept


def _logistic(C: float, *, warm_start: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000, tol=1e-4, warm_start=warm_start)


def _search_c(X: Floats, targets: Targets, weights: Floats | None, seed: int) -> float:
    """The C with the lowest log loss over stratified folds; stops once it has risen."""
    folds = targets.folds(_FOLDS, seed)
    y, n_classes = targets.codes, targets.space.n_outputs
    models = [_logistic(_GRID[0], warm_start=True) for _ in folds]
    losses: list[float] = []
    for C in _GRID:
        loss = 0.0
        for model, (train, held) in zip(models, folds, strict=True):
            chosen = None if weights is None else weights[train]
            model.set_params(C=C).fit(X[train], y[train], sample_weight=chosen)
            proba = np.full((len(held), n_classes), np.exp(NEVER))
            proba[:, model.classes_] = model.predict_proba(X[held])
            loss -= float(np.log(np.maximum(proba[np.arange(len(held)), y[held]], 1e-12)).sum())
        losses.append(loss)
        if loss > min(losses):
            break
    return _GRID[int(np.argmin(losses))]
