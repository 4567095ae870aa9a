"""Parting rows so that each part has each class in the same share."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

__all__ = ["stratified_folds", "stratified_rows"]

Rows = npt.NDArray[np.intp]


def stratified_folds(y: Rows, n_folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Shuffled stratified folds as (training rows, held-out rows); rare classes miss some folds."""
    from sklearn.model_selection import StratifiedKFold

    n_folds = max(2, min(n_folds, int(np.bincount(y).max())))
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(folds.split(np.zeros(len(y)), y))


def stratified_rows(y: Rows, n_rows: int, seed: int) -> Rows:
    """Sorted numbers of about ``n_rows`` rows, each class in its share but at least two rows."""
    if n_rows >= len(y):
        return np.arange(len(y))
    random = np.random.default_rng(seed)
    kept = []
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        count = max(min(2, len(rows)), round(n_rows * len(rows) / len(y)))
        kept.append(random.permutation(rows)[:count])
    return np.sort(np.concatenate(kept))
