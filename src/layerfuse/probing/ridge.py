r"""Ridge regression on one-hot labels with exact leave-one-out predictions, in closed form.

With :math:`Z` the standardised features, :math:`Z^T Z = V \Lambda V^T` and :math:`Q = Z V`, the
fitted values for the penalty :math:`\alpha` are :math:`Q (\Lambda + \alpha)^{-1} Q^T Y` and the
leverages :math:`h_i = 1/n + \sum_j Q_{ij}^2 / (\lambda_j + \alpha)`. The residual of row :math:`i`
when the model never saw it is its ordinary residual divided by :math:`1 - h_i` (Allen's PRESS,
1974; Rifkin and Lippert, "Notes on Regularized Least Squares", 2007). One eigendecomposition serves
all penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.probing.products import Products, chunks, products_for

__all__ = [
    "PENALTIES",
    "LeaveOneOut",
    "Spectrum",
    "decompose",
    "leave_one_out",
    "one_hot",
    "spectrum",
    "standardisation",
]

Floats = npt.NDArray[np.floating]

PENALTIES = np.logspace(-5.0, -0.5, 10)
"""Penalties that are tried, per row, for features whose variances add up to one."""


@dataclass(frozen=True)
class Spectrum:
    """Features turned onto their principal axes.

    ``rotated`` (n, rank) is Q, its columns ordered by falling ``eigenvalues`` (rank,); ``axes``
    (dim, rank) is V.
    """

    rotated: Floats
    eigenvalues: Floats
    axes: Floats


@dataclass(frozen=True)
class LeaveOneOut:
    """Leave-one-out results at the penalty with the lowest loss.

    ``predictions`` (n, n_classes) are those of models that did not see the row, ``errors`` (n,)
    their squared errors summed over classes; ``penalty`` is in the units of the eigenvalues.
    """

    penalty: float
    predictions: Floats
    errors: Floats

    @property
    def loss(self) -> float:
        return float(self.errors.mean())


def one_hot(y: npt.NDArray[np.integer], n_classes: int) -> npt.NDArray[np.float32]:
    """Class indices (n,) to targets (n, n_classes)."""
    targets = np.zeros((len(y), n_classes), dtype=np.float32)
    targets[np.arange(len(y)), y] = 1.0
    return targets


def standardisation(X: Floats) -> tuple[Floats, Floats]:
    """Mean (dim,) and scale (dim,) with which columns get variance 1/dim; constant ones get 0."""
    mean = X.mean(axis=0, dtype=np.float64)
    # In float32 a large common offset (an attention sink) would eat the variance's digits.
    centre = mean.astype(X.dtype)
    squares = sum(((X[rows] - centre) ** 2).sum(axis=0, dtype=np.float64) for rows in chunks(X))
    deviation = np.sqrt(squares / len(X))
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0) / np.sqrt(X.shape[1])
    return mean.astype(X.dtype), scale.astype(X.dtype)


def spectrum(X: Floats) -> Spectrum:
    """Standardise features (n, dim), scale them by 1/sqrt(dim) and turn them onto their axes."""
    mean, scale = standardisation(X)
    Z = X - mean
    Z *= scale
    return decompose(Z, overwrite=True)


def decompose(Z: Floats, *, overwrite: bool = False, products: Products | None = None) -> Spectrum:
    """Turn centred features (n, dim) onto their axes, by the smaller of the two Gram matrices.

    With ``overwrite`` the features' own memory may hold the result, so that tall ones need no copy.
    ``products`` says where it is worked out; large features go to a GPU by default.
    """
    products = products or products_for(*Z.shape)
    values, vectors = products.eigh(Z)
    # Directions below the precision of the decomposition carry only rounding errors.
    smallest = values.max(initial=0.0) * max(Z.shape) * np.finfo(values.dtype).eps
    kept = values > smallest
    values, vectors = values[kept][::-1], np.ascontiguousarray(vectors[:, kept][:, ::-1])
    if Z.shape[1] > Z.shape[0]:
        rotated = vectors * np.sqrt(values)
        return Spectrum(rotated, values, products.times(Z.T, rotated / values))
    if not overwrite:
        return Spectrum(products.times(Z, vectors), values, vectors)
    for rows in chunks(Z):
        Z[rows, : len(values)] = products.times(Z[rows], vectors)
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
    space
        Features of n rows.
    targets
        (n, n_classes), from `one_hot`.
    penalties
        Candidates, per row.
    row_weights
        Weights (n,) above 0 with a mean of 1, or None. With them ``space`` is that of features from
        which their weighted mean was taken, each row times the root of its weight; errors are
        weighted.
    """
    n = len(targets)
    if row_weights is None:
        centre = targets.mean(axis=0, dtype=np.float64).astype(targets.dtype)
        centered = targets - centre
        most: float | Floats = 1.0 - 1.0 / n  # 1 less the leverage of the intercept
    else:
        roots = np.sqrt(row_weights)[:, None]
        centre = np.average(targets.astype(np.float64), axis=0, weights=row_weights)
        centered = (targets - centre.astype(targets.dtype)) * roots
        most = 1.0 - row_weights[:, None] / n
    projected = space.rotated.T @ centered
    alphas = np.atleast_1d(np.asarray(penalties, dtype=space.rotated.dtype)) * n
    shrink = 1.0 / (space.eigenvalues[:, None] + alphas)  # (rank, penalties)
    spare = np.empty((n, len(alphas)), dtype=space.rotated.dtype)  # 1 - leverage
    for rows in chunks(space.rotated):
        spare[rows] = (space.rotated[rows] ** 2) @ shrink
    spare = most - spare
    spare = np.maximum(spare, 1e-6)
    n_classes = targets.shape[1]
    width = max(1, 512 // n_classes)  # penalties whose predictions are made in one product
    best: LeaveOneOut | None = None
    for start in range(0, len(alphas), width):
        part = slice(start, start + width)
        weights = projected[:, None, :] * shrink[:, part, None]  # (rank, penalties, n_classes)
        count = weights.shape[1]  # the rank may be 0: a block can be constant
        fitted = space.rotated @ weights.reshape(len(weights), count * n_classes)
        fitted = fitted.reshape(n, count, n_classes)
        residuals = centered[:, None, :] - fitted
        residuals /= spare[:, part, None]
        errors = np.einsum("npc,npc->np", residuals, residuals)
        index = int(errors.mean(axis=0).argmin())
        if best is None or errors[:, index].mean() < best.loss:
            own = residuals[:, index]
            predictions = targets - (own if row_weights is None else own / roots)
            best = LeaveOneOut(float(alphas[start + index]), predictions, errors[:, index])
    assert best is not None
    return best
