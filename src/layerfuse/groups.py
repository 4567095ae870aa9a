"""Groups of rows that stay together: such as equal texts, of which one gives away the others."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Groups:
    """Which of n rows belong together, where some do.

    Attributes
    ----------
    codes : ndarray of int of shape (n,)
        For each row the number of its group.
    """

    codes: Rows

    @classmethod
    def of(cls, *columns: Iterable[Hashable] | None) -> Groups | None:
        """Rows with an equal value in some column are one group, if only by way of other rows.

        Parameters
        ----------
        *columns : iterable of n hashable values, or None
            Such as texts, and authors.

        Returns
        -------
        Groups or None
            None where each row is alone.

        Examples
        --------
        >>> Groups.of(["a", "b", "a", "c"], [1, 2, 3, 3]).codes.tolist()
        [0, 1, 0, 0]
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        given = [_numbered(column) for column in columns if column is not None]
        if not given:
            return None
        codes = given[0]
        for other in given[1:]:
            first = codes.max(initial=-1) + 1
            size = first + other.max(initial=-1) + 1
            links = coo_array((np.ones(len(codes)), (codes, other + first)), shape=(size, size))
            codes = _numbered(connected_components(links, directed=False)[1][codes].tolist())
        return cls(codes).or_none()

    def or_none(self) -> Groups | None:
        """None where each row is alone, so that nothing needs to be kept together."""
        return self if len(np.unique(self.codes)) < len(self.codes) else None

    def __getitem__(self, rows: Rows | slice) -> Groups | None:
        """The groups of some rows."""
        return Groups(self.codes[rows]).or_none()

    @cached_property
    def repeated(self) -> list[Rows]:
        """Row numbers of the groups of two rows or more: for each size (n_groups, size)."""
        order = np.argsort(self.codes, kind="stable")
        _, starts, sizes = np.unique(self.codes[order], return_index=True, return_counts=True)
        return [
            order[starts[sizes == size, None] + np.arange(size)]
            for size in np.unique(sizes[sizes > 1])
        ]

    def apart(self, rows: Rows, held: Rows) -> Rows:
        """The ``rows`` of which no other row of the group is among ``held``."""
        return rows[~np.isin(self.codes[rows], self.codes[held])]


def normalize(text: str) -> str:
    """The text in one case, with single blanks: encoders may not tell it from the original."""
    return " ".join(text.casefold().split())


def text_groups(texts: Sequence[str], *others: Iterable[Hashable] | None) -> Groups | None:
    """Groups of texts that are equal but for case and white space, and of other columns."""
    return Groups.of(map(normalize, texts), *others)


def standard_error(values: npt.NDArray[np.floating | np.bool_], groups: Groups | None) -> float:
    """Standard error of the mean of values (n,), of which those of a group count as one draw."""
    if groups is None:
        return float(values.std() / np.sqrt(len(values)))
    sums = np.bincount(groups.codes, weights=values - values.mean())
    return float(np.sqrt(np.square(sums).sum()) / len(values))


def _numbered(column: Iterable[Hashable]) -> Rows:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in column], dtype=np.intp)
