"""The pipeline beside each baseline, on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.evaluation.baselines import Baseline
from layerfuse.metrics import PairedDifference, evaluate_predictions, paired_difference
from layerfuse.resources import EncoderCost, PipelineCost, pipeline_cost

__all__ = ["Comparison", "Rows", "blocks_of", "compare_baselines", "label_of"]

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Rows:
    """Class indices (n,) of some rows, and the pipeline's predictions for them."""

    truth: Labels
    predicted: Labels
    n_classes: int
    seed: int

    def measure(self, predicted: Labels) -> dict[str, Any]:
        """Accuracy with its 95 % interval and macro-F1 of class indices (n,)."""
        measured = evaluate_predictions(
            self.truth, np.eye(self.n_classes)[predicted], seed=self.seed
        )
        return {
            "accuracy": measured.accuracy.value,
            "macro_f1": measured.macro_f1.value,
            "ci95": [measured.accuracy.low, measured.accuracy.high],
        }

    def minus(self, predicted: Labels) -> PairedDifference:
        """The pipeline's accuracy minus that of other predictions (n,)."""
        return paired_difference(
            self.predicted == self.truth, predicted == self.truth, seed=self.seed
        )


@dataclass(frozen=True)
class Comparison:
    """The pipeline against one baseline.

    ``measured`` and ``gain`` (the pipeline's accuracy minus the baseline's) go by ``"cv"`` (nested
    out-of-fold predictions of training rows) and ``"test"``; ``cost`` is None where no encoder is
    read.
    """

    baseline: Baseline
    measured: Mapping[str, Mapping[str, Any]]
    gain: Mapping[str, PairedDifference]
    cost: PipelineCost | None

    def to_dict(self) -> dict[str, Any]:
        plan = self.baseline.plan
        return {
            "name": self.baseline.name,
            **({"encoder": self.baseline.encoder} if self.baseline.encoder else {}),
            "blocks": [] if plan is None else [str(block) for block in plan.blocks],
            **self.measured,
            "pipeline_minus_baseline": {name: gain.to_dict() for name, gain in self.gain.items()},
            "cost": None if self.cost is None else self.cost.to_dict(),
        }


def compare_baselines(
    baselines: Sequence[Baseline],
    cv: Rows,
    test: Rows | None,
    costs: Mapping[str, EncoderCost],
) -> list[Comparison]:
    """Measure the pipeline against each baseline on the same rows.

    Parameters
    ----------
    baselines
        From `run_baselines`.
    cv, test
        Measured training rows with nested predictions, and test rows if there are any.
    costs
        What reading each encoder costs, by its name.
    """
    found = []
    for baseline in baselines:
        guesses = {"cv": (cv, baseline.out_of_fold)}
        if test is not None and baseline.predicted is not None:
            guesses["test"] = (test, baseline.predicted)
        found.append(
            Comparison(
                baseline,
                {name: rows.measure(guess) for name, (rows, guess) in guesses.items()},
                {name: rows.minus(guess) for name, (rows, guess) in guesses.items()},
                None if baseline.plan is None else pipeline_cost(baseline.plan.blocks, costs),
            )
        )
    return found


def label_of(item: Comparison) -> str:
    """The baseline's name, with its encoder where each encoder has one of that name."""
    own = item.baseline
    several = own.encoder is not None and own.name.startswith("last")
    return f"{own.name} ({own.encoder})" if several else own.name


def blocks_of(item: Comparison) -> tuple[BlockRef, ...]:
    return () if item.baseline.plan is None else item.baseline.plan.blocks
