"""Which pairs are worth fusing, and whether that could be told beforehand, on one dataset."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from layerfuse.complementarity import HEADLINE, Labelled, measure_pairs
from layerfuse.embeddings.extraction import Rows
from layerfuse.probing import ProbeResults
from layerfuse.study.correlating import correlate, summarise, top_picks
from layerfuse.study.predictors import Pairs, measure_predictors
from layerfuse.study.reading import EmbeddedData
from layerfuse.study.settings import StudySettings
from layerfuse.targets import LabelSpace, Targets

__all__ = ["measure_pairs_of"]

_RESAMPLES = 200


def measure_pairs_of(
    embedded: EmbeddedData, probed: ProbeResults, settings: StudySettings
) -> dict[str, Any]:
    """Encoders at their best blocks, pair by pair; and how measures on one half of some training
    rows rank blocks' pairs by the gain on the other half. No test row is read.
    """
    y, n_classes = embedded.data.y, embedded.data.n_classes
    targets = Targets(LabelSpace(np.arange(n_classes)), y)
    rows = targets.sample(settings.pair_rows, seed=0)
    pairs = measure_predictors(Rows(embedded.train, rows), y[rows], max_pairs=settings.pairs)
    correlations = summarise([correlate(pairs, n_resamples=_RESAMPLES)])
    return {
        "rows": len(rows),
        "pairs": len(pairs.members),
        "drawn": int(pairs.drawn.sum()),
        "headline": HEADLINE,
        "encoder_pairs": _encoder_pairs(probed, y, n_classes),
        "correlations": {group: found["accuracy_gain"] for group, found in correlations.items()},
        "loss_correlations": {group: found["loss_gain"] for group, found in correlations.items()},
        "top_picks": top_picks(pairs),
        "points": _points(pairs),
    }


def _encoder_pairs(probed: ProbeResults, y: Any, n_classes: int) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(score.block.encoder for score in probed.scores))
    best = [probed.scores.of(name).best.block for name in names]
    data = Labelled(
        probed.scores, probed.coordinates, y, Targets(LabelSpace(np.arange(n_classes)), y).matrix
    )
    table = []
    for pair in measure_pairs(data, combinations(best, 2)):
        row = pair.to_dict()
        gain = row.pop("gain")
        del row["only_a"], row["only_b"]
        table.append({**row, **{f"gain_{key}": value for key, value in gain.items()}})
    return table


def _points(pairs: Pairs) -> list[list[float]]:
    """For each pair of two encoders what its leave-one-out loss promised, and what came of it."""
    kept = np.flatnonzero(pairs.groups()["two encoders"])
    promised, came = pairs.predictors[HEADLINE], pairs.realised["accuracy_gain"]
    return [[float(promised[row]), float(came[row])] for row in kept]
