"""Label errors planted in 5 of 100 rows, and how well `audit --labels` ranks them.

Beside it cleanlab on the probabilities of TF-IDF with logistic regression, over the same folds.
Needs the extra ``labels``.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from layerfuse import LayerFusionClassifier, load_dataset
from layerfuse.commands.analyze import mix
from layerfuse.errors import LayerfuseError, LayerfuseWarning
from layerfuse.evaluation.baselines import tfidf_out_of_fold
from layerfuse.targets import Targets

SETS = {"r8": ("mpnet",), "mr": ("mpnet", "smollm2-135m"), "bbc-news": ("mpnet",)}
SHARE = 0.05


def run() -> list[dict[str, Any]]:
    results = []
    for name, encoders in SETS.items():
        try:
            split = load_dataset(name).train
        except LayerfuseError as error:
            print(f"{name} is left out: {error}")
            continue
        targets = Targets.from_labels(split.labels)
        n, n_classes = len(targets), targets.space.n_outputs
        rng = np.random.default_rng(0)
        planted = np.zeros(n, dtype=bool)
        planted[rng.choice(n, round(SHARE * n), replace=False)] = True
        other = (targets.codes + rng.integers(1, n_classes, n)) % n_classes
        codes = np.where(planted, other, targets.codes)
        start = time.perf_counter()
        model = LayerFusionClassifier(
            encoders, fusion="concat", head="ridge", fragments="keep", sample_size=n
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LayerfuseWarning)
            record = model.fit(split.texts, targets.space.decode(codes)).fit_record_
        given = record.sample.targets
        words = tfidf_out_of_fold(split.texts, given, record.folds)
        tables = {
            "tfidf": words,
            "pipeline": record.proba,
            "audit": mix(record.proba, words, given),
        }
        precision = {
            key: float(average_precision_score(planted, -proba[np.arange(n), given.codes]))
            for key, proba in tables.items()
        }
        seconds = time.perf_counter() - start
        accuracy = model.cv_.accuracy.value
        results.append(
            {"dataset": name, "encoders": encoders, "rows": n, "planted": int(planted.sum())}
            | {"accuracy": accuracy, "average_precision": precision, "seconds": seconds}
        )
        print(f"{name}: {precision}, {seconds:.0f} s", flush=True)
    return results
