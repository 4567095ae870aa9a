"""Training rows, from which pipelines are made and honestly measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.calibration import TemperatureCalibrator, fit_calibration
from layerfuse.model_selection import Found, Recipe, search
from layerfuse.parallel import spread
from layerfuse.pipeline import Blocks, FusedModel, Plan, predict_held, train
from layerfuse.probing import Probed, probe_rows
from layerfuse.progress import SILENT, Reporter
from layerfuse.targets import stratified_folds

__all__ = ["OutOfFold", "Procedure", "Training", "pipeline"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

Procedure: TypeAlias = Callable[[Found, BlockScores], Plan]
"""A way to arrive at a plan from what the rows of a fold say."""


@dataclass(frozen=True)
class OutOfFold:
    """What models said of rows that they had not seen.

    ``logits`` (n, n_classes) of a row come from the plan with the number ``plan_of`` (n,) in
    ``plans``; two plans need not have logits of one scale.
    """

    logits: Floats
    plan_of: Labels
    plans: list[Plan]

    @classmethod
    def empty(cls, n: int, n_classes: int) -> OutOfFold:
        return cls(np.zeros((n, n_classes), dtype=np.float32), np.zeros(n, dtype=np.intp), [])

    def add(self, rows: Labels, plan: Plan, logits: Floats) -> None:
        """Fill in the rows of one fold."""
        self.logits[rows] = logits
        self.plan_of[rows] = len(self.plans)
        self.plans.append(plan)

    def calibrated(self, calibration: str, y: Labels) -> npt.NDArray[np.float64]:
        """Probabilities (n, n_classes), with one temperature for each kind of model."""
        proba = np.zeros(self.logits.shape)
        kinds = [(plan.fusion, plan.head) for plan in self.plans]
        for kind in dict.fromkeys(kinds):
            numbers = [number for number, other in enumerate(kinds) if other == kind]
            rows = np.isin(self.plan_of, numbers)
            calibrator = fit_calibration(calibration, self.logits[rows], y[rows])
            proba[rows] = calibrator.predict_proba(self.logits[rows])
        return proba


def pipeline(found: Found, scores: BlockScores) -> Plan:
    """The procedure that ships: what the search found."""
    return found.plan


class Training:
    """Training rows of all blocks.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim); read one block at a time.
    y
        Class indices (n,).
    rows
        Rows that measuring, choosing and resampling use; the final head uses all rows.
    probed
        Scores, principal coordinates and axes from those rows.
    recipe
        What is searched.
    measured
        All blocks of ``rows`` (n_measured, dim), where ``embeddings`` hold but some blocks.
    """

    def __init__(
        self,
        embeddings: Blocks,
        y: Labels,
        rows: Labels,
        probed: Probed,
        recipe: Recipe,
        measured: Blocks | None = None,
    ) -> None:
        self.embeddings = embeddings
        self._measured = measured
        self.y = y
        self.rows = rows
        self.probed = probed
        self.recipe = recipe
        self._kept: dict[BlockRef, Floats] = {}
        self._kept_measured: dict[BlockRef, Floats] = {}

    def search(self, reporter: Reporter = SILENT) -> Found:
        """Choose blocks, fusion and head by the recipe, from all measured rows."""
        return search(self.probed, self.y[self.rows], self.recipe, reporter)

    def fit(self, plan: Plan) -> FusedModel:
        """Fit a plan on all rows, or on the measured ones where others lack a block of it."""
        if set(plan.blocks) <= set(self.embeddings):
            coordinates = {block: self._coordinates(block) for block in plan.blocks}
            model = train(plan, coordinates, self.y, self.recipe.task, self.rows)
        else:
            coordinates = {block: self._coordinates_measured(block) for block in plan.blocks}
            model = train(plan, coordinates, self.y[self.rows], self.recipe.task)
        axes = tuple(self.probed.axes[block] for block in plan.blocks)
        return FusedModel(axes, model, TemperatureCalibrator())

    def out_of_fold(
        self, procedures: Mapping[str, Procedure], n_folds: int, reporter: Reporter = SILENT
    ) -> dict[str, OutOfFold]:
        """Predict each measured row by models that never saw its label.

        The search runs anew inside each fold, so that what is measured is the whole procedure,
        choosing included (nested resampling; Cawley and Talbot, JMLR 2010). The principal axes are
        those of all measured rows: they depend on no label.
        """
        y = self.y[self.rows]
        task = self.recipe.task
        folds = stratified_folds(y, n_folds, task.seed)

        def one_fold(fold: tuple[Labels, Labels]) -> dict[str, tuple[Plan, Floats]]:
            rows, held = fold
            probed = probe_rows(self.probed, rows, y[rows])
            found = search(probed, y[rows], self.recipe)
            plans = {name: choose(found, probed.scores) for name, choose in procedures.items()}
            logits = {plan: self._predict(plan, rows, held) for plan in set(plans.values())}
            return {name: (plan, logits[plan]) for name, plan in plans.items()}

        results = {name: OutOfFold.empty(len(y), task.n_classes) for name in procedures}
        with reporter.task("nested resampling", len(folds), "folds") as advance:
            for (_, held), fold in zip(folds, spread(one_fold, folds), strict=True):
                for name, (plan, logits) in fold.items():
                    results[name].add(held, plan, logits)
                advance(1)
        return results

    def _predict(self, plan: Plan, rows: Labels, held: Labels) -> Floats:
        """Train on some of the measured rows, predict the logits of others."""
        coordinates = {block: self._coordinates_measured(block) for block in plan.blocks}
        y, task = self.y[self.rows], self.recipe.task
        return predict_held(plan, coordinates, y, rows, held, task)

    def _coordinates(self, block: BlockRef) -> Floats:
        """Principal coordinates of all rows, (n, rank)."""
        if block not in self._kept:
            self._kept[block] = self.probed.axes[block].transform(self.embeddings[block])
        return self._kept[block]

    def measured(self, block: BlockRef) -> Floats:
        """A block of the measured rows, (n_measured, dim)."""
        if self._measured is not None:
            return self._measured[block]
        whole = self.embeddings[block]
        return whole if len(self.rows) == len(self.y) else whole[self.rows]

    def _coordinates_measured(self, block: BlockRef) -> Floats:
        """Principal coordinates of the measured rows, (n_measured, rank)."""
        if self._measured is None:
            whole = self._coordinates(block)
            return whole if len(self.rows) == len(self.y) else whole[self.rows]
        if block not in self._kept_measured:
            axes = self.probed.axes[block]
            self._kept_measured[block] = axes.transform(self._measured[block])
        return self._kept_measured[block]
