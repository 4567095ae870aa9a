"""A fitted pipeline from blocks to probabilities: fusion, head and calibration, numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Selection
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.events import SILENT, Reporter
from layerfuse.fusion import Concat
from layerfuse.heads import LinearHead, fit_head, search_penalty
from layerfuse.parallel import spread
from layerfuse.scoring import Probed, probe_rows, stratified_folds
from layerfuse.selection import choose

__all__ = ["Blocks", "FusedModel", "Recipe", "Training"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Blocks = Mapping[BlockRef, Floats]


@dataclass(frozen=True)
class FusedModel:
    """Named blocks, how they are fused, and the head on top."""

    blocks: tuple[BlockRef, ...]
    fusion: Concat
    head: LinearHead
    calibrator: TemperatureCalibrator

    def logits(self, embeddings: Blocks) -> Floats:
        """Blocks of n texts, each (n, dim), to logits (n, n_classes)."""
        return self.head.logits(self.fusion.transform([embeddings[b] for b in self.blocks]))

    def predict_proba(self, embeddings: Blocks) -> npt.NDArray[np.float64]:
        """Blocks of n texts to calibrated probabilities (n, n_classes)."""
        return self.calibrator.predict_proba(self.logits(embeddings))

    def with_temperature(self, calibrator: TemperatureCalibrator) -> FusedModel:
        return replace(self, calibrator=calibrator)


@dataclass(frozen=True)
class Recipe:
    """What is chosen before any label is seen.

    ``class_weight`` holds a weight for each class (n_classes,), or is None.
    """

    selection: str
    max_blocks: int
    head: str
    n_classes: int
    class_weight: npt.NDArray[np.floating] | None
    n_folds: int
    seed: int


class Training:
    """Training rows of all blocks, from which models of a recipe are made.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim); read one block at a time.
    y
        Class indices (n,).
    rows
        Rows that measuring, choosing and resampling use; the final head uses all rows.
    probed
        Scores and principal coordinates of those rows.
    """

    def __init__(
        self, embeddings: Blocks, y: Labels, rows: Labels, probed: Probed, recipe: Recipe
    ) -> None:
        self._embeddings = embeddings
        self.y = y
        self.rows = rows
        self._probed = probed
        self.recipe = recipe
        self._kept: dict[BlockRef, Floats] = {}

    def select(self) -> Selection:
        """Choose blocks by the recipe, from all measured rows."""
        recipe = self.recipe
        return choose(self._probed, self.y[self.rows], recipe.selection, recipe.max_blocks)

    def fit(self, blocks: Sequence[BlockRef]) -> FusedModel:
        """Fit fusion and head of given blocks on all rows."""
        penalty = self._penalty(blocks, np.arange(len(self.rows)))
        return self._fit(blocks, np.arange(len(self.y)), penalty)

    def out_of_fold(
        self, blocks: Sequence[BlockRef] | None = None, reporter: Reporter = SILENT
    ) -> Floats:
        """Logits (n_measured, n_classes) for each measured row by models that never saw its label.

        Without ``blocks`` they are chosen anew inside each fold, so that what is measured is the
        whole procedure, choosing included (nested resampling; Cawley and Talbot, JMLR 2010).
        """
        recipe = self.recipe
        y = self.y[self.rows]
        logits = np.zeros((len(y), recipe.n_classes), dtype=np.float32)

        def one_fold(fold: tuple[Labels, Labels]) -> tuple[Labels, Floats]:
            train, held = fold
            chosen = blocks or self._choose(train)
            model = self._fit(chosen, self.rows[train], self._penalty(chosen, train))
            held_rows = self.rows[held]
            return held, model.logits({b: self._features(b)[held_rows] for b in chosen})

        folds = stratified_folds(y, recipe.n_folds, recipe.seed)
        with reporter.task("nested resampling", len(folds), "folds") as advance:
            for held, predicted in spread(one_fold, folds):
                logits[held] = predicted
                advance(1)
        return logits

    def _choose(self, measured: Labels) -> tuple[BlockRef, ...]:
        """Choose blocks from some of the measured rows."""
        y = self.y[self.rows[measured]]
        probed = probe_rows(self._probed, measured, y)
        return choose(probed, y, self.recipe.selection, self.recipe.max_blocks).blocks

    def _penalty(self, blocks: Sequence[BlockRef], measured: Labels) -> float:
        """The head's penalty, from the principal coordinates of some of the measured rows."""
        Z = np.concatenate([self._probed.coordinates[b][measured] for b in blocks], axis=1)
        return search_penalty(
            self.recipe.head,
            Z - Z.mean(axis=0),
            self.y[self.rows[measured]],
            class_weight=self.recipe.class_weight,
            seed=self.recipe.seed,
        )

    def _fit(self, blocks: Sequence[BlockRef], rows: Labels, penalty: float) -> FusedModel:
        arrays = [self._features(block)[rows] for block in blocks]
        fusion = Concat.fit(arrays)
        recipe = self.recipe
        head = fit_head(
            recipe.head,
            fusion.transform(arrays),
            self.y[rows],
            recipe.n_classes,
            penalty,
            class_weight=recipe.class_weight,
        )
        return FusedModel(tuple(blocks), fusion, head, TemperatureCalibrator())

    def _features(self, block: BlockRef) -> Floats:
        if block not in self._kept:
            self._kept[block] = self._embeddings[block]
        return self._kept[block]
