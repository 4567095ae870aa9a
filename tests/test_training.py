"""Nested resampling against brute-force loops, and labels that must not be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.evaluation.nested import OutOfFold, Training, pipeline
from layerfuse.model_selection import Found, Recipe
from layerfuse.pipeline import Plan, Task
from layerfuse.probing import decompose, leave_one_out, one_hot, probe_blocks, probe_rows
from layerfuse.resources import Budget
from layerfuse.selection import Allowance
from layerfuse.targets import stratified_folds

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


def train_on(
    embeddings: Embeddings, y: Array, rows: Array | None = None, **options: Any
) -> Training:
    rows = np.arange(len(y)) if rows is None else rows
    settings = {"selection": "greedy", "fusion": "concat", "head": "ridge", **options}
    recipe = Recipe(
        allowance=Allowance(Budget(blocks=3), {}), task=Task(int(y.max()) + 1), **settings
    )
    measured = {block: X[rows] for block, X in embeddings.items()}
    return Training(embeddings, y, rows, probe_blocks(measured, y[rows]), recipe)


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


class TestOutOfFold:
    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_a_fixed_plan_equals_a_loop_over_folds(self, n_classes: int) -> None:
        embeddings, y = problem(90, n_classes)
        chosen = list(embeddings)[:2]
        training = train_on(embeddings, y)
        plan = Plan(tuple(chosen))
        (found,) = training.out_of_fold({"fixed": lambda *_: plan}, 4).values()
        Z = np.concatenate([coordinates(embeddings[block]) for block in chosen], axis=1)
        targets = one_hot(y, n_classes).astype(np.float64)
        folds = stratified_folds(y, 4, seed=0)
        for rows, held in folds:
            mean = Z[rows].mean(axis=0)
            penalty = leave_one_out(decompose(Z[rows] - mean), targets[rows]).penalty
            model = Ridge(alpha=penalty).fit(Z[rows] - mean, targets[rows])
            np.testing.assert_allclose(found.logits[held], model.predict(Z[held] - mean), atol=1e-4)
        assert found.plans == [plan] * 4
        for number, (_, held) in enumerate(folds):
            assert (found.plan_of[held] == number).all()

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
        folds = stratified_folds(y, n_folds, seed=0)
        changed, number = swapped(y, folds)
        again = stratified_folds(changed, n_folds, seed=0)
        for (_, one), (_, other) in zip(folds, again, strict=True):
            np.testing.assert_array_equal(one, other)
        before, after = (
            train_on(embeddings, labels, **options).out_of_fold({"it": pipeline}, n_folds)["it"]
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
        training = train_on(embeddings, y)
        rows, held = stratified_folds(y, 3, seed=0)[0]
        plan = Plan(tuple(embeddings), "sum+residual")
        whole = training._predict(plan, rows, held)
        alone = np.concatenate([training._predict(plan, rows, held[i : i + 1]) for i in range(5)])
        np.testing.assert_allclose(alone, whole[:5], atol=1e-5)

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
            training = train_on(embeddings, y)
            found = training.out_of_fold({"it": pipeline}, 5)["it"]
            shares.append((found.logits.argmax(axis=1) == y).mean())
            winners.append(training.probed.scores.best.accuracy)
        assert np.mean(shares) < 0.54
        assert np.mean(winners) > 0.57  # what the best of thirty says of itself

    def test_every_procedure_is_told_what_its_fold_says(self) -> None:
        embeddings, y = problem(120)
        training = train_on(embeddings, y)
        seen: dict[float, tuple[Found, BlockScores]] = {}

        def best(found: Found, scores: BlockScores) -> Plan:
            seen[scores.best.loss] = found, scores
            return Plan((scores.best.block,))

        names = {"pipeline": pipeline, "best": best, "again": best}
        results = training.out_of_fold(names, 4)
        folds = stratified_folds(y, 4, seed=0)
        assert len(seen) == 4
        for number, (rows, _) in enumerate(folds):
            expected = probe_rows(training.probed, rows, y[rows]).scores
            found, scores = seen[expected.best.loss]
            assert [score.loss for score in scores] == [score.loss for score in expected]
            assert results["pipeline"].plans[number] == found.plan
            assert results["best"].plans[number] == Plan((expected.best.block,))
        np.testing.assert_array_equal(results["again"].logits, results["best"].logits)

    def test_only_measured_rows_are_predicted(self) -> None:
        embeddings, y = problem(120)
        rows = np.arange(0, 120, 3)
        changed = 1 - y
        changed[rows] = y[rows]
        one, other = (
            train_on(embeddings, labels, rows).out_of_fold({"it": pipeline}, 3)["it"]
            for labels in (y, changed)
        )
        assert one.logits.shape == (40, 2)
        np.testing.assert_array_equal(one.logits, other.logits)
        assert one.plans == other.plans


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
        proba = found.calibrated("temperature", y)
        ridge = np.concatenate([parts[0], parts[2]])  # blocks differ, the kind is the same
        temperatures = []
        for rows in (ridge, parts[1]):
            calibrator = TemperatureCalibrator.fit(found.logits[rows], y[rows])
            temperatures.append(calibrator.temperature)
            expected = calibrator.predict_proba(found.logits[rows])
            np.testing.assert_allclose(proba[rows], expected, rtol=1e-6)
        assert temperatures[1] > 20 * temperatures[0]
        np.testing.assert_allclose(proba.sum(axis=1), 1)
        np.testing.assert_array_equal(proba.argmax(axis=1), found.logits.argmax(axis=1))

    def test_none_leaves_the_logits_as_they_are(self) -> None:
        found = OutOfFold.empty(4, 2)
        logits = np.array([[0, 1], [2, 0], [0, 0], [5, 1]], np.float32)
        found.add(np.arange(4), Plan((BlockRef("e", 0, "mean"),)), logits)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        proba = found.calibrated("none", np.array([0, 1, 0, 1]))
        np.testing.assert_allclose(proba, expected, rtol=1e-6)


class TestFit:
    def test_the_head_has_all_rows_and_its_penalty_the_measured_ones(self) -> None:
        embeddings, y = problem(150)
        rows = np.sort(np.random.default_rng(0).permutation(150)[:60])
        training = train_on(embeddings, y, rows)
        plan = Plan(tuple(embeddings)[:2])
        fitted = training.fit(plan)
        axes = {block: training.probed.axes[block] for block in plan.blocks}
        turned = [own.transform(embeddings[block]) for block, own in axes.items()]
        Z = np.concatenate(turned, axis=1)
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

    def test_labels_that_are_not_measured_do_not_choose(self) -> None:
        embeddings, y = problem(150)
        rows = np.arange(0, 150, 2)
        changed = 1 - y
        changed[rows] = y[rows]
        one, other = (train_on(embeddings, labels, rows) for labels in (y, changed))
        assert one.search() == other.search()
        plan = one.search().plan
        assert one.fit(plan).model.head.penalty == other.fit(plan).model.head.penalty
        before, after = (training.fit(plan).logits(embeddings) for training in (one, other))
        assert np.abs(before - after).max() > 0.05

    def test_new_texts_do_not_depend_on_each_other(self) -> None:
        embeddings, y = problem(90, 3)
        training = train_on(embeddings, y, fusion="hadamard+residual", head="kernel")
        model = training.fit(training.search().plan)
        others, _ = problem(7, 3, seed=1)
        whole = model.predict_proba(others)
        alone = [
            model.predict_proba({block: X[i : i + 1] for block, X in others.items()})
            for i in range(7)
        ]
        np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
