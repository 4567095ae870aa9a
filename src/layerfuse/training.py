"""Training rows, from which pipelines are made and honestly measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.events import SILENT, Reporter
from layerfuse.parallel import spread
from layerfuse.pipeline import Blocks, FusedModel, Plan, train
from layerfuse.scoring import Probed, probe_rows, stratified_folds
from layerfuse.search import Found, Recipe, search

__all__ = ["Procedure", "Training", "pipeline"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

Procedure: TypeAlias = Callable[[Found, BlockScores], Plan]
"""A way to arrive at a plan from what the rows of a fold say."""


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
    """

    def __init__(
        self, embeddings: Blocks, y: Labels, rows: Labels, probed: Probed, recipe: Recipe
    ) -> None:
        self._embeddings = embeddings
        self.y = y
        self.rows = rows
        self.probed = probed
        self.recipe = recipe
        self._kept: dict[BlockRef, Floats] = {}

    def search(self, reporter: Reporter = SILENT) -> Found:
        """Choose blocks, fusion and head by the recipe, from all measured rows."""
        return search(self.probed, self.y[self.rows], self.recipe, reporter)

    def fit(self, plan: Plan) -> FusedModel:
        """Fit a plan on all rows."""
        coordinates = {block: self._coordinates(block) for block in plan.blocks}
        model = train(plan, coordinates, self.y, self.recipe.task, self.rows)
        axes = tuple(self.probed.axes[block] for block in plan.blocks)
        return FusedModel(axes, model, TemperatureCalibrator())

    def out_of_fold(
        self, procedures: Mapping[str, Procedure], n_folds: int, reporter: Reporter = SILENT
    ) -> dict[str, Floats]:
        """Logits (n_measured, n_classes) of each procedure, by models that never saw the row's
        label.

        The search runs anew inside each fold, so that what is measured is the whole procedure,
        choosing included (nested resampling; Cawley and Talbot, JMLR 2010). The principal axes are
        those of all measured rows: they depend on no label.
        """
        y = self.y[self.rows]
        task = self.recipe.task
        folds = stratified_folds(y, n_folds, task.seed)
        logits = {
            name: np.zeros((len(y), task.n_classes), dtype=np.float32) for name in procedures
        }

        def one_fold(fold: tuple[Labels, Labels]) -> tuple[Labels, dict[str, Floats]]:
            rows, held = fold
            probed = probe_rows(self.probed, rows, y[rows])
            found = search(probed, y[rows], self.recipe)
            done: dict[Plan, Floats] = {}
            plans = {name: procedure(found, probed.scores) for name, procedure in procedures.items()}
            for plan in plans.values():
                if plan not in done:
                    others = {b: self._held(b, rows, held) for b in plan.blocks}
                    done[plan] = train(plan, probed.coordinates, y[rows], task).logits(others)
            return held, {name: done[plan] for name, plan in plans.items()}

        with reporter.task("nested resampling", len(folds), "folds") as advance:
            for held, predicted in spread(one_fold, folds):
                for name, values in predicted.items():
                    logits[name][held] = values
                advance(1)
        return logits

    def _held(self, block: BlockRef, rows: Labels, held: Labels) -> Floats:
        """Coordinates of held-out rows, centred as those of the other rows are."""
        Z = self.probed.coordinates[block]
        return np.asarray(Z[held] - Z[rows].mean(axis=0))

    def _coordinates(self, block: BlockRef) -> Floats:
        """Coordinates of all rows."""
        if len(self.rows) == len(self.y):
            return self.probed.coordinates[block]
        if block not in self._kept:
            self._kept[block] = self.probed.axes[block].transform(self._embeddings[block])
        return self._kept[block]
