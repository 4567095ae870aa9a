"""Which texts go to a person: selective classification and conformal sets of labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError
from layerfuse.metrics import Estimate, share_interval
from layerfuse.targets import Targets

_ERROR = 0.05  # chance that the accuracy of the rows that are kept misses its target
_STEPS = 100  # shares of rows that are tried
_DRAWS = 2000  # of rows that are just as often right as the target, whatever their probability
_NOTHING = 2.0  # a threshold that no probability reaches

Floats = npt.NDArray[np.float64]


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
