r"""Ridge regression on a target matrix with exact leave-one-out predictions, in closed form.

With :math:`Z` the standardized features, :math:`Z^T Z = V \Lambda V^T` and :math:`Q = Z V`, the
fitted values for the penalty :math:`\alpha` are :math:`Q (\Lambda + \alpha)^{-1} Q^T Y` and the
leverages :math:`h_i = 1/n + \sum_j Q_{ij}^2 / (\lambda_j + \alpha)`. The residual of row :math:`i`
when the model never saw it is its ordinary residual divided by :math:`1 - h_i` (Allen's PRESS,
1974; Rifkin and Lippert, "Notes on Regularized Least Squares", 2007). One eigendecomposition serves
all penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.folds import Groups, standard_error

Floats = npt.NDArray[np.floating]

PENALTIES = np.logspace(-5.0, -0.5, 10)
"""Candidate penalties, per row, for features whose variances add up to one."""

_LEAST = 1e-6  # what a row's leverage leaves of it, at least
_CHUNK = 1 << 23  # values processed at once where a whole copy would double the memory


@dataclass(frozen=True)
class Spectrum:
    """Features rotated onto their principal axes: Q (n, rank), its columns ordered by falling
    eigenvalues (rank,), and V (dim, rank).
    """

    rotated: Floats
    eigenvalues: Floats
    axes: Floats


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out results at the penalty with the lowest loss, in the units of the eigenvalues.

    ``predictions`` (n, n_outputs) are of models that did not see the row, ``errors`` (n,) their
    squared errors, summed over outputs.
    """

    penalty: float
    predictions: Floats
    errors: Floats

    @property
    def loss(self) -> float:
        """The mean of the errors."""
        return float(self.errors.mean())


def standardization(X: Floats) -> tuple[Floats, Floats]:
    """Mean (dim,) and scale (dim,) that give columns a variance of 1/dim, and constant ones 0."""
    mean = X.mean(axis=0, dtype=np.float64)
    # In float32 a large common offset (an attention sink) would eat the variance's digits.
    center = mean.astype(X.dtype)
    squares = sum(((X[rows] - center) ** 2).sum(axis=0, dtype=np.float64) for rows in _chunks(X))
    deviation = np.sqrt(squares / len(X))
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0) / np.sqrt(X.shape[1])
    return mean.astype(X.dtype), scale.astype(X.dtype)


def spectrum(X: Floats) -> Spectrum:
    """Standardize features (n, dim), scale them by 1/sqrt(dim) and rotate them onto their axes."""
    mean, scale = standardization(X)
    Z = X - mean
    Z *= scale
    return decompose(Z, overwrite=True)


def decompose(Z: Floats, *, overwrite: bool = False) -> Spectrum:
    """Rotate centered features (n, dim) onto their axes, by the smaller of the two Gram matrices.

    With ``overwrite`` the features' own memory may hold the result, so that tall ones need no copy.
    """
    from scipy.linalg import eigh

    gram = Z @ Z.T if Z.shape[1] > len(Z) else Z.T @ Z
    values, vectors = eigh(gram, driver="evd", overwrite_a=True)  # 1.7 times as fast as numpy's
    # Directions below the precision of the decomposition carry only rounding errors.
    smallest = values.max(initial=0.0) * max(Z.shape) * np.finfo(values.dtype).eps
    kept = values > smallest
    values, vectors = values[kept][::-1], np.ascontiguousarray(vectors[:, kept][:, ::-1])
    if Z.shape[1] > Z.shape[0]:
        rotated = vectors * np.sqrt(values)
        return Spectrum(rotated, values, Z.T @ (rotated / values))
    if not overwrite:
        return Spectrum(Z @ vectors, values, vectors)
    for rows in _chunks(Z):
        Z[rows, : len(values)] = Z[rows] @ vectors
    return Spectrum(Z[:, : len(values)], values, vectors)


def weight_rows(X: Floats, row_weights: Floats | None) -> Floats:
    """Less their weighted mean, rows (n, columns) times the roots of their weights, if any.

    Least squares on them is weighted least squares.
    """
    if row_weights is None:
        return X
    mean = np.average(X.astype(np.float64), axis=0, weights=row_weights).astype(X.dtype)
    return np.asarray((X - mean) * np.sqrt(row_weights)[:, None])


def _unseen(
    residuals: Floats, leverages: Floats, factors: Sequence[Floats], groups: Groups | None
) -> Floats:
    """Residuals (n, n_outputs) of rows when neither they nor others of their group were seen.

    The hat matrix H is the sum of F F^T over ``factors`` F (n, any), ``leverages`` its diagonal.
    Those of a group g are ``(I - H_gg)^-1`` times the ordinary ones; of the two forms that
    Woodbury's identity gives the one with the smaller matrix.
    """
    unseen = np.asarray(residuals / np.maximum(1.0 - leverages, _LEAST)[:, None])
    for rows in [] if groups is None else groups.repeated:
        factor = np.concatenate([part[rows] for part in factors], axis=2)
        size, rank = factor.shape[1:]
        across, own = factor.swapaxes(1, 2), residuals[rows]
        # A little more than one, for what rounding takes.
        identity = (1.0 + 8 * np.finfo(factor.dtype).eps) * np.eye(min(size, rank))
        identity = identity.astype(factor.dtype)
        if size <= rank:
            unseen[rows] = np.linalg.solve(identity - factor @ across, own)
        else:
            unseen[rows] = own + factor @ np.linalg.solve(identity - across @ factor, across @ own)
    return unseen


def prior_errors(
    targets: Floats, groups: Groups | None = None, row_weights: Floats | None = None
) -> Floats:
    """Squared leave-one-out errors (n,) of the mean of a target matrix (n, n_outputs).

    ``groups`` and ``row_weights`` as in `leave_one_out`.
    """
    n = len(targets)
    if groups is None and row_weights is None:
        errors = (targets - targets.mean(axis=0)) * (n / max(n - 1, 1))
    else:
        share = _intercept(targets, row_weights)
        own = targets - targets.mean(axis=0) if row_weights is None else targets
        errors = _unseen(weight_rows(own, row_weights), share[:, 0] ** 2, [share], groups)
    return np.asarray((errors**2).sum(axis=1))


def _intercept(targets: Floats, row_weights: Floats | None) -> Floats:
    """What the intercept adds to the hat matrix is this (n, 1) times its own transpose."""
    share = np.ones(len(targets)) if row_weights is None else row_weights
    return np.sqrt(share / len(targets)).astype(targets.dtype)[:, None]


def leave_one_out(
    space: Spectrum,
    targets: Floats,
    penalties: npt.ArrayLike = PENALTIES,
    *,
    row_weights: Floats | None = None,
    groups: Groups | None = None,
) -> LeaveOneOut:
    """Exact leave-one-out predictions for each penalty (times n), at the best of them.

    ``targets`` (n, n_outputs) are a target matrix, such as `Targets.matrix`. ``row_weights`` (n,)
    are above 0 with a mean of 1; with them ``space`` is that of features from which their weighted
    mean was taken, each row times the root of its weight, and errors are weighted. Rows of one of
    ``groups`` are left out together.
    """
    n = len(targets)
    if row_weights is None:
        center = targets.mean(axis=0, dtype=np.float64).astype(targets.dtype)
        centered = targets - center
        without_intercept: float | Floats = 1.0 - 1.0 / n
    else:
        roots = np.sqrt(row_weights)[:, None]
        center = np.average(targets.astype(np.float64), axis=0, weights=row_weights)
        centered = (targets - center.astype(targets.dtype)) * roots
        without_intercept = 1.0 - row_weights[:, None] / n
    projected = space.rotated.T @ centered
    alphas = np.atleast_1d(np.asarray(penalties, dtype=space.rotated.dtype)) * n
    shrinkage = 1.0 / (space.eigenvalues[:, None] + alphas)  # (rank, penalties)
    leverages = np.empty((n, len(alphas)), dtype=space.rotated.dtype)
    for rows in _chunks(space.rotated):
        leverages[rows] = (space.rotated[rows] ** 2) @ shrinkage
    one_minus_leverage = np.maximum(without_intercept - leverages, _LEAST)
    n_outputs = targets.shape[1]
    width = max(1, 512 // n_outputs)  # penalties whose predictions are made in one product
    best: LeaveOneOut | None = None
    for start in range(0, len(alphas), width):
        part = slice(start, start + width)
        weights = projected[:, None, :] * shrinkage[:, part, None]  # (rank, penalties, n_outputs)
        count = weights.shape[1]  # the rank may be 0: a block can be constant
        fitted = space.rotated @ weights.reshape(len(weights), count * n_outputs)
        residuals = centered[:, None, :] - fitted.reshape(n, count, n_outputs)
        if groups is None:
            residuals /= one_minus_leverage[:, part, None]
        else:
            share = _intercept(targets, row_weights)
            for i, column in enumerate(range(len(alphas))[part]):
                basis = space.rotated * np.sqrt(shrinkage[:, column])
                seen = 1.0 - one_minus_leverage[:, column]
                residuals[:, i] = _unseen(residuals[:, i], seen, [basis, share], groups)
        errors = np.einsum("npc,npc->np", residuals, residuals)
        index = int(errors.mean(axis=0).argmin())
        if best is None or errors[:, index].mean() < best.loss:
            own = residuals[:, index]
            predictions = targets - (own if row_weights is None else own / roots)
            best = LeaveOneOut(float(alphas[start + index]), predictions, errors[:, index])
    assert best is not None
    return best


def _chunks(X: Floats) -> list[slice]:
    """Parts of the rows of (n, dim), of some eight million values each."""
    size = max(1, _CHUNK // max(1, X.shape[1]))
    return [slice(start, start + size) for start in range(0, len(X), size)]


@dataclass(frozen=True)
class RidgeState:
    """The ridge regression on the blocks chosen so far.

    ``penalty`` is that of the lowest leave-one-out loss, in the units of the blocks' Gram matrix.
    ``rotation`` (columns, rank) leads from the concatenated blocks to the ``basis`` U (n, rank),
    where the hat matrix is ``U U^T``; ``leverages`` (n,) are its diagonal, with the share of the
    ``intercept`` (n, 1). ``fitted`` values and ``targets`` (n, n_outputs) are weighted as the
    blocks are (`weight_rows`). ``errors`` (n,) are squared leave-one-out errors, summed over
    outputs, ``prior_errors`` (n,) those of the targets' mean.
    """

    penalty: float
    rotation: Floats
    basis: Floats
    leverages: Floats
    fitted: Floats
    errors: Floats
    targets: Floats
    prior_errors: Floats
    intercept: Floats
    groups: Groups | None

    @property
    def loss(self) -> float:
        """The mean of the errors."""
        return float(self.errors.mean())

    @classmethod
    def of(
        cls,
        blocks: Sequence[Floats],
        targets: Floats,
        *,
        row_weights: Floats | None = None,
        groups: Groups | None = None,
    ) -> RidgeState:
        """Fit centered blocks, each (n, columns), to a target matrix (n, n_outputs).

        With ``row_weights`` (n,) of mean 1 the blocks are those of `weight_rows`.
        """
        space = decompose(np.concatenate(blocks, axis=1))
        result = leave_one_out(space, targets, row_weights=row_weights, groups=groups)
        before = prior_errors(targets, groups, row_weights)
        roots = np.sqrt(space.eigenvalues + np.float32(result.penalty))
        basis = space.rotated / roots
        share: Floats | np.float32 = 1.0 / np.float32(len(targets))
        center = targets.mean(axis=0)
        if row_weights is not None:
            targets = weight_rows(targets, row_weights)
            share, center = row_weights * share, np.zeros_like(center)
        return cls(
            penalty=result.penalty,
            rotation=space.axes / roots,
            basis=basis,
            leverages=share + np.einsum("nd,nd->n", basis, basis),
            fitted=center + basis @ (basis.T @ (targets - center)),
            errors=result.errors.astype(np.float32),
            targets=targets,
            prior_errors=before,
            intercept=_intercept(targets, row_weights),
            groups=groups,
        )

    @property
    def is_informative(self) -> bool:
        """Whether the blocks beat the mean of the targets by three standard errors."""
        gains = self.prior_errors - self.errors
        return bool(gains.mean() > 3 * standard_error(gains, self.groups))

    def residuals(self) -> Floats:
        """Exact leave-one-out residuals (n, n_outputs) of the chosen blocks."""
        factors = [self.basis, self.intercept]
        return _unseen(self.targets - self.fitted, self.leverages, factors, self.groups)

    def errors_with(
        self, block: Floats, gram: Floats | None = None, cross: Floats | None = None
    ) -> Floats:
        """Exact squared leave-one-out errors (n,) with ``block`` added; see `residuals_with`."""
        residuals = self.residuals_with(block, gram, cross)
        return np.asarray(np.einsum("nc,nc->n", residuals, residuals))

    def residuals_with(
        self, block: Floats, gram: Floats | None = None, cross: Floats | None = None
    ) -> Floats:
        """Exact leave-one-out residuals (n, n_outputs) with ``block`` added, at the same penalty.

        By block inversion: with H the hat matrix and Z the block, ``(I - H) Z M^T`` with ``M^T M =
        (Z^T (I - H) Z + penalty)^-1`` times its own transpose is what is added to H. Z (n, columns)
        is centered (and weighted, as those of the state); ``gram`` is ``Z^T Z`` and ``cross`` the
        chosen blocks' columns times those of Z, where they are known.
        """
        shared = self.basis.T @ block if cross is None else self.rotation.T @ cross
        inner = (block.T @ block if gram is None else gram) - shared.T @ shared
        inner[np.diag_indices_from(inner)] += np.float32(self.penalty)
        whitening = np.linalg.inv(np.linalg.cholesky((inner + inner.T) / 2)).T
        added = block @ whitening
        added -= self.basis @ (shared @ whitening)
        fitted = self.fitted + added @ (added.T @ self.targets)
        leverages = self.leverages + np.einsum("nd,nd->n", added, added)
        factors = [self.basis, added, self.intercept]
        return _unseen(self.targets - fitted, leverages, factors, self.groups)
