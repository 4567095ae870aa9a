"""How much two sets of features of the same rows have in common, whatever the labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError

__all__ = ["linear_cka"]

Doubles = npt.NDArray[np.float64]


def linear_cka(X: npt.ArrayLike, Y: npt.ArrayLike) -> float:
    r"""Linear centred kernel alignment of two feature matrices over the same rows.

    :math:`\|X^T Y\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)` with centred columns (Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, section 3): 1 for features
    that are equal up to rotation, scale and offset, 0 for features that are uncorrelated in every
    pair of columns. Where there are fewer rows than columns the same numbers come from the two
    (n, n) Gram matrices, so the cost is that of the smaller way. A matrix whose columns are all
    constant says nothing, and its similarity with anything is 0.

    It is biased upwards for few rows: two random matrices of d columns give about d / (n + d).

    Parameters
    ----------
    X : (n, dim_x) features; brought to float64 before centring, so that a large offset is harmless
    Y : (n, dim_y) features of the same rows

    Returns
    -------
    float
        From 0 to 1, without unit.

    Raises
    ------
    DataError
        For arrays that are not two matrices over the same rows, or values that are not finite.
    """
    a, b = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not len(a):
        raise DataError(
            f"Got features of shapes {a.shape} and {b.shape}. Expected (n, dim_x) and (n, dim_y) "
            "over the same n rows, with at least one row."
        )
    for name, table in (("X", a), ("Y", b)):
        if not np.isfinite(table).all():
            row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
            raise DataError(f"Row {row} of {name} holds a NaN or an infinity. Give finite numbers.")
    a, b = _centred(a), _centred(b)
    if len(a) < max(a.shape[1], b.shape[1]):
        left, right = a @ a.T, b @ b.T
        shared, own = float((left * right).sum()), np.linalg.norm(left) * np.linalg.norm(right)
    else:
        shared = float(np.linalg.norm(a.T @ b) ** 2)
        own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.clip(shared / own, 0.0, 1.0)) if own > 0 else 0.0


def _centred(X: Doubles) -> Doubles:
    """Columns of mean 0, the whole of norm 1; what is constant becomes exactly 0."""
    varies = X.max(axis=0) > X.min(axis=0)
    centred = np.where(varies, X - X.mean(axis=0), 0.0)
    largest = np.abs(centred).max(initial=0.0)
    if largest == 0:
        return centred
    centred = centred / largest  # first, so that no square overflows
    return np.asarray(centred / np.linalg.norm(centred))
