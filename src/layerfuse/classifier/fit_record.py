"""What a fit knows about its training rows: baselines, out-of-fold predictions, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from layerfuse.evaluation.baselines import Baseline, TrainingRows, run_baselines
from layerfuse.evaluation.nested import NestedSearch, TrainingSample
from layerfuse.evaluation.verdict import GeneralizationGap, Rows, Verdict, judge, measure_gap
from layerfuse.neighbors import TrainingExamples
from layerfuse.pipeline import Blocks, FusedModel
from layerfuse.progress import Reporter
from layerfuse.resources import EncoderCost
from layerfuse.targets import Decisions


@dataclass(frozen=True, eq=False)
class FitRecord:
    """Training rows of a fit, and what was predicted for them out of fold.

    Attributes
    ----------
    training : TrainingRows
        The n rows that were learned from: ``texts``, ``targets``, ``blocks``, and ``sample``,
        the numbers of those that blocks were scored and selected on.
    rows : ndarray of int of shape (n,)
        Their row numbers among those given to ``fit``.
    sample : TrainingSample
        Blocks, targets, scores and search of the sample.
    search : NestedSearch
        What the search found on the sample, and in each of its folds: ``result``, ``folds``.
    proba : ndarray of float of shape (n_sample, n_classes)
        Nested out-of-fold probabilities of the pipeline.
    decisions : ndarray of shape (n_sample,) or (n_sample, n_labels)
        What is decided by them.
    costs : mapping of str to EncoderCost
        By encoder.
    seed : int
        Seed of folds and samples.
    reporter : Reporter
        Receives progress.
    """

    training: TrainingRows
    rows: npt.NDArray[np.intp]
    sample: TrainingSample
    search: NestedSearch
    proba: npt.NDArray[np.float64]
    decisions: Decisions
    costs: Mapping[str, EncoderCost]
    seed: int
    reporter: Reporter

    @property
    def sample_rows(self) -> npt.NDArray[np.intp]:
        """Row numbers (n_sample,) of the sample among the rows given to ``fit``."""
        return self.rows[self.training.sample]

    def run_baselines(
        self, X_test: Sequence[str] | None = None, blocks_test: Blocks | None = None
    ) -> list[Baseline]:
        """Predictions of every baseline.

        With more than ``sample_size`` rows, baselines on blocks that were read for the sample alone
        are trained on the sample.

        Parameters
        ----------
        X_test : sequence of str, optional
            Test texts.
        blocks_test : mapping from BlockRef to ndarray, optional
            Their candidate blocks, from `LayerFusionClassifier.extract`.

        Returns
        -------
        list of Baseline
            Out-of-fold predictions for the sample, and predictions for test texts if given.
        """
        return run_baselines(
            self.sample,
            self.search,
            self.training,
            test=None if X_test is None or blocks_test is None else (X_test, blocks_test),
            reporter=self.reporter,
        )

    def judge(self, baselines: Sequence[Baseline], test: Rows | None = None) -> Verdict:
        """What the pipeline gains over the baselines.

        Parameters
        ----------
        baselines : sequence of Baseline
            From `run_baselines`.
        test : Rows, optional
            Test rows, to compare on beside nested out-of-fold predictions.
        """
        return judge(
            baselines,
            self.measured,
            test,
            self.search.result.plan,
            self.sample.probed.scores,
            self.costs,
            self.search.result.selection.reason,
        )

    @property
    def measured(self) -> Rows:
        """The sample's targets and the pipeline's nested decisions."""
        targets = self.sample.targets
        return Rows(targets, self.decisions, self.seed)

    def measure_gap(self, test: Rows, blocks_test: Blocks) -> GeneralizationGap:
        """Compare test rows, and the pipeline's blocks of them, with the sample."""
        axes, used = self.sample.probed.axes, self.search.result.plan.blocks
        known = self.sample.coordinates(used)
        pairs = [(known[block], axes[block].transform(blocks_test[block])) for block in used]
        return measure_gap(self.measured, test, pairs)

    def examples(self, model: FusedModel) -> TrainingExamples:
        """The sample's texts in the fused space of the trained model."""
        texts = tuple(self.training.texts[row] for row in self.training.sample)
        features = model.features(self.sample.blocks).astype(np.float16)
        return TrainingExamples(texts, self.sample.targets.codes, features)

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict by nested out-of-fold predictions; baselines run when it is first read."""
        return self.judge(self.run_baselines())
