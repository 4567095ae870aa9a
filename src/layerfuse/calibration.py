"""Calibration: temperature scaling of probabilities, and what to do where they are too low."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError, check_choice
from layerfuse.metrics import Estimate, check_class_rows, share_interval
from layerfuse.targets import LabelSpace, Targets

CALIBRATIONS: tuple[str, ...] = ("temperature",)

Floats = npt.NDArray[np.float64]

_LOWEST, _HIGHEST = 0.05, 20.0
_NEWTON_STEPS, _PRIOR = 30, 1e-3  # the prior's weight is that of so many rows
_FLAT, _LEAST_SLOPE = 1e-9, 1e-3


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

    @property
    def affine(self) -> tuple[float, float]:
        """Slope and intercept of the logits before the link."""
        return 1.0 / self.temperature, 0.0

    @classmethod
    def identity(cls, space: LabelSpace) -> TemperatureCalibrator:
        """One that leaves logits as they are."""
        return cls()

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
        return space.link(check_logits(logits, space) / self.temperature)


@dataclass(frozen=True)
class PlattCalibrator:
    """A slope and an intercept for the logits of each label, before the link.

    Platt, "Probabilistic Outputs for Support Vector Machines" (1999).

    Parameters
    ----------
    slopes, intercepts : tuple of float
        One of each for each label; slopes are above 0.
    """

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    @property
    def affine(self) -> tuple[Floats, Floats]:
        """Slopes and intercepts (n_labels,) of the logits before the link."""
        return np.array(self.slopes), np.array(self.intercepts)

    @classmethod
    def identity(cls, space: LabelSpace) -> PlattCalibrator:
        """One that leaves logits as they are."""
        return cls((1.0,) * space.n_outputs, (0.0,) * space.n_outputs)

    @classmethod
    def fit(cls, logits: npt.ArrayLike, targets: Targets) -> PlattCalibrator:
        """Find slopes and intercepts of least log loss, by Newton's method for all labels at once.

        With Platt's targets, so that a label that all rows or none have gets a finite logit. Use
        rows that the head was not trained on.

        Parameters
        ----------
        logits : array-like of shape (n, n_labels)
        targets : Targets
            Of the n rows.
        """
        from scipy.special import expit

        table, truth = np.asarray(logits, dtype=np.float64), targets.matrix.astype(np.float64)
        n, counts = len(table), truth.sum(axis=0)
        soft = np.where(truth > 0, (counts + 1) / (counts + 2), 1 / (n - counts + 2))
        mean, scale = table.mean(axis=0), np.maximum(table.std(axis=0), _FLAT)
        Z = (table - mean) / scale
        slope, intercept = (
            np.zeros(len(counts)),
            np.log(soft.mean(axis=0) / (1 - soft.mean(axis=0))),
        )
        for _ in range(_NEWTON_STEPS):
            proba = expit(slope * Z + intercept)
            weight, error = proba * (1 - proba) + _FLAT, proba - soft
            a, b, c = (weight * Z * Z).mean(0) + _PRIOR / n, (weight * Z).mean(0), weight.mean(0)
            first, second = (error * Z).mean(0) + _PRIOR / n * slope, error.mean(0)
            det = a * c - b * b
            steps = np.stack([c * first - b * second, a * second - b * first]) / det
            slope, intercept = slope - steps[0].clip(-1, 1), intercept - steps[1].clip(-1, 1)
        slope = np.maximum(slope, _LEAST_SLOPE)  # what is predicted must not turn around
        slopes, offset = slope / scale, intercept - slope * mean / scale
        return cls(tuple(slopes.tolist()), tuple(offset.tolist()))

    def predict_proba(self, logits: npt.ArrayLike, space: LabelSpace) -> npt.NDArray[np.float64]:
        """Logits (n, n_labels) to float64 probabilities (n, n_labels).

        Raises
        ------
        DataError
            For another shape.
        """
        slopes, intercepts = self.affine
        return space.link(check_logits(logits, space) * slopes + intercepts)


Calibrator = TemperatureCalibrator | PlattCalibrator

_CALIBRATORS: dict[str, type[TemperatureCalibrator] | type[PlattCalibrator]] = {
    "softmax": TemperatureCalibrator,
    "sigmoid": PlattCalibrator,
}


def check_logits(logits: npt.ArrayLike, space: LabelSpace) -> npt.NDArray[np.float64]:
    """Logits (n, n_outputs) as float64; a DataError for another shape."""
    table = np.asarray(logits, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != space.n_outputs:
        raise DataError(
            f"Got logits of shape {table.shape}. Expected (n, {space.n_outputs}), one column "
            "for each class."
        )
    return table


def fit_calibration(name: str | None, logits: npt.ArrayLike, targets: Targets) -> Calibrator:
    """Fit a calibration by its name.

    Parameters
    ----------
    name : {"temperature"} or None
        None leaves logits as they are (temperature 1). Where rows have any number of labels, each
        label has a slope and an intercept in place of the temperature.
    logits : array-like of shape (n, n_outputs)
        Of rows that the head was not trained on.
    targets : Targets
        Of the n rows.

    Raises
    ------
    ConfigError
        For an unknown name.
    DataError
        For arrays that do not fit together.
    """
    kind = _CALIBRATORS[targets.space.link_name]
    if name is None:
        return kind.identity(targets.space)
    check_calibration(name)
    return kind.fit(logits, targets)


def check_calibration(name: str) -> None:
    """Raise a ConfigError for an unknown calibration."""
    check_choice(name, CALIBRATIONS, "calibration")


_ERROR = 0.05  # chance that the accuracy of the rows that are kept misses its target
_STEPS = 100  # shares of rows that are tried
_DRAWS = 2000  # of rows that are just as often right as the target, whatever their probability
_NOTHING = 2.0  # a threshold that no probability reaches


@dataclass(frozen=True)
class Abstention:
    """When a classifier decides by itself; it abstains where either condition fails.

    Attributes
    ----------
    target_accuracy : float or None
        Accuracy that the decided texts should have, 0 to 1.
    threshold : float
        Least probability of the predicted class; 2 where no threshold reaches the target.
    coverage : float or None
        Share of texts whose set of labels should hold the right one, 0 to 1. A text is decided
        where its set is one label.
    label_threshold : float
        Least probability of a label in the set.
    """

    target_accuracy: float | None = None
    threshold: float = 0.0
    coverage: float | None = None
    label_threshold: float = 0.0

    def sets(self, proba: Floats) -> npt.NDArray[np.bool_]:
        """Which labels the conformal set of each row of probabilities holds, (n, n_outputs)."""
        return np.asarray(proba >= self.label_threshold)

    def abstains(self, proba: Floats) -> npt.NDArray[np.bool_]:
        """Whether each row of probabilities (n, n_outputs) goes to a person, (n,)."""
        unsure = proba.max(axis=1) < self.threshold
        if self.coverage is not None:
            unsure = unsure | (self.sets(proba).sum(axis=1) != 1)
        return np.asarray(unsure)

    def measure(self, proba: Floats, targets: Targets) -> AbstentionFigures:
        """What it comes to on rows of known label."""
        n, kept = len(targets), ~self.abstains(proba)
        right = targets.correct(targets.space.decide(proba))[kept]
        sets = None
        if self.coverage is not None:
            found = self.sets(proba)
            sizes = found.sum(axis=1)
            hits = int(found[np.arange(n), targets.codes].sum())
            one, none = float((sizes == 1).mean()), float((sizes == 0).mean())
            sets = SetFigures(share_interval(hits, n), float(sizes.mean()), one, none)
        return AbstentionFigures(
            n=n,
            abstained=share_interval(n - len(right), n),
            accuracy=share_interval(int(right.sum()), len(right)) if len(right) else None,
            sets=sets,
        )


@dataclass(frozen=True)
class SetFigures:
    """Conformal sets: share that hold the right label, mean size, shares of one and no label."""

    coverage: Estimate
    mean_size: float
    one_label: float
    no_label: float


@dataclass(frozen=True)
class AbstentionFigures:
    """Abstention on ``n`` rows.

    Attributes
    ----------
    n : int
        Number of rows.
    abstained : Estimate
        Share that goes to a person, 0 to 1.
    accuracy : Estimate or None
        Of the other rows; None where there are none.
    sets : SetFigures or None
        None without a coverage.
    """

    n: int
    abstained: Estimate
    accuracy: Estimate | None
    sets: SetFigures | None


def check_share(name: str, value: object) -> None:
    """Raise a ConfigError for a ``value`` that is neither None nor between 0 and 1."""
    if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
        raise ConfigError(
            f"{name}={value!r} cannot be used. Give a share above 0 and below 1, such as 0.95."
        )


def fit_abstention(
    proba: Floats,
    targets: Targets,
    target_accuracy: float | None = None,
    coverage: float | None = None,
) -> Abstention | None:
    """Choose thresholds on rows that the models behind ``proba`` had not seen.

    The most rows are kept, of 100 shares of them, whose accuracy is above ``target_accuracy`` by an
    exact binomial test. Its level is such that, among rows of which none of the shares exceeds the
    target, one of all 100 tests passes with a chance of 5%: multiple testing over nested hypotheses
    (Angelopoulos et al., "Learn then Test", 2021), by simulation of the least favorable case. Sets
    are split-conformal on the probability of the label (Sadinle, Lei and Wasserman, "Least
    Ambiguous Set-Valued Classifiers", JASA 2019). Both assume that new texts come as these did.

    Parameters
    ----------
    proba : ndarray of shape (n, n_outputs)
        Out-of-fold probabilities.
    targets : Targets
        Of the n rows.
    target_accuracy, coverage : float, optional
        Shares between 0 and 1.

    Returns
    -------
    Abstention or None
        None where neither is given.
    """
    if target_accuracy is None and coverage is None:
        return None
    threshold, label_threshold = 0.0, 0.0
    if target_accuracy is not None:
        correct = targets.correct(targets.space.decide(proba))
        threshold = _selective_threshold(proba.max(axis=1), correct, target_accuracy)
    if coverage is not None:
        of_label = np.sort(proba[np.arange(len(targets)), targets.codes])[::-1]
        place = math.ceil((len(targets) + 1) * coverage)
        label_threshold = float(of_label[place - 1]) if place <= len(targets) else 0.0
    return Abstention(target_accuracy, threshold, coverage, label_threshold)


def _selective_threshold(top: Floats, correct: npt.NDArray[np.bool_], target: float) -> float:
    """The least top probability to keep."""
    from scipy.stats import binom

    order = np.argsort(-top, kind="stable")
    n, falling = len(top), top[order]
    counts = np.ceil(n * np.arange(1, _STEPS + 1) / _STEPS).astype(np.intp)
    # Rows of one probability are kept or left together.
    kept = np.unique(np.searchsorted(-falling, -falling[counts - 1], side="right"))
    right = np.cumsum(correct[order])[kept - 1]
    random = np.random.default_rng(0)
    increments = np.diff(kept, prepend=0)
    drawn = random.binomial(increments, target, (_DRAWS, len(kept))).cumsum(axis=1)
    # p-values of "the accuracy of the rows that are kept is below the target"
    smallest = binom.sf(drawn - 1, kept, target).min(axis=1)
    level = np.quantile(smallest, _ERROR, method="lower")
    passed = np.flatnonzero(binom.sf(right - 1, kept, target) < level)
    return float(falling[kept[passed[-1]] - 1]) if len(passed) else _NOTHING
