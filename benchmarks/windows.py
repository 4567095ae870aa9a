"""Long texts of 20newsgroups (official split, headers as packaged) by MiniLM: truncated at several
lengths, and in windows. Accuracy on a stratified part of the test rows, choices on training rows;
milliseconds per text are measured in turn, on the same texts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import alternate
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract, load_dataset
from layerfuse.metrics import paired_difference

_DATASET, _ENCODER = "20newsgroups", "minilm"
_TRAIN_ROWS, _TEST_ROWS, _TIMED = 2_000, 3_000, 32
_WAYS: dict[str, tuple[int, tuple[str, ...] | None]] = {
    "truncated at 128": (128, None),
    "windows of 256, mean": (512, ("mean",)),
    "windows of 256, max": (512, ("max",)),
    "windows of 256, chosen": (512, ("mean", "max", "first", "last")),
    "truncated at 256": (256, None),
    "truncated at 512": (512, None),
    "windows of 128, chosen": (128, ("mean", "max", "first", "last")),
}
_BASELINE = next(iter(_WAYS))


def run() -> list[dict[str, Any]]:
    dataset = load_dataset(_DATASET)
    train, test = dataset.subsample(_TRAIN_ROWS, 0).train, dataset.subsample(_TEST_ROWS, 0).test
    if test is None:
        return []
    truth = np.array(test.labels)
    right: dict[tuple[str, str], Any] = {}
    results = []
    for name, (length, windows) in _WAYS.items():
        encoder = FrozenEncoder.from_pretrained(_ENCODER, max_length=length, windows=windows)
        own: dict[str, Any] = {"case": name, "max_length": length, "windows": windows}
        for selection in ("last", "greedy"):
            classifier = LayerFusionClassifier(
                encoder, selection=selection, fusion="concat", head="ridge", store=EmbeddingStore()
            ).fit(train.texts, train.labels or ())
            proba = classifier.model_.predict_proba(classifier.extract(test.texts))
            right[name, selection] = classifier.classes_[proba.argmax(axis=1)] == truth
            gain = paired_difference(right[name, selection], right[_BASELINE, selection])
            own[selection] = {
                "blocks": list(map(str, classifier.plan_.blocks)),
                "cv_accuracy": classifier.cv_.accuracy.value,
                "test_accuracy": float(right[name, selection].mean()),
                "gain": [gain.difference, gain.low, gain.high],
            }
        own |= {"read_share": classifier.read_share_, "truncated": classifier.truncated_share_}
        results.append(own)
        print(own, flush=True)
    for own, ms in zip(results, _ms_per_text(train.texts), strict=True):
        own |= {"ms_per_text": ms, "train_rows": len(train), "test_rows": len(test)}
    return results


def _ms_per_text(texts: Sequence[str]) -> list[float]:
    """Of each way, all layers, without a store: the median of rounds."""
    few = list(texts[:: len(texts) // _TIMED][:_TIMED])
    encoders = {
        name: FrozenEncoder.from_pretrained(_ENCODER, max_length=length, windows=windows)
        for name, (length, windows) in _WAYS.items()
    }
    ways = {name: lambda e=encoder: extract(few, e) for name, encoder in encoders.items()}
    return [1e3 * statistics.median(own) / len(few) for own in alternate(ways, 3).values()]
