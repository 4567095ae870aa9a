"""Long texts of 20newsgroups (official split, headers as packaged) by MiniLM: truncated, windows.

Accuracy on some of the test rows, choices on training rows; CPU milliseconds per text are measured
in turn, on the same texts, with one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract, load_dataset
from layerfuse.metrics import paired_difference

_DATASET, _ENCODER = "20newsgroups", "minilm"
_TRAIN_ROWS, _TEST_ROWS = 2_000, 3_000
_TIMED, _ROUNDS = 24, 3
_WAYS: dict[str, tuple[int, tuple[str, ...] | None]] = {
    "truncated at 128": (128, None),
    "windows of 256, mean": (512, ("mean",)),
    "windows of 256, max": (512, ("max",)),
    "windows of 256, chosen": (512, ("mean", "max", "first", "last")),
    "truncated at 256": (256, None),
    "truncated at 512": (512, None),
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
    cpu_ms = _cpu_ms(train.texts)
    for own, (length, windows) in zip(results, _WAYS.values(), strict=True):
        own |= {"train_rows": len(train), "test_rows": len(test)}
        own |= {"cpu_ms_per_text": cpu_ms[length, windows is not None]}
    return results


def _cpu_ms(texts: Sequence[str]) -> dict[tuple[int, bool], float]:
    """By length and whether in windows, all layers, without a store: the median of rounds."""
    few = list(texts[:: len(texts) // _TIMED][:_TIMED])
    encoders = {
        (length, windows is not None): FrozenEncoder.from_pretrained(
            _ENCODER, max_length=length, windows=windows
        )
        for length, windows in _WAYS.values()
    }
    times: dict[tuple[int, bool], list[float]] = {way: [] for way in encoders}
    with threadpool_limits(1):
        for number in range(_ROUNDS + 1):
            for way, encoder in encoders.items():
                started = time.process_time()
                extract(few, encoder)
                if number:  # the first round loads and warms up
                    times[way].append(time.process_time() - started)
    return {way: 1e3 * statistics.median(own) / len(few) for way, own in times.items()}
