"""Calibration of a head's probabilities, without changing what it predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError, check_choice
from layerfuse.metrics import check_class_rows
from layerfuse.targets import LabelSpace, Targets

__all__ = ["CALIBRATIONS", "TemperatureCalibrator", "check_calibration", "fit_calibration"]

CALIBRATIONS: tuple[str, ...] = ("temperature", "none")

_LOWEST, _HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class TemperatureCalibrator:
    """Divides logits by one number before the link; what is predicted stays the same.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017),
    section 4.2.

    Parameters
    ----------
    temperature : float
        Above 1 softens, below 1 sharpens; no unit.

    Raises
    ------
    ConfigError
        For a temperature that is not a finite number above 0.

    Examples
    --------
    >>> targets = Targets.from_labels(["ham", "ham", "ham", "spam"])
    >>> logits = [[5.0, 0.0]] * 4
    >>> calibrator = TemperatureCalibrator.fit(logits, targets)
    >>> calibrator.predict_proba(logits, targets.space)[0].round(2).tolist()
    [0.75, 0.25]
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(
                f"temperature={self.temperature!r} is not usable. Give a finite number above 0."
            )

    @classmethod
    def fit(cls, logits: npt.ArrayLike, targets: Targets) -> TemperatureCalibrator:
        """Find the temperature of least log loss.

        It is kept within 0.05 to 20. Where every row is predicted correctly the loss has no
        minimum; there each other class gets a share 1 / (n + n_outputs) of the target, after Platt
        ("Probabilistic Outputs for Support Vector Machines", 1999). Where nothing beats 1 on these
        rows, it is 1. Use rows that the head was not trained on: it looks too well calibrated on
        its training rows.

        Parameters
        ----------
        logits : array-like of shape (n, n_outputs)
            Two columns for two classes.
        targets : Targets
            Of the n rows.

        Raises
        ------
        DataError
            For arrays that do not fit together or hold a NaN or an infinity.
        """
        from scipy.optimize import minimize_scalar

        _, table = check_class_rows(targets.codes, logits, "logits")
        n, n_outputs = table.shape
        all_correct = targets.correct(targets.space.decide(table)).all()
        share = 1.0 / (n + n_outputs) if all_correct else 0.0

        def log_loss(log_temperature: float) -> float:
            return float(targets.log_loss(table / math.exp(log_temperature), share).mean())

        optimum = minimize_scalar(
            log_loss,
            bounds=(math.log(_LOWEST), math.log(_HIGHEST)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        return cls(math.exp(optimum.x) if optimum.fun < log_loss(0.0) else 1.0)

    def predict_proba(self, logits: npt.ArrayLike, space: LabelSpace) -> npt.NDArray[np.float64]:
        """Logits (n, n_outputs) to float64 probabilities (n, n_outputs).

        Raises
        ------
        DataError
            For another shape.
        """
        table = np.asarray(logits, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != space.n_outputs:
            raise DataError(
                f"Got logits of shape {table.shape}. Expected (n, {space.n_outputs}), one column "
                "for each class."
            )
        return space.link(table / self.temperature)


def fit_calibration(name: str, logits: npt.ArrayLike, targets: Targets) -> TemperatureCalibrator:
    """Fit a calibration by its name; ``"none"`` leaves logits as they are (temperature 1).

    Raises
    ------
    ConfigError
        For an unknown name.
    DataError
        For arrays that do not fit together.
    """
    check_calibration(name)
    if name == "none":
        return TemperatureCalibrator()
    return TemperatureCalibrator.fit(logits, targets)


def check_calibration(name: str) -> None:
    """Raise a ConfigError for an unknown calibration."""
    check_choice(name, CALIBRATIONS, "calibration")
