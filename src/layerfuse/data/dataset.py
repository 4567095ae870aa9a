"""The nouns: texts with labels, in splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from layerfuse.errors import ConfigError, DataError
from layerfuse.progress import SILENT, Reporter

__all__ = ["Split", "TextDataset", "check_trainable"]

_TEST_NAMES = ("test", "validation", "valid", "val", "dev")  # the first that is there is the test


@dataclass(frozen=True)
class Split:
    """``n`` texts and their ``n`` labels, all of one kind (str, int, bool or float), or None."""

    texts: tuple[str, ...]
    labels: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise DataError(
                f"There are {len(self.texts)} texts but {len(self.labels)} labels. "
                "Give one label for each text."
            )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Split:
        """The given rows, in the given order."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return Split(tuple(self.texts[row] for row in rows), labels)


@dataclass(frozen=True)
class TextDataset:
    """A named dataset: one :class:`Split` for each split name.

    ``columns`` are the names of the table's columns and ``text_column`` is the one of the texts,
    where they are known.
    """

    name: str
    splits: dict[str, Split]
    columns: tuple[str, ...] = field(default=(), compare=False)
    text_column: str | None = field(default=None, compare=False)

    @property
    def train(self) -> Split:
        """The split ``"train"``; DataError when there is none."""
        if "train" not in self.splits:
            raise DataError(
                f"{self.name} has no train split; its splits are {', '.join(self.splits)}. "
                "Add a file of the name train, such as train.csv."
            )
        return self.splits["train"]

    @property
    def test_name(self) -> str | None:
        """``"test"``, else the name of the validation split, else None."""
        return next((name for name in _TEST_NAMES if name in self.splits), None)

    @property
    def test(self) -> Split | None:
        """The split of that name, or None."""
        return None if self.test_name is None else self.splits[self.test_name]

    def subsample(self, n: int, seed: int) -> TextDataset:
        """About ``n`` rows of every split, class by class in proportion; smaller splits whole.

        Row order is kept. Train keeps at least two rows of a class that has two, even where that
        makes more than ``n`` rows.
        """
        if n < 1:
            raise ConfigError(f"A subsample of {n} rows was asked for; ask for at least 1.")
        splits = {
            name: _stratified(split, n, 2 if name == "train" else 0, np.random.default_rng(seed))
            for name, split in self.splits.items()
        }
        return replace(self, splits=splits)


def check_trainable(labels: Sequence[Any] | None, reporter: Reporter = SILENT) -> None:
    """Raise DataError unless there are two classes or more with two rows or more each.

    A class with a single row is learned from like any other; that it cannot be measured is noted.
    """
    if labels is None or len(labels) == 0:
        raise DataError("There are no labelled rows to train on. Give texts with their labels.")
    counts = Counter(labels)
    if len(counts) == 1:
        raise DataError(
            f"All {len(labels)} rows have the same label {labels[0]!r}. A classifier needs rows "
            "of at least two classes: add some, or choose another label column."
        )
    single = [label for label, count in counts.items() if count == 1]
    more = f" and {len(single) - 5} more" if len(single) > 5 else ""
    names = f"{', '.join(map(repr, single[:5]))}{more}"
    if len(counts) - len(single) < 2:
        raise DataError(
            f"At least two classes need two rows or more, and {len(single)} of {len(counts)} have "
            f"only one: {names}. Add rows, or choose another label column."
        )
    if single:
        reporter.note(
            f"{len(single)} of {len(counts)} classes have only one row ({names}): learned from, "
            "but wrong whenever it is held out, and so in all cross-validated figures"
        )


def _stratified(split: Split, n: int, minimum: int, rng: np.random.Generator) -> Split:
    if n >= len(split):
        return split
    groups: dict[Any, list[int]] = {}
    for row, label in enumerate(split.labels or [None] * len(split)):
        groups.setdefault(label, []).append(row)
    sizes = _allocate([len(rows) for rows in groups.values()], n, minimum)
    chosen = [
        rng.choice(rows, size, replace=False)
        for rows, size in zip(groups.values(), sizes, strict=True)
    ]
    return split.take(sorted(np.concatenate(chosen).tolist()))


def _allocate(counts: list[int], n: int, minimum: int) -> list[int]:
    """Share ``n`` out in proportion to ``counts`` (largest remainder), then raise to the minimum.

    What the minimum takes is given up by the classes that have most to spare.
    """
    shares = [divmod(n * count, sum(counts)) for count in counts]
    sizes = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(counts)), key=lambda i: -shares[i][1])
    for i in by_remainder[: n - sum(sizes)]:
        sizes[i] += 1
    floors = [min(minimum, count) for count in counts]
    sizes = [max(size, floor) for size, floor in zip(sizes, floors, strict=True)]
    for _ in range(sum(sizes) - n):
        spare = [size - floor for size, floor in zip(sizes, floors, strict=True)]
        if max(spare) > 0:
            sizes[spare.index(max(spare))] -= 1
    return sizes
