"""Metrics against scikit-learn, plain loops, closed forms and simulated truth."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import accuracy_score, f1_score, log_loss

from layerfuse.errors import ConfigError, DataError
from layerfuse.metrics import (
    Estimate,
    Evaluation,
    PairedDifference,
    check_class_rows,
    evaluate_predictions,
    expected_calibration_error,
    paired_difference,
)

Array = npt.NDArray[Any]


def problem(n: int = 300, n_classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Labels and overconfident probabilities; the last two columns are rare as labels."""
    rng = np.random.default_rng(seed)
    shares = np.r_[np.ones(n_classes - 2), 0.02, 0.02]
    y = rng.choice(n_classes, size=n, p=shares / shares.sum())
    logits = rng.normal(size=(n, n_classes)) * 2 + 2.5 * np.eye(n_classes)[y]
    return y, softmax(logits, axis=1)


def plain_ece(y: Array, proba: Array, n_bins: int) -> float:
    """Guo et al.'s equation 3, row by row."""
    edges = np.linspace(0, 1, n_bins + 1)
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("n_classes", [2, 4, 9])
def test_values_are_scikit_learns(n_classes: int) -> None:
    y, proba = problem(n_classes=n_classes)
    got, predicted = evaluate_predictions(y, proba, n_resamples=20), proba.argmax(axis=1)
    assert got.n == 300
    assert got.accuracy.value == pytest.approx(accuracy_score(y, predicted))
    assert got.macro_f1.value == pytest.approx(f1_score(y, predicted, average="macro"))
    assert got.log_loss.value == pytest.approx(log_loss(y, proba, labels=np.arange(n_classes)))
    assert got.ece.value == pytest.approx(plain_ece(y, proba, 15))


@pytest.mark.slow
def test_bootstrap_intervals_are_those_of_a_plain_loop_over_the_same_draws() -> None:
    y, proba = problem(n=80)
    got = evaluate_predictions(y, proba, n_resamples=200, seed=3)
    rng, draws = np.random.default_rng(3), []
    for _ in range(200):
        rows = rng.integers(80, size=80)
        predicted = proba[rows].argmax(axis=1)
        draws.append(
            (
                f1_score(y[rows], predicted, average="macro", zero_division=0),
                log_loss(y[rows], proba[rows], labels=np.arange(4)),
                plain_ece(y[rows], proba[rows], 15),
            )
        )
    f1, loss, ece = np.quantile(draws, [0.025, 0.975], axis=0).T
    assert [got.macro_f1.low, got.macro_f1.high] == pytest.approx(f1)
    assert [got.log_loss.low, got.log_loss.high] == pytest.approx(loss)
    reflected = np.clip(2 * got.ece.value - ece[::-1], 0, 1)
    assert [got.ece.low, got.ece.high] == pytest.approx(reflected)


def test_wilson_interval_by_its_formula() -> None:
    y = np.zeros(50, int)
    proba = np.tile([0.9, 0.1], (50, 1))
    perfect = evaluate_predictions(y, proba, n_resamples=10).accuracy
    z2 = 1.959963984540054**2
    assert perfect.value == perfect.high == 1.0
    assert perfect.low == pytest.approx(50 / (50 + z2))  # the closed form at k = n


def test_perfect_predictions_with_rare_classes_have_a_macro_f1_of_exactly_one() -> None:
    y = np.r_[np.zeros(50, int), 1, 2, 3]
    f1 = evaluate_predictions(y, np.eye(5)[y], n_resamples=200).macro_f1
    assert f1 == Estimate(1.0, 1.0, 1.0)  # classes that a resample misses do not lower it


def test_a_certain_mistake_costs_a_finite_loss_as_in_scikit_learn() -> None:
    y, proba = np.array([0, 1, 1]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    got = evaluate_predictions(y, proba, n_resamples=50).log_loss
    assert got.value == pytest.approx(log_loss(y, proba))
    assert np.isfinite([got.low, got.high]).all()


def test_same_seed_same_result_and_other_seed_other_interval() -> None:
    y, proba = problem()
    first, again, other = (
        evaluate_predictions(y, proba, n_resamples=50, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.log_loss.value == other.log_loss.value
    assert first.log_loss.low != other.log_loss.low


def test_low_precision_probabilities_are_accepted() -> None:
    y, proba = problem(n_classes=9)
    exact = evaluate_predictions(y, proba, n_resamples=20)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float16, 5e-3)):
        rounded = evaluate_predictions(y, proba.astype(dtype), n_resamples=20)
        assert rounded.log_loss.value == pytest.approx(exact.log_loss.value, rel=tolerance)


def test_values_lie_in_their_intervals_whatever_the_data() -> None:
    for seed in range(40):
        y, proba = problem(n=int(1 + seed), n_classes=5, seed=seed)
        got = evaluate_predictions(y, proba, n_resamples=30, seed=seed)
        for estimate in (got.accuracy, got.macro_f1, got.log_loss, got.ece):
            assert estimate.low <= estimate.value <= estimate.high


def test_numbers_are_plain_and_can_be_written_as_json() -> None:
    y, proba = problem(n=30)
    got = evaluate_predictions(y, proba, n_resamples=20)
    written = asdict(got)
    assert json.loads(json.dumps(written)) == written
    assert list(written) == ["n", "accuracy", "macro_f1", "log_loss", "ece"]
    assert type(got.macro_f1.value) is float


@pytest.mark.slow
def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    # Each row is one of two confidences, and right just that often: all truths are known.
    rng = np.random.default_rng(0)
    confidences = np.array([0.65, 0.9])
    entropy = -confidences * np.log(confidences) - (1 - confidences) * np.log(1 - confidences)
    truth = {"accuracy": confidences.mean(), "log_loss": entropy.mean()}
    truth["macro_f1"] = truth["accuracy"]  # balanced classes and symmetric errors
    covered = dict.fromkeys(truth, 0)
    for run in range(200):
        confidence = rng.choice(confidences, size=200)
        predicted = rng.integers(2, size=200)
        right = rng.random(200) < confidence
        proba = np.where(np.eye(2, dtype=bool)[predicted], confidence[:, None], 0)
        proba[proba == 0] = 1 - confidence
        y = np.where(right, predicted, 1 - predicted)
        got = evaluate_predictions(y, proba, n_resamples=300, seed=run)
        for name, expected in truth.items():
            estimate = getattr(got, name)
            covered[name] += estimate.low <= expected <= estimate.high
    for name, count in covered.items():
        assert 178 <= count <= 200, name


def test_ece_of_known_cases() -> None:
    proba = np.tile([0.8, 0.2], (10, 1))
    eight_right = np.r_[np.zeros(8, int), np.ones(2, int)]
    assert expected_calibration_error(eight_right, proba) == pytest.approx(0)
    assert expected_calibration_error(np.zeros(10, int), proba) == pytest.approx(0.2)
    assert expected_calibration_error(np.ones(10, int), proba) == pytest.approx(0.8)


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15, 40])
def test_ece_bins_are_closed_above(n_bins: int) -> None:
    y, proba = problem()
    proba[:2] = [[0.6, 0.4, 0, 0], [0.2, 0, 0, 0.8]]  # on edges of 10 and 15 bins
    proba[2] = [1, 0, 0, 0]
    assert expected_calibration_error(y, proba, n_bins) == pytest.approx(
        plain_ece(y, proba, n_bins)
    )


def test_ece_interval_reaches_zero_for_a_calibrated_model() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, size=2000)
    y = (rng.random(2000) > confidence).astype(int)
    ece = evaluate_predictions(y, np.c_[confidence, 1 - confidence], n_resamples=200).ece
    assert ece.low < 0.01 < ece.value


def test_paired_difference_against_a_plain_bootstrap_and_the_binomial() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.85, rng.random(400) < 0.75
    got = paired_difference(a, b, n_resamples=4000)
    rows = rng.integers(400, size=(4000, 400))
    plain = (a[rows].mean(axis=1) - b[rows].mean(axis=1)).astype(float)
    low, high = np.quantile(plain, [0.025, 0.975])
    assert got.difference == pytest.approx(a.mean() - b.mean())
    assert [got.low, got.high] == pytest.approx([low, high], abs=0.006)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    mcnemar = min(1, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5))
    assert got.p_value == pytest.approx(mcnemar)


def test_paired_difference_is_antisymmetric_and_ignores_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    a, b, order = rng.random(100) < 0.8, rng.random(100) < 0.7, rng.permutation(100)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there == paired_difference(a[order], b[order])
    assert there.difference == -back.difference
    assert there.p_value == back.p_value
    assert there.low == pytest.approx(-back.high, abs=0.015)


def test_paired_difference_of_equal_answers_claims_nothing() -> None:
    right = np.array([True, False, True])
    assert paired_difference(right, right) == PairedDifference(0.0, 0.0, 0.0, p_value=1.0)


def test_paired_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for run in range(200):
        pair = rng.choice(4, size=300, p=[0.6, 0.15, 0.1, 0.15])  # both, only a, only b, neither
        got = paired_difference(pair < 2, (pair == 0) | (pair == 2), n_resamples=500, seed=run)
        covered += got.low <= 0.05 <= got.high
    assert 178 <= covered <= 200


TWO = np.array([[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("y", "proba", "message"),
    [
        ([0, 1, 1], TWO, r"shape \(3,\) and proba of shape \(2, 2\)"),
        ([[0, 1]], TWO, r"shape \(1, 2\)"),
        ([0, 1], TWO[:, 1], r"proba of shape \(2,\)"),
        ([0, 0], TWO[:, :1], "two classes take two columns"),
        (np.zeros(0, int), np.zeros((0, 2)), "no rows"),
        ([0, 2], TWO, "from 0 to 2.*columns 0 to 1"),
        ([-1, 0], TWO, "from -1 to 0"),
        ([0.0, 1.0], TWO, "float64, not integers"),
        (["a", "b"], TWO, "not integers"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], "Row 1 of proba holds a NaN"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], "1 of 2 rows.*row 1 sums to 1.1.*softmax"),
        ([0, 1], [[1.5, -0.5], [0.5, 0.5]], "row 0 sums to 1 and its lowest value is -0.5"),
    ],
)
def test_unusable_predictions_are_refused(y: Any, proba: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_predictions(y, proba)
    with pytest.raises(DataError, match=message):
        expected_calibration_error(y, proba)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([True], [True, False], r"correct_a of shape \(1,\) and correct_b of shape \(2,\)"),
        ([[True]], [[True]], r"shape \(1, 1\)"),
        (np.zeros(0, bool), np.zeros(0, bool), "at least one row"),
        ([1, 0], [True, False], "correct_a of int64.*Expected bool"),
    ],
)
def test_unusable_pairs_are_refused(a: Any, b: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_difference(a, b)


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_resamples=0"):
        evaluate_predictions([0, 1], TWO, n_resamples=0)
    with pytest.raises(ConfigError, match="n_resamples=0"):
        paired_difference([True], [True], n_resamples=0)
    with pytest.raises(ConfigError, match="n_bins=0"):
        expected_calibration_error([0, 1], TWO, n_bins=0)


def test_check_class_rows_names_the_array_and_converts() -> None:
    y, logits = check_class_rows(np.array([1, 0], np.uint8), np.ones((2, 3), np.float32))
    assert (y.dtype.name, logits.dtype.name) == ("int64", "float64")
    with pytest.raises(DataError, match="margins of shape"):
        check_class_rows([0], TWO, "margins")


def test_evaluation_is_frozen() -> None:
    one = Estimate(0.5, 0.4, 0.6)
    with pytest.raises(AttributeError):
        Evaluation(1, one, one, one, one).n = 2  # type: ignore[misc]
