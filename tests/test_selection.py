"""Selection against plain greedy search, brute-force fits and planted truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from layerfuse import select_blocks
from layerfuse.blocks import BlockRef, Selection
from layerfuse.errors import ConfigError, DataError
from layerfuse.probing import probe_blocks
from layerfuse.probing.ridge import RidgeState, decompose, leave_one_out
from layerfuse.resources import Budget, EncoderCost, pipeline_cost
from layerfuse.selection import SELECTIONS, CostBudget, choose
from layerfuse.targets import Targets

pytestmark = pytest.mark.slow

Array = npt.NDArray[Any]
Blocks = dict[BlockRef, Array]


def named(arrays: list[Array], encoder: str = "e") -> Blocks:
    return {BlockRef(encoder, layer, "mean"): array for layer, array in enumerate(arrays)}


def noise(rng: np.random.Generator, n: int, dim: int, count: int) -> list[Array]:
    return [rng.normal(size=(n, dim)).astype(np.float32) for _ in range(count)]


def layers(selection: Selection) -> list[int]:
    return [block.layer for block in selection.blocks]


def several_signals(seed: int) -> tuple[Blocks, Array]:
    """Ten blocks, four of which know something of their own about three classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=120)
    arrays = noise(rng, 120, 6, 10)
    strengths = rng.permutation([1.0, 1.4, 1.8, 2.2])
    for layer, strength in zip(rng.permutation(10)[:4], strengths, strict=True):
        arrays[layer][:, :3] += (strength * np.eye(3)[y]).astype(np.float32)
    return named(arrays), y


def loo_errors(blocks: list[Array], targets: Array, penalty: float) -> Array:
    """Squared leave-one-out errors of the concatenation in float64, by its whole hat matrix."""
    Z = np.concatenate(blocks, axis=1).astype(np.float64)
    n = len(Z)
    hat = Z @ np.linalg.solve(Z.T @ Z + penalty * np.eye(Z.shape[1]), Z.T) + 1 / n
    residuals = (targets - hat @ targets) / (1 - np.diag(hat))[:, None]
    return np.asarray((residuals**2).sum(axis=1))


def plain_greedy(blocks: Blocks, y: Array, max_blocks: int) -> list[BlockRef]:
    """Forward selection that tries every block at every step; of ties it takes the lowest layer."""
    probed = probe_blocks(blocks, Targets.from_labels(y))
    targets = Targets.from_labels(y).matrix.astype(np.float64)
    coordinates = {block: Z.astype(np.float64) for block, Z in probed.coordinates.items()}
    alone = {b: leave_one_out(decompose(Z), targets).loss for b, Z in coordinates.items()}
    chosen = [min(alone, key=lambda block: alone[block])]
    while len(chosen) < max_blocks:
        now = [coordinates[block] for block in chosen]
        penalty = leave_one_out(decompose(np.concatenate(now, axis=1)), targets).penalty
        before = loo_errors(now, targets, penalty)
        gains = {
            block: before - loo_errors([*now, Z], targets, penalty)
            for block, Z in coordinates.items()
            if block not in chosen
        }
        sure = [b for b, gain in gains.items() if gain.mean() > standard_error(gain)]
        if not sure:
            break
        most = gains[max(sure, key=lambda block: gains[block].mean())]
        ties = [b for b in sure if (most - gains[b]).mean() <= standard_error(most - gains[b])]
        highest = max(block.layer for block in chosen)
        chosen.append(min(ties, key=lambda b: (max(b.layer, highest), -gains[b].mean())))
    return chosen


def standard_error(values: Array) -> float:
    return float(values.std() / np.sqrt(len(values)))


@pytest.mark.parametrize(("n", "dim"), [(80, 10), (30, 40)])
@pytest.mark.parametrize("n_chosen", [1, 3])
def test_errors_with_another_block_equal_those_of_the_concatenation(
    n: int, dim: int, n_chosen: int
) -> None:
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % 3)
    blocks = noise(rng, n, dim, n_chosen + 1)
    blocks = [(Z - Z.mean(axis=0)) / np.float32(np.sqrt(dim)) for Z in blocks]
    blocks[0][:, 0] += y - y.mean()
    targets = Targets.from_labels(y).matrix
    state = RidgeState.of(blocks[:-1], targets)
    together = decompose(np.concatenate(blocks, axis=1).astype(np.float64))
    expected = leave_one_out(together, targets.astype(np.float64), [state.penalty / n])
    np.testing.assert_allclose(state.errors_with(blocks[-1]), expected.errors, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(loo_errors(blocks, targets, state.penalty), expected.errors)
    np.testing.assert_allclose(
        state.errors, loo_errors(blocks[:-1], targets, state.penalty), rtol=1e-3, atol=1e-4
    )


def test_known_products_of_blocks_change_nothing() -> None:
    rng = np.random.default_rng(0)
    targets = Targets.from_labels(rng.integers(3, size=60)).matrix
    *chosen, block = (Z - Z.mean(axis=0) for Z in noise(rng, 60, 7, 3))
    state = RidgeState.of(chosen, targets)
    cross = np.concatenate(chosen, axis=1).T @ block
    np.testing.assert_allclose(
        state.errors_with(block, block.T @ block, cross),
        state.errors_with(block),
        rtol=1e-4,
    )


def test_a_block_added_twice_brings_next_to_nothing() -> None:
    blocks, y = several_signals(0)
    probed, targets = probe_blocks(blocks, Targets.from_labels(y)), Targets.from_labels(y).matrix
    best = probed.coordinates[probed.scores.best.block]
    state = RidgeState.of([best], targets)
    assert abs(float((state.errors - state.errors_with(best)).mean())) < 0.01
    assert layers(select_blocks(named([best, best.copy(), best.copy()]), y)) == [0]


@pytest.mark.parametrize("seed", range(10))
def test_greedy_equals_the_plain_search(seed: int) -> None:
    blocks, y = several_signals(seed)
    for max_blocks in (2, 5):
        found = select_blocks(blocks, y, max_blocks=max_blocks)
        assert list(found.blocks) == plain_greedy(blocks, y, max_blocks)


def test_of_blocks_that_bring_the_same_the_cheapest_is_added() -> None:
    """Layers 2 and 7 of one encoder and layer 1 of another know the same of what layer 4 lacks."""
    rng = np.random.default_rng(3)
    y, n = rng.integers(4, size=600), 600
    first, second = (y % 2)[:, None], (y // 2)[:, None]

    def knows(what: Array) -> Array:
        return np.concatenate([what + 0.3 * rng.normal(size=(n, 1)), rng.normal(size=(n, 3))], 1)

    own = noise(rng, n, 4, 9)
    own[4] = knows(2.5 * first + 0.0 * second)
    own[2], own[7] = knows(2 * second), knows(2 * second)
    blocks = named([block.astype(np.float32) for block in own])
    blocks[BlockRef("f", 1, "mean")] = knows(2 * second).astype(np.float32)
    chosen = select_blocks(blocks, y, max_blocks=2).blocks
    assert chosen == (BlockRef("e", 4, "mean"), BlockRef("e", 2, "mean"))
    # Reading a little of the other encoder is cheaper where its parameters are few.
    parameters = {"e": tuple(1000 * (1 + layer) for layer in range(9)), "f": (1, 2)}
    costs = {name: EncoderCost(name, run, 4.0, 1.0, 4) for name, run in parameters.items()}
    del blocks[BlockRef("e", 2, "mean")]
    budget = CostBudget(Budget(blocks=2), costs)
    found = choose(
        probe_blocks(blocks, Targets.from_labels(y)), Targets.from_labels(y), "greedy", budget
    )
    assert set(found.blocks) == {BlockRef("e", 4, "mean"), BlockRef("f", 1, "mean")}


def test_one_informative_block_among_noise_comes_first() -> None:
    first, sizes = 0, []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = rng.integers(2, size=200)
        arrays, planted = noise(rng, 200, 8, 41), int(rng.integers(41))
        arrays[planted][:, :2] += (1.5 * np.eye(2)[y]).astype(np.float32)
        found = layers(select_blocks(named(arrays), y))
        first += found[0] == planted
        sizes.append(len(found))
    assert first >= 9
    assert sizes.count(1) >= 8


def test_two_blocks_that_are_informative_together_are_both_chosen() -> None:
    """One holds the signal under noise, the other holds only that noise."""
    both = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = rng.integers(2, size=200)
        arrays = noise(rng, 200, 8, 12)
        signal, partner = rng.permutation(12)[:2]
        hidden = 2 * rng.normal(size=200).astype(np.float32)
        arrays[signal][:, 0] = 2 * y - 1 + hidden
        arrays[partner][:, 0] = hidden
        found = select_blocks(named(arrays), y)
        both += {signal, partner} <= set(layers(found))
        assert found.gains_[1] > 0.1
    assert both >= 9


def test_noise_alone_brings_few_blocks_and_small_gains() -> None:
    sizes, gains = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = rng.integers(2, size=200)
        found = select_blocks(named(noise(rng, 200, 8, 40)), y)
        sizes.append(len(found.blocks))
        gains.append(sum(found.gains_))
    assert np.mean(sizes) < 2.5  # of at most five
    assert np.mean(gains) < 0.05  # of 0.5, the loss of the class frequencies


def test_the_best_block_of_a_second_encoder_is_a_candidate() -> None:
    """Forty-one better blocks of one encoder must not hide what only the other knows."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    shared = (2 * y - 1 + 1.5 * rng.normal(size=300)).astype(np.float32)
    strong = noise(rng, 300, 4, 41)
    for array in strong:
        array[:, 0] = shared
    weak = noise(rng, 300, 4, 3)
    weak[1][:, 0] += (2 * y - 1) * np.float32(0.5)
    found = select_blocks({**named(strong, "a"), **named(weak, "b")}, y)
    assert BlockRef("b", 1, "mean") in found.blocks


def test_last_best_and_top_k() -> None:
    blocks, y = several_signals(0)
    other = {BlockRef("f", b.layer, pooling): Z for b, Z in blocks.items() for pooling in ("cls",)}
    better = {BlockRef("f", 9, "max"): np.eye(3, dtype=np.float32)[y]}
    every = {**blocks, **other, **better}
    ranked = [score.block for score in probe_blocks(every, Targets.from_labels(y)).scores.ranking]
    last = select_blocks(every, y, "last")
    assert last.blocks == (BlockRef("e", 9, "mean"), BlockRef("f", 9, "max"))
    with pytest.raises(
        ConfigError, match=r"last layers exceed the budget \(2 blocks of at most 1\)"
    ):
        select_blocks(every, y, "last", max_blocks=1)
    assert select_blocks(every, y, "best").blocks == (BlockRef("f", 9, "max"),)
    assert list(select_blocks(every, y, "top_k", max_blocks=4).blocks) == ranked[:4]
    assert list(select_blocks(every, y, "top_k", max_blocks=99).blocks) == ranked


@pytest.mark.parametrize("method", SELECTIONS)
def test_what_a_selection_says_fits_together(method: str) -> None:
    blocks, y = several_signals(3)
    found = select_blocks(blocks, y, method, max_blocks=3)
    names = list(blocks)
    assert found.method == method
    assert len(found.support_) == len(found.ranking_) == len(blocks)
    assert {b for b, chosen in zip(names, found.support_, strict=True) if chosen} == set(
        found.blocks
    )
    ones = {b for b, place in zip(names, found.ranking_, strict=True) if place == 1}
    assert ones == set(found.blocks)
    others = sorted(place for place in found.ranking_ if place > 1)
    assert others == list(range(2, 2 + len(blocks) - len(found.blocks)))
    # The gains add up to the drop from the class frequencies to the whole selection.
    assert len(found.gains_) == len(found.blocks)
    probed, targets = probe_blocks(blocks, Targets.from_labels(y)), Targets.from_labels(y).matrix
    chosen = np.concatenate([probed.coordinates[block] for block in found.blocks], axis=1)
    n = len(y)
    alone = (((targets - targets.mean(axis=0)) * n / (n - 1)) ** 2).sum(axis=1).mean()
    end = leave_one_out(decompose(chosen), targets).loss
    assert sum(found.gains_) == pytest.approx(alone - end, rel=1e-4)
    assert found == choose(probed, Targets.from_labels(y), method, CostBudget(Budget(blocks=3), {}))


def test_the_order_of_the_blocks_changes_nothing() -> None:
    blocks, y = several_signals(4)
    backwards = dict(reversed(blocks.items()))
    assert select_blocks(blocks, y).blocks == select_blocks(backwards, y).blocks


def test_other_rows_labels_or_names_of_labels_change_nothing() -> None:
    blocks, y = several_signals(5)
    found = select_blocks(blocks, y)
    assert select_blocks(blocks, np.array(["x", "y", "z"])[y]) == found
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = select_blocks({block: X[order] for block, X in blocks.items()}, y[order])
    assert shuffled.blocks == found.blocks


def test_a_constant_block_is_never_added() -> None:
    blocks, y = several_signals(6)
    dead = {BlockRef("dead", layer, "mean"): np.full((120, 4), 3.0, np.float32) for layer in (0, 1)}
    found = select_blocks({**dead, **blocks}, y)
    assert found.blocks == select_blocks(blocks, y).blocks
    assert len(select_blocks(dead, y).blocks) == 1


def test_unusable_settings_are_refused() -> None:
    blocks, y = several_signals(0)
    with pytest.raises(
        ConfigError, match=r"'greedi'.*last, best, top_k, greedy, upper\. Did you mean 'greedy'"
    ):
        select_blocks(blocks, y, "greedi")
    with pytest.raises(ConfigError, match="max_blocks=0 chooses nothing; give at least 1"):
        select_blocks(blocks, y, max_blocks=0)
    with pytest.raises(DataError, match="120 rows, but there are 119 labels"):
        select_blocks(blocks, y[1:])


COSTS = {
    "a": EncoderCost("a", (10, 25, 45, 60, 80), 1e6, ms_per_text=8.0, dims=6),
    "b": EncoderCost(
        "b", (40, 90, 95, 130, 170), 1e6, ms_per_text=20.0, dims=9, tokenize_ms_per_text=2.0
    ),
    "c": EncoderCost("c", (5, 6, 7, 8, 9), 1e6, ms_per_text=3.0, dims=3, stops_early=False),
}


def three_encoders(seed: int) -> tuple[Blocks, Array]:
    """Five layers of each of `COSTS`; all know something of their own, dear ones more."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=150)
    embeddings = {}
    for encoder, cost in COSTS.items():
        for layer in range(5):
            X = rng.normal(size=(150, cost.dims))
            X[:, 0] += (0.1 + 0.1 * layer + cost.dims / 20) * (2 * y - 1)
            embeddings[BlockRef(encoder, layer, "mean")] = X.astype(np.float32)
    return embeddings, y


class TestBudgets:
    @pytest.mark.parametrize("method", ["greedy", "top_k", "best"])
    def test_no_limit_is_ever_exceeded(self, method: str) -> None:
        rng = np.random.default_rng(0)
        bound = 0
        for seed in range(3):
            embeddings, y = three_encoders(seed)
            probed = probe_blocks(embeddings, Targets.from_labels(y))
            free = choose(probed, Targets.from_labels(y), method, CostBudget(Budget(), COSTS))
            for _ in range(25):
                limits = {
                    "blocks": int(rng.integers(1, 7)),
                    "dims": int(rng.integers(3, 40)),
                    "ms_per_text": float(rng.uniform(3, 30)),
                    "parameters": int(rng.integers(9, 260)),
                    "memory_mb": float(rng.uniform(9, 260)),
                }
                kept = rng.permutation(list(limits))[: rng.integers(1, 6)]
                budget = Budget(**{name: limits[name] for name in kept})
                found = choose(probed, Targets.from_labels(y), method, CostBudget(budget, COSTS))
                assert len(found.blocks) >= 1
                assert not budget.exceeded(pipeline_cost(found.blocks, COSTS))
                bound += bool(budget.exceeded(pipeline_cost(free.blocks, COSTS)))
        assert bound > 20  # otherwise nothing was tested

    def test_top_k_fills_what_the_budget_leaves(self) -> None:
        """No block that was left out would still have fitted."""
        embeddings, y = three_encoders(0)
        probed = probe_blocks(embeddings, Targets.from_labels(y))
        for dims in (3, 8, 14, 27):
            budget = CostBudget(Budget(dims=dims), COSTS)
            found = choose(probed, Targets.from_labels(y), "top_k", budget)
            for block in set(embeddings) - set(found.blocks):
                assert not budget.allows([*found.blocks, block])

    @pytest.mark.parametrize("method", ["greedy", "top_k", "best"])
    def test_the_best_that_can_be_paid_for_comes_first(self, method: str) -> None:
        embeddings, y = three_encoders(1)
        probed = probe_blocks(embeddings, Targets.from_labels(y))
        budget = CostBudget(Budget(ms_per_text=7.9), COSTS)
        assert not budget.allows([probed.scores.best.block])
        paid = [s.block for s in probed.scores.ranking if budget.allows([s.block])]
        assert {block.encoder for block in paid} == {"a", "b", "c"}
        assert choose(probed, Targets.from_labels(y), method, budget).blocks[0] == paid[0]

    def test_a_budget_that_binds_nothing_changes_nothing(self) -> None:
        embeddings, y = three_encoders(2)
        probed = probe_blocks(embeddings, Targets.from_labels(y))
        wide = Budget(blocks=5, dims=10**6, ms_per_text=1e6, parameters=10**9, memory_mb=1e9)
        for method in SELECTIONS:
            expected = choose(
                probed, Targets.from_labels(y), method, CostBudget(Budget(blocks=5), {})
            )
            assert (
                choose(probed, Targets.from_labels(y), method, CostBudget(wide, COSTS)) == expected
            )

    @pytest.mark.parametrize(
        ("limits", "says"),
        [
            ({"dims": 2}, "alone takes 6 dimensions of at most 2"),
            ({"ms_per_text": 0.0001}, "ms per text of at most 0.0001"),
            ({"parameters": 4}, "alone takes 10 parameters of at most 4"),
            ({"memory_mb": 4.5}, "alone takes 10 MB of weights of at most 4.5"),
            (
                {"dims": 2, "parameters": 4},
                "6 dimensions of at most 2 (--max-dims), 10 parameters of at most 4",
            ),
        ],
    )
    @pytest.mark.parametrize("method", SELECTIONS)
    def test_an_impossible_budget_is_named(
        self, method: str, limits: dict[str, float], says: str
    ) -> None:
        embeddings, y = three_encoders(0)
        costs = {**COSTS, "a": EncoderCost("a", (10, 25, 45, 60, 80), 1e6, 8.0, 6, 1.0)}
        only = {block: X for block, X in embeddings.items() if block.encoder == "a"}
        budget = CostBudget(Budget(**limits), costs)
        with pytest.raises(ConfigError, match="budget leaves no block: a:0:mean alone") as caught:
            choose(
                probe_blocks(only, Targets.from_labels(y)), Targets.from_labels(y), method, budget
            )
        assert says in str(caught.value)
        assert "Give a larger budget or smaller encoders" in str(caught.value)

    def test_last_layers_over_the_budget_are_refused(self) -> None:
        embeddings, y = three_encoders(0)
        probed = probe_blocks(embeddings, Targets.from_labels(y))
        for limits, says in (
            ({"ms_per_text": 30.0}, r"31 ms per text of at most 30"),
            ({"blocks": 2}, r"3 blocks of at most 2"),
            ({"dims": 17}, r"18 dimensions of at most 17"),
        ):
            with pytest.raises(ConfigError, match=rf"last layers exceed the budget \({says}"):
                choose(probed, Targets.from_labels(y), "last", CostBudget(Budget(**limits), COSTS))
        enough = CostBudget(Budget(blocks=3, dims=18, ms_per_text=31), COSTS)
        assert [
            block.layer for block in choose(probed, Targets.from_labels(y), "last", enough).blocks
        ] == [4, 4, 4]
