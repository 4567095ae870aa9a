"""Weights of rows reach the probe, the choice of blocks and the penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import f1_score

from layerfuse.blocks import BlockRef
from layerfuse.errors import ConfigError
from layerfuse.evaluation.nested import TrainingSample
from layerfuse.model_selection import SearchSpace
from layerfuse.probing import probe_blocks, probe_rows
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

Array = npt.NDArray[Any]
FREQUENT, RARE = BlockRef("e", 0, "mean"), BlockRef("e", 1, "mean")
SHARES = (0.6, 0.25, 0.1, 0.05)


def fitted(blocks: dict[BlockRef, Array], y: Array, class_weight: str | None, limit: int) -> Any:
    """The model of a search with a ridge head, and its plan."""
    targets = Targets.from_labels(y).weighted(class_weight)
    probed = probe_blocks(blocks, targets, n_jobs=1)
    budget = CostBudget(Budget(blocks=limit), {})
    space = SearchSpace("greedy", budget, fusion="concat", head="ridge")
    sample = TrainingSample(blocks, targets, probed, space, 1)
    plan = sample.search().plan
    return sample.fit(plan, blocks, targets), plan


@pytest.mark.parametrize("in_fold", [False, True])
def test_the_block_that_knows_the_rare_classes_is_chosen(in_fold: bool) -> None:
    random = np.random.default_rng(0)
    y = random.choice(3, 600, p=[0.48, 0.48, 0.04])
    blocks = {b: random.normal(size=(600, 20)).astype(np.float32) for b in (FREQUENT, RARE)}
    blocks[FREQUENT][:, 0] += 1.0 * (y == 1)
    blocks[RARE][:, 0] += 6.0 * (y == 2)
    targets = Targets.from_labels(y)
    best = []
    for own in (targets, targets.weighted("balanced")):
        probed = probe_blocks(blocks, own)
        if in_fold:
            rows = np.arange(0, 600, 2)
            probed = probe_rows(probed, rows, own[rows])
        best.append(probed.scores.best.block)
    assert best == [FREQUENT, RARE]
    if not in_fold:
        plans = [fitted(blocks, y, weight, 1)[1] for weight in (None, "balanced")]
        assert [plan.blocks for plan in plans] == [(FREQUENT,), (RARE,)]


def macro_f1(seed: int, noise: float, class_weight: str | None) -> float:
    """On new rows without noise; ``noise`` wrong labels of rare classes for each right one."""
    random = np.random.default_rng(seed)

    def draw(n: int) -> tuple[dict[BlockRef, Array], Array]:
        y = random.choice(4, n, p=SHARES)
        X = random.normal(size=(3, n, 60)).astype(np.float32)
        X[:, :, :4] += 0.6 * np.arange(1, 4)[:, None, None] * np.eye(4)[y]
        return {BlockRef("e", layer, "mean"): X[layer] for layer in range(3)}, y

    (blocks, y), (new, truth) = draw(400), draw(4000)
    wrong = random.choice(np.flatnonzero(y < 2), int(noise * (y >= 2).sum()), replace=False)
    y[wrong] = random.choice([2, 3], len(wrong))
    predicted = fitted(blocks, y, class_weight, 5)[0].logits(new).argmax(axis=1)
    return float(f1_score(truth, predicted, average="macro"))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_balanced_weights_do_no_harm_where_rare_labels_are_noisy(noise: float) -> None:
    gains = [macro_f1(seed, noise, "balanced") - macro_f1(seed, noise, None) for seed in range(10)]
    assert sum(gain > -0.02 for gain in gains) >= 9
    assert np.mean(gains) > 0.02


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "2", None])
def test_weights_that_cannot_be_used_are_refused(weight: object) -> None:
    with pytest.raises(ConfigError, match=r"class_weight gives 'a' the weight .* above 0"):
        Targets.from_labels(["a", "b"]).class_weights({"a": weight})  # type: ignore[dict-item]
