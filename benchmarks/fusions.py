"""Every fusion and head on the four sets, and the automatic choice against what it must beat.

Each seed draws four fifths of the training rows, 5,000 at most. Blocks are those that the greedy
search chooses, from all layers of three encoders in three poolings. Test labels are used once, to
measure. A run goes on where an interrupted one was; without results/fusions.json it starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import cpu, measured, save
from benchmarks.packaged import DATASETS, ENCODERS, MOST_ROWS, Texts, embed, read_sets
from layerfuse.blocks import BlockRef
from layerfuse.embeddings.extraction import Gathered, Rows
from layerfuse.errors import LayerfuseError
from layerfuse.evaluation.baselines import baseline_strategies
from layerfuse.evaluation.nested import PIPELINE, TrainingSample, nested_plan
from layerfuse.fusion import FUSIONS, check_fusion
from layerfuse.heads import PUBLISHED, fit_mlp
from layerfuse.metrics import evaluate_predictions, paired_difference
from layerfuse.model_selection import SearchSpace
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

SEEDS = (0, 1, 2)
MAX_BLOCKS = 5
SHARE = 0.8
PAPERS = "mlp as published"

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]


def run() -> list[dict[str, Any]]:
    results = measured("fusions")
    done = {(result["dataset"], result["seed"]) for result in results}
    sets = {}
    for texts in read_sets(DATASETS):
        if any((texts.name, seed) not in done for seed in SEEDS):
            sets[texts.name] = Data.embed(texts)
    for seed, name in product(SEEDS, sets):
        if (name, seed) not in done:
            results.append({**measure(sets[name], seed), "cpu": cpu()})
            save("fusions", results)  # what is measured is kept if the rest is interrupted
    show(results)
    return results


@dataclass(frozen=True)
class Data:
    """A set's embeddings, with class indices."""

    name: str
    train: Gathered
    y: Labels
    test: Gathered
    y_test: Labels

    @classmethod
    def embed(cls, texts: Texts) -> Data:
        return cls(texts.name, embed(texts.train), texts.y, embed(texts.test), texts.y_test)


def measure(data: Data, seed: int) -> dict[str, Any]:
    n_rows = min(MOST_ROWS, round(SHARE * len(data.y)))
    every = Targets.from_labels(data.y)
    rows = every.sample(n_rows, seed)
    targets, y = every[rows], data.y[rows]
    start = time.perf_counter()
    embeddings = Rows(data.train, rows)
    probed = probe_blocks(embeddings, targets)
    budget = CostBudget(Budget(blocks=MAX_BLOCKS), {})
    sample = TrainingSample(embeddings, targets, probed, SearchSpace("greedy", budget, seed=seed))
    probing = time.perf_counter() - start
    start = time.perf_counter()
    found = sample.search()
    searching = time.perf_counter() - start
    start = time.perf_counter()
    own = sample.out_of_fold({PIPELINE: nested_plan}, targets.folds(5, seed))[PIPELINE]
    nested = targets.space.decide(own.logits)
    resampling = time.perf_counter() - start

    def correct(plan: Plan) -> npt.NDArray[np.bool_]:
        predicted = sample.fit(plan, embeddings, targets).logits(data.test).argmax(axis=1)
        return np.asarray(predicted == data.y_test)

    right = correct(found.plan)
    ways = {
        f"{one.name}{f' ({one.encoder})' if one.encoder else ''}": one.choose(found, probed.scores)
        for one in baseline_strategies(ENCODERS, 1)
    }
    table = []
    for plan in plans(found.selection.blocks):
        start = time.perf_counter()
        share = float(correct(plan).mean())
        seconds = time.perf_counter() - start
        table.append({"fusion": plan.fusion, "head": plan.head, "test": share, "seconds": seconds})
        print(
            f"{data.name} {seed} {plan.fusion:24} {plan.head:9} {100 * share:.2f} {seconds:.1f} s"
        )
    start = time.perf_counter()
    share = float((published(sample, data, found.selection.blocks) == data.y_test).mean())
    seconds = time.perf_counter() - start
    table.append({"fusion": "concat", "head": PAPERS, "test": share, "seconds": seconds})
    test = evaluate_predictions(right.astype(int), np.eye(2)[np.ones(len(right), dtype=int)])
    cv_right = nested == y
    cv = evaluate_predictions(cv_right.astype(int), np.eye(2)[np.ones(len(y), dtype=int)])
    gap = cv.accuracy.value - test.accuracy.value
    halves = [(e.accuracy.high - e.accuracy.low) / 2 for e in (cv, test)]
    result = {
        "dataset": data.name,
        "seed": seed,
        "rows": len(y),
        "blocks": [str(block) for block in found.plan.blocks],
        "fusion": found.plan.fusion,
        "head": found.plan.head,
        "nested": cv.accuracy.to_dict(),
        "test": test.accuracy.to_dict(),
        "nested_minus_test": gap,
        "joint_half_width": float(np.hypot(*halves)),
        "against": {
            name: {
                "blocks": [str(block) for block in plan.blocks],
                **paired_difference(right, correct(plan)).to_dict(),
            }
            for name, plan in ways.items()
        },
        "fusions": table,
        "seconds": {"probing": probing, "searching": searching, "resampling": resampling},
    }
    print(
        f"{data.name} {seed}: nested {100 * cv.accuracy.value:.2f}, test "
        f"{100 * test.accuracy.value:.2f}; {', '.join(result['blocks'])}; {found.plan.fusion}, "
        f"{found.plan.head}; probing {probing:.0f} s, search {searching:.1f} s, nested "
        f"{resampling:.0f} s"
    )
    return result


def published(sample: TrainingSample, data: Data, blocks: tuple[BlockRef, ...]) -> Labels:
    """Class indices (n_test,) by the papers' head on the concatenated blocks.

    1024 and 256 units, Adam at 1e-4, batches of 1024, 100 epochs, the best one by a part of the
    training rows that no step was taken on.
    """
    concat = sample.fit(Plan(blocks), sample.blocks, sample.targets)

    def features(embeddings: Mapping[BlockRef, Floats]) -> Floats:
        pairs = zip(blocks, concat.axes, strict=True)
        return concat.model.fusion.transform([a.transform(embeddings[b]) for b, a in pairs])

    X, targets = features(sample.blocks), sample.targets
    n_classes, seed = targets.space.n_outputs, sample.space.seed
    head = fit_mlp(X, targets.codes, n_classes, None, seed, PUBLISHED)
    return np.asarray(head.logits(features(data.test)).argmax(axis=1))


def plans(blocks: Any) -> list[Plan]:
    """Each fusion, plain and residual, with a ridge head; concatenation with each head."""
    names = [form for name in FUSIONS for form in (name, f"{name}+residual") if _is_fusion(form)]
    heads = ("logistic", "kernel", "mlp")
    return [Plan(blocks, name) for name in names] + [Plan(blocks, "concat", h) for h in heads]


def _is_fusion(name: str) -> bool:
    try:
        check_fusion(name)
    except LayerfuseError:
        return False
    return True


def show(results: list[dict[str, Any]]) -> None:
    """Mean test accuracy over seeds: fusions down, sets across."""
    sets = list(dict.fromkeys(result["dataset"] for result in results))
    print(f"{'':34}" + "".join(f"{name:>14}" for name in sets))
    for number, row in enumerate(results[0]["fusions"] if results else []):
        cells = []
        for name in sets:
            own = [r["fusions"][number]["test"] for r in results if r["dataset"] == name]
            cells.append(f"{100 * np.mean(own):.2f} ±{100 * np.std(own):.2f}")
        print(f"{row['fusion'] + ', ' + row['head']:34}" + "".join(f"{cell:>14}" for cell in cells))
