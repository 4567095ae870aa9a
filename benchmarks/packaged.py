"""Datasets with targets, and the benchmarks' four as the packaged encoders read them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse import EmbeddingStore, FrozenEncoder, load_dataset
from layerfuse.classifier.validation import check_training
from layerfuse.data import audit
from layerfuse.embeddings.extraction import BlockView, extract_all
from layerfuse.errors import DataError, LayerfuseError, LayerfuseWarning
from layerfuse.files import digest
from layerfuse.progress import SILENT, Reporter
from layerfuse.targets import Targets

DATASETS = ("mr", "sst2", "r8", "r52")
ENCODERS = ("minilm", "mpnet", "smollm2-135m")
POOLINGS = ("mean", "last", "max")
MOST_ROWS = 5_000

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Texts:
    """A dataset's texts and what is to be predicted.

    ``targets`` are those of the n training texts. ``y_test`` (n_test,) are class indices of the
    same space, and above them indices of labels that training lacks: predictions of such rows
    count as wrong. ``facts`` says what was left out and what is wrong with the data.
    """

    name: str
    train: Sequence[str]
    targets: Targets
    test: Sequence[str]
    y_test: Labels
    facts: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A digest of every text and label."""
        codes = (self.targets.codes, self.y_test)
        labels = (own.astype(np.int64).tobytes() for own in codes)
        return digest(digest(*self.train), digest(*self.test), *labels)

    @classmethod
    def read(cls, source: str, sample: int | None = None, reporter: Reporter = SILENT) -> Texts:
        """Leave out classes with one training row and, where most are, parts of other rows.

        ``sample`` takes a stratified part of about that many rows of each split.
        """
        dataset = load_dataset(source, reporter=reporter)
        name = Path(source).name.partition(".")[0]
        audited = audit(dataset)
        if sample is not None:
            dataset = dataset.subsample(sample, 0)
        train, test = dataset.train, dataset.test
        if test is None or dataset.test_name is None:
            raise DataError(f"{name} has no test rows. The study needs some that no choice sees.")
        counts = Counter(train.labels or ())
        single = sorted(str(label) for label, count in counts.items() if count == 1)
        if single:
            reporter.note(f"{name}: left out, as they have one training row: {', '.join(single)}")
            kept = [row for row, label in enumerate(train.labels or ()) if counts[label] > 1]
            train = train.take(kept)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LayerfuseWarning)  # the reporter is told as well
            learned = check_training(
                train.texts, train.labels or (), None, None, None, "drop", reporter
            )
        classes = learned.targets.space.classes.tolist()
        unseen = sorted(set(test.labels or ()) - set(classes), key=str)
        index = {label: number for number, label in enumerate([*classes, *unseen])}
        y_test = np.array([index[label] for label in test.labels or ()], dtype=np.intp)
        in_train, in_test = (audited.splits[split] for split in ("train", dataset.test_name))
        facts = {
            "classes": len(classes),
            "train_rows": len(dataset.train),
            "learned_rows": len(learned.texts),
            "parts_left_out": len(train) - len(learned.texts),
            "single_row_classes": single,
            "test_split": dataset.test_name,
            "test_rows": len(test),
            "test_rows_of_unlearned_classes": int((y_test >= len(classes)).sum()),
            "largest_class_share": max(counts.values()) / len(dataset.train),
            "duplicates_train": in_train.duplicates.count,
            "conflicts_train": in_train.conflicts,
            "duplicates_test": in_test.duplicates.count,
            "leaks": audited.leaks.count,
        }
        return cls(name, learned.texts, learned.targets, test.texts, y_test, facts)


def read_sets(names: Sequence[str]) -> list[Texts]:
    """The datasets that are available; the others are named and left out."""
    found = []
    for name in names:
        try:
            found.append(Texts.read(name))
        except LayerfuseError as error:
            print(f"{name} is left out: {error}")
    return found


def embed(
    texts: Sequence[str],
    encoders: Sequence[str | Path] = ENCODERS,
    poolings: Sequence[str] = POOLINGS,
) -> BlockView:
    """Every layer in every pooling, from the user's store or computed into it."""
    models = [FrozenEncoder.from_pretrained(encoder, pooling=poolings) for encoder in encoders]
    return extract_all(texts, models, EmbeddingStore())
