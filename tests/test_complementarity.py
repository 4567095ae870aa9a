"""Similarity and error overlap against plain formulas, and pairs against planted truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from helpers import Notes
from layerfuse import compare
from layerfuse.blocks import BlockRef
from layerfuse.complementarity import Agreement, EncoderComparison, linear_cka, measure_agreement
from layerfuse.errors import ConfigError, DataError
from layerfuse.probing import probe_blocks
from layerfuse.probing.ridge import RidgeState, decompose, leave_one_out
from layerfuse.targets import Targets

Array = npt.NDArray[Any]
Blocks = dict[BlockRef, Array]


def plain_cka(X: Array, Y: Array) -> float:
    """HSIC of the centred (n, n) Gram matrices, as the paper defines it."""
    n = len(X)
    centring = np.eye(n) - 1 / n
    K, L = centring @ X @ X.T @ centring, centring @ Y @ Y.T @ centring
    return float(np.trace(K @ L) / np.sqrt(np.trace(K @ K) * np.trace(L @ L)))


class TestLinearCKA:
    @pytest.mark.parametrize(
        ("n", "dim_x", "dim_y"), [(50, 4, 9), (12, 30, 5), (12, 5, 30), (7, 7, 7)]
    )
    def test_equals_the_formula_on_gram_matrices(self, n: int, dim_x: int, dim_y: int) -> None:
        rng = np.random.default_rng(0)
        X, Y = rng.normal(size=(n, dim_x)) + 3, rng.normal(size=(n, dim_y))
        Y[:, 0] += X[:, 0]
        assert linear_cka(X, Y) == pytest.approx(plain_cka(X, Y), rel=1e-10)
        assert linear_cka(X, Y) == pytest.approx(linear_cka(Y, X), rel=1e-12)

    @pytest.mark.parametrize(("n", "dim"), [(60, 5), (10, 20)])
    def test_rotation_scale_and_offset_change_nothing(self, n: int, dim: int) -> None:
        rng = np.random.default_rng(1)
        X = rng.normal(size=(n, dim))
        turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        assert linear_cka(X, 0.01 * X @ turn + 7) == pytest.approx(1)

    def test_a_large_offset_keeps_the_digits(self) -> None:
        rng = np.random.default_rng(2)
        X, Y = rng.normal(size=(200, 6)), rng.normal(size=(200, 4))
        Y[:, 0] += X[:, 0]
        assert linear_cka(X + 1e8, Y - 1e8) == pytest.approx(linear_cka(X, Y), rel=1e-6)

    def test_features_in_float32_are_summed_in_float64(self) -> None:
        rng = np.random.default_rng(3)
        X = (rng.normal(size=(5000, 3)) + 4000).astype(np.float32)
        Y = rng.normal(size=(5000, 3)).astype(np.float32)
        expected = linear_cka(X.astype(np.float64), Y.astype(np.float64))
        assert linear_cka(X, Y) == expected

    def test_uncorrelated_columns_have_none_in_common(self) -> None:
        X = np.array([[1.0], [1.0], [-1.0], [-1.0]])
        Y = np.array([[1.0], [-1.0], [1.0], [-1.0]])
        assert linear_cka(X, Y) == 0

    def test_constant_features_have_nothing_in_common_with_any(self) -> None:
        X = np.random.default_rng(4).normal(size=(10, 3))
        for constant in (np.full((10, 3), 0.1), np.full((10, 30), 1e8), np.empty((10, 0))):
            assert linear_cka(constant, X) == 0
            assert linear_cka(constant, constant) == 0


class TestAgreement:
    def test_a_table_by_hand(self) -> None:
        """Both right 4, only a 3, only b 1, neither 2: Q = (4*2 - 3*1) / (4*2 + 3*1)."""
        a = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
        b = np.array([1, 1, 1, 1, 0, 0, 0, 1, 0, 0], dtype=bool)
        found = measure_agreement(a, b)
        assert found == Agreement(both=4, only_a=3, only_b=1, neither=2)
        assert found.n == 10
        assert (found.accuracy_a, found.accuracy_b) == (0.7, 0.5)
        assert found.disagreement == 0.4
        assert found.double_fault == 0.2
        assert found.oracle_accuracy == 0.8
        assert found.yules_q == pytest.approx(5 / 11)

    @pytest.mark.parametrize(
        ("table", "q"),
        [
            ((5, 0, 0, 5), 1.0),
            ((0, 5, 5, 0), -1.0),
            ((1, 1, 1, 1), 0.0),
            ((5, 3, 0, 2), 1.0),  # b is never right alone
            ((10, 0, 0, 0), 0.0),  # both always right
            ((0, 0, 0, 10), 0.0),  # both always wrong
            ((6, 4, 0, 0), 0.0),  # a always right
            ((0, 0, 4, 6), 0.0),  # a always wrong
            ((0, 10, 0, 0), 0.0),
        ],
    )
    def test_yules_q_at_the_edges(self, table: tuple[int, int, int, int], q: float) -> None:
        assert Agreement(*table).yules_q == q

    def test_the_denominator_is_zero_only_for_one_that_is_always_right_or_wrong(self) -> None:
        for code in range(3**4):
            both, only_a, only_b, neither = (code // 3**place % 3 for place in range(4))
            found = Agreement(both, only_a, only_b, neither)
            if found.n and both * neither + only_a * only_b == 0:
                assert {found.accuracy_a, found.accuracy_b} & {0.0, 1.0}

    def test_what_is_not_bool_of_one_shape_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"\(2,\).*\(3,\)"):
            measure_agreement([True, False], [True, False, True])
        with pytest.raises(DataError, match="int64"):
            measure_agreement([1, 0], [1, 1])
        with pytest.raises(DataError, match="at least one row"):
            measure_agreement([], [])


def planted(seed: int, n: int = 300) -> tuple[Blocks, Array]:
    """Encoder a knows one half of the signal, b the same half again, c the other half."""
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, n))
    y = (one + other > 0).astype(np.intp)
    noise = rng.normal(size=(4, n, 5)).astype(np.float32)
    blocks = {}
    for name, signal, array in (("a", one, noise[0]), ("b", one, noise[1]), ("c", other, noise[2])):
        array[:, 0] = signal + 0.3 * rng.normal(size=n)
        blocks[BlockRef(name, 1, "mean")] = array
        blocks[BlockRef(name, 0, "mean")] = rng.normal(size=(n, 5)).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    blocks[BlockRef("b", 1, "mean")] = blocks[BlockRef("a", 1, "mean")] @ turn
    return blocks, y


def couple(comparison: EncoderComparison, *encoders: str) -> Any:
    (found,) = (p for p in comparison.pairs if {p.a.encoder, p.b.encoder} == set(encoders))
    return found


class TestCompare:
    @pytest.mark.parametrize("seed", range(5))
    def test_independent_halves_are_worth_more_than_two_copies(self, seed: int) -> None:
        blocks, y = planted(seed)
        found = compare(blocks, y)
        assert len(found.pairs) == 3
        copies = couple(found, "a", "b")
        for halves in (couple(found, "a", "c"), couple(found, "b", "c")):
            assert halves.loss_gain > copies.loss_gain + 0.1
            assert halves.loss_gain > 5 * halves.loss_gain_se
            assert halves.gain.low > 0
            assert halves.gain.difference > copies.gain.difference
            assert halves.cka < 0.3 < 0.9 < copies.cka
            assert halves.disagreement > copies.disagreement
            assert halves.yules_q < copies.yules_q
            assert halves.oracle_accuracy > copies.oracle_accuracy
        assert abs(copies.loss_gain) < 0.02
        assert found.pairs[-1] is copies
        assert found.best is found.strongest or found.strongest is found.pairs[1]

    def test_every_number_equals_a_fit_of_its_own(self) -> None:
        blocks, y = planted(0)
        pair = couple(compare(blocks, y), "a", "c")
        coordinates = probe_blocks(blocks, Targets.from_labels(y)).coordinates
        targets = Targets.from_labels(y).matrix.astype(np.float64)
        alone, other, fused = (
            leave_one_out(decompose(np.concatenate(part, axis=1).astype(np.float64)), targets)
            for part in (
                [coordinates[pair.a]],
                [coordinates[pair.b]],
                [coordinates[pair.a], coordinates[pair.b]],
            )
        )
        right = [result.predictions.argmax(axis=1) == y for result in (alone, other, fused)]
        assert pair.accuracy_a == right[0].mean()
        assert pair.accuracy_b == right[1].mean()
        assert pair.accuracy == right[2].mean()
        assert pair.loss_a == pytest.approx(alone.loss, rel=1e-4)
        assert pair.loss_b == pytest.approx(other.loss, rel=1e-4)
        assert pair.loss == pytest.approx(fused.loss, rel=1e-4)
        assert pair.loss_gain == pytest.approx(min(alone.loss, other.loss) - fused.loss, rel=1e-3)
        better = alone if alone.loss < other.loss else other
        se = (better.errors - fused.errors).std() / np.sqrt(len(y))
        assert pair.loss_gain_se == pytest.approx(se, rel=1e-3)
        most = max(right[0].mean(), right[1].mean())
        assert pair.gain.difference == pytest.approx(right[2].mean() - most)
        assert pair.gain.low <= pair.gain.difference <= pair.gain.high
        assert pair.disagreement == (right[0] != right[1]).mean()
        assert pair.double_fault == (~right[0] & ~right[1]).mean()
        assert pair.cka == pytest.approx(plain_cka(coordinates[pair.a], coordinates[pair.b]), 1e-4)

    def test_encoders_meet_at_their_best_blocks(self) -> None:
        blocks, y = planted(1)
        found = compare(blocks, y)
        assert {block.layer for pair in found.pairs for block in (pair.a, pair.b)} == {1}

    def test_blocks_are_the_best_ones_and_each_encoders_best_and_last(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.integers(2, size=60)
        blocks: Blocks = {}
        for encoder, strength in (("strong", 1.0), ("weak", 0.1)):
            for layer in range(20):
                array = rng.normal(size=(60, 3)).astype(np.float32)
                array[:, 0] += strength * (layer if layer < 19 else 0) * y
                blocks[BlockRef(encoder, layer, "mean")] = array
        found = compare(blocks, y, pairs="blocks")
        ranked = [
            score.block for score in probe_blocks(blocks, Targets.from_labels(y)).scores.ranking
        ]
        weak = [block for block in ranked if block.encoder == "weak"]
        expected = {*ranked[:12], weak[0], *(BlockRef(e, 19, "mean") for e in ("strong", "weak"))}
        assert {block for pair in found.pairs for block in (pair.a, pair.b)} == expected
        assert len(found.pairs) == len(expected) * (len(expected) - 1) // 2

    def test_named_blocks_are_all_compared_and_no_others(self) -> None:
        blocks, y = planted(2)
        found = compare(blocks, y, pairs="blocks", blocks=["a:0:mean", BlockRef("a", 1, "mean")])
        (pair,) = found.pairs
        assert {str(pair.a), str(pair.b)} == {"a:0:mean", "a:1:mean"}
        assert {str(addition.block) for addition in found.additions} == {"a:0:mean"}

    def test_best_comes_first_by_the_gain_in_loss(self) -> None:
        found = compare(*planted(3), pairs="blocks")
        values = [pair.loss_gain for pair in found.pairs]
        assert values == sorted(values, reverse=True)
        assert found.best is found.pairs[0]
        gains = [addition.loss_gain for addition in found.additions]
        assert gains == sorted(gains, reverse=True)

    def test_names_and_order_of_blocks_and_labels_change_nothing(self) -> None:
        blocks, y = planted(4)
        found = compare(blocks, y)
        assert compare(dict(reversed(blocks.items())), y) == found
        assert compare(blocks, np.array(["no", "yes"])[y]) == found

    def test_a_constant_block_is_measured_as_worthless(self) -> None:
        blocks, y = planted(5)
        dead = {BlockRef("dead", 0, "cls"): np.full((len(y), 4), 3.0, np.float32)}
        pair = couple(compare({**blocks, **dead}, y), "a", "dead")
        assert pair.cka == 0
        assert pair.loss_gain == pytest.approx(0, abs=1e-4)

    def test_repr_says_what_was_found_and_lists_no_rows(self) -> None:
        found = compare(*planted(0))
        assert repr(found).startswith("EncoderComparison(3 pairs on 300 rows; best ")
        assert f"loss gain {found.best.loss_gain:.4f} ± " in repr(found)
        assert max(len(repr(pair)) for pair in found.pairs) < 1000

    def test_progress_reaches_its_end(self) -> None:
        notes = Notes()
        compare(*planted(0), reporter=notes)
        assert sum(notes.advanced) == 6 + 3 + 5  # blocks probed, pairs, additions

    def test_unusable_settings_are_refused(self) -> None:
        blocks, y = planted(0)
        with pytest.raises(ConfigError, match=r"'block'.*encoders, blocks\. Did you mean 'blocks'"):
            compare(blocks, y, pairs="block")
        one = {block: X for block, X in blocks.items() if block.encoder == "a"}
        with pytest.raises(ConfigError, match=r"takes two, and there is only a\. .*--pairs blocks"):
            compare(one, y)
        with pytest.raises(ConfigError, match="only one block"):
            compare(blocks, y, pairs="blocks", blocks=["a:1:mean"])
        with pytest.raises(ConfigError, match="blocks names d:1:mean, which is not one of the 6"):
            compare(blocks, y, blocks=["d:1:mean"])
        with pytest.raises(ConfigError, match=r"to names a:1:max.*Did you mean 'a:1:mean'"):
            compare(blocks, y, to=["a:1:max"])
        with pytest.raises(ConfigError, match="to names no block"):
            compare(blocks, y, to=[])
        with pytest.raises(DataError, match="300 rows, but there are 299 labels"):
            compare(blocks, y[1:])


class TestAdditions:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_other_half_comes_before_the_same_again(self, seed: int) -> None:
        blocks, y = planted(seed)
        ranked = compare(blocks, y, to=["a:1:mean"]).additions
        assert str(ranked[0].block) == "c:1:mean"
        assert ranked[0].new_encoder
        assert ranked[0].loss_gain > 5 * ranked[0].loss_gain_se
        assert ranked[0].gain.low > 0
        by_name = {str(addition.block): addition for addition in ranked}
        assert set(by_name) == {str(block) for block in blocks} - {"a:1:mean"}
        assert abs(by_name["b:1:mean"].loss_gain) < 0.02
        assert not by_name["a:0:mean"].new_encoder

    def test_numbers_are_those_of_the_concatenation_at_the_pipelines_penalty(self) -> None:
        blocks, y = planted(0)
        pipeline = [BlockRef("a", 1, "mean"), BlockRef("a", 0, "mean")]
        coordinates, targets = (
            probe_blocks(blocks, Targets.from_labels(y)).coordinates,
            Targets.from_labels(y).matrix,
        )
        used = [coordinates[block] for block in pipeline]
        state = RidgeState.of(used, targets)
        np.testing.assert_allclose(
            (state.residuals() ** 2).sum(axis=1), state.errors, rtol=1e-3, atol=1e-5
        )
        before = (targets - state.residuals()).argmax(axis=1) == y
        for addition in compare(blocks, y, to=pipeline).additions:
            joined = np.concatenate([*used, coordinates[addition.block]], axis=1)
            expected = leave_one_out(
                decompose(joined.astype(np.float64)),
                targets.astype(np.float64),
                [state.penalty / len(y)],
            )
            right = expected.predictions.argmax(axis=1) == y
            assert addition.accuracy == right.mean()
            assert addition.gain.difference == pytest.approx(right.mean() - before.mean())
            assert addition.loss_gain == pytest.approx(
                state.errors.mean() - expected.loss, abs=1e-5
            )

    def test_by_default_the_best_block_is_added_to(self) -> None:
        blocks, y = planted(0)
        best = probe_blocks(blocks, Targets.from_labels(y)).scores.best.block
        found = compare(blocks, y)
        assert found.pipeline == (best,)
        assert found.additions == compare(blocks, y, to=[best]).additions

    def test_only_named_blocks_are_tried(self) -> None:
        blocks, y = planted(0)
        named = ["b:0:mean", "a:1:mean"]
        (one,) = compare(blocks, y, to="a:1:mean", blocks=named).additions
        assert str(one.block) == "b:0:mean"
        assert compare(blocks, y, to=list(blocks)).additions == ()
