"""Scoring every layer: closed-form leave-one-out ridge against scikit-learn's cross-validated
classifiers on one block each. Embeddings are stored before; reading them is in our clock and not
in the peers'. Then, on at most 2,000 rows, whether the block that we rank first is as good by the
slow method as the one that the slow method ranks first, of six blocks: our best two and four spread
over the layers. The slow method is not run on R52, whose classes would keep it busy for an hour."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifierCV
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler

from benchmarks.packaged import DATASETS, POOLINGS, Texts, embed, read_sets
from layerfuse import BlockRef, score_blocks
from layerfuse.embeddings.extraction import BlockView

_ENCODER = "smollm2-135m"
_TIMED = ("mr", "r52")
_MANY_CLASSES = "r52"
_RANKED_ROWS = 2_000
_SPREAD = 4
_FOLDS = 5
_PENALTIES = np.logspace(-5, 0, 8)
_RIDGE_PENALTIES = np.logspace(-1, 4, 10)


def run() -> list[dict[str, Any]]:
    results = []
    for texts in read_sets(DATASETS):
        embeddings = embed(texts.train, [_ENCODER])
        found: dict[str, Any] = {"dataset": texts.name, "rows": len(texts.targets)}
        found["blocks"] = len(embeddings)
        if texts.name in _TIMED:
            found |= _time(texts, embeddings)
        if texts.name != _MANY_CLASSES:
            found["ranking"] = _rank(texts, embeddings)
        results.append(found)
    return results


def _logistic() -> Any:
    return LogisticRegressionCV(
        Cs=_PENALTIES,
        cv=_FOLDS,
        max_iter=1000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
        scoring="accuracy",
    )


def _time(texts: Texts, embeddings: BlockView) -> dict[str, Any]:
    y = texts.targets.codes
    score_blocks(embeddings, y)  # fills the file cache, as an extraction just before would
    times = [_seconds(lambda: score_blocks(embeddings, y)) for _ in range(5)]
    ours = statistics.median(times)
    print(f"{len(embeddings)} blocks of {len(y)} rows of {texts.name}: {ours:.1f} s")
    features = StandardScaler().fit_transform(embeddings[BlockRef(_ENCODER, 15, "mean")])
    ways = {"RidgeClassifierCV, 10 penalties, leave-one-out": RidgeClassifierCV(_RIDGE_PENALTIES)}
    if texts.name != _MANY_CLASSES:
        ways["LogisticRegressionCV, 8 penalties, 5 folds"] = _logistic()
    peers = []
    for name, model in ways.items():
        seconds = _seconds(partial(model.fit, features, y))
        ratio = seconds * len(embeddings) / ours
        print(f"{name}: {seconds:.2f} s a block, {ratio:.0f} times ours", flush=True)
        peers.append({"peer": name, "peer_s_per_block": seconds, "peer_over_ours": ratio})
    return {"ours_s": times, "ours_median_s": ours, "peers": peers}


def _rank(texts: Texts, embeddings: BlockView) -> dict[str, Any]:
    rows = texts.targets.sample(_RANKED_ROWS, 0)
    part, y = embeddings.take(rows), texts.targets.codes[rows]
    ranking = [score.block for score in score_blocks(part, y).ranking]
    layers = np.linspace(1, max(block.layer for block in part), _SPREAD).round().astype(int)
    blocks = ranking[:2] + [BlockRef(_ENCODER, int(layer), POOLINGS[0]) for layer in layers]
    slow = {}
    for block in dict.fromkeys(blocks):
        features = StandardScaler().fit_transform(part[block])
        penalty = float(np.ravel(_logistic().fit(features, y).C_)[0])
        model = LogisticRegression(C=penalty, max_iter=1000)
        slow[block] = float(cross_val_score(model, features, y, cv=_FOLDS).mean())
    behind = max(slow.values()) - slow[ranking[0]]
    best = max(slow, key=lambda block: slow[block])
    print(
        f"{texts.name}, {len(rows)} rows: ours ranks {ranking[0]} first, the slow method {best}; "
        f"ours is {100 * behind:.1f} points behind by the slow method",
        flush=True,
    )
    return {
        "rows": len(rows),
        "first": str(ranking[0]),
        "slow_accuracy": {str(block): value for block, value in slow.items()},
        "points_behind": 100 * behind,
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
