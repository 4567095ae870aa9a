"""Why a text is predicted as it is: the training texts nearest to it in the fused space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.errors import FormatError
from layerfuse.targets import Decisions, LabelSpace

Floats = npt.NDArray[np.float32]
_PART = 256  # texts whose distances to all training texts are in memory at once


@dataclass(frozen=True)
class Neighbor:
    """A training text near to another text.

    Attributes
    ----------
    text : str
    label : object
        Its label, as it was given to ``fit``.
    distance : float
        Euclidean distance in the fused space; two training texts drawn at random are 1 apart (root
        mean square).
    """

    text: str
    label: object
    distance: float


@dataclass(frozen=True)
class Explanation:
    """Predictions of n texts, and what they rest on.

    Attributes
    ----------
    proba : ndarray of shape (n, n_classes)
        Class probabilities.
    neighbors : list of tuple of Neighbor
        For each text the nearest training texts, nearest first.
    """

    proba: npt.NDArray[np.float64]
    neighbors: list[tuple[Neighbor, ...]]


@dataclass(frozen=True, eq=False)
class TrainingExamples:
    """Training texts in the fused space.

    Attributes
    ----------
    texts : tuple of str
        The n texts.
    codes : ndarray of shape (n,), or bool of shape (n, n_labels)
        Numbers of their classes, or which labels they have.
    features : ndarray of float16 of shape (n, n_features)
    """

    texts: tuple[str, ...]
    codes: Decisions
    features: npt.NDArray[np.float16]

    @cached_property
    def _scale(self) -> float:
        """The root mean square distance of two of them."""
        return float(np.sqrt(2 * self.features.var(axis=0, dtype=np.float64).sum())) or 1.0

    @cached_property
    def _table(self) -> Floats:
        return self.features.astype(np.float32)

    @cached_property
    def _squares(self) -> Floats:
        return np.asarray(np.square(self._table).sum(axis=1))

    def nearest(
        self, features: Floats, space: LabelSpace, n_neighbors: int = 3
    ) -> list[tuple[Neighbor, ...]]:
        """For each row of features (m, n_features) the nearest texts, nearest first."""
        labels = space.names(self.codes)
        found = []
        for start in range(0, len(features), _PART):
            part = features[start : start + _PART]
            squares = np.square(part).sum(axis=1)[:, None] + self._squares
            distances = np.sqrt(np.maximum(squares - 2 * part @ self._table.T, 0)) / self._scale
            rows = np.argsort(distances, axis=1, kind="stable")[:, :n_neighbors]
            near = np.take_along_axis(distances, rows, axis=1)
            for own, apart in zip(rows.tolist(), near.tolist(), strict=True):
                pairs = zip(own, apart, strict=True)
                found.append(tuple(Neighbor(self.texts[r], labels[r], d) for r, d in pairs))
        return found

    def central(self, rows: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.intp]:
        """Of some rows the ``n`` that lie nearest to their mean."""
        own = self._table[rows]
        order = np.argsort(np.square(own - own.mean(axis=0)).sum(axis=1), kind="stable")
        return rows[order[:n]]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """What must be saved; `from_arrays` is the inverse."""
        packed = [text.encode() for text in self.texts]
        return {
            "features": self.features,
            "codes": self.codes.astype(np.int64),
            "ends": np.cumsum(list(map(len, packed)), dtype=np.int64),
            "text": np.frombuffer(b"".join(packed), dtype=np.uint8),
        }

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], n_features: int, space: LabelSpace
    ) -> TrainingExamples:
        """Read what `arrays` gave.

        Raises
        ------
        FormatError
            When the arrays do not fit together.
        """
        features, codes, ends, text = (
            arrays[name] for name in ("features", "codes", "ends", "text")
        )
        fits = features.shape == (len(codes), n_features) and len(codes) == len(ends) > 0
        fits = fits and space.holds(codes)
        if not fits or ends[-1] != len(text) or (np.diff(ends, prepend=0) < 0).any():
            raise FormatError("The training texts of the bundle do not fit together.")
        whole, places = text.tobytes(), pairwise([0, *ends.tolist()])
        texts = tuple(whole[start:end].decode() for start, end in places)
        return cls(texts, codes.astype(space.dtype), features)
