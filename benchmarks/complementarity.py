"""Which number, taken from training rows, says best what fusing two blocks will bring on others.

Pairs of blocks of the packaged encoders, 500 drawn at random for each set and all that hold the
best block, are measured on one half of the rows (A). Then a head is trained on A for each pair and
each block, and the gain of fusing is read off the other half (B).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import RESULTS
from benchmarks.packaged import DATASETS, ENCODERS, MOST_ROWS, POOLINGS, embed, read_sets
from benchmarks.pairs import MEASURES, OUTCOMES, correlate, measure_predictors, summarize, top_picks

MAX_PAIRS = 500

Floats = npt.NDArray[Any]


def run() -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    correlations = []
    for texts in read_sets(DATASETS):
        name = texts.name
        rows = texts.targets.sample(MOST_ROWS, 0)
        start = time.perf_counter()
        embeddings = embed(texts.train, ENCODERS, POOLINGS).take(rows)
        pairs = measure_predictors(embeddings, texts.targets[rows], max_pairs=MAX_PAIRS)
        # Not for the repository, but a new predictor can be tried on it in seconds.
        raw = RESULTS / "raw" / f"complementarity-{name}.npz"
        raw.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            raw,
            blocks=np.array([str(block) for block in pairs.blocks]),
            members=pairs.members,
            drawn=pairs.drawn,
            **{f"predictor_{key}": values for key, values in pairs.predictors.items()},
            **{f"realised_{key}": values for key, values in pairs.realized.items()},
        )
        correlations.append(correlate(pairs))
        results.append(
            {
                "dataset": name,
                "rows": len(rows),
                "classes": texts.targets.space.n_outputs,
                "blocks": len(pairs.blocks),
                "pairs": len(pairs.members),
                "seconds": time.perf_counter() - start,
                "realised": {key: _spread(values) for key, values in pairs.realized.items()},
                "top_pick": top_picks(pairs),
                "correlations": summarize(correlations[-1:]),
            }
        )
        print(f"\n{name}: {len(pairs.members)} pairs, {results[-1]['seconds']:.0f} s")
        show(results[-1]["correlations"])
    if correlations:
        median = summarize(correlations)
        names = [result["dataset"] for result in results]
        print(f"\nmedian of {', '.join(names)}")
        show(median)
        results.append({"dataset": "median", "datasets": names, "correlations": median})
    return results


def _spread(values: Floats) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return {"p5": float(low), "median": float(middle), "p95": float(high)}


def show(correlations: Mapping[str, Any]) -> None:
    """Print a table: predictors down, questions across."""
    for outcome in OUTCOMES:
        print(f"rank correlation with the {outcome.replace('_', ' ')} on B")
        print(f"{'':24}" + "".join(f"{group:>24}" for group in correlations))
        for name in MEASURES:
            cells = [correlations[group][outcome][name] for group in correlations]
            texts = [f"{c['value']:+.2f} ({c['low']:+.2f}, {c['high']:+.2f})" for c in cells]
            print(f"{name:24}" + "".join(f"{text:>24}" for text in texts))
