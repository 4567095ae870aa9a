"""Several labels a text against scikit-learn's one-vs-rest logistic regression with C searched.

The packages of our index hold no corpus of texts with several labels, so two sets are made of
pairs of texts, joined, with the labels of both; in the third the labels of a newsgroup's text are
the parts of the group's name. The peer gets the same embeddings: the blocks that were chosen,
concatenated, and the last layer. Test rows are used once, to measure.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import cpu, save
from layerfuse import FrozenEncoder, LayerFusionClassifier, load_dataset
from layerfuse.blocks import BlockRef
from layerfuse.data import Split
from layerfuse.embeddings.extraction import BlockView
from layerfuse.metrics import LabelSetEvaluation, paired_f1_difference

ENCODER, MAX_LENGTH = "minilm", 128
N_TRAIN, N_TEST = 2000, 1000
LEAST = 20  # training rows of a label
C_GRID = np.logspace(-3, 3, 7)
FOLDS = 3
_CHARACTERS = 250  # of each joined text, so that the encoder reads both

Table = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabeledTexts:
    """Texts and, for each, its labels."""

    texts: list[str]
    labels: list[list[str]]

    def only(self, known: set[str]) -> LabeledTexts:
        """With the known labels alone."""
        return LabeledTexts(
            self.texts, [[name for name in own if name in known] for own in self.labels]
        )


def run() -> list[dict[str, Any]]:
    results = []
    for name, train, test in _sets():
        results.append({"name": name, **measure(train, test), "cpu": cpu()})
        print(
            name, {key: value for key, value in results[-1].items() if "f1" in key or "_s" in key}
        )
        save("multilabel", results)
    return results


def _sets() -> Iterator[tuple[str, LabeledTexts, LabeledTexts]]:
    for name in ("r52", "20newsgroups"):
        splits = load_dataset(name).splits
        yield (
            f"{name}, two texts joined",
            *_frequent(*(_joined(splits[part], n, seed) for part, n, seed in _PARTS)),
        )
    splits = load_dataset("20newsgroups").splits
    yield (
        "20newsgroups, parts of the names",
        *_frequent(*(_name_parts(splits[part], n, seed) for part, n, seed in _PARTS)),
    )


_PARTS = (("train", N_TRAIN, 0), ("test", N_TEST, 1))


def _joined(split: Split, n: int, seed: int) -> LabeledTexts:
    pairs = np.random.default_rng(seed).integers(len(split), size=(n, 2))
    labels = split.labels or ()
    return LabeledTexts(
        ["\n".join(split.texts[row][:_CHARACTERS] for row in pair) for pair in pairs.tolist()],
        [sorted({str(labels[row]) for row in pair}) for pair in pairs.tolist()],
    )


def _name_parts(split: Split, n: int, seed: int) -> LabeledTexts:
    rows = np.random.default_rng(seed).permutation(len(split))[:n].tolist()
    labels = split.labels or ()
    return LabeledTexts(
        [split.texts[row] for row in rows],
        [sorted(set(str(labels[row]).split("."))) for row in rows],
    )


def _frequent(train: LabeledTexts, test: LabeledTexts) -> tuple[LabeledTexts, LabeledTexts]:
    """Without labels of fewer than 20 training rows."""
    counts = Counter(name for own in train.labels for name in own)
    known = {name for name, count in counts.items() if count >= LEAST}
    return train.only(known), test.only(known)


def measure(train: LabeledTexts, test: LabeledTexts) -> dict[str, Any]:
    encoder = FrozenEncoder.from_pretrained(ENCODER, max_length=MAX_LENGTH)
    classifier = LayerFusionClassifier([encoder], n_jobs=1).fit(train.texts, train.labels)
    seconds = classifier.timings_
    truth: Table = classifier.label_space_.encode(test.labels).codes
    known, new = classifier.extract(train.texts), classifier.extract(test.texts)
    proba = classifier.model_.predict_proba(new)
    ours: Table = classifier.label_space_.decide(proba)
    targets = classifier.label_space_.encode(train.labels)
    measured = classifier.label_space_.encode(test.labels).evaluate(proba)
    nested = classifier.cv_
    assert isinstance(measured, LabelSetEvaluation)
    assert isinstance(nested, LabelSetEvaluation)
    blocks = classifier.plan_.blocks
    last = classifier.profile_.last(ENCODER).block
    gap = measured.micro_f1.value - nested.micro_f1.value
    result: dict[str, Any] = {
        "encoder": ENCODER,
        "n_train": len(train.texts),
        "n_test": len(test.texts),
        "n_labels": len(classifier.classes_),
        "labels_per_text": float(targets.codes.sum(axis=1).mean()),
        "blocks": list(map(str, blocks)),
        "head": classifier.plan_.head,
        "fusion": classifier.plan_.fusion,
        "fit_without_reading_s": sum(seconds[key] for key in ("score_s", "search_s", "head_s")),
        "head_s": seconds["head_s"],
        "test": asdict(measured),
        "nested": asdict(nested),
        "test_minus_nested": gap,
        "test_minus_nested_interval": [
            gap
            - float(
                np.hypot(
                    measured.micro_f1.value - measured.micro_f1.low,
                    nested.micro_f1.high - nested.micro_f1.value,
                )
            ),
            gap
            + float(
                np.hypot(
                    measured.micro_f1.high - measured.micro_f1.value,
                    nested.micro_f1.value - nested.micro_f1.low,
                )
            ),
        ],
    }
    for name, own in (("peer_same_blocks", blocks), ("peer_last_layer", (last,))):
        start = time.perf_counter()
        peer = _peer().fit(_join(known, own), targets.codes.astype(int))
        took = time.perf_counter() - start
        theirs = peer.predict(_join(new, own)).astype(bool)
        result[name] = {
            "seconds": took,
            "C": float(peer.best_params_["onevsrestclassifier__estimator__C"]),
            "micro_f1": float(f1_score(truth, theirs, average="micro", zero_division=0)),
            "macro_f1": float(f1_score(truth, theirs, average="macro", zero_division=0)),
            "ours_minus_peer": asdict(paired_f1_difference(truth, ours, theirs)),
            "times_faster": took / result["fit_without_reading_s"],
        }
    result["ours_micro_f1"] = float(f1_score(truth, ours, average="micro", zero_division=0))
    result["ours_macro_f1"] = float(f1_score(truth, ours, average="macro", zero_division=0))
    return result


def _join(view: BlockView, blocks: Sequence[BlockRef]) -> Floats:
    return np.hstack([view[block] for block in blocks])


def _peer() -> GridSearchCV:
    model = OneVsRestClassifier(LogisticRegression(max_iter=1000))
    grid = {"onevsrestclassifier__estimator__C": C_GRID}
    pipeline = make_pipeline(StandardScaler(), model)
    return GridSearchCV(pipeline, grid, scoring="f1_micro", cv=FOLDS)
