"""Scoring every layer: closed-form leave-one-out ridge against scikit-learn's cross-validated
classifiers on one layer each. Embeddings are stored before; reading them is in our clock and not in
the peers'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from layerfuse import EmbeddingStore, FrozenEncoder, extract, load_dataset, score_blocks
from layerfuse.errors import LayerfuseError

_POOLINGS = ("mean", "last", "max")


def run() -> list[dict[str, Any]]:
    try:
        data, name = load_dataset("mr").train, "mr"
    except LayerfuseError as error:
        print(f"mr is left out, r8 takes its place: {error}")
        data, name = load_dataset("r8").train, "r8"
    encoder = FrozenEncoder.from_pretrained("smollm2-135m")
    embeddings = extract(data.texts, encoder, pooling=_POOLINGS, store=EmbeddingStore())
    y = np.asarray(data.labels)
    score_blocks(embeddings, y)  # fills the file cache, as an extraction just before would
    times = [_seconds(lambda: score_blocks(embeddings, y)) for _ in range(3)]
    ours = statistics.median(times)
    print(f"{len(embeddings)} blocks of {len(y)} rows of {name}: {ours:.1f} s")
    features = StandardScaler().fit_transform(next(iter(embeddings.values())))
    peers = {
        "RidgeClassifierCV, 10 penalties, leave-one-out": RidgeClassifierCV(np.logspace(-1, 4, 10)),
        "LogisticRegressionCV, 8 penalties, 5 folds": LogisticRegressionCV(
            Cs=np.logspace(-5, 0, 8),
            cv=5,
            max_iter=1000,
            l1_ratios=(0,),
            use_legacy_attributes=False,
        ),
    }
    results: list[dict[str, Any]] = []
    for peer, model in peers.items():
        seconds = _seconds(lambda model=model: model.fit(features, y))
        ratio = seconds * len(embeddings) / ours
        print(f"{peer}: {seconds:.2f} s a block, {ratio:.0f} times ours")
        results.append({"peer": peer, "peer_s_per_block": seconds, "peer_over_ours": ratio})
    return [
        {
            "dataset": name,
            "rows": len(y),
            "blocks": len(embeddings),
            "ours_s": times,
            "ours_median_s": ours,
            "peers": results,
        }
    ]


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
