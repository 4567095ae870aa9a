"""A plan made into a classifier: principal coordinates, fusion, head and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.fusion import FittedFusion, Fusion, fit_fusion
from layerfuse.heads import Head, fit_head, search_penalty
from layerfuse.probing import PrincipalAxes
from layerfuse.targets import LabelSpace, Targets

__all__ = ["Blocks", "CoordinateModel", "FusedModel", "Plan", "Task", "predict_held", "train"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Blocks = Mapping[BlockRef, Floats]

_LEADING = 100  # coordinates of each block by which a head's penalty is found


@dataclass(frozen=True)
class Plan:
    """What is to be trained: which blocks, how they are fused, which head reads them."""

    blocks: tuple[BlockRef, ...]
    fusion: str = "concat"
    head: str = "ridge"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """What every model of a dataset shares.

    ``class_weight`` holds a weight for each class (n_classes,), or is None.
    """

    n_classes: int
    class_weight: npt.NDArray[np.floating] | None = None
    seed: int = 0


@dataclass(frozen=True)
class CoordinateModel:
    """Fusion and head over the principal coordinates of ``blocks``."""

    blocks: tuple[BlockRef, ...]
    fusion: Fusion
    head: Head

    def logits(self, coordinates: Blocks) -> Floats:
        """Coordinates of n texts, each (n, rank), to logits (n, n_classes)."""
        return self.head.logits(self.fusion.transform([coordinates[b] for b in self.blocks]))


def train(
    plan: Plan, coordinates: Blocks, y: Labels, task: Task, searched: Labels | None = None
) -> CoordinateModel:
    """Fit fusion and head.

    Parameters
    ----------
    plan
        What to fit.
    coordinates
        For each block of the plan its principal coordinates (n, rank), centred.
    y
        Class indices (n,).
    task
        Classes, their weights, seed.
    searched
        Numbers of the rows on which the head's penalty is searched; all by default.
    """
    blocks = [coordinates[block] for block in plan.blocks]
    fitted = _fuse(plan, blocks, y, task)
    head: Head | None = fitted.head
    if head is None:
        penalty = _penalty(plan, blocks, y, task, searched)
        targets, weights = _targets(y, task)
        head = fit_head(
            plan.head, fitted.features, targets, penalty, row_weights=weights, seed=task.seed
        )
    return CoordinateModel(plan.blocks, fitted.fusion, head)


def _targets(y: Labels, task: Task) -> tuple[Targets, npt.NDArray[np.floating] | None]:
    """Class indices (n,) as targets, and the rows' weights (n,)."""
    targets = Targets(LabelSpace(np.arange(task.n_classes)), y)
    return targets, targets.row_weights(task.class_weight)


def _fuse(plan: Plan, blocks: Sequence[Floats], y: Labels, task: Task) -> FittedFusion:
    targets, weights = _targets(y, task)
    return fit_fusion(plan.fusion, blocks, targets, row_weights=weights, seed=task.seed)


def _penalty(
    plan: Plan, blocks: Sequence[Floats], y: Labels, task: Task, searched: Labels | None
) -> float:
    """The head's penalty, from the leading coordinates: the others hardly change it, and take most
    of the time."""
    if searched is not None:
        blocks, y = [block[searched] for block in blocks], y[searched]
    features = _fuse(plan, [block[:, :_LEADING] for block in blocks], y, task).features
    targets, weights = _targets(y, task)
    centered = features - features.mean(axis=0)
    return search_penalty(plan.head, centered, targets, row_weights=weights, seed=task.seed)


def predict_held(
    plan: Plan, coordinates: Blocks, y: Labels, rows: Labels, held: Labels, task: Task
) -> Floats:
    """Train on some rows and predict others: logits (n_held, n_classes).

    ``coordinates`` are those of all n rows; they are centred on the rows that are trained on. ``y``
    are class indices (n,), of which those of ``held`` are not read.
    """
    means = {block: coordinates[block][rows].mean(axis=0) for block in plan.blocks}
    known = {block: coordinates[block][rows] - mean for block, mean in means.items()}
    others = {block: coordinates[block][held] - mean for block, mean in means.items()}
    return train(plan, known, y[rows], task).logits(others)


@dataclass(frozen=True)
class FusedModel:
    """From blocks to probabilities, numpy only; ``axes`` holds one for each block."""

    axes: tuple[PrincipalAxes, ...]
    model: CoordinateModel
    calibrator: TemperatureCalibrator

    @property
    def blocks(self) -> tuple[BlockRef, ...]:
        return self.model.blocks

    def logits(self, embeddings: Blocks) -> Floats:
        """Blocks of n texts, each (n, dim), to logits (n, n_classes)."""
        pairs = zip(self.blocks, self.axes, strict=True)
        return self.model.logits(
            {block: axes.transform(embeddings[block]) for block, axes in pairs}
        )

    def predict_proba(self, embeddings: Blocks) -> npt.NDArray[np.float64]:
        """Blocks of n texts to calibrated probabilities (n, n_classes)."""
        return self.calibrator.predict_proba(self.logits(embeddings))

    def with_temperature(self, calibrator: TemperatureCalibrator) -> FusedModel:
        return replace(self, calibrator=calibrator)
