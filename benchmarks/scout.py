"""A fit on all phrases of SST-2 with smollm2-135m, read whole and scouted, each into an empty
store; with the blocks that the search chooses, and with the best single one. The clock covers the
fit: reading, measuring, choosing, resampling and the head. About twenty minutes on two cores; whole
processes would add the loading of the model, some seconds."""

from __future__ import annotations

import tempfile
from typing import Any

from layerfuse.classifier.scouting import SCOUT_ABOVE

from layerfuse import LayerFusionClassifier, load_dataset
from layerfuse.errors import LayerfuseError

_DATASET, _ENCODER = "sst2", "smollm2-135m"


def run() -> list[dict[str, Any]]:
    try:
        dataset = load_dataset(_DATASET)
    except LayerfuseError as error:
        print(f"{_DATASET} is left out: {error}")
        return []
    train, test = dataset.train, dataset.test
    assert test is not None
    return [
        _fit(train, test, selection, scout)
        for selection in ("greedy", "best")
        for scout in (SCOUT_ABOVE, None)
    ]


def _fit(train: Any, test: Any, selection: str, scout: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as store:
        model = LayerFusionClassifier(
            [_ENCODER], parts="keep", selection=selection, scout=scout, store=store
        )
        model.fit(train.texts, train.labels or ())
        accuracy = float(model.score(test.texts, test.labels or ()))
    blocks = [str(block) for block in model.plan_.blocks]
    print(
        f"{selection}, {'read whole' if scout is None else 'scouted'}: "
        f"{model.timings_['total_s']:.0f} s (reading {model.timings_['extract_s']:.0f} s), blocks "
        f"{', '.join(blocks)}, test accuracy {100 * accuracy:.1f} %",
        flush=True,
    )
    return {
        "dataset": _DATASET,
        "encoder": _ENCODER,
        "rows": len(train),
        "selection": selection,
        "scout": scout,
        "blocks": blocks,
        "highest_layer": max(block.layer for block in model.plan_.blocks),
        "n_layers": model.encoders_[0].n_layers,
        "test_accuracy": accuracy,
        "timings": model.timings_,
    }
