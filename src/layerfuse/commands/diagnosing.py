"""What a fit leaves for its report beside the figures: where it errs, what the data hold, on what
machine it ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from layerfuse._version import __version__
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.complementarity import ProbeData, measure_pairs
from layerfuse.data import NEAR, TextDataset, audit, near_duplicates
from layerfuse.parallel import peak_mb
from layerfuse.progress import SILENT, Reporter
from layerfuse.report.details import Predicted
from layerfuse.targets import LabelSpace, Targets

__all__ = ["diagnose"]

_TEXTS = 40  # of the hardest texts, and of near-duplicate pairs, that are kept
_LONGEST = 600  # characters kept of each
_PAIR_ROWS = 2000  # on which pairs of blocks are measured
_MOST_BLOCKS = 12
_PACKAGES = ("numpy", "scikit-learn", "torch", "transformers", "safetensors", "pyarrow")


def diagnose(
    classifier: LayerFusionClassifier,
    dataset: TextDataset,
    predicted: Mapping[str, Predicted],
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Findings as plain data; ``predicted`` goes by ``cv`` (rows of train) and ``test``."""
    labels = [str(label) for label in classifier.classes_.tolist()]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "classes": labels,
        "audit": asdict(audit(dataset)),
        "near_duplicates": _near(dataset),
        "hardest": _hardest(predicted["cv"], dataset.train.texts, labels),
        "complementarity": _pairs(classifier, reporter),
        "encoders": [
            {
                "name": encoder.name,
                "source": encoder.source.origin,
                "revision": encoder.source.revision,
                "fingerprints": encoder.fingerprints,
                "cost": classifier.costs_[encoder.name].to_dict(),
            }
            for encoder in classifier.encoders_
        ],
        "environment": _environment(),
    }


def _near(dataset: TextDataset) -> dict[str, Any] | None:
    """Test rows that are nearly a training row, word for word equal ones left out."""
    test, train = dataset.test, dataset.train
    if test is None:
        return None
    found = near_duplicates(test.texts, train.texts)
    pairs = [
        pair
        for pair in found
        if test.texts[pair.row].casefold().split() != train.texts[pair.other].casefold().split()
    ]
    theirs, ours = test.labels or (), train.labels or ()
    shown = sorted(pairs, key=lambda pair: theirs[pair.row] == ours[pair.other])[:_TEXTS]
    return {
        "threshold": NEAR,
        "count": len(pairs),
        "conflicts": sum(theirs[pair.row] != ours[pair.other] for pair in pairs),
        "pairs": [
            {
                "test_row": pair.row,
                "train_row": pair.other,
                "similarity": pair.similarity,
                "test_label": str(theirs[pair.row]),
                "train_label": str(ours[pair.other]),
                "test_text": _cut(test.texts[pair.row]),
                "train_text": _cut(train.texts[pair.other]),
            }
            for pair in shown
        ],
    }


def _hardest(rows: Predicted, texts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Rows with the least probability for their own label, out of fold.

    A label is suspect where another class gets at least the probability that rows of that class
    get on average (confident learning; Northcutt et al., JAIR 2021).
    """
    counts = np.bincount(rows.truth, minlength=len(labels))
    usual = np.bincount(rows.truth, rows.own, len(labels)) / np.maximum(counts, 1)
    suspect = ~rows.right & (rows.confidence >= usual[rows.predicted])
    return {
        "n": len(rows),
        "wrong": int((~rows.right).sum()),
        "suspects": int(suspect.sum()),
        "texts": [
            {
                "row": int(rows.rows[place]),
                "label": labels[rows.truth[place]],
                "predicted": labels[rows.predicted[place]],
                "confidence": float(rows.confidence[place]),
                "own": float(rows.own[place]),
                "suspect": bool(suspect[place]),
                "text": _cut(texts[rows.rows[place]]),
            }
            for place in np.argsort(rows.own, kind="stable")[:_TEXTS]
        ],
    }


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _pairs(classifier: LayerFusionClassifier, reporter: Reporter) -> dict[str, Any]:
    """The chosen blocks and each encoder's best and last one, two by two, on a part of the rows."""
    scores = classifier.profile_
    blocks = list(classifier.selection_.blocks)
    for encoder in classifier.encoders_:
        blocks += [scores.of(encoder.name).best.block, scores.last(encoder.name).block]
    blocks = list(dict.fromkeys(blocks))[:_MOST_BLOCKS]
    truth, _ = classifier.out_of_fold()
    targets = Targets(LabelSpace(classifier.classes_), truth)
    rows = targets.sample(_PAIR_ROWS, classifier.random_state)
    part = classifier.measured_blocks(blocks, rows)
    data = ProbeData.probe(part, targets[rows])
    wanted = [(a, b) for place, a in enumerate(blocks) for b in blocks[place + 1 :]]
    found = []
    with reporter.task("comparing blocks", len(wanted), "pairs") as advance:
        for pair in measure_pairs(data, wanted, classifier.random_state):
            found.append(pair.to_dict())
            advance(1)
    return {"n": len(rows), "blocks": [str(block) for block in blocks], "pairs": found}


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "peak_memory_mb": peak_mb(),
        "packages": {"layerfuse": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def _cpu() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  # not a real file
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
