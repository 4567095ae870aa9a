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

Floats = npt.NDArray[np.floating]

PENALTIES = np.logspace(-5.0, -0.5, 10)
"""Candidate penalties, per row, for features whose variances add up to one."""

_CHUNK = 1 << 23  # values processed at once where a whole copy would double the memory


@dataclass(frozen=True)
class Spectrum:
    """Features rotated onto their principal axes.

    Attributes
    ----------
    rotated : ndarray of shape (n, rank)
        Q, its columns ordered by falling eigenvalues.
    eigenvalues : ndarray of shape (rank,)
    axes : ndarray of shape (dim, rank)
        V.
    """

    rotated: Floats
    eigenvalues: Floats
    axes: Floats


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out results at the penalty with the lowest loss.

    Attributes
    ----------
    penalty : float
        In the units of the eigenvalues.
    predictions : ndarray of shape (n, n_outputs)
        Of models that did not see the row.
    errors : ndarray of shape (n,)
        Their squared errors, summed over outputs.
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


def leave_one_out(
    space: Spectrum,
    targets: Floats,
    penalties: npt.ArrayLike = PENALTIES,
    *,
    row_weights: Floats | None = None,
) -> LeaveOneOut:
    """Exact leave-one-out predictions for each penalty (times n), at the best of them.

    Parameters
    ----------
    space : Spectrum
        Features of n rows.
    targets : ndarray of shape (n, n_outputs)
        A target matrix, such as `Targets.matrix`.
    penalties : array-like
        Candidates, per row.
    row_weights : ndarray of shape (n,), optional
        Weights above 0 with a mean of 1. With them ``space`` is that of features from which their
        weighted mean was taken, each row times the root of its weight; errors are weighted.
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
    one_minus_leverage = np.maximum(without_intercept - leverages, 1e-6)
    n_outputs = targets.shape[1]
    width = max(1, 512 // n_outputs)  # penalties whose predictions are made in one product
    best: LeaveOneOut | None = None
    for start in range(0, len(alphas), width):
        part = slice(start, start + width)
        weights = projected[:, None, :] * shrinkage[:, part, None]  # (rank, penalties, n_outputs)
        count = weights.shape[1]  # the rank may be 0: a block can be constant
        fitted = space.rotated @ weights.reshape(len(weights), count * n_outputs)
        residuals = centered[:, None, :] - fitted.reshape(n, count, n_outputs)
        residuals /= one_minus_leverage[:, part, None]
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

    Attributes
    ----------
    penalty : float
        That of the lowest leave-one-out loss, in the units of the blocks' Gram matrix.
    rotation : ndarray of shape (columns, rank)
        From the concatenated blocks to the basis.
    basis : ndarray of shape (n, rank)
        U, where the hat matrix is ``U U^T``.
    leverages : ndarray of shape (n,)
        The diagonal of the hat matrix, with the intercept's share.
    fitted : ndarray of shape (n, n_outputs)
        Fitted values.
    errors : ndarray of shape (n,)
        Squared leave-one-out errors, summed over outputs.
    """

    penalty: float
    rotation: Floats
    basis: Floats
    leverages: Floats
    fitted: Floats
    errors: Floats

    @property
    def loss(self) -> float:
        """The mean of the errors."""
        return float(self.errors.mean())

    @classmethod
    def of(cls, blocks: Sequence[Floats], targets: Floats) -> RidgeState:
        """Fit centered blocks, each (n, columns), to a target matrix (n, n_outputs)."""
        space = decompose(np.concatenate(blocks, axis=1))
        result = leave_one_out(space, targets)
        roots = np.sqrt(space.eigenvalues + np.float32(result.penalty))
        basis = space.rotated / roots
        center = targets.mean(axis=0)
        return cls(
            penalty=result.penalty,
            rotation=space.axes / roots,
            basis=basis,
            leverages=1.0 / np.float32(len(targets)) + np.einsum("nd,nd->n", basis, basis),
            fitted=center + basis @ (basis.T @ (targets - center)),
            errors=result.errors.astype(np.float32),
        )

    def residuals(self, targets: Floats) -> Floats:
        """Exact leave-one-out residuals (n, n_outputs) of the chosen blocks."""
        one_minus_leverage = np.maximum(1.0 - self.leverages, 1e-6)
        return np.asarray((targets - self.fitted) / one_minus_leverage[:, None])

    def errors_with(
        self,
        block: Floats,
        targets: Floats,
        gram: Floats | None = None,
        cross: Floats | None = None,
    ) -> Floats:
        """Exact squared leave-one-out errors (n,) with ``block`` added; see `residuals_with`."""
        residuals = self.residuals_with(block, targets, gram, cross)
        return np.asarray(np.einsum("nc,nc->n", residuals, residuals))

    def residuals_with(
        self,
        block: Floats,
        targets: Floats,
        gram: Floats | None = None,
        cross: Floats | None = None,
    ) -> Floats:
        """Exact leave-one-out residuals (n, n_outputs) with ``block`` added, at the same penalty.

        By block inversion: with H the hat matrix and Z the block, ``(I - H) Z M^T`` with ``M^T M =
        (Z^T (I - H) Z + penalty)^-1`` times its own transpose is what is added to H.

        Parameters
        ----------
        block : ndarray of shape (n, columns)
            Centered.
        targets : ndarray of shape (n, n_outputs)
        gram : ndarray of shape (columns, columns), optional
            ``Z^T Z`` where it is known.
        cross : ndarray of shape (chosen columns, columns), optional
            The chosen blocks' columns times the block's, where they are known.
        """
        shared = self.basis.T @ block if cross is None else self.rotation.T @ cross
        inner = (block.T @ block if gram is None else gram) - shared.T @ shared
        inner[np.diag_indices_from(inner)] += np.float32(self.penalty)
        whitening = np.linalg.inv(np.linalg.cholesky((inner + inner.T) / 2)).T
        added = block @ whitening
        added -= self.basis @ (shared @ whitening)
        fitted = self.fitted + added @ (added.T @ targets)
        leverages = self.leverages + np.einsum("nd,nd->n", added, added)
        return np.asarray((targets - fitted) / np.maximum(1.0 - leverages, 1e-6)[:, None])
