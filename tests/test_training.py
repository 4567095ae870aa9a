"""Nested resampling against brute-force loops, and labels that must not be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.evaluation.nested import OutOfFold, PlanStrategy, TrainingSample, nested_plan
from layerfuse.model_selection import Folds, SearchResult, SearchSpace
from layerfuse.pipeline import Plan, predict_held
from layerfuse.probing import probe_blocks, probe_rows
from layerfuse.probing.ridge import decompose, leave_one_out
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

Array = npt.NDArray[Any]
Embeddings = dict[BlockRef, Array]


def problem(n: int, n_classes: int = 2, *, seed: int = 0) -> tuple[Embeddings, Array]:
    """Four blocks of two encoders, each with something of its own to say about the label."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    embeddings = {}
    for index, strength in enumerate((0.6, 1.0, 0.8, 0.4)):
        X = rng.normal(size=(n, 8 + index))
        X[:, :n_classes] += strength * np.eye(n_classes)[y]
        embeddings[BlockRef("ab"[index // 2], index % 2, "mean")] = X.astype(np.float32)
    return embeddings, y


def sample_of(
    embeddings: Embeddings, y: Array, weights: Array | None = None, **options: Any
) -> TrainingSample:
    settings = {"selection": "greedy", "fusion": "concat", "head": "ridge", **options}
    space = SearchSpace(budget=CostBudget(Budget(blocks=3), {}), **settings)
    targets = Targets.from_labels(y)
    probed = probe_blocks(embeddings, targets)
    return TrainingSample(embeddings, replace(targets, weights=weights), probed, space)


def folds_of(y: Array, n_folds: int) -> list[tuple[Array, Array]]:
    return Targets.from_labels(y).folds(n_folds, seed=0)


def one_hot(y: Array, n_classes: int) -> Array:
    return np.eye(n_classes, dtype=np.float32)[y]


def swapped(y: Array, folds: Sequence[tuple[Array, Array]]) -> tuple[Array, int]:
    """Labels of two neighbours of one fold swapped, which leaves all folds as they are."""
    fold_of = np.empty(len(y), dtype=int)
    for number, (_, held) in enumerate(folds):
        fold_of[held] = number
    for row in range(len(y) // 2, len(y) - 1):
        if y[row] != y[row + 1] and fold_of[row] == fold_of[row + 1]:
            changed = y.copy()
            changed[row], changed[row + 1] = y[row + 1], y[row]
            return changed, int(fold_of[row])
    raise AssertionError("no such neighbours")


def coordinates(X: Array) -> Array:
    """Principal coordinates in float64, by a singular value decomposition."""
    Z = (X - X.mean(axis=0)) / X.std(axis=0) / np.sqrt(X.shape[1])
    left, values, _ = np.linalg.svd(Z.astype(np.float64), full_matrices=False)
    return np.asarray(left * values)


def resample(training: TrainingSample, folds: Folds, *strategies: PlanStrategy) -> list[OutOfFold]:
    """Out-of-fold predictions by each strategy."""
    return training.out_of_fold(strategies, training.search_nested(folds))


class TestOutOfFold:
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_a_fixed_plan_equals_a_loop_over_folds(self, n_classes: int) -> None:
        embeddings, y = problem(90, n_classes)
        chosen = list(embeddings)[:2]
        training = sample_of(embeddings, y)
        plan = Plan(tuple(chosen))
        (found,) = resample(training, folds_of(y, 4), lambda *_: plan)
        Z = np.concatenate([coordinates(embeddings[block]) for block in chosen], axis=1)
        targets = one_hot(y, n_classes).astype(np.float64)
        folds = folds_of(y, 4)
        for rows, held in folds:
            mean = Z[rows].mean(axis=0)
            penalty = leave_one_out(decompose(Z[rows] - mean), targets[rows]).penalty
            model = Ridge(alpha=penalty).fit(Z[rows] - mean, targets[rows])
            np.testing.assert_allclose(found.logits[held], model.predict(Z[held] - mean), atol=1e-4)
        assert found.plans == [plan] * 4
        for number, (_, held) in enumerate(folds):
            assert (found.plan_of[held] == number).all()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("n", "n_folds", "options"),
        [
            (120, 4, {}),
            (120, 3, {"fusion": "stacking", "head": "logistic"}),
            (120, 3, {"fusion": "gated"}),
            (640, 2, {"fusion": "auto", "head": "auto", "selection": "top_k"}),
        ],
        ids=["greedy", "stacking", "gated", "auto"],
    )
    def test_labels_of_held_rows_are_never_seen(
        self, n: int, n_folds: int, options: dict[str, str]
    ) -> None:
        embeddings, y = problem(n)
        folds = folds_of(y, n_folds)
        changed, number = swapped(y, folds)
        again = folds_of(changed, n_folds)
        for (_, one), (_, other) in zip(folds, again, strict=True):
            np.testing.assert_array_equal(one, other)
        before, after = (
            resample(sample_of(embeddings, labels, **options), folds, nested_plan)[0]
            for labels in (y, changed)
        )
        held = folds[number][1]
        assert after.plans[number] == before.plans[number]
        np.testing.assert_array_equal(after.logits[held], before.logits[held])
        # In the other folds these two rows are for training.
        others = np.setdiff1d(np.arange(n), held)
        assert np.abs(after.logits[others] - before.logits[others]).max() > 1e-4

    def test_features_of_held_rows_only_turn_the_axes(self) -> None:
        """The axes come from all measured rows; the model on them from the others alone."""
        embeddings, y = problem(120)
        training = sample_of(embeddings, y)
        rows, held = folds_of(y, 3)[0]
        plan = Plan(tuple(embeddings), "sum+residual")
        Z = training.coordinates(plan.blocks)
        whole = predict_held(plan, Z, training.targets[rows], rows, held)
        alone = np.concatenate(
            [predict_held(plan, Z, training.targets[rows], rows, held[i : i + 1]) for i in range(5)]
        )
        np.testing.assert_allclose(alone, whole[:5], atol=1e-5)

    @pytest.mark.slow
    def test_senseless_labels_are_predicted_by_chance(self) -> None:
        """All choosing is inside the folds; a choice that had seen the rows would score above."""
        shares, winners = [], []
        for seed in range(4):
            rng = np.random.default_rng(seed)
            y = rng.permutation(np.arange(150) % 2)
            embeddings = {
                BlockRef("e", layer, "mean"): rng.normal(size=(150, 6)).astype(np.float32)
                for layer in range(30)
            }
            training = sample_of(embeddings, y)
            (found,) = resample(training, folds_of(y, 5), nested_plan)
            shares.append((found.logits.argmax(axis=1) == y).mean())
            winners.append(training.probed.scores.best.accuracy)
        assert np.mean(shares) < 0.54
        assert np.mean(winners) > 0.57  # what the best of thirty says of itself

    def test_every_procedure_is_told_what_its_fold_says(self) -> None:
        embeddings, y = problem(120)
        training = sample_of(embeddings, y)
        seen: dict[float, tuple[SearchResult, BlockScores]] = {}

        def best(found: SearchResult, scores: BlockScores) -> Plan:
            seen[scores.best.loss] = found, scores
            return Plan((scores.best.block,))

        nested, once, again = resample(training, folds_of(y, 4), nested_plan, best, best)
        folds = folds_of(y, 4)
        assert len(seen) == 4
        for number, (rows, _) in enumerate(folds):
            expected = probe_rows(training.probed, rows, training.targets[rows]).scores
            found, scores = seen[expected.best.loss]
            assert [score.loss for score in scores] == [score.loss for score in expected]
            assert nested.plans[number] == found.plan
            assert once.plans[number] == Plan((expected.best.block,))
        np.testing.assert_array_equal(again.logits, once.logits)

    @pytest.mark.slow
    @pytest.mark.parametrize("head", ["ridge", "balanced_ridge"])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("kind", ["partition", "half", "growing"])
    def test_ridge_heads_equal_those_that_are_trained_in_each_fold(
        self, kind: str, weighted: bool, head: str
    ) -> None:
        """Whatever a splitter leaves out, and for blocks in any order."""
        n = 150
        embeddings, y = problem(n, 3)
        rng = np.random.default_rng(1)
        if head == "balanced_ridge":  # a class is rare
            y[rng.random(n) < 0.5] = 0
        weights = rng.uniform(0.2, 3, n).astype(np.float32) if weighted else None
        training = sample_of(embeddings, y, weights)
        folds = folds_of(y, 4)
        if kind == "half":
            folds = [tuple(np.split(rng.permutation(n), 2)) for _ in range(3)]
        elif kind == "growing":  # in time: later rows are neither trained on nor predicted
            folds = [(np.arange(end), np.arange(end, end + 30)) for end in (60, 90, 120)]
        blocks = tuple(embeddings)
        plans = [Plan(own, head=head) for own in (blocks[:1], (blocks[3], blocks[0], blocks[2]))]
        for plan in plans:
            training._coordinates.clear()
            (found,) = resample(training, folds, lambda *_, plan=plan: plan)
            Z = training.coordinates(plan.blocks)
            for rows, held in folds:
                if kind == "half":  # a row is held out more than once: the last fold stays
                    (rows, held) = folds[-1]
                expected = predict_held(plan, Z, training.targets[rows], rows, held)
                np.testing.assert_allclose(found.logits[held], expected, atol=1e-5)

    def test_analyzing_is_searching_and_resampling_with_any_number_of_threads(self) -> None:
        embeddings, y = problem(120)
        folds = folds_of(y, 3)
        sample = sample_of(embeddings, y)
        search = sample.search_nested(folds)
        assert search.result == sample.search()
        strategies = (nested_plan, lambda *_: search.result.plan)
        one = sample_of(embeddings, y)
        one.n_jobs = 1
        together = sample.out_of_fold(strategies, search)
        apart = [own for choose in strategies for own in resample(one, folds, choose)]
        for found, own in zip(together, apart, strict=True):
            assert found.plans == own.plans
            np.testing.assert_array_equal(found.logits, own.logits)

    def test_weights_of_rows_change_the_heads(self) -> None:
        embeddings, y = problem(120)
        weights = np.where(y == 0, 5.0, 1.0).astype(np.float32)
        plain, weighted = (
            resample(sample_of(embeddings, y, own), folds_of(y, 3), nested_plan)[0]
            for own in (None, weights)
        )
        more = (weighted.logits.argmax(axis=1) == 0).sum() - (
            plain.logits.argmax(axis=1) == 0
        ).sum()
        assert more > 5


class TestCalibrated:
    def test_one_temperature_for_each_kind_of_model(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.integers(2, size=120)
        logits = (rng.normal(size=(120, 2)) + np.eye(2)[y]).astype(np.float32)
        block, other = BlockRef("e", 0, "mean"), BlockRef("e", 1, "mean")
        plans = [Plan((block,)), Plan((block,), head="logistic"), Plan((other,))]
        found = OutOfFold.empty(120, 2)
        parts = np.split(rng.permutation(120), 3)
        for plan, rows, size in zip(plans, parts, (0.1, 8.0, 0.1), strict=True):
            found.add(rows, plan, size * logits[rows])
        proba = found.calibrated("temperature", Targets.from_labels(y))
        ridge = np.concatenate([parts[0], parts[2]])  # blocks differ, the kind is the same
        temperatures = []
        targets = Targets.from_labels(y)
        for rows in (ridge, parts[1]):
            calibrator = TemperatureCalibrator.fit(found.logits[rows], targets[rows])
            temperatures.append(calibrator.temperature)
            expected = calibrator.predict_proba(found.logits[rows], targets.space)
            np.testing.assert_allclose(proba[rows], expected, rtol=1e-6)
        assert temperatures[1] > 20 * temperatures[0]
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        np.testing.assert_array_equal(proba.argmax(axis=1), found.logits.argmax(axis=1))

    def test_none_leaves_the_logits_as_they_are(self) -> None:
        found = OutOfFold.empty(4, 2)
        logits = np.array([[0, 1], [2, 0], [0, 0], [5, 1]], np.float32)
        found.add(np.arange(4), Plan((BlockRef("e", 0, "mean"),)), logits)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        proba = found.calibrated(None, Targets.from_labels([0, 1, 0, 1]))
        np.testing.assert_allclose(proba, expected, rtol=1e-6)


class TestFit:
    def test_the_head_has_all_rows_and_its_penalty_the_sample(self) -> None:
        embeddings, y = problem(150)
        rows = np.sort(np.random.default_rng(0).permutation(150)[:60])
        sample = sample_of({block: X[rows] for block, X in embeddings.items()}, y[rows])
        plan = Plan(tuple(embeddings)[:2])
        chosen = {block: embeddings[block] for block in plan.blocks}  # no other is read
        fitted = sample.fit(plan, chosen, Targets.from_labels(y))
        axes = {block: sample.probed.axes[block] for block in plan.blocks}
        Z = np.concatenate([own.transform(embeddings[b]) for b, own in axes.items()], axis=1)
        targets = one_hot(y, 2)
        some = Z[rows] - Z[rows].mean(axis=0)
        penalty = leave_one_out(decompose(some), targets[rows]).penalty
        assert fitted.model.head.penalty == pytest.approx(penalty)
        expected = Ridge(alpha=penalty).fit(Z, targets).predict(Z)
        np.testing.assert_allclose(fitted.logits(embeddings), expected, atol=1e-4)
        assert fitted.blocks == plan.blocks
        assert fitted.axes == tuple(axes.values())
        only = Ridge(alpha=penalty).fit(Z[rows], targets[rows]).predict(Z)
        assert np.abs(fitted.logits(embeddings) - only).max() > 0.01
        without = sample.fit(plan, sample.blocks, sample.targets)
        np.testing.assert_allclose(without.logits(embeddings), only, atol=1e-4)

    def test_new_texts_do_not_depend_on_each_other(self) -> None:
        embeddings, y = problem(90, 3)
        sample = sample_of(embeddings, y, fusion="hadamard+residual", head="kernel")
        model = sample.fit(sample.search().plan, embeddings, sample.targets)
        others, _ = problem(7, 3, seed=1)
        whole = model.predict_proba(others)
        alone = [
            model.predict_proba({block: X[i : i + 1] for block, X in others.items()})
            for i in range(7)
        ]
        np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
        np.testing.assert_allclose(whole.sum(axis=1), 1)
