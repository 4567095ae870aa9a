"""What a fitted classifier says of its training rows, and whether it was worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import NotFittedError

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.embeddings.extraction import Gathered
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import GoneError
from layerfuse.evaluation import Rows, Verdict, judge
from layerfuse.evaluation.baselines import Baseline, TrainingRows, run_baselines
from layerfuse.evaluation.nested import Folds, OutOfFold, TrainingSample
from layerfuse.model_selection import SearchResult
from layerfuse.pipeline import Blocks, Plan
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import EncoderCost
from layerfuse.targets import LabelSpace, Targets

__all__ = ["FittedRows", "JudgedMixin"]


@dataclass(frozen=True)
class FittedRows:
    """What the last ``fit`` leaves for reports.

    ``rows`` are the numbers of the training texts among those that were given; ``proba`` are out of
    fold.
    """

    sample: TrainingSample
    training: TrainingRows
    result: SearchResult
    nested: Mapping[str, OutOfFold]
    folds: Folds
    rows: npt.NDArray[np.intp]
    proba: npt.NDArray[np.float64]


_ROWS_GONE = "The training rows are gone (loaded or unpickled); call fit first."


_MEASURED = {"costs_", "cv_", "n_rows_", "plan_", "profile_", "selection_", "timings_", "trials_",
             "truncated_share_", "verdict_"}  # fmt: skip


class JudgedMixin:
    """The part of the classifier that looks back at the rows of its last ``fit``."""

    # The classifier's own, which a part of it reads.
    classes_: npt.NDArray[Any]
    costs_: Mapping[str, EncoderCost]
    cv: int
    encoders_: Sequence[FrozenEncoder]
    max_blocks: int
    plan_: Plan
    profile_: BlockScores
    random_state: int

    _fitted: FittedRows
    _verdict: Verdict | None = None

    reporter: Reporter | None

    if not TYPE_CHECKING:  # or any misspelt name would pass

        def __getattr__(self, name: str) -> Any:
            if name in _MEASURED:
                self._refuse(name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _refuse(self, name: str) -> NoReturn:
        if "model_" not in self.__dict__:
            raise NotFittedError(f"There is no {name} before fit. Call fit first.")
        raise GoneError(
            f"{name} tells of the training rows, and they are gone (loaded or unpickled). Call "
            "fit; or, where layerfuse fit made a run folder, read report.json there."
        )

    @property
    def _reporter(self) -> Reporter:
        return self.reporter or SILENT

    def run_baselines(
        self, X_test: Sequence[str] | None = None, embeddings: Gathered | None = None
    ) -> list[Baseline]:
        """Predictions of the baselines, each trained on the rows of the last ``fit``.

        Out of fold for the measured training rows, and for test texts and their blocks (from
        `extract`) when they are given. Only right after ``fit``: a loaded classifier has no rows.
        """
        fitted = self._rows_of_fit()
        return run_baselines(
            fitted.sample,
            fitted.result,
            fitted.nested,
            fitted.folds,
            fitted.training,
            test=None if X_test is None or embeddings is None else (X_test, embeddings),
            max_blocks=self.max_blocks,
            reporter=self._reporter,
        )

    def judge(self, baselines: Sequence[Baseline], test: Rows | None = None) -> Verdict:
        """What the pipeline gains over the baselines (of `run_baselines`), in a sentence.

        On nested out-of-fold predictions, and on the test rows whose predictions are given.
        """
        truth, proba = self.out_of_fold()
        space = LabelSpace(self.classes_)
        verdict = judge(
            baselines,
            Rows(Targets(space, truth), space.decide(proba), self.random_state),
            test,
            self.plan_,
            self.profile_,
            self.costs_,
            {encoder.name: encoder.n_layers for encoder in self.encoders_},
        )
        training = self._rows_of_fit().training
        read = set(training.blocks)
        fewer = any(
            one.plan is not None and not read.issuperset(one.plan.blocks) for one in baselines
        )
        if test is None or not fewer:
            return verdict
        return replace(
            verdict,
            sentence=f"{verdict.sentence} Baselines on other blocks learned from "
            f"{len(training.sample)} of {len(training.texts)} rows.",
        )

    @property
    def verdict_(self) -> Verdict:
        """Whether it was worth it, by nested out-of-fold predictions of the training rows.

        The baselines run when it is first asked for after ``fit``.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        GoneError
            For a classifier that was loaded or unpickled before it was asked.
        """
        if self._verdict is None:
            if not hasattr(self, "_fitted"):
                self._refuse("verdict_")
            self._verdict = self.judge(self.run_baselines())
        return self._verdict

    def out_of_fold(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """Class indices (n_measured,) and nested out-of-fold probabilities of the last ``fit``."""
        fitted = self._rows_of_fit()
        return fitted.sample.targets.codes, fitted.proba

    def measured_rows(self) -> npt.NDArray[np.intp]:
        """Numbers (n_measured,) of the rows of `out_of_fold` among those given to ``fit``."""
        fitted = self._rows_of_fit()
        return fitted.rows[fitted.training.sample]

    def measured_blocks(self, blocks: Sequence[BlockRef], rows: npt.NDArray[np.intp]) -> Blocks:
        """Embeddings (n_rows, dim) of some of the measured rows of the last ``fit``."""
        sample = self._rows_of_fit().sample
        return {block: sample.blocks[block][rows] for block in blocks}

    def _rows_of_fit(self) -> FittedRows:
        if not hasattr(self, "_fitted"):
            raise GoneError(_ROWS_GONE)
        return self._fitted
