"""Probes against brute force: a refit for every row that is left out, and planted truths."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge

from layerfuse import score_blocks
from layerfuse.blocks import BlockRef
from layerfuse.errors import ConfigError, DataError
from layerfuse.probing import probe_blocks, probe_rows
from layerfuse.probing.probe import N_SEARCHED
from layerfuse.probing.ridge import (
    _CHUNK,
    PENALTIES,
    decompose,
    leave_one_out,
    spectrum,
    standardization,
)
from layerfuse.targets import Targets

Array = npt.NDArray[Any]


def problem(n: int, dim: int, n_classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Features (n, dim) float64 that say something about labels (n,), each class in it twice."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    X = rng.normal(size=(n, dim)) * rng.uniform(0.1, 5, size=dim) + rng.normal(size=dim)
    X[:, : min(dim, n_classes)] += 2 * np.eye(n_classes)[y][:, : min(dim, n_classes)]
    return X, y


def one_hot(y: Array, n_classes: int) -> Array:
    return np.eye(n_classes, dtype=np.float32)[y]


def standardised(X: Array) -> Array:
    """Columns of mean 0 and variance 1/dim, constant ones 0."""
    deviation = X.std(axis=0)
    Z = (X - X.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return Z / np.sqrt(X.shape[1])


def refits(Z: Array, targets: Array, alpha: float) -> Array:
    """Predictions (n, n_classes) for each row by a ridge regression on all the others."""
    rows = np.arange(len(Z))
    found = [
        Ridge(alpha=alpha).fit(Z[rows != row], targets[rows != row]).predict(Z[row : row + 1])[0]
        for row in rows
    ]
    return np.stack(found)


def named(arrays: list[Array], encoder: str = "e") -> dict[BlockRef, Array]:
    return {BlockRef(encoder, layer, "mean"): array for layer, array in enumerate(arrays)}


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("n", "dim"), [(40, 7), (24, 60), (20, 20)])
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 0.3])
def test_leave_one_out_equals_refits(n: int, dim: int, n_classes: int, penalty: float) -> None:
    X, y = problem(n, dim, n_classes)
    targets = one_hot(y, n_classes).astype(np.float64)
    got = leave_one_out(spectrum(X), targets, [penalty])
    assert got.penalty == pytest.approx(penalty * n)
    expected = refits(standardised(X), targets, penalty * n)
    np.testing.assert_allclose(got.predictions, expected, atol=1e-8)
    np.testing.assert_allclose(got.errors, ((targets - expected) ** 2).sum(axis=1), atol=1e-8)
    assert got.loss == pytest.approx(got.errors.mean())


def test_float32_features_give_the_same_as_refits_in_float64() -> None:
    X, y = problem(60, 20, 3)
    got = leave_one_out(spectrum(X.astype(np.float32)), one_hot(y, 3), [1e-2])
    expected = refits(standardised(X), one_hot(y, 3).astype(np.float64), 0.6)
    np.testing.assert_allclose(got.predictions, expected, atol=1e-4)


@pytest.mark.parametrize(("n", "dim"), [(40, 7), (24, 60)])
def test_the_penalty_has_the_least_loss_of_all(n: int, dim: int) -> None:
    X, y = problem(n, dim, 3, seed=1)
    space, targets = spectrum(X), one_hot(y, 3).astype(np.float64)
    losses = [leave_one_out(space, targets, [penalty]).loss for penalty in PENALTIES]
    best = leave_one_out(space, targets)
    assert best.loss == pytest.approx(min(losses))
    assert best.penalty == pytest.approx(n * PENALTIES[int(np.argmin(losses))])


def test_many_classes_are_searched_in_parts_and_nothing_changes() -> None:
    """More than 512 classes leave one penalty to a product; few leave all of them."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 6)), np.arange(80) % 40
    space, targets = spectrum(X), one_hot(y, 40).astype(np.float64)
    padded = np.concatenate([targets, np.zeros((80, 520))], axis=1)  # classes without a row
    few, many = leave_one_out(space, targets), leave_one_out(space, padded)
    assert few.penalty == many.penalty
    np.testing.assert_allclose(many.predictions[:, :40], few.predictions, atol=1e-12)
    np.testing.assert_allclose(many.predictions[:, 40:], 0, atol=1e-12)


def test_predictions_of_leave_one_out_never_saw_the_row() -> None:
    """Another label for one row leaves this row's own prediction as it was."""
    X, y = problem(30, 8, 3)
    changed = y.copy()
    changed[4] = (y[4] + 1) % 3
    before, after = (
        leave_one_out(spectrum(X), one_hot(labels, 3).astype(np.float64), [0.01])
        for labels in (y, changed)
    )
    np.testing.assert_allclose(after.predictions[4], before.predictions[4], atol=1e-10)
    assert np.abs(after.predictions[5] - before.predictions[5]).max() > 1e-4


def test_standardised_columns_share_a_variance_of_one() -> None:
    X, _ = problem(50, 9, 2)
    X[:, 3] = 7.0
    mean, scale = standardization(X)
    np.testing.assert_allclose((X - mean) * scale, standardised(X), atol=1e-12)
    assert scale[3] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, -4300.1, 1e-20])
def test_constant_columns_change_nothing(dtype: type, value: float) -> None:
    X, y = problem(40, 6, 2)
    with_constant = np.concatenate([X, np.full((40, 6), value)], axis=1).astype(dtype)
    targets = one_hot(y, 2).astype(dtype)
    # Half of the columns are constant, so the same penalty is half as strong per column.
    got = leave_one_out(spectrum(with_constant), targets, [0.01])
    expected = leave_one_out(spectrum(X.astype(dtype)), targets, [0.02])
    np.testing.assert_allclose(got.predictions, expected.predictions, atol=1e-4)


def test_a_block_of_constants_scores_as_class_frequencies() -> None:
    y = np.array([0, 0, 0, 1, 1, 0, 0, 0])
    score = score_blocks(named([np.full((8, 3), 2.5, np.float32)]), y).best
    left_out = np.array([[(6 - 1) / 7, 2 / 7] if label == 0 else [6 / 7, 1 / 7] for label in y])
    expected = ((np.eye(2)[y] - left_out) ** 2).sum(axis=1).mean()
    assert score.loss == pytest.approx(expected, rel=1e-5)
    assert score.accuracy == 0.75


@pytest.mark.parametrize("offset", [0.0, 4300.0, -2e4])
def test_a_large_common_offset_is_forgiven_in_float32(offset: float) -> None:
    """What an attention sink adds to the mean must not eat the digits of the rest."""
    X, y = problem(200, 16, 2)
    X = (X + offset).astype(np.float32)
    got = leave_one_out(spectrum(X), one_hot(y, 2), [1e-2])
    exact = leave_one_out(spectrum(X.astype(np.float64)), one_hot(y, 2).astype(float), [1e-2])
    np.testing.assert_allclose(got.predictions, exact.predictions, atol=2e-3)
    np.testing.assert_array_equal(got.predictions.argmax(1), exact.predictions.argmax(1))


def test_rotation_and_scale_of_the_axes() -> None:
    """The rotated features have the eigenvalues as squared lengths and are orthogonal."""
    for n, dim in ((50, 8), (12, 30)):
        Z = standardised(problem(n, dim, 2)[0])
        space = decompose(Z)
        assert (np.diff(space.eigenvalues) <= 0).all()
        gram = space.rotated.T @ space.rotated
        np.testing.assert_allclose(gram, np.diag(space.eigenvalues), atol=1e-10)
        np.testing.assert_allclose(space.rotated @ space.rotated.T, Z @ Z.T, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["ridge", "logistic"])
def test_the_informative_block_is_found(scorer: str) -> None:
    for seed in range(5 if scorer == "ridge" else 2):
        rng = np.random.default_rng(seed)
        y = rng.integers(3, size=150)
        arrays = [rng.normal(size=(150, 12)).astype(np.float32) for _ in range(6)]
        planted = int(rng.integers(6))
        arrays[planted][:, :3] += 2 * np.eye(3, dtype=np.float32)[y]
        scores = score_blocks(named(arrays), y, scorer)
        assert scores.best.block.layer == planted
        assert scores.best.accuracy > 0.7
        others = [score for score in scores if score.block.layer != planted]
        assert all(score.accuracy < 0.5 for score in others)
        assert all(scores.best.loss < score.loss - 2 * score.loss_se for score in others)


def test_the_two_scorers_rank_alike() -> None:
    """Blocks with a signal of rising strength."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    arrays = []
    for strength in (0.0, 0.5, 1.0, 1.6, 2.4):
        X = rng.normal(size=(400, 8)).astype(np.float32)
        X[:, 0] += strength * y
        arrays.append(X)
    ridge, logistic = (score_blocks(named(arrays), y, name) for name in ("ridge", "logistic"))
    assert [score.block.layer for score in ridge.ranking] == [4, 3, 2, 1, 0]
    assert [score.block.layer for score in logistic.ranking] == [4, 3, 2, 1, 0]
    assert (ridge.scorer, logistic.scorer) == ("ridge", "logistic")
    for one, other in zip(ridge, logistic, strict=True):
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.05)


def test_scores_are_means_with_their_standard_errors() -> None:
    X, y = problem(90, 10, 3)
    (score,) = score_blocks(named([X.astype(np.float32)]), y)
    result = leave_one_out(spectrum(X.astype(np.float32)), one_hot(y, 3))
    correct = result.predictions.argmax(axis=1) == y
    assert score.accuracy == pytest.approx(correct.mean())
    assert score.accuracy_se == pytest.approx(correct.std() / np.sqrt(90))
    assert score.loss == pytest.approx(result.errors.mean())
    assert score.loss_se == pytest.approx(result.errors.std() / np.sqrt(90))
    assert 0 < score.macro_f1 <= 1
    assert score.to_dict()["block"] == {"encoder": "e", "layer": 0, "pooling": "mean"}


@pytest.mark.parametrize("kind", [str, int, bool])
def test_labels_may_be_of_any_kind(kind: type) -> None:
    X, y = problem(40, 5, 2)
    labels = np.array([kind(value) for value in y])
    assert score_blocks(named([X]), labels) == score_blocks(named([X]), y)


def test_ties_go_to_the_lower_layer() -> None:
    X, y = problem(40, 5, 2)
    assert [s.block.layer for s in score_blocks(named([X, X.copy(), X]), y).ranking] == [0, 1, 2]


def test_principal_coordinates_score_as_the_blocks_do() -> None:
    X, y = problem(80, 12, 3)
    blocks = named([X, np.random.default_rng(5).normal(size=X.shape)])
    probed = probe_blocks(blocks, Targets.from_labels(y))
    again = probe_rows(probed, np.arange(len(y)), Targets.from_labels(y)).scores
    for score, expected in zip(again, probed.scores, strict=True):
        assert score.loss == pytest.approx(expected.loss, rel=1e-3)
        assert score.accuracy == pytest.approx(expected.accuracy, abs=0.02)
        assert np.isnan(score.macro_f1)
    assert all(Z.shape == (80, 12) for Z in probed.coordinates.values())


def test_unusable_input_is_refused() -> None:
    X, y = problem(20, 4, 2)
    with pytest.raises(ConfigError, match=r"'rigde'.*ridge, logistic\. Did you mean 'ridge'"):
        score_blocks(named([X]), y, "rigde")
    with pytest.raises(DataError, match="e:1:mean has 19 rows, but there are 20 labels"):
        score_blocks(named([X, X[1:]]), y)
    with pytest.raises(DataError, match="only one class"):
        score_blocks(named([X]), np.zeros(20))
    y[:] = 0
    y[3] = 1
    with pytest.raises(DataError, match="two rows of two classes; use scorer='ridge'"):
        score_blocks(named([X]), y, "logistic")
    assert len(score_blocks(named([X]), y)) == 1  # the ridge scorer manages with one row


def test_folds_hold_each_row_out_once_and_each_class_in_its_share() -> None:
    y = np.repeat([0, 1, 2], [60, 30, 3])
    folds = Targets.from_labels(y).folds(5, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in folds])), range(93))
    for train, held in folds:
        assert not set(train) & set(held)
        assert np.bincount(y[held], minlength=3)[:2].tolist() == [12, 6]
    again = Targets.from_labels(y).folds(5, seed=0)
    assert all((a[1] == b[1]).all() for a, b in zip(folds, again, strict=True))
    assert len(Targets.from_labels([0, 0, 1, 1]).folds(5, seed=0)) == 2


def test_a_sample_keeps_each_class_in_its_share() -> None:
    y = np.repeat([0, 1, 2], [600, 300, 5])
    rows = Targets.from_labels(y).sample(90, seed=0)
    assert np.bincount(y[rows]).tolist() == [60, 30, 2]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, Targets.from_labels(y).sample(90, seed=0))
    np.testing.assert_array_equal(Targets.from_labels(y).sample(905, seed=0), np.arange(905))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "dim"), [(40_000, 256), (300, 4_096)])
def test_scoring_needs_little_more_than_one_copy(n: int, dim: int):
    """Tall blocks (200,000 rows of 4,096 would be 3.3 GB) and wide ones."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, n)
    X = random.standard_normal((n, dim), dtype=np.float32)
    X[:, : dim // 8] += y[:, None]
    blocks = {BlockRef("made", 1, "mean"): X}
    score_blocks({BlockRef("made", 1, "mean"): X[:200]}, y[:200])  # imports
    tracemalloc.start()
    scores = score_blocks(blocks, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.best.accuracy > 0.6
    leading, gram, working = 4 * N_SEARCHED * n, 4 * min(n, dim) ** 2, 3 * 4 * _CHUNK
    assert peak < 1.2 * X.nbytes + leading + 6 * gram + min(working, 2 * X.nbytes) + 300 * n
