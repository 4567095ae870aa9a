"""Every fusion and head on the four sets, and the automatic choice against what it must beat.

Each seed draws four fifths of the training rows, 5,000 at most. Blocks are those that the greedy
search chooses, from all layers of three encoders in three poolings. Test labels are used once, to
measure.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import save
from layerfuse import EmbeddingStore, FrozenEncoder, load_dataset
from layerfuse.baselines import rivals
from layerfuse.errors import LayerfuseError
from layerfuse.estimator import gather
from layerfuse.estimator.gathering import Rows
from layerfuse.estimator.inputs import training_rows
from layerfuse.events import SILENT
from layerfuse.fusion import FUSIONS, check_fusion
from layerfuse.metrics import evaluate_predictions, paired_difference
from layerfuse.pipeline import Plan, Task
from layerfuse.resources import Budget
from layerfuse.scoring import probe_blocks, stratified_rows
from layerfuse.search import Recipe
from layerfuse.selection import Allowance
from layerfuse.training import Training, pipeline

DATASETS = ("mr", "sst2", "r8", "r52")
ENCODERS = ("minilm", "mpnet", "smollm2-135m")
POOLINGS = ("mean", "last", "max")
SEEDS = (0, 1, 2)
MOST_ROWS = 5_000
MAX_BLOCKS = 5
SHARE = 0.8

Labels = npt.NDArray[np.intp]


def run() -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    sets = []
    for name in DATASETS:
        try:
            sets.append(Data.read(name))
        except LayerfuseError as error:
            print(f"{name} is left out: {error}")
    for seed in SEEDS:
        for data in sets:
            results.append(measure(data, seed))
            save("fusions", results)  # what is measured is kept if the rest is interrupted
    show(results)
    return results


class Data:
    """A set's embeddings, with class indices.

    Training rows of classes with one row are dropped, and so are those that `training_rows` leaves
    out (the phrases of SST-2).
    """

    def __init__(self, name: str, train: Any, y: Labels, test: Any, y_test: Labels) -> None:
        self.name = name
        self.train, self.y = train, y
        self.test, self.y_test = test, y_test

    @classmethod
    def read(cls, name: str) -> Data:
        dataset = load_dataset(name)
        test = dataset.test
        if test is None:
            raise LayerfuseError(f"{name} has no test rows.")
        counts = Counter(dataset.train.labels or ())
        kept = [row for row, label in enumerate(dataset.train.labels or ()) if counts[label] > 1]
        train = dataset.train.take(kept)
        classes, y = np.unique(np.asarray(train.labels), return_inverse=True)
        index = {label: number for number, label in enumerate(classes.tolist())}
        y_test = np.array([index.get(label, -1) for label in test.labels or ()])
        whole = training_rows(train.texts, y, "auto", SILENT)
        train, y = train.take(whole.tolist()), y[whole]
        encoders = [FrozenEncoder.from_pretrained(encoder) for encoder in ENCODERS]
        store = EmbeddingStore()
        parts = [gather(part.texts, encoders, "all", POOLINGS, store) for part in (train, test)]
        return cls(name, parts[0], y, parts[1], y_test)


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
