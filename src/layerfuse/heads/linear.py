"""Linear heads: ridge regression on the target matrix, and multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from layerfuse.files import take_tensor
from layerfuse.heads.protocol import UNSEEN_CLASS_LOGIT, Floats
from layerfuse.probing.probe import fit_logistic
from layerfuse.probing.ridge import (
    LeaveOneOut,
    decompose,
    leave_one_out,
    weight_rows,
)
from layerfuse.targets import Rows, Targets

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


_FOLDS = 3
_SEARCH_DIMS = 256

_GRID = tuple(float(C) for C in np.logspace(-1.5, 3.5, 6))
"""Values of C that are tried, smallest (strongest penalty) first."""


@dataclass(frozen=True)
class LinearHead:
    """Logits ``X @ coef + intercept``, of shapes (dim, n_outputs) and (n_outputs,).

    By itself a head that came with a fusion, without a penalty; it is alpha for ``ridge``, 1/C for
    ``logistic``.
    """

    kind: ClassVar[str] = "linear"
    coef: Floats
    intercept: Floats
    penalty: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.coef.shape[0], self.coef.shape[1]

    def logits(self, X: Floats) -> Floats:
        return np.asarray(X @ self.coef + self.intercept)

    def arrays(self) -> dict[str, Floats]:
        return {"coef": self.coef, "intercept": self.intercept}

    @classmethod
    def load(cls, arrays: Mapping[str, Floats], penalty: float) -> Self:
        coef = take_tensor(arrays, "coef", None, None)
        return cls(coef, take_tensor(arrays, "intercept", coef.shape[1]), penalty)


class RidgeHead(LinearHead):
    """Ridge regression on the target matrix; the penalty by exact leave-one-out."""

    kind = "ridge"

    @classmethod
    def fit(cls, X: Floats, targets: Targets, penalty: float, *, seed: int) -> Self:
        from sklearn.linear_model import Ridge

        model = Ridge(alpha=penalty).fit(X, targets.matrix, sample_weight=targets.unit_weights)
        coef = np.ascontiguousarray(model.coef_.T, dtype=np.float32)
        return cls(coef, model.intercept_.astype(np.float32), penalty)

    @classmethod
    def fit_parts(
        cls, parts: Iterable[tuple[Rows, Floats]], targets: Targets, penalty: float
    ) -> Self:
        """Fit rows that come in parts, as row numbers and features (n_part, dim).

        Memory is that of a part and of two matrices (dim, dim): sums of products in float64.
        """
        from scipy.linalg import cho_factor, cho_solve

        weights = targets.unit_weights
        gram = cross = np.zeros(())
        for rows, X in parts:
            Z = np.column_stack([X, np.ones(len(X))])  # float64; products with ones are sums
            own = Z if weights is None else Z * weights[rows, None]
            gram = gram + own.T @ Z
            cross = cross + own.T @ targets[rows].matrix
        total, sums = gram[-1, -1], gram[:-1, -1]
        mean, center = sums / total, cross[-1] / total
        inner = gram[:-1, :-1] - np.outer(sums, mean)
        inner[np.diag_indices_from(inner)] += penalty
        coef = cho_solve(cho_factor(inner, overwrite_a=True), cross[:-1] - np.outer(sums, center))
        intercept = center - mean @ coef
        return cls(coef.astype(np.float32), intercept.astype(np.float32), penalty)

    @classmethod
    def search_penalty(cls, X: Floats, targets: Targets, *, seed: int) -> float:
        return ridge_leave_one_out(X, targets).penalty


def ridge_leave_one_out(X: Floats, targets: Targets) -> LeaveOneOut:
    """Exact leave-one-out ridge predictions of centered features (n, dim), at the best penalty."""
    weights = targets.unit_weights
    space = decompose(weight_rows(X, weights))
    return leave_one_out(space, targets.matrix, row_weights=weights, groups=targets.groups)


class LogisticHead(LinearHead):
    """Multinomial logistic regression; the penalty by the log loss over stratified folds."""

    kind = "logistic"

    @classmethod
    def fit(cls, X: Floats, targets: Targets, penalty: float, *, seed: int) -> Self:
        present = np.flatnonzero(targets.counts)
        if len(present) == 1:  # within a fold of few rows: nothing is told apart
            intercept = np.full(targets.space.n_outputs, UNSEEN_CLASS_LOGIT, dtype=np.float32)
            intercept[present] = 0.0
            return cls(np.zeros((X.shape[1], len(intercept)), np.float32), intercept, penalty)
        model = fit_logistic(_logistic(1.0 / penalty), X, targets.codes, targets.unit_weights)
        own_coef, own_intercept = model.coef_, model.intercept_
        if len(own_coef) == 1:  # scikit-learn keeps one row, a sigmoid; as two it is a softmax
            own_coef, own_intercept = (
                np.concatenate([-part, part]) / 2 for part in (own_coef, own_intercept)
            )
        # A class without a row here (a rare one, within a fold) is never predicted.
        coef = np.zeros((X.shape[1], targets.space.n_outputs), dtype=np.float32)
        intercept = np.full(targets.space.n_outputs, UNSEEN_CLASS_LOGIT, dtype=np.float32)
        coef[:, model.classes_], intercept[model.classes_] = own_coef.T, own_intercept
        return cls(coef, intercept, penalty)

    @classmethod
    def search_penalty(cls, X: Floats, targets: Targets, *, seed: int) -> float:
        # The penalty is the same for rotated features, and small directions hardly matter.
        rotated = decompose(X).rotated[:, :_SEARCH_DIMS]
        # Constant features fit alike at any penalty; folds need two classes of two rows or more.
        if not rotated.shape[1] or np.count_nonzero(targets.counts >= 2) < 2:
            return 1.0 / _GRID[0]
        return 1.0 / _search_c(rotated, targets, seed)


def _logistic(C: float, *, warm_start: bool = False) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000, tol=1e-4, warm_start=warm_start)


def _search_c(X: Floats, targets: Targets, seed: int) -> float:
    """The C with the lowest log loss over stratified folds, between those of the grid by a parabola
    through the lowest three; the grid is left once the loss has risen.
    """
    weights = targets.unit_weights
    folds = [fold for fold in targets.folds(_FOLDS, seed) if np.ptp(targets.codes[fold[0]])]
    if not folds:  # each would learn a single class
        return _GRID[0]
    models = [_logistic(_GRID[0], warm_start=True) for _ in folds]
    losses: list[float] = []
    for C in _GRID:
        loss = 0.0
        for model, (train, held) in zip(models, folds, strict=True):
            own = None if weights is None else weights[train]
            fit_logistic(model.set_params(C=C), X[train], targets.codes[train], own)
            proba = np.full((len(held), targets.space.n_outputs), np.exp(UNSEEN_CLASS_LOGIT))
            proba[:, model.classes_] = model.predict_proba(X[held])
            # Per row first: one output is not 0.
            terms = (targets[held].matrix * np.log(np.maximum(proba, 1e-12))).sum(axis=1)
            loss -= float((terms if weights is None else terms * weights[held]).sum())
        losses.append(loss)
        if loss > min(losses):
            break
    best = int(np.argmin(losses))
    if not 0 < best < len(losses) - 1:
        return _GRID[best]
    before, lowest, after = losses[best - 1 : best + 2]
    shift = (before - after) / (2 * (before - 2 * lowest + after))  # of a step, -0.5 to 0.5
    return float(_GRID[best] * (_GRID[1] / _GRID[0]) ** shift)
