"""Which rows are held out together: folds and samples with the shares of labels of all rows.

Rows of a group stay together, such as equal texts, of which one gives away the others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError
from layerfuse.labels import is_missing

Rows: TypeAlias = npt.NDArray[np.intp]


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
            Such as texts, and authors. A missing value is equal to no other.

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
    codes = []
    for row, value in enumerate(column):
        key = object() if is_missing(value) else value
        try:
            codes.append(numbers.setdefault(key, len(numbers)))
        except TypeError as error:
            raise DataError(
                f"The group of row {row} is {value!r} ({type(value).__name__}), which cannot be "
                "hashed. Give a string or a number for each row."
            ) from error
    return np.array(codes, dtype=np.intp)


@runtime_checkable
class Splitter(Protocol):
    """A cross-validation splitter of scikit-learn, such as ``GroupKFold(5)``."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[tuple[Rows, Rows]]:
        """Numbers of training and of held-out rows, fold by fold."""


# Like scikit-learn's StratifiedKFold and StratifiedGroupKFold, whose warnings of rare classes could
# only be silenced for the whole process: wrong where several threads fit.


def stratified(codes: Rows, n_folds: int, seed: int) -> Rows:
    """The fold of each row: each class is dealt out evenly, and so are all rows."""
    random = np.random.RandomState(seed)
    _, first, code = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[code]  # classes by their first row
    dealt = np.sort(order)
    shares = [np.bincount(dealt[fold::n_folds], minlength=len(first)) for fold in range(n_folds)]
    folds = np.empty(len(codes), dtype=np.intp)
    for number, counts in enumerate(np.transpose(shares)):
        of_class = np.arange(n_folds).repeat(counts)
        random.shuffle(of_class)
        folds[order == number] = of_class
    return folds


def grouped(codes: Rows, groups: Rows, n_folds: int, seed: int) -> Rows:
    """The fold of each row: groups go, most uneven in classes first, where they balance best."""
    _, code = np.unique(codes, return_inverse=True)
    counts = np.zeros((groups.max() + 1, code.max() + 1))
    np.add.at(counts, (groups, code), 1.0)
    order = np.random.RandomState(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].std(axis=1), kind="stable")]
    folds = np.empty(len(counts), dtype=np.intp)
    held = np.zeros((n_folds, counts.shape[1]))
    for group in order:
        after = held + np.eye(n_folds)[:, :, None] * counts[group]  # if it went to each fold
        uneven = (after / counts.sum(axis=0)).std(axis=1).mean(axis=1)
        near = np.flatnonzero(np.isclose(uneven, uneven.min()))
        folds[group] = near[held[near].sum(axis=1).argmin()]
        held[folds[group]] += counts[group]
    return folds[groups]


def fold_pairs(folds: Rows) -> list[tuple[Rows, Rows]]:
    """Training and held-out rows of each fold, from the fold of each row."""
    return [
        (np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)
    ]


def reads_groups(cv: object) -> bool:
    """Whether a splitter wants groups; scikit-learn's others warn that they ignore them."""
    from sklearn.utils.metadata_routing import get_routing_for_object

    known = hasattr(cv, "get_metadata_routing")
    return not known or "groups" in get_routing_for_object(cv).consumes("split", ["groups"])


def by_group(members: npt.NDArray[np.bool_], groups: Groups) -> npt.NDArray[np.bool_]:
    """Which labels some row of each group has, (n_groups, n_labels)."""
    _, group = np.unique(groups.codes, return_inverse=True)
    found = np.zeros((group.max() + 1, members.shape[1]), dtype=bool)
    np.logical_or.at(found, group, members)
    return found


def iterative(
    members: npt.NDArray[np.bool_], shares: npt.NDArray[np.float64], seed: int | Sequence[int]
) -> Rows:
    """The part of each row, by iterative stratification (Sechidis et al., ECML PKDD 2011)."""
    from iterstrat.ml_stratifiers import IterativeStratification

    random = np.random.RandomState(seed)
    order = random.permutation(len(members))
    parts = np.empty(len(members), dtype=np.intp)
    parts[order] = IterativeStratification(members[order], shares, random)
    return parts
