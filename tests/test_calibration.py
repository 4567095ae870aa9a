"""Temperature scaling against closed forms, scikit-learn's own, and its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import log_softmax, softmax

from layerfuse.calibration import TemperatureCalibrator, fit_calibration
from layerfuse.errors import ConfigError, DataError
from layerfuse.metrics import expected_calibration_error
from layerfuse.targets import LabelSpace, Targets

Array = npt.NDArray[Any]


def calibrated(n: int = 20_000, n_classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Logits, and labels drawn from their softmax: the best temperature is 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * 2
    y = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, np.minimum(y, n_classes - 1)


def fit(logits: Any, y: Any) -> TemperatureCalibrator:
    return TemperatureCalibrator.fit(logits, targets(logits, y))


def targets(logits: Any, y: Any) -> Targets:
    return Targets(LabelSpace(np.arange(np.shape(logits)[-1])), np.asarray(y))


def predict_proba(calibrator: TemperatureCalibrator, logits: Any) -> Array:
    return calibrator.predict_proba(logits, LabelSpace(np.arange(logits.shape[1])))


def mean_log_loss(logits: Array, y: Array) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(y)), y].mean())


@pytest.mark.parametrize("n_classes", [2, 4, 20])
def test_calibrated_logits_keep_a_temperature_of_about_one(n_classes: int) -> None:
    found = fit(*calibrated(n_classes=n_classes))
    assert found.temperature == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("k", [0.2, 3.0, 10.0])
def test_scaling_the_logits_scales_the_temperature(k: float) -> None:
    logits, y = calibrated(n=2000)
    one = fit(logits, y)
    scaled = fit(k * logits, y)
    assert scaled.temperature == pytest.approx(k * one.temperature, rel=1e-4)
    np.testing.assert_allclose(
        predict_proba(scaled, k * logits), predict_proba(one, logits), atol=1e-4
    )


def test_one_confidence_has_a_closed_form() -> None:
    # Margin m on every row and a share p right: sigmoid(m / T) = p, so T = m / logit(p).
    logits, y = np.tile([3.0, 0.0], (10, 1)), np.r_[np.zeros(8, int), 1, 1]
    found = fit(logits, y)
    assert found.temperature == pytest.approx(3 / np.log(0.8 / 0.2), rel=1e-5)
    np.testing.assert_allclose(predict_proba(found, logits)[0], [0.8, 0.2], atol=1e-6)


def test_the_temperature_is_scikit_learns() -> None:
    pytest.importorskip("sklearn", minversion="1.8", reason="method='temperature' is from 1.8")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    y = rng.integers(3, size=400)
    features = np.eye(3)[y] + rng.normal(size=(400, 3))
    head = LogisticRegression(C=1e3).fit(features[:40], y[:40])
    oracle = CalibratedClassifierCV(FrozenEstimator(head), method="temperature")
    oracle.fit(features[40:], y[40:])
    logits = head.decision_function(features)
    found = fit(logits[40:], y[40:])
    np.testing.assert_allclose(
        predict_proba(found, logits), oracle.predict_proba(features), atol=1e-4
    )


def test_no_temperature_on_a_grid_is_better() -> None:
    logits, y = calibrated(n=500, seed=1)
    logits = 4 * logits
    found = fit(logits, y).temperature
    grid = np.geomspace(0.05, 20, 400)
    best = min(mean_log_loss(logits / temperature, y) for temperature in grid)
    assert mean_log_loss(logits / found, y) <= best


@pytest.mark.parametrize(("n", "n_classes"), [(20, 2), (200, 2), (60, 5)])
def test_rows_that_are_all_right_do_not_make_it_certain(n: int, n_classes: int) -> None:
    y = np.arange(n) % n_classes
    logits = 3.0 * np.eye(n_classes)[y] + np.random.default_rng(0).normal(0, 0.1, (n, n_classes))
    proba = predict_proba(fit(logits, y), logits)
    error = 1 - proba[np.arange(n), y].mean()
    assert 0.3 * (n_classes - 1) / (n + n_classes) < error < 3 * (n_classes - 1) / (n + n_classes)


def test_overconfidence_is_mended_and_predictions_stay() -> None:
    logits, y = calibrated(n=4000)
    logits = 5 * logits
    proba = predict_proba(fit(logits[:2000], y[:2000]), logits[2000:])
    before = expected_calibration_error(y[2000:], softmax(logits[2000:], axis=1))
    assert expected_calibration_error(y[2000:], proba) < before / 3
    np.testing.assert_array_equal(proba.argmax(axis=1), logits[2000:].argmax(axis=1))
    np.testing.assert_allclose(proba.sum(axis=1), 1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("share_right", [0.0, 0.3, 1.0])
def test_degenerate_logits_stay_in_bounds_and_never_get_worse(
    scale: float, share_right: float
) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=60)
    shown = np.where(np.arange(60) < share_right * 60, y, (y + 1) % 3)
    logits = scale * np.eye(3)[shown]
    found = fit(logits, y)
    assert 0.05 <= found.temperature <= 20
    assert mean_log_loss(logits / found.temperature, y) <= mean_log_loss(logits, y) + 1e-12
    assert np.isfinite(predict_proba(found, logits)).all()


def test_perfect_separation_leaves_each_other_class_its_share() -> None:
    """1 / (30 + 3), where exp(-1 / T) over 1 + 2 exp(-1 / T) is that."""
    y = np.arange(30) % 3
    found = fit(np.eye(3)[y], y)
    assert found.temperature == pytest.approx(1 / np.log(31), rel=1e-3)


def test_logits_that_say_nothing_keep_a_temperature_of_one() -> None:
    assert fit(np.zeros((10, 3)), np.arange(10) % 3).temperature == 1.0


def test_one_row_and_missing_classes_are_fine() -> None:
    found = fit([[0.0, 1.0, 0.0]], [0])
    assert found.temperature == pytest.approx(20, rel=1e-3)


def test_the_state_is_one_plain_float() -> None:
    logits, y = calibrated(n=200)
    found = fit(logits.astype(np.float32), y)
    assert vars(found) == {"temperature": found.temperature}
    assert type(found.temperature) is float
    again = TemperatureCalibrator(float(repr(found.temperature)))
    np.testing.assert_array_equal(predict_proba(again, logits), predict_proba(found, logits))


def test_no_rows_give_no_probabilities() -> None:
    assert predict_proba(TemperatureCalibrator(), np.zeros((0, 3))).shape == (0, 3)


def test_fit_calibration_by_name() -> None:
    logits, y = calibrated(n=200)
    assert fit_calibration("temperature", logits, targets(logits, y)) == fit(logits, y)
    assert fit_calibration(None, logits, targets(logits, y)) == TemperatureCalibrator(1.0)
    with pytest.raises(ConfigError, match=r"'temprature'.*temperature\. Did you mean 'temp"):
        fit_calibration("temprature", logits, targets(logits, y))


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (np.zeros((2, 2)), [0], r"shape \(1,\) and logits of shape \(2, 2\)"),
        (np.zeros(2), [0, 1], "two classes take two columns"),
        (np.zeros((2, 2)), [0, 2], "from 0 to 2"),
        (np.full((2, 2), np.inf), [0, 1], "Row 0 of logits"),
    ],
)
def test_unusable_logits_are_refused(logits: Array, y: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(logits, y)


def test_one_column_of_logits_is_refused_when_predicting() -> None:
    with pytest.raises(DataError, match=r"shape \(5, 1\).*\(n, 2\)"):
        TemperatureCalibrator().predict_proba(np.zeros((5, 1)), LabelSpace(np.arange(2)))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_unusable_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="finite number above 0"):
        TemperatureCalibrator(temperature)
