"""Making a head's probabilities true, without changing what it predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError, did_you_mean
from layerfuse.metrics import check_class_rows

__all__ = ["CALIBRATIONS", "TemperatureCalibrator", "check_calibration", "fit_calibration"]

CALIBRATIONS: tuple[str, ...] = ("temperature", "none")

_LOWEST, _HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class TemperatureCalibrator:
    """Divide logits by one number before the softmax; the predicted class stays the same.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017),
    section 4.2. ``temperature`` (no unit) is the whole state: above 1 softens, below 1 sharpens.

    Raises
    ------
    ConfigError
        For a temperature that is not a finite number above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(
                f"temperature={self.temperature!r} is not usable. Give a finite number above 0."
            )

    @classmethod
    def fit(cls, logits: npt.ArrayLike, y: npt.ArrayLike) -> TemperatureCalibrator:
        """Find the temperature of least log loss.

        It is kept within 0.05 to 20. Where every row is predicted right, the loss falls for ever
        as it shrinks; there each other class is given a share 1 / (n + n_classes) of the target,
        after Platt ("Probabilistic Outputs for Support Vector Machines", 1999). Where nothing beats
        1 on these rows, it is 1. Use rows that the head was not trained on: on its training rows a
        head looks better calibrated than it is.

        Parameters
        ----------
        logits : (n, n_classes), two columns for two classes
        y : (n,) integer class indices, columns of ``logits``

        Raises
        ------
        DataError
            For arrays that do not fit together or hold a NaN or an infinity.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import logsumexp

        labels, table = check_class_rows(y, logits, "logits")
        margins = table - table[np.arange(len(table)), labels][:, None]
        n, n_classes = table.shape
        share = 1.0 / (n + n_classes) if (margins.argmax(axis=1) == labels).all() else 0.0

        def log_loss(log_temperature: float) -> float:
            scaled = margins / math.exp(log_temperature)
            return float((logsumexp(scaled, axis=1) - share * scaled.sum(axis=1)).mean())

        found = minimize_scalar(
            log_loss,
            bounds=(math.log(_LOWEST), math.log(_HIGHEST)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return cls(math.exp(found.x) if found.fun < log_loss(0.0) else 1.0)

    def predict_proba(self, logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Turn logits (n, n_classes) into float64 probabilities (n, n_classes).

        Raises
        ------
        DataError
            For another shape.
        """
        from scipy.special import softmax

        table = np.asarray(logits, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] < 2:
            raise DataError(
                f"Got logits of shape {table.shape}. Expected (n, n_classes); two classes take "
                f"two columns."
            )
        probabilities: npt.NDArray[np.float64] = softmax(table / self.temperature, axis=1)
        return probabilities


def fit_calibration(name: str, logits: npt.ArrayLike, y: npt.ArrayLike) -> TemperatureCalibrator:
    """Fit the calibration called ``name`` on logits (n, n_classes) and class indices y (n,).

    ``"temperature"`` finds one; ``"none"`` leaves logits as they are (temperature 1).

    Raises
    ------
    ConfigError
        For an unknown name.
    DataError
        For arrays that do not fit together.
    """
    check_calibration(name)
    return (
        TemperatureCalibrator.fit(logits, y) if name == "temperature" else TemperatureCalibrator()
    )


def check_calibration(name: str) -> None:
    """Raise a ConfigError for an unknown calibration."""
    if name not in CALIBRATIONS:
        raise ConfigError(
            f"Unknown calibration {name!r}. Choose from {', '.join(CALIBRATIONS)}."
            + did_you_mean(str(name), CALIBRATIONS)
        )
