"""The pipeline and each baseline, measured on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from layerfuse.blocks import BlockRef
from layerfuse.evaluation.baselines import Baseline
from layerfuse.metrics import Estimate, PairedDifference, paired_difference
from layerfuse.resources import EncoderCost, PipelineCost, pipeline_cost
from layerfuse.targets import Decisions, Targets


@dataclass(frozen=True)
class Score:
    """Accuracy with its 95% interval and macro-F1, as shares from 0 to 1."""

    accuracy: Estimate
    macro_f1: float


@dataclass(frozen=True)
class BaselineScore(Score):
    """A baseline's score; ``gain`` is the pipeline's accuracy minus the baseline's."""

    gain: PairedDifference


@dataclass(frozen=True)
class Rows:
    """Some rows and the pipeline's decisions for them.

    Attributes
    ----------
    targets : Targets
        Of n rows.
    decisions : ndarray of shape (n,)
        As `LabelSpace.decide` gives them.
    seed : int
        For the intervals.
    """

    targets: Targets
    decisions: Decisions
    seed: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def score(self) -> Score:
        """The pipeline's."""
        return self._score(self.decisions)

    def compare(self, decisions: Decisions) -> BaselineScore:
        """The score of a baseline's decisions (n,)."""
        own = self._score(decisions)
        correct, others = map(self.targets.correct, (self.decisions, decisions))
        gain = paired_difference(correct, others, seed=self.seed)
        return BaselineScore(own.accuracy, own.macro_f1, gain)

    def _score(self, decisions: Decisions) -> Score:
        certain = Targets(self.targets.space, decisions).matrix
        measured = self.targets.evaluate(certain, seed=self.seed)
        return Score(measured.accuracy, measured.macro_f1.value)


@dataclass(frozen=True)
class BaselineComparison:
    """The pipeline against one baseline.

    Attributes
    ----------
    baseline : Baseline
        With its predictions.
    cv : BaselineScore
        By nested out-of-fold predictions of training rows.
    test : BaselineScore or None
        On test rows, if there are any.
    cost : PipelineCost or None
        None where no encoder is read.
    """

    baseline: Baseline
    cv: BaselineScore
    test: BaselineScore | None
    cost: PipelineCost | None

    @property
    def blocks(self) -> tuple[BlockRef, ...]:
        """The blocks that the baseline reads."""
        return () if self.baseline.plan is None else self.baseline.plan.blocks

    @property
    def label(self) -> str:
        """The baseline's name, with its encoder where each encoder has one of that name."""
        name, encoder = self.baseline.name, self.baseline.encoder
        return f"{name} ({encoder})" if encoder and name.startswith("last") else name

    def on(self, rows: str) -> BaselineScore:
        """The score on ``"test"`` rows, or by ``"cv"``."""
        return self.cv if rows == "cv" or self.test is None else self.test


def compare_baselines(
    baselines: Sequence[Baseline],
    cv: Rows,
    test: Rows | None,
    costs: Mapping[str, EncoderCost],
) -> list[BaselineComparison]:
    """Measure the pipeline against each baseline on the same rows.

    Parameters
    ----------
    baselines : sequence of Baseline
        From `run_baselines`.
    cv, test : Rows
        Training rows with nested predictions, and test rows if there are any.
    costs : mapping of str to EncoderCost
        By each encoder's name.
    """
    return [
        BaselineComparison(
            baseline,
            cv.compare(baseline.out_of_fold),
            None
            if test is None or baseline.predicted is None
            else test.compare(baseline.predicted),
            None if baseline.plan is None else pipeline_cost(baseline.plan.blocks, costs),
        )
        for baseline in baselines
    ]
