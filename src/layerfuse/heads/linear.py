"""Linear heads: ridge regression on the target matrix, and logistic regression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.folds import Rows
from layerfuse.heads.protocol import ANY_LINK, UNSEEN_CLASS_LOGIT, Floats
from layerfuse.probing.probe import fit_logistic
from layerfuse.probing.ridge import (
    LeaveOneOut,
    decompose,
    leave_one_out,
    weight_rows,
)
from layerfuse.targets import LabelSpace, Targets

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Features: TypeAlias = "Floats | csr_matrix"
Parts: TypeAlias = "Callable[[], Iterable[tuple[Rows | slice, Features]]]"
"""Row numbers and features (n_part, dim) of all rows, each time that it is called."""

_FOLDS = 3
_SEARCH_DIMS = 256
_TOL = 1e-4

_GRID = tuple(float(C) for C in np.logspace(-1.5, 3.5, 6))
"""Values of C that are tried, smallest (strongest penalty) first."""


@dataclass(frozen=True)
class LinearHead:
    """Logits ``X @ coef + intercept``, of shapes (dim, n_outputs) and (n_outputs,).

    By itself a head that came with a fusion, without a penalty; it is alpha for ``ridge``, 1/C for
    ``logistic``.
    """

    kind: ClassVar[str] = "linear"
    links: ClassVar[tuple[str, ...]] = ANY_LINK
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

        weights = cls.weighted(targets).unit_weights
        model = Ridge(alpha=penalty).fit(X, targets.matrix, sample_weight=weights)
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

        weights = cls.weighted(targets).unit_weights
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
        return ridge_leave_one_out(X, cls.weighted(targets)).penalty

    @classmethod
    def weighted(cls, targets: Targets) -> Targets:
        """With the weights of rows that the head fits by; here their own."""
        return targets


class BalancedRidgeHead(RidgeHead):
    """Ridge regression that weights rows by one over the root of their class's frequency.

    Squared error draws the outputs of rare classes to zero, so that they are hardly ever predicted.
    """

    kind = "balanced_ridge"
    links = ("softmax",)

    @classmethod
    def weighted(cls, targets: Targets) -> Targets:
        return targets.weighted("balanced")


def ridge_leave_one_out(X: Floats, targets: Targets) -> LeaveOneOut:
    """Exact leave-one-out ridge predictions of centered features (n, dim), at the best penalty."""
    weights = targets.unit_weights
    space = decompose(weight_rows(X, weights))
    return leave_one_out(space, targets.matrix, row_weights=weights, groups=targets.groups)


class LogisticHead(LinearHead):
    """Logistic regression, multinomial where each row has one label; the penalty by the log loss
    over stratified folds.
    """

    kind = "logistic"

    @classmethod
    def fit(cls, X: Floats, targets: Targets, penalty: float, *, seed: int) -> Self:
        model = logistic_model(targets.space)
        model.fit(1.0 / penalty, X, targets, targets.unit_weights)
        return cls(*model.arrays(targets.space.n_outputs), penalty)

    @classmethod
    def fit_parts(cls, parts: Parts, targets: Targets, penalty: float) -> Self:
        """Fit rows that come in parts, all of them again for each step of the solver.

        Memory is that of a part. scikit-learn has one set of coefficients for two classes, on which
        the same penalty weighs twice.
        """
        is_binary = targets.space.link_name == "softmax" and targets.space.n_outputs == 2
        found = _descend(parts, targets, targets.unit_weights, (1 + is_binary) * penalty, _TOL)
        own = found.astype(np.float32)
        return cls(own[:-1], own[-1], penalty)

    @classmethod
    def search_penalty(cls, X: Floats, targets: Targets, *, seed: int) -> float:
        # The penalty is the same for rotated features, and small directions hardly matter.
        rotated = decompose(X).rotated[:, :_SEARCH_DIMS]
        # Constant features fit alike at any penalty.
        if not rotated.shape[1] or not targets.can_fold:
            return 1.0 / _GRID[0]
        return 1.0 / _search_c(rotated, targets, seed)


class _Softmax:
    """Multinomial logistic regression; each fit starts where the one before ended."""

    def __init__(self, tol: float) -> None:
        from sklearn.linear_model import LogisticRegression

        self.model = LogisticRegression(max_iter=1000, tol=tol, warm_start=True)
        self.only: Rows | None = None
        self.dim = 0

    def fit(self, C: float, X: Features, targets: Targets, weights: Floats | None) -> None:
        present = np.flatnonzero(targets.counts)
        self.only = present if len(present) == 1 else None  # within a fold of few rows
        if self.only is None:
            fit_logistic(self.model.set_params(C=C), X, targets.codes, weights)
        self.dim = X.shape[1]

    def proba(self, X: Features, n_outputs: int) -> npt.NDArray[np.float64]:
        """Probabilities (n, n_outputs)."""
        proba = np.zeros((X.shape[0], n_outputs))
        if self.only is None:
            proba[:, self.model.classes_] = self.model.predict_proba(X)
        else:
            proba[:, self.only] = 1.0
        return proba

    def log_likelihood(self, X: Features, targets: Targets) -> npt.NDArray[np.float64]:
        """Of each row, (n,)."""
        proba = self.proba(X, targets.space.n_outputs)
        # Per row first: one output is not 0.
        return np.asarray((targets.matrix * np.log(np.maximum(proba, 1e-12))).sum(axis=1))

    def arrays(self, n_outputs: int) -> tuple[Floats, Floats]:
        """Coefficients (dim, n_outputs) and intercepts (n_outputs,)."""
        # A class without a row here (a rare one, within a fold) is never predicted.
        coef = np.zeros((self.dim, n_outputs), dtype=np.float32)
        intercept = np.full(n_outputs, UNSEEN_CLASS_LOGIT, dtype=np.float32)
        if self.only is not None:
            intercept[self.only] = 0.0
            return coef, intercept
        own_coef, own_intercept = self.model.coef_, self.model.intercept_
        if len(own_coef) == 1:  # scikit-learn keeps one row, a sigmoid; as two it is a softmax
            own_coef, own_intercept = (
                np.concatenate([-part, part]) / 2 for part in (own_coef, own_intercept)
            )
        classes = self.model.classes_
        coef[:, classes], intercept[classes] = own_coef.T, own_intercept
        return coef, intercept


def _descend(
    parts: Parts,
    targets: Targets,
    weights: Floats | None,
    penalty: float,
    tol: float,
    start: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """Coefficients and, last, intercepts (dim + 1, n_outputs) of a logistic regression.

    L-BFGS on the sum of the losses, in columns that are scaled by the bound of the Hessian's
    diagonal (Böhning and Lindsay, 1988), so that a step is as long for each.
    """
    from scipy.optimize import minimize

    n, k, losses = len(targets), targets.space.n_outputs, _LOSSES[targets.space.link_name]
    squares = np.append(sum(_squares(X) for _, X in parts()), n)
    scale = np.sqrt((squares / 4 + np.append(np.full(len(squares) - 1, penalty), 0.0)) / n)[:, None]

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        W = flat.reshape(len(squares), k) / scale
        value = penalty * float(np.square(W[:-1]).sum()) / 2
        slope = np.vstack([penalty * W[:-1], np.zeros(k)])
        for rows, X in parts():
            share = 1 if weights is None else weights[rows, None]
            terms, residuals = losses(
                X @ W[:-1].astype(np.float32) + W[-1].astype(np.float32), targets[rows].matrix
            )
            value += float((share * terms).sum(dtype=np.float64))
            residuals = share * residuals
            slope += np.vstack([X.T @ residuals, residuals.sum(axis=0)])
        return value / n, (slope / scale / n).ravel()

    start = np.zeros((len(squares), k)) if start is None else start
    found = minimize(
        loss, (start * scale).ravel(), method="L-BFGS-B", jac=True,
        options={"maxiter": 500, "gtol": tol / 10, "ftol": 1e-7},
    )  # fmt: skip
    solution: npt.NDArray[np.float64] = found.x.reshape(len(squares), k) / scale
    counts = targets.counts  # a label that no row has, or all, is never or always predicted
    for constant, sign in ((counts == 0, 1), (counts == n, -1)):
        solution[:, constant] = 0.0
        solution[-1, constant] = sign * UNSEEN_CLASS_LOGIT
    return solution


def _squares(X: Features) -> npt.NDArray[np.float64]:
    """The sum of squares of each column, (dim,)."""
    products = X * X if isinstance(X, np.ndarray) else X.multiply(X)
    return np.asarray(products.sum(axis=0, dtype=np.float64)).ravel()


def _softmax_loss(Z: Floats, Y: Floats) -> tuple[Floats, Floats]:
    """Losses of rows (n, 1) by logits and targets (n, k), and their slopes (n, k)."""
    from scipy.special import logsumexp

    total = logsumexp(Z, axis=1, keepdims=True)
    return total - (Y * Z).sum(axis=1, keepdims=True), np.exp(Z - total) - Y


def _sigmoid_loss(Z: Floats, Y: Floats) -> tuple[Floats, Floats]:
    """Losses by logits and targets, and their slopes, all (n, k)."""
    from scipy.special import expit

    return np.logaddexp(0, Z) - Y * Z, expit(Z) - Y


_LOSSES = {"softmax": _softmax_loss, "sigmoid": _sigmoid_loss}


class _Sigmoid:
    """A logistic regression for each label, all in one solve."""

    def __init__(self, tol: float) -> None:
        self.tol = tol
        self.weights: npt.NDArray[np.float64] | None = None  # (dim + 1, n_labels)

    def fit(self, C: float, X: Features, targets: Targets, weights: Floats | None) -> None:
        whole = [(slice(None), X)]
        self.weights = _descend(lambda: whole, targets, weights, 1 / C, self.tol, self.weights)

    def _logits(self, X: Features) -> Floats:
        coef, intercept = self.arrays(0)
        return np.asarray(X @ coef + intercept)

    def proba(self, X: Features, n_outputs: int) -> npt.NDArray[np.float64]:
        """Probabilities (n, n_labels)."""
        from scipy.special import expit

        return np.asarray(expit(self._logits(X).astype(np.float64)))

    def log_likelihood(self, X: Features, targets: Targets) -> npt.NDArray[np.float64]:
        """Of each row, (n,)."""
        return -targets.log_loss(self._logits(X))

    def arrays(self, n_outputs: int) -> tuple[Floats, Floats]:
        """Coefficients (dim, n_labels) and intercepts (n_labels,)."""
        assert self.weights is not None
        found = self.weights.astype(np.float32)
        return found[:-1], found[-1]


_MODELS: dict[str, type[_Softmax] | type[_Sigmoid]] = {"softmax": _Softmax, "sigmoid": _Sigmoid}


def logistic_model(space: LabelSpace, tol: float = _TOL) -> _Softmax | _Sigmoid:
    """A logistic regression for the targets of a space, not fitted."""
    return _MODELS[space.link_name](tol)


def _search_c(X: Floats, targets: Targets, seed: int) -> float:
    """The C with the lowest log loss over stratified folds, between those of the grid by a parabola
    through the lowest three; the grid is left once the loss has risen.
    """
    weights = targets.unit_weights
    folds = [fold for fold in targets.folds(_FOLDS, seed) if targets[fold[0]].varies]
    if not folds:  # each would learn a single class
        return _GRID[0]
    models = [logistic_model(targets.space) for _ in folds]
    losses: list[float] = []
    for C in _GRID:
        loss = 0.0
        for model, (train, held) in zip(models, folds, strict=True):
            own = None if weights is None else weights[train]
            model.fit(C, X[train], targets[train], own)
            terms = model.log_likelihood(X[held], targets[held])
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
