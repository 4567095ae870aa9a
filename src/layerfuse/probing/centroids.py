"""What words say of classes: similarities of a text to the mean TF-IDF vector of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError, FormatError
from layerfuse.files import take_tensor
from layerfuse.probing.ridge import standardization
from layerfuse.targets import Targets

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = npt.NDArray[np.floating]

_MOST_COLUMNS = 2**17  # of the training texts' words, the most frequent
_MOST_NUMBERS = 2**25  # of all classes, 128 MB
_SMALLEST = 1e-5  # standard deviation of a value, which is at most 1, and weight of a class
_FOLDS = 5
_EXACT = 2**24  # whole numbers below it are exact in float32


@dataclass(frozen=True, eq=False)
class ClassCentroids:
    """From word counts to coordinates: how near a text is to the mean text of each class.

    Counts are weighted by inverse document frequency and each text scaled to unit length; its
    products with the class means are the values (Rocchio, 1971), less their mean over classes.
    They are standardized like the coordinates of other blocks. Labels are learned here, so training
    rows get their values from the other folds: a head that is trained on them sees what it will see
    of new texts. Leaving out each row alone would not do: its values would tell its label, as they
    lack just that (Micci-Barreca's target statistics, 2001, have the same fault).

    Attributes
    ----------
    columns : ndarray of int of shape (n_words,)
        Columns of the counts that are read, rising.
    idf : ndarray of shape (n_words,)
    centroids : ndarray of shape (n_words, n_outputs)
    mean, scale : ndarray of shape (n_outputs,)
    """

    columns: npt.NDArray[np.intp]
    idf: Floats
    centroids: Floats
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, counts: csr_matrix, targets: Targets) -> tuple[ClassCentroids, Floats]:
        """Learn from training rows.

        Parameters
        ----------
        counts : csr_matrix of shape (n, n_columns)
            Log counts.
        targets : Targets

        Returns
        -------
        centroids : ClassCentroids
        coordinates : ndarray of float32 of shape (n, n_outputs)
            Of the training rows, each as if those of its fold had not been seen; centered.
        """
        counts = counts.tocsr()
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        columns = np.flatnonzero(frequency >= min(2, frequency.max(initial=0)))
        most = min(_MOST_COLUMNS, _MOST_NUMBERS // targets.space.n_outputs)
        if len(columns) > most:
            columns = np.sort(columns[np.argsort(-frequency[columns], kind="stable")[:most]])
        idf = np.log((1 + counts.shape[0]) / (1 + frequency[columns])) + 1
        rows = _weigh(counts, columns, idf.astype(np.float32))
        members = targets.matrix
        if targets.weights is not None:
            members = members * (targets.weights / targets.weights.mean())[:, None]
        sums, totals = np.asarray(rows.T @ members), members.sum(axis=0)
        values = np.empty(members.shape, dtype=np.float32)
        for _, held in targets.folds(_FOLDS, 0):
            part = rows[held]
            left = totals - members[held].sum(axis=0)
            others = (sums - np.asarray(part.T @ members[held])) / np.maximum(left, _SMALLEST)
            values[held] = _center(np.where(left > _SMALLEST, np.asarray(part @ others), 0))
        mean, scale = standardization(values)
        scale[values.std(axis=0) < _SMALLEST] = 0.0  # equal texts: what differs is rounding
        centroids = sums / np.maximum(totals, _SMALLEST)
        fitted = cls(columns, idf.astype(np.float32), centroids.astype(np.float32), mean, scale)
        return fitted, np.asarray((values - mean) * scale, dtype=np.float32)

    @property
    def rank(self) -> int:
        """Coordinates."""
        return len(self.mean)

    def transform(self, counts: csr_matrix) -> Floats:
        """Log counts (n, n_columns) of texts that were not trained on to coordinates (n, rank)."""
        if counts.shape[1] <= self.columns[-1]:
            raise DataError(
                f"Word counts have {counts.shape[1]} columns, expected more than "
                f"{self.columns[-1]} as in training."
            )
        values = _center(np.asarray(_weigh(counts, self.columns, self.idf) @ self.centroids))
        return np.asarray((values - self.mean) * self.scale, dtype=np.float32)

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """What must be saved, float32; no word is among it."""
        named = {"columns": self.columns, "idf": self.idf, "centroids": self.centroids}
        named |= {"mean": self.mean, "scale": self.scale}
        return {name: array.astype(np.float32) for name, array in named.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> ClassCentroids:
        """The inverse of `arrays`; a FormatError when they are missing or do not fit together."""
        centroids = take_tensor(arrays, "centroids", None, None)
        n_words, n_outputs = centroids.shape
        columns = take_tensor(arrays, "columns", n_words).astype(np.intp)
        if columns[0] < 0 or columns[-1] >= _EXACT or (np.diff(columns) <= 0).any():
            raise FormatError("The columns of words do not rise. The file was changed.")
        idf, mean, scale = (
            take_tensor(arrays, name, size)
            for name, size in (("idf", n_words), ("mean", n_outputs), ("scale", n_outputs))
        )
        return cls(columns, idf, centroids, mean, scale)


def _weigh(counts: csr_matrix, columns: npt.NDArray[np.intp], idf: Floats) -> csr_matrix:
    """TF-IDF of some columns, each row of unit length."""
    from scipy.sparse import diags

    rows = counts[:, columns] @ diags(idf)
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return (diags(1 / np.maximum(lengths, 1e-12)) @ rows).tocsr().astype(np.float32)


def _center(values: Floats) -> Floats:
    """Values (n, n_outputs), less their mean over outputs."""
    return np.asarray(values - values.mean(axis=1, keepdims=True))
