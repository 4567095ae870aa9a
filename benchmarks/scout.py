"""A fit on all phrases of SST-2 with smollm2-135m, read whole and scouted, each into an empty
store. The clock covers the fit: reading, measuring, choosing, resampling and the head. About ten
minutes on two cores; whole processes would add the loading of the model, some seconds."""

from __future__ import annotations

import tempfile
from typing import Any

from layerfuse import LayerFusionClassifier, load_dataset
from layerfuse.errors import LayerfuseError
from layerfuse.estimator.scouting import SCOUT_ABOVE

_DATASET, _ENCODER = "sst2", "smollm2-135m"


def run() -> list[dict[str, Any]]:
    try:
        dataset = load_dataset(_DATASET)
    except LayerfuseError as error:
        print(f"{_DATASET} is left out: {error}")
        return []
    train, test = dataset.train, dataset.test
    assert test is not None
    results: list[dict[str, Any]] = []
    for scout in (SCOUT_ABOVE, None):
        with tempfile.TemporaryDirectory() as store:
            model = LayerFusionClassifier([_ENCODER], parts="keep", scout=scout, store=store)
            model.fit(train.texts, train.labels or ())
            accuracy = model.score(test.texts, test.labels or ())
        blocks = [str(block) for block in model.plan_.blocks]
        results.append(
            {
                "dataset": _DATASET,
                "encoder": _ENCODER,
                "rows": len(train),
                "scout": scout,
                "blocks": blocks,
                "highest_layer": max(block.layer for block in model.plan_.blocks),
                "n_layers": model.encoders_[0].n_layers,
                "test_accuracy": float(accuracy),
                "timings": model.timings_,
            }
        )
        print(
            f"{'read whole' if scout is None else 'scouted'}: {model.timings_['total_s']:.0f} s "
            f"(reading {model.timings_['extract_s']:.0f} s), blocks {', '.join(blocks)}, "
            f"test accuracy {100 * accuracy:.1f} %",
            flush=True,
        )
    total = [result["timings"]["total_s"] for result in results]
    print(f"scouting takes {100 * (1 - total[0] / total[1]):.0f} % less time")
    return results
