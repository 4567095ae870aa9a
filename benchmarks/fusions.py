"""Every fusion and head on the four sets, and the automatic choice against what it must beat.

Each seed draws four fifths of the training rows, 5,000 at most. Blocks are those that the greedy
search chooses, from all layers of three encoders in three poolings. Test labels are used once, to
measure. A run goes on where an interrupted one was; without results/fusions.json it starts anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import cpu, measured, save
from benchmarks.packaged import DATASETS, MOST_ROWS, Labels, Texts, embed, read_sets
from layerfuse.blocks import BlockRef
from layerfuse.embeddings.extraction import BlockView
from layerfuse.evaluation.baselines import baseline_strategies
from layerfuse.evaluation.nested import TrainingSample, nested_plan
from layerfuse.fusion import FUSIONS
from layerfuse.heads import PAPER_SCHEDULE, MlpHead
from layerfuse.metrics import paired_difference, share_interval
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
    """A set's embeddings, with what is to be predicted (see `Texts`)."""

    name: str
    train: BlockView
    targets: Targets
    test: BlockView
    y_test: Labels

    @classmethod
    def embed(cls, texts: Texts) -> Data:
        return cls(texts.name, embed(texts.train), texts.targets, embed(texts.test), texts.y_test)


def search_space(seed: int = 0) -> SearchSpace:
    """Greedy selection of at most `MAX_BLOCKS` blocks, any fusion and head."""
    return SearchSpace("greedy", CostBudget(Budget(blocks=MAX_BLOCKS), {}), seed=seed)


def measure(data: Data, seed: int) -> dict[str, Any]:
    n_rows = min(MOST_ROWS, round(SHARE * len(data.targets)))
    rows = data.targets.sample(n_rows, seed)
    targets = data.targets[rows]
    decide = targets.space.decide
    start = time.perf_counter()
    embeddings = data.train.take(rows)
    probed = probe_blocks(embeddings, targets)
    training = TrainingSample(embeddings, targets, probed, search_space(seed))
    probing = time.perf_counter() - start
    start = time.perf_counter()
    search = training.search_nested(targets.folds(5, seed))
    found, (nested,) = search.result, training.out_of_fold([nested_plan], search)
    analyzing = time.perf_counter() - start

    def correct(plan: Plan) -> npt.NDArray[np.bool_]:
        model = training.fit(plan, embeddings, targets)
        return np.asarray(decide(model.logits(data.test)) == data.y_test)

    right = correct(found.plan)
    ways = {
        f"{own.name}{f' ({own.encoder})' if own.encoder else ''}": own.choose(found, probed.scores)
        for own in baseline_strategies(training)
        if not own.name.startswith("first_")
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
    test = share_interval(int(right.sum()), len(right))
    cv = share_interval(int(targets.correct(decide(nested.logits)).sum()), len(targets))
    gap = cv.value - test.value
    halves = ((own.high - own.low) / 2 for own in (cv, test))
    result: dict[str, Any] = {
        "dataset": data.name,
        "seed": seed,
        "rows": len(targets),
        "blocks": [str(block) for block in found.plan.blocks],
        "fusion": found.plan.fusion,
        "head": found.plan.head,
        "nested": asdict(cv),
        "test": asdict(test),
        "nested_minus_test": gap,
        "joint_half_width": math.hypot(*halves),
        "against": {
            name: {
                "blocks": [str(block) for block in plan.blocks],
                **asdict(paired_difference(right, correct(plan))),
            }
            for name, plan in ways.items()
        },
        "fusions": table,
        "seconds": {"probing": probing, "analyzing": analyzing},
    }
    print(
        f"{data.name} {seed}: nested {100 * cv.value:.2f}, test "
        f"{100 * test.value:.2f}; {', '.join(result['blocks'])}; {found.plan.fusion}, "
        f"{found.plan.head}; probing {probing:.0f} s, search and nested "
        f"resampling {analyzing:.0f} s"
    )
    return result


def published(training: TrainingSample, data: Data, blocks: tuple[BlockRef, ...]) -> Labels:
    """Class indices (n_test,) by the papers' head on the concatenated blocks.

    1024 and 256 units, Adam at 1e-4, batches of 1024, 100 epochs, the best one by a part of the
    training rows that no step was taken on.
    """
    concat = training.fit(Plan(blocks), training.blocks, training.targets)

    def features(embeddings: Mapping[BlockRef, Floats]) -> Floats:
        pairs = zip(blocks, concat.axes, strict=True)
        return concat.model.fusion.transform([a.transform(embeddings[b]) for b, a in pairs])

    head = MlpHead.fit(
        features(training.blocks),
        training.targets,
        seed=training.space.seed,
        schedule=PAPER_SCHEDULE,
    )
    return training.targets.space.decide(head.logits(features(data.test)))


def plans(blocks: tuple[BlockRef, ...]) -> list[Plan]:
    """Each fusion, plain and residual, with a ridge head; concatenation with each head."""
    heads = ("logistic", "balanced_ridge", "kernel", "mlp")
    plain = [Plan(blocks, name) for name in FUSIONS]
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
