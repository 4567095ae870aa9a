"""How well each measure of two blocks ranks pairs by the gain from fusing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.complementarity import MEASURES
from layerfuse.study.predictors import OUTCOMES, Pairs

__all__ = ["Correlations", "correlate", "spearman", "summarise", "top_picks"]

Floats = npt.NDArray[Any]

Correlations = dict[str, dict[str, dict[str, tuple[float, Floats]]]]
"""By group, outcome and predictor: the correlation, and that of each resample (n_resamples,)."""


def correlate(pairs: Pairs, n_resamples: int = 500, seed: int = 0) -> Correlations:
    """Spearman's rank correlation of each predictor with each outcome.

    Pairs that share a block are not independent, so blocks are drawn again with replacement and a
    pair counts as often as both of its blocks together (of the pairs with the best block: as often
    as the other block). How the rows were parted is not drawn again.
    """
    random = np.random.default_rng(seed)
    n = len(pairs.blocks)
    draws = [np.bincount(random.integers(n, size=n), minlength=n) for _ in range(n_resamples)]
    found: Correlations = {}
    for group, mask in pairs.groups().items():
        kept = np.flatnonzero(mask)
        rows = [kept]
        for times in draws:
            counts = times.copy()
            if group == "with the best block":
                counts[pairs.best] = 1
            rows.append(np.repeat(kept, counts[pairs.members[kept]].prod(axis=1)))
        found[group] = {
            outcome: {name: (0.0, np.empty(0)) for name in MEASURES} for outcome in OUTCOMES
        }
        for outcome in OUTCOMES:
            for name in MEASURES:
                values = [
                    spearman(pairs.predictors[name][part], pairs.realised[outcome][part])
                    for part in rows
                ]
                found[group][outcome][name] = (values[0], np.array(values[1:]))
    return found


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation of two arrays (n,); 0 where one of them is constant or empty."""
    from scipy.stats import rankdata

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def summarise(sets: list[Correlations]) -> dict[str, Any]:
    """The median over data sets and its 95 % interval over resamples; of one set its own."""
    return {
        group: {
            outcome: {
                name: _estimate([found[group][outcome][name] for found in sets])
                for name in MEASURES
            }
            for outcome in OUTCOMES
        }
        for group in sets[0]
    }


def _estimate(values: list[tuple[float, Floats]]) -> dict[str, float]:
    resampled = np.median([resamples for _, resamples in values], axis=0)
    low, high = np.quantile(resampled, (0.025, 0.975))
    value = float(np.median([value for value, _ in values]))
    return {"value": value, "low": float(low), "high": float(high)}


def top_picks(pairs: Pairs) -> dict[str, Any]:
    """What the pair that each predictor puts first brought on B, beside the most there was."""
    return {
        group: {
            outcome: {
                **{
                    name: float(pairs.realised[outcome][mask][values[mask].argmax()])
                    for name, values in pairs.predictors.items()
                },
                "most": float(pairs.realised[outcome][mask].max()),
            }
            for outcome in OUTCOMES
        }
        for group, mask in pairs.groups().items()
        if mask.any()
    }
