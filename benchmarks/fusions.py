"""Every fusion and head on the four sets, and the automatic choice against what it must beat.

Each seed draws four fifths of the training rows, 5,000 at most. Blocks are those that the greedy
search chooses, from all layers of three encoders in three poolings. Test labels are used once, to
measure. A run goes on where an interrupted one was; without results/fusions.json it starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import cpu, measured, save
from benchmarks.packaged import DATASETS, ENCODERS, MOST_ROWS, Texts, embed, read_sets
from benchmarks.study.fusions import fusion_names
from layerfuse.baselines import rivals
from layerfuse.blocks import BlockRef
from layerfuse.estimator.gathering import Gathered, Rows
from layerfuse.heads import PUBLISHED, fit_mlp
from layerfuse.metrics import evaluate_predictions, paired_difference
from layerfuse.pipeline import Plan, Task
from layerfuse.resources import Budget
from layerfuse.scoring import probe_blocks, stratified_rows
from layerfuse.search import Recipe
from layerfuse.selection import Allowance
from layerfuse.training import Training, pipeline

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
    rows = stratified_rows(data.y, n_rows, seed)
    y = data.y[rows]
    n_classes = int(y.max()) + 1
    start = time.perf_counter()
    embeddings = Rows(data.train, rows)
    probed = probe_blocks(embeddings, y)
    allowance = Allowance(Budget(blocks=MAX_BLOCKS), {})
    recipe = Recipe("greedy", allowance, "auto", "auto", Task(n_classes, None, seed))
    training = Training(embeddings, y, np.arange(len(y)), probed, recipe)
    probing = time.perf_counter() - start
    start = time.perf_counter()
    found = training.search()
    searching = time.perf_counter() - start
    start = time.perf_counter()
    nested = training.out_of_fold({"pipeline": pipeline}, 5)["pipeline"].logits.argmax(axis=1)
    resampling = time.perf_counter() - start

    def correct(plan: Plan) -> npt.NDArray[np.bool_]:
        predicted = training.fit(plan).logits(data.test).argmax(axis=1)
        return np.asarray(predicted == data.y_test)

    right = correct(found.plan)
    ways = {
        f"{rival.name}{f' ({rival.encoder})' if rival.encoder else ''}": rival.procedure(
            found, probed.scores
        )
        for rival in rivals(ENCODERS, 1)
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
    share = float((published(training, data, found.selection.blocks) == data.y_test).mean())
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
        "nested": asdict(cv.accuracy),
        "test": asdict(test.accuracy),
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


def published(training: Training, data: Data, blocks: tuple[BlockRef, ...]) -> Labels:
    """Class indices (n_test,) by the papers' head on the concatenated blocks.

    1024 and 256 units, Adam at 1e-4, batches of 1024, 100 epochs, the best one by a part of the
    training rows that no step was taken on.
    """
    concat = training.fit(Plan(blocks))

    def features(embeddings: Mapping[BlockRef, Floats]) -> Floats:
        pairs = zip(blocks, concat.axes, strict=True)
        return concat.model.fusion.transform([a.transform(embeddings[b]) for b, a in pairs])

    task = training.recipe.task
    X = features(training.embeddings)
    head = fit_mlp(X, training.y, task.n_classes, None, task.seed, PUBLISHED)
    return np.asarray(head.logits(features(data.test)).argmax(axis=1))


def plans(blocks: Any) -> list[Plan]:
    """Each fusion, plain and residual, with a ridge head; concatenation with each head."""
    heads = ("logistic", "kernel", "mlp")
    plain = [Plan(blocks, name) for name in fusion_names()]
    return plain + [Plan(blocks, "concat", head) for head in heads]


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
