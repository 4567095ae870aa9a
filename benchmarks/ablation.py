"""What each step of the method brings on the four sets, and what it costs.

Steps are added one at a time to the last layer of one encoder with a ridge head; the last rows
change one thing of all steps together. Each seed draws four fifths of the training rows. Choices
are made on these alone; test rows measure each step once. Embeddings come from the user's store.
A run goes on where an interrupted one was; without results/ablation.json it starts anew.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import measured, save
from benchmarks.packaged import Texts, read_sets
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier
from layerfuse.embeddings.extraction import extract_blocks
from layerfuse.errors import LayerfuseWarning
from layerfuse.metrics import Estimate
from layerfuse.resources import pipeline_cost

DATASETS = ("sst2", "mr", "r8", "r52")
SEEDS = (0, 1, 2)
SHARE = 0.8
_ONE, _TWO, _THREE = ("mpnet",), ("mpnet", "smollm2-135m"), ("mpnet", "smollm2-135m", "nomic")
_PLAIN: dict[str, Any] = {"selection": "greedy", "fusion": "concat", "head": "ridge"}
_ALL: dict[str, Any] = {"encoders": _THREE, "lexical": True}

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """Parameters of a classifier, and the step that it is compared with."""

    parameters: dict[str, Any]
    base: str | None


STEPS = {
    "last layer of mpnet": Step({**_PLAIN, "encoders": _ONE, "selection": "last"}, None),
    "its best layer": Step(
        {**_PLAIN, "encoders": _ONE, "selection": "best"}, "last layer of mpnet"
    ),
    "its layers fused": Step({**_PLAIN, "encoders": _ONE}, "its best layer"),
    "+ smollm2-135m": Step({**_PLAIN, "encoders": _TWO}, "its layers fused"),
    "+ nomic": Step({**_PLAIN, "encoders": _THREE}, "+ smollm2-135m"),
    "+ words": Step({**_PLAIN, **_ALL}, "+ nomic"),
    "+ heads": Step(_ALL, "+ words"),
    "all, tensor+residual": Step({**_ALL, "fusion": "tensor+residual"}, "+ heads"),
    "all, up to ten blocks": Step({**_ALL, "max_blocks": 10}, "+ heads"),
    "all, upper layers averaged": Step({**_ALL, "selection": "upper"}, "+ heads"),
}


def run() -> list[dict[str, Any]]:
    results = measured("ablation")
    done = {result["dataset"] for result in results}
    for texts in read_sets([name for name in DATASETS if name not in done]):
        results.append(measure(texts))
        save("ablation", results)  # what is measured is kept if the rest is interrupted
    return results


def measure(texts: Texts) -> dict[str, Any]:
    """All steps on one set: means over seeds, gains over the steps they are compared with."""
    encoders = {name: FrozenEncoder.from_pretrained(name) for name in _THREE}
    right: dict[str, Shares] = {}
    steps = []
    for name, step in STEPS.items():
        given = {**step.parameters, "encoders": [encoders[e] for e in step.parameters["encoders"]]}
        fits = [fit(texts, seed, given) for seed in SEEDS]
        right[name] = np.mean([own.pop("right") for own in fits], axis=0)
        gain = None if step.base is None else asdict(_gain(right[name] - right[step.base]))
        steps.append({"step": name, "base": step.base, "gain": gain, "seeds": fits})
        nested, test = (np.mean([own[key] for own in fits]) for key in ("nested", "test"))
        print(f"{texts.name}, {name}: nested {nested:.4f}, test {test:.4f}, gain {gain}")
    return {"dataset": texts.name, "test_rows": len(texts.y_test), "steps": steps}


def fit(texts: Texts, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """One fit: its estimate, which test rows it gets right, what it chose and what that costs."""
    rows = texts.targets.sample(round(SHARE * len(texts.targets)), seed)
    targets = texts.targets[rows]
    model = LayerFusionClassifier(**parameters, fragments="keep", random_state=seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerfuseWarning)
        model.fit([texts.train[row] for row in rows], targets.space.decode(targets.codes))
    seconds = time.perf_counter() - start
    blocks = model.plan_.blocks
    view = extract_blocks(texts.test, model.encoders_, blocks, EmbeddingStore())
    known = np.searchsorted(targets.space.classes, model.classes_)
    right = known[np.argmax(model.model_.predict_proba(view), axis=1)] == texts.y_test
    cost = pipeline_cost(blocks, model.costs_)
    return {
        "seed": seed,
        "nested": model.cv_.headline.value,
        "test": float(right.mean()),
        "right": right,
        "blocks": [str(block) for block in blocks],
        "fusion": model.plan_.fusion,
        "head": model.plan_.head,
        "ms_per_text": cost.ms_per_text,
        "memory_mb": cost.memory_mb,
        "fit_s": seconds,
    }


def _gain(differences: Shares, n_resamples: int = 2000) -> Estimate:
    """The mean over test rows, with a 95% percentile interval of resampled rows; each row's value
    is a mean over seeds already, so that seeds are no further rows."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(differences), (n_resamples, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), (0.025, 0.975))
    return Estimate(float(differences.mean()), float(low), float(high))
