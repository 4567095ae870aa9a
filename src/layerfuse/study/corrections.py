"""Corrections for many comparisons, and what several seeds say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ALPHA", "holm", "over_seeds", "verdict_of"]

ALPHA = 0.05
"""Below this, a corrected p-value counts as a difference."""


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979).

    Parameters
    ----------
    p_values : (m,) from 0 to 1, of the m comparisons of one family

    Returns
    -------
    (m,) corrected p-values, in the order given: the largest of ``(m - k) p_(k)`` over the k-th
    smallest p-values (k from 0) up to one's own, at most 1. Rejecting those below a level keeps
    the chance of any false rejection below it, whatever the dependence.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected


def over_seeds(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Differences or estimates of several seeds as one.

    The value is the mean over seeds. The interval is the mean of the seeds' intervals: it is no
    narrower than that of the mean value, since averages vary no more than what is averaged. The
    p-value, where there is one, is twice the median of the seeds' (at most 1; Meinshausen, Meier
    and Bühlmann, Journal of the American Statistical Association, 2009), or a single seed's own.
    ``sd`` is the standard deviation of the values over seeds, None for one seed.
    """
    key = "difference" if "difference" in found[0] else "value"
    values = [entry[key] for entry in found]
    result: dict[str, Any] = {
        key: fmean(values),
        "low": fmean(entry["low"] for entry in found),
        "high": fmean(entry["high"] for entry in found),
        "sd": stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }
    if "p_value" in found[0]:
        middle = median(entry["p_value"] for entry in found)
        result["p_value"] = middle if len(found) == 1 else min(1.0, 2 * middle)
    return result


def verdict_of(difference: float, p_corrected: float) -> str:
    """``"better"``, ``"worse"`` or ``"unclear"`` of one corrected comparison."""
    if p_corrected >= ALPHA or difference == 0:
        return "unclear"
    return "better" if difference > 0 else "worse"
