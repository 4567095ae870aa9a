"""A plan made into a classifier: principal coordinates, fusion, head and calibration."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.calibration import Calibrator
from layerfuse.files import storage_errors
from layerfuse.fusion import FUSIONS, Fusion, fit_fusion
from layerfuse.heads import (
    BalancedRidgeHead,
    Head,
    LogisticHead,
    RidgeHead,
    fit_head,
    search_penalty,
)
from layerfuse.probing import Axes
from layerfuse.targets import LabelSpace, Targets

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]
Blocks = Mapping[BlockRef, Floats]

N_LEADING = 64
"""Leading coordinates of each block by which a head's penalty is found, at most."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained.

    Attributes
    ----------
    blocks : tuple of BlockRef
    fusion : str
        One of `FUSIONS`.
    head : str
        One of `HEADS`.
    """

    blocks: tuple[BlockRef, ...]
    fusion: str = "concat"
    head: str = "ridge"


@dataclass(frozen=True)
class CoordinateModel:
    """Fusion and head over the principal coordinates of ``blocks``."""

    blocks: tuple[BlockRef, ...]
    fusion: Fusion
    head: Head

    def features(self, coordinates: Blocks) -> Floats:
        """Coordinates of n texts, each (n, rank), to fused features (n, n_features)."""
        return self.fusion.transform([coordinates[block] for block in self.blocks])

    def logits(self, coordinates: Blocks) -> Floats:
        """Coordinates of n texts, each (n, rank), to logits (n, n_outputs)."""
        return self.head.logits(self.features(coordinates))


def train(
    plan: Plan,
    coordinates: Blocks,
    targets: Targets,
    *,
    seed: int = 0,
    search: Callable[[], float] | None = None,
) -> CoordinateModel:
    """Fit fusion and head.

    Parameters
    ----------
    plan : Plan
        What to fit.
    coordinates : mapping from BlockRef to ndarray of shape (n, rank)
        Centered principal coordinates of each block of the plan.
    targets : Targets
        Of the n rows.
    seed : int
        Of what the fusion and the head draw.
    search : callable, optional
        Finds the head's penalty; `find_penalty` on the given rows by default.
    """
    blocks = [coordinates[block] for block in plan.blocks]
    fitted = fit_fusion(plan.fusion, blocks, targets, seed=seed)
    head: Head | None = fitted.head
    if head is None:
        if search is None:
            penalty = find_penalty(plan, coordinates, targets, seed=seed)
        else:
            penalty = search()
        head = fit_head(plan.head, fitted.features, targets, penalty, seed=seed)
    return CoordinateModel(plan.blocks, fitted.fusion, head)


RIDGES: Mapping[str, type[RidgeHead]] = {own.kind: own for own in (RidgeHead, BalancedRidgeHead)}
"""Heads that sums of products determine, by name."""


def is_ridge(plan: Plan) -> bool:
    """Whether a plan is one of `RIDGES` on concatenated blocks."""
    return plan.fusion == "concat" and plan.head in RIDGES


def is_trained_in_parts(plan: Plan) -> bool:
    """Whether `train_parts` can train a plan: a linear head on concatenated blocks."""
    return plan.fusion == "concat" and plan.head in (*RIDGES, LogisticHead.kind)


def train_parts(
    plan: Plan,
    parts: Iterable[tuple[Rows, Floats]],
    targets: Targets,
    penalty: float,
) -> CoordinateModel:
    """`train` for a plan that `is_trained_in_parts`, on rows that come in parts.

    ``parts`` are row numbers and concatenated coordinates (n_part, sum of ranks). They are gone
    through once for `RIDGES`; for ``logistic`` they are written to a temporary file.
    """
    head: Head
    if is_ridge(plan):
        head = RIDGES[plan.head].fit_parts(parts, targets, penalty)
    else:
        with _spooled(parts) as again:
            head = LogisticHead.fit_parts(again, targets, penalty)
    return CoordinateModel(plan.blocks, FUSIONS[plan.fusion].load({}, len(plan.blocks)), head)


@contextmanager
def _spooled(
    parts: Iterable[tuple[Rows, Floats]],
) -> Iterator[Callable[[], Iterator[tuple[Rows, Floats]]]]:
    """Yield a function that gives the parts as often as it is called, from a temporary file.

    Raises
    ------
    StorageError
        When the folder of temporary files (``TMPDIR``) has no room for 4 n d bytes.
    """
    with tempfile.TemporaryFile() as file:
        written = []
        for rows, X in parts:
            with storage_errors(Path(tempfile.gettempdir())):
                file.write(np.ascontiguousarray(X, dtype=np.float32).data)
                file.flush()
            written.append((rows, X.shape))

        def again() -> Iterator[tuple[Rows, Floats]]:
            file.seek(0)
            for rows, shape in written:
                yield rows, np.fromfile(file, np.float32, math.prod(shape)).reshape(shape)

        yield again


def find_penalty(
    plan: Plan,
    coordinates: Blocks,
    targets: Targets,
    *,
    seed: int = 0,
) -> float:
    """The penalty of a plan's head; parameters are those of `train`.

    By the leading coordinates of each block: the others hardly change it and take most of the time.
    """
    blocks = [coordinates[block][:, :N_LEADING] for block in plan.blocks]
    fitted = fit_fusion(plan.fusion, blocks, targets, seed=seed)
    features = fitted.features - fitted.features.mean(axis=0)
    return search_penalty(plan.head, features, targets, seed=seed)


def predict_held(
    plan: Plan,
    coordinates: Blocks,
    targets: Targets,
    rows: Rows,
    held: Rows,
    *,
    seed: int = 0,
    search: Callable[[], float] | None = None,
) -> Floats:
    """Train on some rows and predict others.

    Parameters
    ----------
    plan : Plan
        What to train.
    coordinates : mapping from BlockRef to ndarray of shape (n, rank)
        Of all rows; they are centered on those that are trained on.
    targets : Targets
        Of ``rows``.
    rows, held : ndarray of row numbers
        What is trained on, and what is predicted.
    seed : int
        Of what the fusion and the head draw.
    search : callable, optional
        Finds the head's penalty; `find_penalty` on ``rows`` by default.

    Returns
    -------
    ndarray of shape (n_held, n_outputs)
        Logits.
    """
    means = {block: coordinates[block][rows].mean(axis=0) for block in plan.blocks}
    known = {block: coordinates[block][rows] - mean for block, mean in means.items()}
    others = {block: coordinates[block][held] - mean for block, mean in means.items()}
    return train(plan, known, targets, seed=seed, search=search).logits(others)


@dataclass(frozen=True)
class FusedModel:
    """From blocks to probabilities, numpy only.

    Attributes
    ----------
    axes : tuple of Axes
        One for each block.
    model : CoordinateModel
    calibrator : TemperatureCalibrator or PlattCalibrator
    space : LabelSpace
        What its outputs mean.
    """

    axes: tuple[Axes, ...]
    model: CoordinateModel
    calibrator: Calibrator
    space: LabelSpace

    @property
    def blocks(self) -> tuple[BlockRef, ...]:
        """The blocks that it reads."""
        return self.model.blocks

    def features(self, embeddings: Blocks) -> Floats:
        """Blocks of n texts, each (n, dim), to fused features (n, n_features).

        The lexical block is what `layerfuse.encoders.count_words` gives.
        """
        pairs = zip(self.blocks, self.axes, strict=True)
        return self.model.features(
            {block: axes.transform(embeddings[block]) for block, axes in pairs}
        )

    def logits(self, embeddings: Blocks) -> Floats:
        """Blocks of n texts, each (n, dim), to logits (n, n_outputs)."""
        return self.model.head.logits(self.features(embeddings))

    def predict_proba(self, embeddings: Blocks) -> npt.NDArray[np.float64]:
        """Blocks of n texts to calibrated probabilities (n, n_outputs)."""
        return self.proba_of(self.features(embeddings))

    def proba_of(self, features: Floats) -> npt.NDArray[np.float64]:
        """Fused features (n, n_features) to calibrated probabilities (n, n_outputs)."""
        return self.calibrator.predict_proba(self.model.head.logits(features), self.space)
