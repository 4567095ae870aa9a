"""Few labels: the automatic choice takes the upper layers; four rows of each class are enough for
every head and fusion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from families import VOCABULARY, TinyModels
from helpers import build
from layerfuse.blocks import LEXICAL_BLOCK, BlockRef
from layerfuse.encoders.lexical import count_words
from layerfuse.heads import HEADS
from layerfuse.model_selection import SearchResult, SearchSpace, search
from layerfuse.probing import probe_blocks
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, resolve_selection, select_blocks
from layerfuse.targets import Targets

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]

FUSIONS = ("auto", "concat", "stacking", "voting", "gated")


def few(n_classes: int, each: int = 4) -> tuple[list[str], list[int]]:
    """``each`` distinct texts of every class, which a word of its own gives away."""
    telling, filling = VOCABULARY[4 : 4 + n_classes], VOCABULARY[-37:]
    rng = np.random.default_rng(0)
    labels = [label for label in range(n_classes) for _ in range(each)]
    return [f"{' '.join(rng.choice(filling, 4))} {telling[label]}" for label in labels], labels


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize(
    ("fusion", "head"),
    [*(("auto", head) for head in HEADS), *((fusion, "auto") for fusion in FUSIONS)],
)
def test_four_rows_of_each_class(tiny: TinyModels, n_classes: int, fusion: str, head: str):
    """Three blocks, so that there is something to fuse; warnings are errors here."""
    texts, labels = few(n_classes)
    options = {"selection": "top_k", "max_blocks": 3, "fusion": fusion, "head": head}
    model = build(tiny, "bert", "llama", cv=5, store=None, **options).fit(texts, labels)
    proba = model.predict_proba(texts)
    assert len(model.plan_.blocks) == 3
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert model.score(texts, labels) > 1 / n_classes
    assert model.cv_.n == len(texts)


N_LAYERS = 12


def layers(each: int, seed: int, strength: float = 1.5) -> tuple[dict[BlockRef, Floats], Rows]:
    """Rows of two classes at the layers of two encoders, one of which knows them, the upper layers
    better than the lower ones and each with a noise of its own."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], each)
    blocks = {}
    for name, knows in (("good", strength), ("bad", 0.0)):
        for layer in range(N_LAYERS + 1):
            X = rng.normal(size=(len(y), 20))
            X[:, 0] += knows * (2 * y - 1) * layer / N_LAYERS
            blocks[BlockRef(name, layer, "mean")] = X.astype(np.float32)
    return blocks, y


def upper(blocks: dict[BlockRef, Floats], y: Rows, max_blocks: int = 5) -> SearchResult:
    targets = Targets.from_labels(y)
    space = SearchSpace("upper", CostBudget(Budget(blocks=max_blocks), {}))
    return search(probe_blocks(blocks, targets), targets, space)


def of_good(*numbers: int) -> tuple[BlockRef, ...]:
    return tuple(BlockRef("good", layer, "mean") for layer in numbers)


@pytest.mark.parametrize(
    ("n_rows", "n_classes", "method"),
    [(16, 2, "upper"), (198, 2, "upper"), (200, 2, "greedy"), (792, 8, "upper"), (800, 8, "greedy"),
     (1000, 52, "greedy")],
)  # fmt: skip
def test_the_number_of_rows_decides(n_rows: int, n_classes: int, method: str) -> None:
    targets = Targets.from_labels(np.arange(n_rows) % n_classes)
    assert resolve_selection("auto", targets) == method
    assert resolve_selection("best", targets) == "best"


@pytest.mark.parametrize("seed", range(5))
def test_the_upper_layers_of_the_encoder_that_predicts(seed: int) -> None:
    result = upper(*layers(16, seed))
    assert result.plan.blocks == of_good(12, 11, 10, 9)
    assert (result.plan.fusion, result.plan.head, result.trials) == ("concat", "logistic", ())
    assert result.selection.method == "upper"
    assert "32 labeled rows" in result.selection.reason


def test_it_is_more_accurate_than_choosing_by_few_rows() -> None:
    """On average over draws of eight rows a class, with rows that no choice saw."""
    gains = []
    for seed in range(40):
        blocks, y = layers(208, seed, strength=1.0)
        known = np.concatenate([np.arange(8), np.arange(208, 216)])
        others = np.setdiff1d(np.arange(len(y)), known)
        own = {block: X[known] for block, X in blocks.items()}
        right = []
        for selection in ("upper", "greedy"):
            chosen = select_blocks(own, y[known], selection, n_jobs=1).blocks
            X = np.concatenate([blocks[block] for block in chosen], axis=1)
            direction = X[known][y[known] == 1].mean(axis=0) - X[known][y[known] == 0].mean(axis=0)
            scores = X @ direction
            right.append(((scores > scores[known].mean()) == y)[others].mean())
        gains.append(right[0] - right[1])
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))


def test_the_last_layer_stays_alone_where_the_others_are_worse() -> None:
    blocks, y = layers(16, 0)
    for layer in (9, 10, 11):
        noise = np.random.default_rng(layer).normal(size=(len(y), 20))
        blocks[BlockRef("good", layer, "mean")] = noise.astype(np.float32)
    blocks[BlockRef("good", 12, "mean")][:, 0] += 4 * y
    assert upper(blocks, y).plan.blocks == of_good(12)


def test_limits_are_kept() -> None:
    blocks, y = layers(16, 0)
    assert upper(blocks, y, max_blocks=2).plan.blocks == of_good(12, 11)
    lower = {block: X for block, X in blocks.items() if block.layer < 8}
    assert upper(lower, y).plan.blocks == of_good(7, 6, 5, 4)


def test_words_join_where_they_help() -> None:
    blocks, y = layers(16, 0)
    telling = [f"{word} {number}" for number, word in enumerate(np.array(["no", "yes"])[y])]
    unable = {block: X for block, X in blocks.items() if block.encoder == "bad"}
    words = {LEXICAL_BLOCK: count_words(telling)}
    assert upper({**unable, **words}, y).plan.blocks[-1] == LEXICAL_BLOCK
    able = {block: X for block, X in blocks.items() if block.encoder == "good"}
    silent = {LEXICAL_BLOCK: count_words([str(number) for number in range(len(y))])}
    assert upper({**able, **silent}, y).plan.blocks == of_good(12, 11, 10, 9)


def test_a_classifier_says_why(tiny: TinyModels) -> None:
    texts, labels = few(2, 10)
    own = build(tiny, "bert", store=None, n_jobs=1).fit(texts, labels)
    reason = own.selection_.reason
    assert "20 labeled rows" in reason
    assert reason in own.verdict_.sentence
    named = build(tiny, "bert", store=None, n_jobs=1, selection="greedy").fit(texts, labels)
    assert (named.selection_.method, named.selection_.reason) == ("greedy", "")


def test_with_more_labels_the_choice_is_the_greedy_one(tiny: TinyModels) -> None:
    texts, labels = few(2, 100)
    auto, greedy = (
        build(tiny, "bert", store=None, n_jobs=1, **options).fit(texts, labels)
        for options in ({}, {"selection": "greedy"})
    )
    assert auto.selection_ == greedy.selection_
    assert auto.cv_ == greedy.cv_
    np.testing.assert_array_equal(auto.predict_proba(texts), greedy.predict_proba(texts))
