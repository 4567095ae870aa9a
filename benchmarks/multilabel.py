"""Several labels a text against scikit-learn's one-vs-rest logistic regression with C searched.

The packages of our index hold no corpus of texts with several labels, so two sets are made of
pairs of texts, joined, with the labels of both; in the third the labels of a newsgroup's text are
the parts of the group's name. The peer gets the same embeddings: the blocks that were chosen,
concatenated, and the last layer. ``head_s`` is what compares with its seconds: penalty and weights
of a head on chosen blocks, calibration and thresholds. Test rows are used once, to measure.
"""

from __future__ import annotations

import os
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
from layerfuse.embeddings.extraction import BlockView
from layerfuse.metrics import Estimate, LabelSetEvaluation, paired_f1_difference

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
        load = os.getloadavg()[0]  # above the number of cores: seconds are of a busy machine
        results.append({"name": name, **measure(train, test), "load_average": load, "cpu": cpu()})
        print(
            name, {key: value for key, value in results[-1].items() if "f1" in key or "_s" in key}
        )
        save("multilabel", results)
    return results


def _sets() -> Iterator[tuple[str, LabeledTexts, LabeledTexts]]:
    for name in ("r52", "20newsgroups"):
        yield f"{name}, two texts joined", *_parts(_joined(_pooled(name)))
    yield "20newsgroups, parts of the names", *_parts(_name_parts(_pooled("20newsgroups")))


def _pooled(name: str) -> list[tuple[str, str]]:
    """Texts and labels of all splits in a drawn order: test rows come as training rows do, so that
    what nested resampling says of training rows should hold for them.
    """
    splits = load_dataset(name).splits.values()
    rows = [
        (text, str(label))
        for split in splits
        for text, label in zip(split.texts, split.labels or (), strict=True)
    ]
    return [rows[row] for row in np.random.default_rng(0).permutation(len(rows))]


def _joined(rows: Sequence[tuple[str, str]]) -> LabeledTexts:
    """Each text once, beside another."""
    pairs = list(zip(rows[::2], rows[1::2], strict=False))
    return LabeledTexts(
        ["\n".join(text[:_CHARACTERS] for text, _ in pair) for pair in pairs],
        [sorted({label for _, label in pair}) for pair in pairs],
    )


def _name_parts(rows: Sequence[tuple[str, str]]) -> LabeledTexts:
    return LabeledTexts(
        [text for text, _ in rows], [sorted(set(label.split("."))) for _, label in rows]
    )


def _parts(every: LabeledTexts) -> tuple[LabeledTexts, LabeledTexts]:
    """Training and test rows, without labels of fewer than 20 training rows."""
    ends = ((0, N_TRAIN), (N_TRAIN, N_TRAIN + N_TEST))
    train, test = (LabeledTexts(every.texts[a:b], every.labels[a:b]) for a, b in ends)
    return _frequent(train, test)


def _frequent(train: LabeledTexts, test: LabeledTexts) -> tuple[LabeledTexts, LabeledTexts]:
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
        "test_minus_nested_interval": _difference_interval(measured.micro_f1, nested.micro_f1),
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
            "seconds_over_ours_head": took / seconds["head_s"],
            "seconds_over_ours_with_selection": took / result["fit_without_reading_s"],
        }
    result["ours_micro_f1"] = float(f1_score(truth, ours, average="micro", zero_division=0))
    result["ours_macro_f1"] = float(f1_score(truth, ours, average="macro", zero_division=0))
    return result


def _difference_interval(one: Estimate, other: Estimate) -> tuple[float, float]:
    """Newcombe's interval (1998) of the difference of two figures on different rows."""
    value = one.value - other.value
    low = np.hypot(one.value - one.low, other.high - other.value)
    high = np.hypot(one.high - one.value, other.value - other.low)
    return value - float(low), value + float(high)


def _join(view: BlockView, blocks: Sequence[BlockRef]) -> Floats:
    return np.hstack([view[block] for block in blocks])


def _peer() -> GridSearchCV:
    model = OneVsRestClassifier(LogisticRegression(max_iter=1000))
    grid = {"onevsrestclassifier__estimator__C": C_GRID}
    pipeline = make_pipeline(StandardScaler(), model)
    return GridSearchCV(pipeline, grid, scoring="f1_micro", cv=FOLDS)
