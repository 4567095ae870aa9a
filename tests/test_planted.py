"""Planted truth: the automatic choice finds what is there, and says when nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from layerfuse.baselines import rivals
from layerfuse.blocks import BlockRef
from layerfuse.metrics import paired_difference
from layerfuse.pipeline import Task
from layerfuse.resources import Budget
from layerfuse.scoring import probe_blocks
from layerfuse.search import Found, Recipe, search
from layerfuse.selection import Allowance
from layerfuse.training import Training, pipeline

Array = npt.NDArray[Any]

N, DIM, NOISE_BLOCKS = 600, 16, 40
SEEDS = range(20)


def planted(seed: int, kind: str) -> tuple[dict[BlockRef, Array], Array, set[BlockRef]]:
    """Blocks (N, DIM) of noise, of which some carry the label; and which ones."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, N)
    sign = 2.0 * y - 1
    blocks = {
        BlockRef("planted", layer, "mean"): rng.normal(size=(N, DIM))
        for layer in range(NOISE_BLOCKS + 2)
    }
    a, b = (
        BlockRef("planted", int(layer), "mean") for layer in rng.permutation(NOISE_BLOCKS + 2)[:2]
    )
    found = {a, b}
    if kind == "one":
        blocks[a] += np.outer(sign, rng.normal(size=DIM)) * 0.3
        found = {a}
    elif kind == "sum":  # each alone is hidden in a common noise that only both together cancel
        common = 6 * rng.normal(size=N)
        blocks[a][:, 0] = sign + common + 0.3 * rng.normal(size=N)
        blocks[b][:, 0] = common + 0.3 * rng.normal(size=N)
    elif kind == "product":  # the label is the sign of a product
        first = rng.choice([-1.0, 1.0], N)
        blocks[a][:, 0] = 2 * first + 0.3 * rng.normal(size=N)
        blocks[b][:, 0] = 2 * first * sign + 0.3 * rng.normal(size=N)
    return {ref: block.astype(np.float32) for ref, block in blocks.items()}, y, found


def training(blocks: dict[BlockRef, Array], y: Array) -> Training:
    recipe = Recipe("greedy", Allowance(Budget(blocks=5), {}), "auto", "auto", Task(2))
    return Training(blocks, y, np.arange(len(y)), probe_blocks(blocks, y), recipe)


def find(blocks: dict[BlockRef, Array], y: Array) -> Found:
    made = training(blocks, y)
    return search(made.probed, y, made.recipe)


@pytest.mark.parametrize("kind", ["one", "sum", "product"])
def test_informative_blocks_are_found(kind: str) -> None:
    hits = 0
    for seed in SEEDS:
        blocks, y, truth = planted(seed, kind)
        hits += truth <= set(find(blocks, y).plan.blocks)
    assert hits >= 19


def test_nothing_is_gained_where_nothing_is_known() -> None:
    gains = 0
    for seed in SEEDS:
        blocks, y, _ = planted(seed, "none")
        nested = training(blocks, y).out_of_fold(
            {"pipeline": pipeline, **{r.key: r.procedure for r in rivals(["planted"], 2)}}, 5
        )
        right = {name: result.logits.argmax(axis=1) == y for name, result in nested.items()}
        gains += paired_difference(right["pipeline"], right["last_layer:planted"]).low > 0
    assert gains <= 1
