"""A fitted pipeline from blocks to probabilities: fusion, head and calibration, numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Selection
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.events import SILENT, Reporter
from layerfuse.fusion import BlockScaler, Fusion, fit_fusion
from layerfuse.heads import Head, fit_head, search_penalty
from layerfuse.scoring import Probed, probe_coordinates, stratified_folds
from layerfuse.selection import choose

__all__ = ["Blocks", "FusedModel", "Recipe", "Training"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Blocks = Mapping[BlockRef, Floats]


@dataclass(frozen=True)
class FusedModel:
    """Named blocks, how they are scaled and fused, and the head on top."""

    blocks: tuple[BlockRef, ...]
    scaler: BlockScaler
    fusion: Fusion
    head: Head
    calibrator: TemperatureCalibrator

    def logits(self, embeddings: Blocks) -> Floats:
        """Blocks of n texts, each (n, dim), to logits (n, n_classes)."""
        scaled = self.scaler.transform([embeddings[b] for b in self.blocks])
        return self.head.logits(self.fusion.transform(scaled))

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
    fusion: str = "concat"


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
        return self._fit(blocks, np.arange(len(self.y)), np.arange(len(self.rows)))

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
        folds = stratified_folds(y, recipe.n_folds, recipe.seed)
        with reporter.task("nested resampling", len(folds), "folds") as advance:
            for train, held in folds:
                chosen = blocks or self._choose(train)
                model = self._fit(chosen, self.rows[train], train)
                held_rows = self.rows[held]
                logits[held] = model.logits({b: self._features(b)[held_rows] for b in chosen})
                advance(1)
        return logits

    def plain(self) -> Training:
        """The same rows for models that concatenate their blocks."""
        other = Training(
            self._embeddings, self.y, self.rows, self._probed, replace(self.recipe, fusion="concat")
        )
        other._kept = self._kept
        return other

    def _choose(self, measured: Labels) -> tuple[BlockRef, ...]:
        """Choose blocks from some of the measured rows."""
        y = self.y[self.rows[measured]]
        coordinates = {b: Z[measured] for b, Z in self._probed.coordinates.items()}
        probed = probe_coordinates(coordinates, y)
        return choose(probed, y, self.recipe.selection, self.recipe.max_blocks).blocks

    def _penalty(self, blocks: Sequence[BlockRef], measured: Labels) -> float:
        """The head's penalty, from the principal coordinates of some of the measured rows."""
        recipe, y = self.recipe, self.y[self.rows[measured]]
        coordinates = [self._probed.coordinates[block][measured] for block in blocks]
        fitted = fit_fusion(
            recipe.fusion, [Z - Z.mean(axis=0) for Z in coordinates], y, recipe.n_classes
        )
        return search_penalty(
            recipe.head, fitted.features, y, class_weight=recipe.class_weight, seed=recipe.seed
        )

    def _fit(self, blocks: Sequence[BlockRef], rows: Labels, measured: Labels) -> FusedModel:
        """Fit on some rows; ``measured`` are those of the measured rows that give the penalty."""
        recipe, y = self.recipe, self.y[rows]
        arrays = [self._features(block)[rows] for block in blocks]
        scaler = BlockScaler.fit(arrays)
        scaled = scaler.transform(arrays)
        del arrays  # as large as what is made of it
        fitted = fit_fusion(
            recipe.fusion,
            scaled,
            y,
            recipe.n_classes,
            seed=recipe.seed,
            class_weight=recipe.class_weight,
        )
        head: Head | None = fitted.head
        if head is None:
            head = fit_head(
                recipe.head,
                fitted.features,
                y,
                recipe.n_classes,
                self._penalty(blocks, measured),
                class_weight=recipe.class_weight,
                seed=recipe.seed,
            )
        return FusedModel(tuple(blocks), scaler, fitted.fusion, head, TemperatureCalibrator())

    def _features(self, block: BlockRef) -> Floats:
        if block not in self._kept:
            self._kept[block] = self._embeddings[block]
        return self._kept[block]
