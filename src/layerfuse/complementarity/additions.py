"""What to add next to blocks that are in use already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.complementarity.inputs import Labelled, find_blocks
from layerfuse.events import SILENT, Reporter
from layerfuse.labels import Column
from layerfuse.metrics import PairedDifference, paired_difference
from layerfuse.scoring import RidgeState

__all__ = ["Addition", "additions_to", "rank_additions"]


@dataclass(frozen=True)
class Addition:
    """What one more block would bring to a pipeline, by exact leave-one-out.

    ``accuracy`` is a share from 0 to 1 with the block added, ``gain`` that minus the pipeline's,
    with its 95 % paired interval; ``loss_gain`` is the drop in squared leave-one-out loss and
    ``loss_gain_se`` the standard error of that over rows. ``new_encoder`` says that the pipeline
    has no block of this encoder yet, so that adding costs another forward pass.
    """

    block: BlockRef
    new_encoder: bool
    accuracy: float
    gain: PairedDifference
    loss_gain: float
    loss_gain_se: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "block": str(self.block),
            "new_encoder": self.new_encoder,
            "accuracy": self.accuracy,
            "gain": self.gain.to_dict(),
            "loss_gain": self.loss_gain,
            "loss_gain_se": self.loss_gain_se,
        }


def rank_additions(
    embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
    y: Column,
    to: Sequence[BlockRef | str] | None = None,
    *,
    candidates: Sequence[BlockRef | str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> tuple[Addition, ...]:
    """Rank blocks by how much each would lower the leave-one-out loss of a pipeline.

    Each candidate is added to the ridge regression on the pipeline's blocks by block inversion, at
    the penalty that is best without it, as the greedy selection does. Ranking many candidates on
    the rows they are measured on makes the winner look a little better than it is.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim).
    y
        Labels (n,), of any kind.
    to
        The blocks in use, as `BlockRef` or ``"encoder:layer:pooling"``; by default the block with
        the lowest leave-one-out loss.
    candidates
        Blocks that may be added; by default all others.
    seed
        For the intervals.

    Returns
    -------
    tuple of Addition
        The largest gain in loss first.

    Raises
    ------
    ConfigError
        For a block that is not one of ``embeddings``.
    DataError
        When rows and labels differ in number, or there is only one class.
    """
    known = list(embeddings)
    pipeline = None if to is None else find_blocks(to, known, "to")
    others = None if candidates is None else find_blocks(candidates, known, "candidates")
    data = Labelled.probe(embeddings, y, reporter)
    return additions_to(
        data, pipeline or (data.scores.best.block,), others or known, seed, reporter
    )


def additions_to(
    data: Labelled,
    pipeline: Sequence[BlockRef],
    candidates: Sequence[BlockRef],
    seed: int,
    reporter: Reporter,
) -> tuple[Addition, ...]:
    """`rank_additions` on blocks that have been probed already; the pipeline's own are skipped."""
    state = RidgeState.of([data.coordinates[block] for block in pipeline], data.targets)
    before = data.correct(state.residuals(data.targets))
    encoders = {block.encoder for block in pipeline}
    others = [block for block in candidates if block not in pipeline]
    found = []
    with reporter.task("adding", len(others), "blocks") as advance:
        for block in others:
            residuals = state.residuals_with(data.coordinates[block], data.targets)
            saved = state.errors - np.einsum("nc,nc->n", residuals, residuals)
            after = data.correct(residuals)
            addition = Addition(
                block=block,
                new_encoder=block.encoder not in encoders,
                accuracy=float(after.mean()),
                gain=paired_difference(after, before, seed=seed),
                loss_gain=float(saved.mean()),
                loss_gain_se=float(saved.std() / np.sqrt(len(saved))),
            )
            found.append(addition)
            advance(1)
    return tuple(sorted(found, key=lambda addition: (-addition.loss_gain, addition.block)))
