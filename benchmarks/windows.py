"""Long texts of 20newsgroups (official split, headers as packaged): truncated, and in windows.

Accuracy on some of the test rows, choices on training rows; CPU milliseconds per text are measured
in turn, on the same texts, with one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits

from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract, load_dataset
from layerfuse.metrics import paired_difference

Ways: TypeAlias = Mapping[str, tuple[int, tuple[str, ...] | None]]
"""The maximum length in tokens, and poolings over windows."""

_DATASET = "20newsgroups"
_ROWS = {"minilm": (2_000, 3_000), "mpnet": (1_000, 1_500)}  # for training, and test rows
_TIMED, _ROUNDS = 24, 3
_BASELINE = "truncated at 128"
_OVER = ("mean", "max", "first", "last")
_WAYS: dict[str, Ways] = {
    "minilm": {
        _BASELINE: (128, None),
        "truncated at 256": (256, None),
        "truncated at 512": (512, None),
        "windows of 256, `mean`": (512, ("mean",)),
        "windows of 256, `max`": (512, ("max",)),
        "windows of 256, all four as candidates": (512, _OVER),
    },
    "mpnet": {
        _BASELINE: (128, None),
        "truncated at 384": (384, None),
        "windows of 384, `mean`": (512, ("mean",)),
        "windows of 384, `max`": (512, ("max",)),
        "windows of 384, all four as candidates": (512, _OVER),
    },
}


def run() -> list[dict[str, Any]]:
    return [own for encoder, ways in _WAYS.items() for own in _measure(encoder, ways)]


def _measure(name: str, ways: Ways) -> list[dict[str, Any]]:
    n_train, n_test = _ROWS[name]
    dataset = load_dataset(_DATASET)
    train, test = dataset.subsample(n_train, 0).train, dataset.subsample(n_test, 0).test
    if test is None:
        return []
    truth = np.array(test.labels)
    right: dict[tuple[str, str], Any] = {}
    results = []
    for case, (length, windows) in ways.items():
        encoder = FrozenEncoder.from_pretrained(name, max_length=length, windows=windows)
        own: dict[str, Any] = {"encoder": name, "case": case}
        own |= {"max_length": length, "windows": windows}
        for selection in ("last", "greedy"):
            classifier = LayerFusionClassifier(
                encoder, selection=selection, fusion="concat", head="ridge", store=EmbeddingStore()
            ).fit(train.texts, train.labels or ())
            proba = classifier.model_.predict_proba(classifier.extract(test.texts))
            right[case, selection] = classifier.classes_[proba.argmax(axis=1)] == truth
            gain = paired_difference(right[case, selection], right[_BASELINE, selection])
            own[selection] = {
                "blocks": list(map(str, classifier.plan_.blocks)),
                "cv_accuracy": classifier.cv_.accuracy.value,
                "test_accuracy": float(right[case, selection].mean()),
                "gain": [gain.difference, gain.low, gain.high],
            }
        own |= {"read_share": classifier.read_share_, "truncated": classifier.truncated_share_}
        own |= {"train_rows": len(train), "test_rows": len(test)}
        results.append(own)
        print(own, flush=True)
    cpu_ms = _cpu_ms(name, ways, train.texts)
    for own, (length, windows) in zip(results, ways.values(), strict=True):
        own |= {"cpu_ms_per_text": cpu_ms[length, windows is not None]}
    return results


def _cpu_ms(name: str, ways: Ways, texts: Sequence[str]) -> dict[tuple[int, bool], float]:
    """By length and whether in windows, all layers, without a store: the median of rounds."""
    few = list(texts[:: len(texts) // _TIMED][:_TIMED])
    encoders = {
        (length, windows is not None): FrozenEncoder.from_pretrained(
            name, max_length=length, windows=windows
        )
        for length, windows in ways.values()
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
