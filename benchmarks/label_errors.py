"""Label errors planted in 5 of 100 rows, five times each, and how well `audit --labels` ranks them.

Beside it cleanlab on the probabilities of TF-IDF with logistic regression, over the same folds.
Needs the extra ``labels``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from layerfuse import LayerFusionClassifier, load_dataset
from layerfuse.commands.analyze import mix
from layerfuse.data import Split
from layerfuse.errors import LayerfuseError, LayerfuseWarning
from layerfuse.evaluation.baselines import tfidf_out_of_fold
from layerfuse.targets import Targets

SETS = {"r8": ("mpnet",), "mr": ("mpnet", "smollm2-135m", "nomic"), "bbc-news": ("mpnet",)}
SHARE = 0.05
SEEDS = range(5)


def run() -> list[dict[str, Any]]:
    results = []
    for name, encoders in SETS.items():
        try:
            split = load_dataset(name).train
        except LayerfuseError as error:
            print(f"{name} is left out: {error}")
            continue
        start = time.perf_counter()
        draws = [measure(split, encoders, seed) for seed in SEEDS]
        seconds = (time.perf_counter() - start) / len(draws)
        precision = {key: [draw.precision[key] for draw in draws] for key in draws[0].precision}
        lead = np.subtract(precision["audit"], precision["tfidf"])
        standard_error = lead.std(ddof=1) / len(lead) ** 0.5
        results.append(
            {
                "dataset": name,
                "encoders": encoders,
                "rows": len(split),
                "planted": round(SHARE * len(split)),
                "accuracy": float(np.mean([draw.accuracy for draw in draws])),
                "average_precision": {key: float(np.mean(own)) for key, own in precision.items()},
                "draws": precision,
                "lead": {"value": float(lead.mean()), "se": float(standard_error)},
                "seconds": seconds,
            }
        )
        print(f"{name}: {results[-1]}", flush=True)
    return results


@dataclass(frozen=True)
class Draw:
    """Nested accuracy on the labels given, and average precision by way of ranking."""

    accuracy: float
    precision: Mapping[str, float]


def measure(split: Split, encoders: Sequence[str], seed: int) -> Draw:
    """Plant errors in other rows with each seed, and rank all rows."""
    targets = Targets.from_labels(split.labels)
    n, n_classes = len(targets), targets.space.n_outputs
    rng = np.random.default_rng(seed)
    planted = np.zeros(n, dtype=bool)
    planted[rng.choice(n, round(SHARE * n), replace=False)] = True
    other = (targets.codes + rng.integers(1, n_classes, n)) % n_classes
    codes = np.where(planted, other, targets.codes)
    model = LayerFusionClassifier(
        encoders, fusion="concat", head="ridge", fragments="keep", sample_size=n
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerfuseWarning)
        record = model.fit(split.texts, targets.space.decode(codes)).fit_record_
    given = record.sample.targets
    words = tfidf_out_of_fold(split.texts, given, record.search.folds)
    tables = {
        "tfidf": words,
        "pipeline": record.proba,
        "audit": mix(record.proba, words, given),
    }
    precision = {
        key: float(average_precision_score(planted, -proba[np.arange(n), given.codes]))
        for key, proba in tables.items()
    }
    return Draw(model.cv_.headline.value, precision)
