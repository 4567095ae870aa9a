"""Which rows are held out together: folds and samples with the shares of labels of all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from layerfuse.groups import Groups

Rows: TypeAlias = npt.NDArray[np.intp]


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
