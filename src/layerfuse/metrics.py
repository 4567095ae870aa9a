"""Metrics of predictions with 95% intervals: arrays in, numbers out.

Rows are the unit of resampling throughout. Probabilities may come in any float type; they are
converted to float64 and each row is divided by its sum, which must be 1 within 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

_CONFIDENCE = 0.95
_QUANTILES = ((1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2)
_ECE_BINS = 15
_DRAWN = 100_000  # rows that are drawn at once, of one resample or of many
_SUM_TOLERANCE = 1e-3  # a float16 softmax is off by up to 0.0005


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval, ``low <= value <= high``, in the unit of the number."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of predictions on ``n`` rows.

    Attributes
    ----------
    n : int
        Number of rows.
    accuracy, macro_f1, ece : Estimate
        Shares from 0 to 1; ``ece`` is the expected calibration error.
    log_loss : Estimate
        In nats.
    """

    n: int
    accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate
    ece: Estimate

    @property
    def headline(self) -> Estimate:
        """The one figure that pipelines are compared by."""
        return self.accuracy


@dataclass(frozen=True)
class LabelSetEvaluation:
    """Metrics of predictions on ``n`` rows, each of which has any number of labels.

    Attributes
    ----------
    n : int
        Number of rows.
    micro_f1, macro_f1 : Estimate
        F1 of all labels together, and the mean over labels that some row has or is predicted to
        have; shares from 0 to 1.
    subset_accuracy : Estimate
        Share of rows of which all labels are right.
    ranking_precision : Estimate
        Label ranking average precision, 0 to 1; a row without labels counts as 1.
    log_loss : Estimate
        Mean over labels, in nats.
    ece : Estimate
        Expected calibration error of the probabilities of all labels, 0 to 1.
    """

    n: int
    micro_f1: Estimate
    macro_f1: Estimate
    subset_accuracy: Estimate
    ranking_precision: Estimate
    log_loss: Estimate
    ece: Estimate

    @property
    def headline(self) -> Estimate:
        """The one figure that pipelines are compared by."""
        return self.micro_f1


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy (or micro-F1) of a minus that of b on the same rows, as a share from -1 to 1.

    ``low`` and ``high`` are the 95% interval; ``p_value`` is two-sided for "no difference".
    """

    difference: float
    low: float
    high: float
    p_value: float


def check_class_rows(
    y: npt.ArrayLike, values: npt.ArrayLike, name: str = "values"
) -> tuple[Ints, Floats]:
    """Check class indices (n,) against the rows of a table (n, n_classes).

    Parameters
    ----------
    y : array-like of shape (n,)
        Class indices, columns of ``values``.
    values : array-like of shape (n, n_classes)
        Such as probabilities.
    name : str
        What messages call ``values``.

    Returns
    -------
    labels, table : ndarray of int64 and of float64
        Both converted.

    Raises
    ------
    DataError
        For no rows, other shapes, fewer than two columns, labels that are not integers from 0
        to n_classes - 1, or values that are not finite.
    """
    labels, table = np.asarray(y), np.asarray(values, dtype=np.float64)
    if labels.ndim != 1 or table.ndim != 2 or len(labels) != len(table) or table.shape[1] < 2:
        raise DataError(
            f"Got labels of shape {labels.shape} and {name} of shape {table.shape}. Expected "
            f"(n,) and (n, n_classes) with the same n; two classes take two columns."
        )
    if not len(labels):
        raise DataError(f"Got labels and {name} of no rows. Give at least one.")
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"Labels are {labels.dtype}, not integers. Give class indices: the column of "
            f"{name} that is each row's class."
        )
    n_classes = table.shape[1]
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(
            f"Labels run from {labels.min()} to {labels.max()}, but {name} of shape "
            f"{table.shape} has columns 0 to {n_classes - 1} only."
        )
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(axis=1))[0])
        raise DataError(f"Row {row} of {name} holds a NaN or an infinity. Give finite numbers.")
    return labels.astype(np.int64), table


def evaluate_predictions(
    y_true: npt.ArrayLike, proba: npt.ArrayLike, *, n_resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Accuracy, macro-F1, log loss and calibration error with 95% intervals.

    Values are scikit-learn's: macro-F1 is averaged over the classes that are labels or
    predictions of some row (``zero_division=0``), log loss clips probabilities at 2.2e-16.
    Accuracy's interval is Wilson's score interval (1927), which stays valid near 100%. The
    others come from resampled rows (Efron, 1979): percentiles for macro-F1 and log loss, where
    a class that a resample misses altogether drops out of that resample's mean; percentiles
    reflected at the value for ECE, whose resamples are biased upwards as the value itself is.
    They always include the value. ECE's interval is the least exact of the four: for a nearly
    perfectly calibrated model it covers the truth less often than 95%.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Class indices, columns of ``proba``.
    proba : array-like of shape (n, n_classes)
        Probabilities, rows summing to 1; the prediction is the first maximum.
    n_resamples : int
        How many times the n rows are drawn again with replacement.
    seed : int
        For the draws.

    Raises
    ------
    DataError
        For arrays that do not fit together or rows that are not probabilities.
    ConfigError
        For ``n_resamples`` below 1.

    Examples
    --------
    >>> measured = evaluate_predictions([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> round(measured.accuracy.value, 2), round(measured.accuracy.low, 2)
    (0.67, 0.21)
    """
    from sklearn.metrics import f1_score

    _check_at_least_one(n_resamples, "n_resamples")
    labels, table = _check_probabilities(y_true, proba)
    n = len(table)
    predicted = table.argmax(axis=1)

    draws = _resample(labels, table, n_resamples, seed)
    f1 = float(f1_score(labels, predicted, average="macro", zero_division=0))
    loss = float(_losses(labels, table).mean())
    ece = _binned_gap(labels, table, _ECE_BINS)
    ece_low, ece_high = np.clip(2 * ece - np.quantile(draws[:, 2], _QUANTILES)[::-1], 0, 1)
    return Evaluation(
        n=n,
        accuracy=share_interval(int((predicted == labels).sum()), n),
        macro_f1=percentile_interval(f1, draws[:, 0]),
        log_loss=percentile_interval(loss, draws[:, 1]),
        ece=_enclosing(ece, ece_low, ece_high),
    )


def share_interval(hits: int, n: int) -> Estimate:
    """``hits`` of ``n`` as a share, with Wilson's 95% score interval (1927)."""
    from scipy.stats import binomtest

    wilson = binomtest(hits, n).proportion_ci(confidence_level=_CONFIDENCE, method="wilson")
    return _enclosing(hits / n, wilson.low, wilson.high)


def expected_calibration_error(
    y_true: npt.ArrayLike, proba: npt.ArrayLike, n_bins: int = _ECE_BINS
) -> float:
    """Mean distance between confidence and accuracy, a share from 0 to 1.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equations 2 to 5: rows
    fall into ``n_bins`` bins of equal width, closed above, by the largest probability;
    ``sum over bins of |rows in bin| / n * |accuracy - mean confidence|``. It is 0 for perfect
    calibration only in the limit: few rows per bin raise it.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Class indices, columns of ``proba``.
    proba : array-like of shape (n, n_classes)
        Probabilities, rows summing to 1.
    n_bins : int
        Number of bins.

    Raises
    ------
    DataError
        For arrays that do not fit together or rows that are not probabilities.
    ConfigError
        For ``n_bins`` below 1.
    """
    _check_at_least_one(n_bins, "n_bins")
    return _binned_gap(*_check_probabilities(y_true, proba), n_bins)


def paired_difference(
    correct_a: npt.ArrayLike,
    correct_b: npt.ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two classifiers on the same rows: accuracy of a minus accuracy of b.

    The interval is the 95% percentile interval of resampled pairs (Efron, 1979); a pair's
    difference is -1, 0 or 1, so that resampling n pairs is one multinomial draw. The p-value is
    McNemar's test (1947) in its exact binomial form on the rows where only one of them is
    right. Where there is no such row the difference and interval are 0 and the p-value is 1:
    nothing was measured, which is no proof of equality.

    Parameters
    ----------
    correct_a, correct_b : array-like of bool, shape (n,)
        Whether each row's prediction is right.
    n_resamples : int
        How many times the n pairs are drawn again with replacement.
    seed : int
        For the draws.

    Raises
    ------
    DataError
        For arrays that are not bool, not of one shape (n,), or empty.
    ConfigError
        For ``n_resamples`` below 1.
    """
    from scipy.stats import binomtest

    _check_at_least_one(n_resamples, "n_resamples")
    a, b = check_correct_pair(correct_a, correct_b)
    n, only_a, only_b = a.size, int((a & ~b).sum()), int((b & ~a).sum())
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=n_resamples)
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0
    interval = percentile_interval((only_a - only_b) / n, (draws[:, 0] - draws[:, 1]) / n)
    return PairedDifference(interval.value, interval.low, interval.high, p_value)


def evaluate_label_sets(
    truth: npt.ArrayLike,
    proba: npt.ArrayLike,
    decisions: npt.ArrayLike,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> LabelSetEvaluation:
    """Metrics of rows that have any number of labels, with 95% intervals.

    F1, label ranking average precision and log loss are scikit-learn's, but for the labels that
    macro-F1 averages over (`LabelSetEvaluation`). Intervals come from resampled rows as those of
    `evaluate_predictions`; that of subset accuracy is Wilson's.

    Parameters
    ----------
    truth, decisions : array-like of bool of shape (n, n_labels)
        Whether each row has each label, and is predicted to.
    proba : array-like of shape (n, n_labels)
        Probabilities, each from 0 to 1.
    n_resamples : int
        How many times the n rows are drawn again with replacement.
    seed : int
        For the draws.

    Raises
    ------
    DataError
        For arrays of other shapes, no rows, or values outside of 0 to 1.
    ConfigError
        For ``n_resamples`` below 1.
    """
    _check_at_least_one(n_resamples, "n_resamples")
    members, found = np.asarray(truth, dtype=bool), np.asarray(decisions, dtype=bool)
    table = np.asarray(proba, dtype=np.float64)
    if members.ndim != 2 or not len(members) or not members.shape == found.shape == table.shape:
        raise DataError(
            f"Got labels of shape {members.shape}, decisions of shape {found.shape} and proba of "
            f"shape {table.shape}. Expected all to be (n, n_labels), with at least one row."
        )
    if not ((table >= 0) & (table <= 1)).all():
        raise DataError("proba holds values that are not probabilities. Expected 0 to 1.")
    n, k = members.shape
    clipped = np.clip(table, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    loss = -np.log(np.where(members, clipped, 1 - clipped)).mean(axis=1)
    exact = (members == found).all(axis=1)
    edges = np.linspace(0, 1, _ECE_BINS + 1)[1:-1]
    bins = np.digitize(table, edges, right=True) + _ECE_BINS * np.arange(n)[:, None]
    gaps = np.bincount(bins.ravel(), (table - members).ravel(), n * _ECE_BINS)
    columns = np.column_stack(
        [members & found, members, found, _ranking_precision(members, table), loss]
    )
    sums = np.column_stack([columns, gaps.reshape(n, _ECE_BINS)])
    draws = np.stack([_label_set_figures(own, k, n) for own in _redraw(sums, n_resamples, seed)])
    values = _label_set_figures(sums.sum(axis=0), k, n)
    low, high = np.quantile(draws, _QUANTILES, axis=0)
    low[-1], high[-1] = np.clip(2 * values[-1] - np.array([high[-1], low[-1]]), 0, 1)
    micro, macro, ranking, loss_of_all, ece = (
        _enclosing(float(value), *ends) for value, *ends in zip(values, low, high, strict=True)
    )
    accuracy = share_interval(int(exact.sum()), n)
    return LabelSetEvaluation(n, micro, macro, accuracy, ranking, loss_of_all, ece)


def _label_set_figures(sums: Floats, k: int, n: int) -> Floats:
    """Micro-F1, macro-F1, ranking precision, log loss and ECE from sums over n rows."""
    hits, either = sums[:k], sums[k : 2 * k] + sums[2 * k : 3 * k]
    macro = (2 * hits / np.maximum(either, 1)).sum() / max(1, np.count_nonzero(either))
    micro = 2 * hits.sum() / max(1, either.sum())
    ece = np.abs(sums[3 * k + 2 :]).sum() / (n * k)
    return np.array([micro, macro, *(sums[3 * k : 3 * k + 2] / n), ece])


def _redraw(sums: Floats, n_resamples: int, seed: int) -> Floats:
    """Sums over rows (n, columns) of each resample of the rows, (n_resamples, columns)."""
    rng, n = np.random.default_rng(seed), len(sums)
    counts = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(n_resamples))
    return np.stack([count @ sums for count in counts])


def _ranking_precision(members: npt.NDArray[np.bool_], scores: Floats) -> Floats:
    """Label ranking average precision of each row, (n,)."""
    from scipy.stats import rankdata

    among_all = rankdata(-scores, method="max", axis=1)
    among_own = rankdata(np.where(members, -scores, np.inf), method="max", axis=1)
    share, count = np.where(members, among_own / among_all, 0.0), members.sum(axis=1)
    return np.asarray(np.where(count > 0, share.sum(axis=1) / np.maximum(count, 1), 1.0))


def best_f1_thresholds(truth: npt.NDArray[np.bool_], scores: npt.ArrayLike) -> Floats:
    """For each label the score from which rows have it, by the highest F1; (n_labels,).

    The threshold lies halfway to the next lower score. A label that no row has is never given.

    Parameters
    ----------
    truth : ndarray of bool of shape (n, n_labels)
    scores : array-like of shape (n, n_labels)

    Examples
    --------
    >>> best_f1_thresholds(np.array([[True], [True], [False]]), [[0.9], [0.4], [0.2]]).round(2)
    array([0.3])
    """
    table = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-table, axis=0, kind="stable")
    falling = np.take_along_axis(table, order, axis=0)
    hits = np.take_along_axis(truth, order, axis=0).cumsum(axis=0)
    f1 = 2 * hits / (np.arange(1, len(table) + 1)[:, None] + truth.sum(axis=0))
    f1[:-1][falling[:-1] == falling[1:]] = -1.0  # rows of one score have the label together
    best, labels = f1.argmax(axis=0), np.arange(table.shape[1])
    lowest = falling[best, labels]
    below = falling[np.minimum(best + 1, len(table) - 1), labels]
    return np.asarray(np.where(truth.any(axis=0), (lowest + below) / 2, falling[0] + 1.0))


def paired_f1_difference(
    truth: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two sets of decisions on the same rows: micro-F1 of a minus micro-F1 of b.

    Interval and two-sided p-value come from resampled rows (Efron, 1979).

    Parameters
    ----------
    truth, a, b : array-like of bool of shape (n, n_labels)
    n_resamples : int
        How many times the n rows are drawn again with replacement.
    seed : int
        For the draws.
    """
    _check_at_least_one(n_resamples, "n_resamples")
    members, one, other = (np.asarray(table, dtype=bool) for table in (truth, a, b))
    tables = (members & one, members & other, one, other, members)
    sums = np.column_stack([table.sum(axis=1) for table in tables])

    def difference(own: Floats) -> Floats:
        hits, others, found, found_too, there = own.T
        return np.asarray(
            2 * hits / np.maximum(found + there, 1) - 2 * others / np.maximum(found_too + there, 1)
        )

    draws = difference(_redraw(sums, n_resamples, seed))
    value = float(difference(sums.sum(axis=0)))
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    interval = percentile_interval(value, draws)
    p_value = min(1.0, 2 * (float(tail) + 1) / (n_resamples + 1))
    return PairedDifference(interval.value, interval.low, interval.high, p_value)


def check_correct_pair(
    correct_a: npt.ArrayLike, correct_b: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Check that both say for the same rows (n,) whether a prediction is right.

    Raises
    ------
    DataError
        For arrays that are not bool, not of one shape (n,), or empty.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise DataError(
            f"Got correct_a of shape {a.shape} and correct_b of shape {b.shape}. Expected both "
            f"to be (n,) over the same rows, with at least one row."
        )
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        raise DataError(
            f"Got correct_a of {a.dtype} and correct_b of {b.dtype}. Expected bool: whether "
            f"each prediction is right, as in (predicted == y_true)."
        )
    return a, b


def percentile_interval(value: float, draws: npt.NDArray[np.floating]) -> Estimate:
    """A number with the 95% percentile interval of its resamples (Efron, 1979)."""
    return _enclosing(float(value), *np.quantile(draws, _QUANTILES))


def _enclosing(value: float, low: float, high: float) -> Estimate:
    """Widen an interval where resampling bias (or rounding) left the value outside."""
    return Estimate(value, min(float(low), value), max(float(high), value))


def _resample(labels: Ints, table: Floats, n_resamples: int, seed: int) -> Floats:
    """Macro-F1, log loss and ECE of each resample: (n_resamples, 3).

    All three follow from sums over rows, so one sparse matrix (sums, n) times the number of
    times that each row was drawn, in columns, gives resamples in one pass, with O(n) memory.
    """
    from scipy.sparse import csr_array

    n, c = table.shape
    rows, predicted = np.arange(n), table.argmax(axis=1)
    bins, gaps = _calibration_gaps(labels, table, _ECE_BINS)
    right = rows[predicted == labels]
    where = np.concatenate(
        [labels, c + predicted, 2 * c + labels[right], np.full(n, 3 * c), 3 * c + 1 + bins],
        dtype=np.int32,
    )
    columns = np.concatenate([rows, rows, right, rows, rows], dtype=np.int32)
    data = np.concatenate([np.ones(2 * n + len(right)), _losses(labels, table), gaps])
    summing = csr_array((data, (where, columns)), shape=(3 * c + 1 + _ECE_BINS, n))

    rng = np.random.default_rng(seed)
    together = max(1, _DRAWN // n)
    parts = []
    for start in range(0, n_resamples, together):
        k = min(together, n_resamples - start)
        drawn = rng.integers(n, size=(k, n)) + n * np.arange(k)[:, None]
        parts.append(summing @ np.bincount(drawn.ravel(), minlength=k * n).reshape(k, n).T)
    sums = np.ascontiguousarray(np.concatenate(parts, axis=1).T)

    in_either = sums[:, :c] + sums[:, c : 2 * c]
    f1 = 2 * sums[:, 2 * c : 3 * c] / np.maximum(in_either, 1)  # absent: 0 / 1, not counted below
    macro_f1 = f1.sum(axis=1) / (in_either > 0).sum(axis=1)
    ece = np.abs(sums[:, 3 * c + 1 :]).sum(axis=1) / n
    return np.stack([macro_f1, sums[:, 3 * c] / n, ece], axis=1)


def _losses(labels: Ints, table: Floats) -> Floats:
    """The log loss of each row (n,); scikit-learn's takes memory for five tables."""
    chosen = table[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(chosen, np.finfo(np.float64).eps, 1.0)))


def _binned_gap(labels: Ints, table: Floats, n_bins: int) -> float:
    bins, gaps = _calibration_gaps(labels, table, n_bins)
    return float(np.abs(np.bincount(bins, weights=gaps, minlength=n_bins)).sum() / len(gaps))


def _calibration_gaps(labels: Ints, table: Floats, n_bins: int) -> tuple[Ints, Floats]:
    """Each row's confidence bin (n,) and its confidence minus 1 if right (n,)."""
    confidence = table.max(axis=1)
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    return bins.astype(np.int64), confidence - (table.argmax(1) == labels)


def _check_probabilities(y_true: npt.ArrayLike, proba: npt.ArrayLike) -> tuple[Ints, Floats]:
    labels, table = check_class_rows(y_true, proba, "proba")
    sums = table.sum(axis=1)
    wrong = (np.abs(sums - 1) > _SUM_TOLERANCE) | (table.min(axis=1) < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{int(wrong.sum())} of {len(table)} rows of proba are not probabilities: row {row} "
            f"sums to {sums[row]:.6g} and its lowest value is {table[row].min():.6g}. Expected "
            f"values from 0 to 1 that sum to 1; take the softmax of logits first."
        )
    return labels, table / sums[:, None]


def _check_at_least_one(value: int, name: str) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value!r} is too small. Give 1 or more.")
