"""Planted truth: the automatic choice finds what is there, and says when nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from layerfuse.blocks import BlockRef
from layerfuse.evaluation.baselines import TrainingRows, run_baselines
from layerfuse.evaluation.nested import TrainingSample, nested_plan
from layerfuse.evaluation.verdict import Rows, Verdict, judge
from layerfuse.model_selection import SearchResult, SearchSpace
from layerfuse.probing import probe_blocks
from layerfuse.resources import Budget, EncoderCost
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

pytestmark = pytest.mark.slow

Array = npt.NDArray[Any]

N, DIM, NOISE_BLOCKS = 600, 16, 40
SEEDS = range(20)
ENCODER = "planted"


def planted(seed: int, kind: str, n: int = N) -> tuple[dict[BlockRef, Array], Array, set[BlockRef]]:
    """Blocks (n, DIM) of noise, of which some carry the label; and which ones."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    sign = 2.0 * y - 1
    blocks = {
        BlockRef(ENCODER, layer, "mean"): rng.normal(size=(n, DIM))
        for layer in range(NOISE_BLOCKS + 2)
    }
    a, b = (
        BlockRef(ENCODER, int(layer), "mean") for layer in rng.permutation(NOISE_BLOCKS + 2)[:2]
    )
    found = {a, b}
    if kind == "one":
        blocks[a] += np.outer(sign, rng.normal(size=DIM)) * 0.3
        found = {a}
    elif kind == "sum":  # each alone is hidden in a common noise that only both together cancel
        common = 6 * rng.normal(size=n)
        blocks[a][:, 0] = sign + common + 0.3 * rng.normal(size=n)
        blocks[b][:, 0] = common + 0.3 * rng.normal(size=n)
    elif kind == "product":  # the label is the sign of a product
        first = rng.choice([-1.0, 1.0], n)
        blocks[a][:, 0] = 2 * first + 0.3 * rng.normal(size=n)
        blocks[b][:, 0] = 2 * first * sign + 0.3 * rng.normal(size=n)
    return {ref: block.astype(np.float32) for ref, block in blocks.items()}, y, found


def sample_of(blocks: dict[BlockRef, Array], y: Array) -> TrainingSample:
    space = SearchSpace("greedy", CostBudget(Budget(blocks=5), {}))
    targets = Targets.from_labels(y)
    return TrainingSample(blocks, targets, probe_blocks(blocks, targets), space)


def find(blocks: dict[BlockRef, Array], y: Array) -> SearchResult:
    return sample_of(blocks, y).search()


@pytest.mark.parametrize("kind", ["one", "sum", "product"])
def test_informative_blocks_are_found(kind: str) -> None:
    hits = 0
    for seed in SEEDS:
        blocks, y, truth = planted(seed, kind)
        hits += truth <= set(find(blocks, y).plan.blocks)
    assert hits >= 19


def verdict(seed: int) -> Verdict:
    """The verdict on blocks of noise, by nested resampling.

    Of half the rows: how often nothing is taken for something depends on the number of blocks.
    """
    blocks, y, _ = planted(seed, "none", N // 2)
    sample = sample_of(blocks, y)
    search = sample.search_nested(sample.targets.folds(5, seed=0))
    (nested,) = sample.out_of_fold([nested_plan], search)
    texts = [f"word{number}" for number in np.random.default_rng(seed).integers(0, 50, len(y))]
    rows = TrainingRows(texts, sample.targets, np.arange(len(y)), blocks)
    baselines = run_baselines(sample, search, rows)
    n_layers = NOISE_BLOCKS + 1
    costs = {ENCODER: EncoderCost(ENCODER, tuple(range(1, n_layers + 2)), 4, 1.0, DIM)}
    rows = Rows(sample.targets, sample.targets.space.decide(nested.logits), seed)
    return judge(baselines, rows, None, search.result.plan, sample.probed.scores, costs)


def test_nothing_is_gained_where_nothing_is_known() -> None:
    verdicts = [verdict(seed) for seed in SEEDS]
    assert sum(found.gained for found in verdicts) <= 1
    said = [found.sentence for found in verdicts]
    assert sum("not significantly better" in s or "no better than" in s for s in said) >= 19
