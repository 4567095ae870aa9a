"""A learning curve: its points with their intervals, and what can be read from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.metrics import Estimate
from layerfuse.pipeline import Plan

__all__ = [
    "WAYS",
    "CurvePoint",
    "Draw",
    "LearningCurve",
    "Plans",
    "Result",
    "measure_point",
    "weigh_test_rows",
]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Plans: TypeAlias = Mapping[str, Plan]

WAYS = ("last_layer", "best_block", "fusion")
"""What is compared at each share."""

Result: TypeAlias = tuple[Plans, Mapping[str, Labels]]
"""For each way its plan, and the classes (n_test,) that it predicts."""

_RESAMPLES, _PART = 2000, 100
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Draw:
    """One draw of labelled rows: what was trained on it, and how good that is.

    ``plans`` and ``accuracy`` (shares from 0 to 1 of the test rows) go by the names in `WAYS`.
    """

    repeat: int
    plans: Mapping[str, Plan]
    accuracy: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        ways = {
            name: {
                "accuracy": self.accuracy[name],
                "blocks": [str(block) for block in plan.blocks],
                "fusion": plan.fusion,
                "head": plan.head,
            }
            for name, plan in self.plans.items()
        }
        return {"repeat": self.repeat, **ways}


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with ``n_rows`` labels, ``share`` (0 to 1) of all.

    The accuracies are means over draws, ``gain`` is fusion minus last layer on the same draws and
    test rows; see `learning_curve` for what the intervals cover.
    """

    share: float
    n_rows: int
    last_layer: Estimate
    best_block: Estimate
    fusion: Estimate
    gain: Estimate
    draws: tuple[Draw, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "share": self.share,
            "n_rows": self.n_rows,
            "repeats": len(self.draws),
            **{name: getattr(self, name).to_dict() for name in (*WAYS, "gain")},
            "draws": [draw.to_dict() for draw in self.draws],
        }


@dataclass(frozen=True)
class LearningCurve:
    """Points by rising number of labels, measured on ``n_test`` rows; ``n_train`` is all labels."""

    points: tuple[CurvePoint, ...]
    n_train: int
    n_test: int

    @property
    def largest_gain(self) -> CurvePoint:
        """Where fusion gains most over the last layer; the largest of several is optimistic."""
        return max(self.points, key=lambda point: point.gain.value)

    @property
    def rows_to_match(self) -> float | None:
        """Labels with which fusion first reaches what the last layer reaches with the most labels.

        Between two points accuracy is taken to grow linearly in the logarithm of the number of
        labels. The first point's number stands for itself or fewer; None when it is never reached.
        """
        target = self.points[-1].last_layer.value
        if self.points[0].fusion.value >= target:
            return float(self.points[0].n_rows)
        for below, above in pairwise(self.points):
            low, high = below.fusion.value, above.fusion.value
            if high >= target:
                part = (target - low) / (high - low)
                return float(below.n_rows * (above.n_rows / below.n_rows) ** part)
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "n_train": self.n_train,
            "n_test": self.n_test,
            "rows_to_match": self.rows_to_match,
            "largest_gain_rows": self.largest_gain.n_rows,
            "points": [point.to_dict() for point in self.points],
        }


def weigh_test_rows(n_test: int, seed: int) -> Iterator[Floats]:
    """How often each test row is drawn in each resample, in parts of (part, n_test)."""
    random = np.random.default_rng(seed)
    for _ in range(_RESAMPLES // _PART):
        yield random.multinomial(n_test, np.full(n_test, 1 / n_test), _PART).astype(np.float32)


def measure_point(
    share: float,
    n_rows: int,
    results: Sequence[Result],
    truth: Labels,
    weights: Sequence[Floats],
    seed: int,
) -> CurvePoint:
    """``results`` holds plans and predictions of each draw."""
    correct = np.array([[guess[way] == truth for way in WAYS] for _, guess in results])
    count, _, n_test = correct.shape
    rows = correct.reshape(-1, n_test).astype(np.float32)
    resampled = np.concatenate([rows @ part.T for part in weights], axis=1) / n_test
    # The same repeats for every way, drawn beside the test rows.
    random = np.random.default_rng([seed, n_rows])
    repeats = random.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
    means = np.einsum("rwb,br->wb", resampled.reshape(count, len(WAYS), -1), repeats)
    accuracy = correct.mean(axis=2)  # (repeats, ways)
    values = accuracy.mean(axis=0)
    return CurvePoint(
        share=share,
        n_rows=n_rows,
        last_layer=_estimate(values[0], means[0]),
        best_block=_estimate(values[1], means[1]),
        fusion=_estimate(values[2], means[2]),
        gain=_estimate(values[2] - values[0], means[2] - means[0]),
        draws=tuple(
            Draw(repeat, plans, dict(zip(WAYS, accuracy[repeat].tolist(), strict=True)))
            for repeat, (plans, _) in enumerate(results)
        ),
    )


def _estimate(value: float, resampled: npt.NDArray[np.floating]) -> Estimate:
    low, high = np.quantile(resampled, _QUANTILES)
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
