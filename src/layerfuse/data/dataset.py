"""Labeled texts in splits, and whether a classifier can be trained on them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError
from layerfuse.labels import is_missing
from layerfuse.targets import Targets

TEXT_NAMES = ("text", "sentence", "content", "review", "body", "document")
"""Common names of a column of texts."""

_TEST_NAMES = ("test", "validation", "valid", "val", "dev")  # the first that is there is the test
_INT64 = 2**63


def plain_ids(values: Sequence[Any]) -> Sequence[Any]:
    """Values of one plain kind as they are; dates, huge numbers and several kinds as text.

    Those that are missing, such as NaN, are None.

    Examples
    --------
    >>> plain_ids([7, None, "T-8"])
    ['7', None, 'T-8']
    """
    known = [None if is_missing(value) else value for value in values]
    kinds = {type(value) for value in known if value is not None}
    huge = kinds == {int} and any(value and abs(value) >= _INT64 for value in known)
    if len(kinds) <= 1 and kinds <= {str, int, float, bool} and not huge:
        return known
    return [None if value is None else str(value) for value in known]


@dataclass(frozen=True)
class Split:
    """Texts with or without labels.

    Attributes
    ----------
    texts : tuple of str
        The n texts.
    labels : tuple or None
        Their n labels, all of one kind (str, int, bool, float or `LabelSet`).
    columns : mapping of str to tuple
        Other columns that were kept, by name: n values each.
    rows : tuple of int
        Their n row numbers in the file, counted from 0.
    n_unlabeled : int
        Rows of the file that were skipped, as they have no label.
    types : mapping of str to pyarrow.DataType
        Those of columns, where the file has them.
    """

    texts: tuple[str, ...]
    labels: tuple[Any, ...] | None = None
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, compare=False)
    rows: Sequence[int] = field(default=(), compare=False)
    n_unlabeled: int = field(default=0, compare=False)
    types: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise DataError(
                f"There are {len(self.texts)} texts but {len(self.labels)} labels. "
                "Give one label for each text."
            )
        if not self.rows:
            object.__setattr__(self, "rows", range(len(self.texts)))

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        """Without the texts, which may be millions."""
        return f"Split({len(self):,} texts{', no labels' if self.labels is None else ''})"

    def take(self, rows: Iterable[int]) -> Split:
        """The given rows, in the given order."""
        kept = list(rows)
        labels = None if self.labels is None else tuple(self.labels[row] for row in kept)
        return Split(
            tuple(self.texts[row] for row in kept),
            labels,
            {name: tuple(own[row] for row in kept) for name, own in self.columns.items()},
            tuple(self.rows[row] for row in kept),
            self.n_unlabeled,
            self.types,
        )

    def column(self, name: str | None) -> tuple[Any, ...] | None:
        """A column that was kept; None for None."""
        return None if name is None else self.columns[name]

    def ids(self, column: str | None) -> Sequence[Any]:
        """The ids (n,) in a column that was kept, as `plain_ids`; without one, all None."""
        return (None,) * len(self) if column is None else plain_ids(self.columns[column])

    def table(self, columns: Sequence[str]) -> Mapping[str, Sequence[Any]]:
        """The texts, under a name that none of ``columns`` has, and these columns."""
        name = next(name for name in TEXT_NAMES if name not in columns)
        return {name: self.texts} | {name: self.columns[name] for name in columns}

    def sample(self, n_rows: int, seed: int, minimum: int) -> npt.NDArray[np.intp]:
        """Row numbers of a stratified sample; see `Targets.sample`."""
        targets = Targets.from_labels([""] * len(self) if self.labels is None else self.labels)
        return targets.sample(n_rows, seed, minimum)


def test_name(splits: Container[str]) -> str | None:
    """``"test"``, else the name of the validation split, else None."""
    return next((name for name in _TEST_NAMES if name in splits), None)


@dataclass(frozen=True)
class TextDataset:
    """A named dataset.

    Attributes
    ----------
    name : str
        Such as the name of its file without the suffix.
    splits : dict of str to Split
        By split name, such as ``"train"``.
    columns : tuple of str
        Names of the table's columns, where they are known.
    text_column : str or None
        The column of the texts, where it is known.
    label_column : str or None
        The column of the labels, where it is known and was read.
    """

    name: str
    splits: dict[str, Split]
    columns: tuple[str, ...] = field(default=(), compare=False)
    text_column: str | None = field(default=None, compare=False)
    label_column: str | None = field(default=None, compare=False)

    @property
    def train(self) -> Split:
        """The split ``"train"``; DataError when there is none."""
        if "train" not in self.splits:
            raise DataError(
                f"{self.name} has no train split; its splits are {', '.join(self.splits)}. "
                "Add a file named train, such as train.csv."
            )
        return self.splits["train"]

    @property
    def test_name(self) -> str | None:
        """``"test"``, else the name of the validation split, else None."""
        return test_name(self.splits)

    @property
    def test(self) -> Split | None:
        """The split of that name, or None."""
        return None if self.test_name is None else self.splits[self.test_name]

    def subsample(self, n: int, seed: int) -> TextDataset:
        """About ``n`` rows of every split, each class in its share; smaller splits whole.

        Row order is kept. Train keeps at least two rows of a class that has two.
        """
        if n < 1:
            raise ConfigError(f"A subsample of {n} rows was asked for; ask for at least 1.")
        splits = {
            name: split.take(split.sample(n, seed, 2 if name == "train" else 0))
            for name, split in self.splits.items()
        }
        return replace(self, splits=splits)
