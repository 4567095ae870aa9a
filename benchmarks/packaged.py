"""The four sets as the packaged encoders read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse import EmbeddingStore, FrozenEncoder, load_dataset
from layerfuse.classifier.validation import training_rows
from layerfuse.embeddings.extraction import extract
from layerfuse.embeddings.views import BlockView
from layerfuse.errors import LayerfuseError
from layerfuse.progress import SILENT

DATASETS = ("mr", "sst2", "r8", "r52")
ENCODERS: Sequence[str | Path] = ("minilm", "mpnet", "smollm2-135m")
POOLINGS = ("mean", "last", "max")
MOST_ROWS = 5_000

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Texts:
    """A set's texts with class indices; a test label that training lacks is -1.

    Training rows of classes with one row are dropped, and so are those that `training_rows` leaves
    out (the phrases of SST-2).
    """

    name: str
    train: Sequence[str]
    y: Labels
    test: Sequence[str]
    y_test: Labels

    @classmethod
    def read(cls, name: str) -> Texts:
        dataset = load_dataset(name)
        train, test = dataset.train, dataset.test
        if test is None:
            raise LayerfuseError(f"{name} has no test rows.")
        counts = Counter(train.labels or ())
        train = train.take([i for i, label in enumerate(train.labels or ()) if counts[label] > 1])
        classes, y = np.unique(np.asarray(train.labels), return_inverse=True)
        index = {label: number for number, label in enumerate(classes.tolist())}
        y_test = np.array([index.get(label, -1) for label in test.labels or ()], dtype=np.intp)
        whole = training_rows(train.texts, y, "auto", SILENT)
        return cls(name, train.take(whole.tolist()).texts, y[whole], test.texts, y_test)


def read_sets(names: Sequence[str]) -> list[Texts]:
    """The sets that can be had here; the others are named and left out."""
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
    models = [FrozenEncoder.from_pretrained(encoder) for encoder in encoders]
    store = EmbeddingStore()
    return BlockView.join([extract(texts, model, "all", poolings, store) for model in models])
