"""A dataset made ready for the study, and what a reader should know about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.classifier.validation import training_rows
from layerfuse.data import TextDataset, audit, check_trainable, load_dataset
from layerfuse.errors import DataError
from layerfuse.files import digest
from layerfuse.progress import Reporter

__all__ = ["StudyData", "count_shared", "prepare"]

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class StudyData:
    """A dataset's texts with class indices.

    ``y`` (n,) are indices of the ``n_classes`` classes that are learned; ``y_test`` (n_test,) may
    also hold ``n_classes`` and above, which stand for labels that training lacks: predictions of
    such rows count as wrong. ``facts`` says what was left out and what is wrong with the data.
    """

    name: str
    train: tuple[str, ...]
    y: Labels
    test: tuple[str, ...]
    y_test: Labels
    n_classes: int
    facts: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A digest of every text and label."""
        labels = (self.y.astype(np.int64).tobytes(), self.y_test.astype(np.int64).tobytes())
        return digest(digest(*self.train), digest(*self.test), *labels)


def prepare(source: str, sample: int | None, reporter: Reporter) -> StudyData:
    """Read a dataset; leave out classes with one training row and rows that are parts of others.

    ``sample`` takes a stratified part of about so many rows of each split.

    Raises
    ------
    DataError
        When there are no test rows, or too few classes or rows.
    NotFoundError, MissingExtraError
        When the dataset cannot be had.
    """
    dataset = load_dataset(source, reporter=reporter)
    name = Path(source).name.partition(".")[0]
    found = audit(dataset)
    if sample is not None:
        dataset = dataset.subsample(sample, 0)
    train, test = dataset.train, dataset.test
    if test is None:
        raise DataError(f"{name} has no test rows. The study needs some that no choice sees.")
    counts = Counter(train.labels or ())
    single = sorted(str(label) for label, count in counts.items() if count == 1)
    if single:
        reporter.note(f"{name}: left out, for they have one training row: {', '.join(single)}")
        kept = [i for i, label in enumerate(train.labels or ()) if counts[label] > 1]
        train = train.take(kept)
    check_trainable(train.labels)
    classes, y = np.unique(np.asarray(train.labels), return_inverse=True)
    whole = training_rows(train.texts, y, "auto", reporter)
    learned = train.take(whole.tolist())
    index = {label: number for number, label in enumerate(classes.tolist())}
    unseen = sorted({label for label in test.labels or () if label not in index}, key=str)
    index |= {label: len(classes) + number for number, label in enumerate(unseen)}
    y_test = np.array([index[label] for label in test.labels or ()], dtype=np.intp)
    facts = {
        "classes": len(classes),
        "train_rows": len(dataset.train),
        "learned_rows": len(learned),
        "parts_left_out": len(train) - len(learned),
        "single_row_classes": single,
        "test_split": dataset.test_name,
        "test_rows": len(test),
        "test_rows_of_unlearned_classes": int((y_test >= len(classes)).sum()),
        "largest_class_share": max(counts.values()) / len(dataset.train),
        **_defects(dataset, found),
    }
    return StudyData(name, learned.texts, y[whole], test.texts, y_test, len(classes), facts)


def _defects(dataset: TextDataset, found: Any) -> dict[str, Any]:
    """Duplicates, conflicting labels and leaks, counted over the whole dataset."""
    test = dataset.test_name or ""
    return {
        "duplicates_train": found.splits["train"].duplicates.count,
        "conflicts_train": found.splits["train"].conflicts,
        "duplicates_test": found.splits[test].duplicates.count,
        "leaks": found.leaks.count,
    }


def count_shared(sets: Sequence[StudyData]) -> list[dict[str, Any]]:
    """For each ordered pair of sets the test texts of one that are training texts of the other.

    Texts count as equal when their letters and digits are. ``fraction`` is a share of the test
    rows; pairs that share nothing are left out.
    """
    trains = [{_letters(text) for text in data.train} for data in sets]
    found = []
    for data in sets:
        texts = [_letters(text) for text in data.test]
        for other, known in zip(sets, trains, strict=True):
            shared = sum(text in known for text in texts if text)
            if other is not data and shared:
                entry = {"test_of": data.name, "train_of": other.name, "rows": shared}
                found.append({**entry, "fraction": shared / len(texts)})
    return found


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
