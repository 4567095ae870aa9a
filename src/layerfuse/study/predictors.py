"""What measures of two blocks say beforehand about the gain from fusing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.complementarity import MEASURES, Labelled, measure_pairs
from layerfuse.embeddings.extraction import Rows
from layerfuse.parallel import n_cores, parallel_map
from layerfuse.probing import decompose, leave_one_out, probe_blocks
from layerfuse.targets import LabelSpace, Targets

__all__ = ["OUTCOMES", "Pairs", "halves", "measure_predictors"]

OUTCOMES = ("accuracy_gain", "loss_gain")

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Pairs:
    """Every pair's predictors on A and what fusing it brought on B.

    ``members`` (n_pairs, 2) are the numbers of its blocks in ``blocks``. ``predictors`` and
    ``realised`` hold arrays (n_pairs,) by name. The realised gains are against the block of the
    pair that had the lower leave-one-out loss on A. ``best`` is the number of the block with the
    lowest leave-one-out loss on A of all; ``drawn`` (n_pairs,) says which pairs are there by chance
    and not for holding it.
    """

    blocks: tuple[BlockRef, ...]
    members: npt.NDArray[np.intp]
    predictors: dict[str, Floats]
    realised: dict[str, Floats]
    best: int
    drawn: npt.NDArray[np.bool_]

    def groups(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which pairs (n_pairs,) each question is about."""
        encoders = np.array([block.encoder for block in self.blocks])[self.members]
        return {
            "all": self.drawn,
            "two encoders": self.drawn & (encoders[:, 0] != encoders[:, 1]),
            "with the best block": (self.members == self.best).any(axis=1),
        }


def measure_predictors(
    embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
    y: npt.NDArray[np.intp],
    *,
    max_pairs: int | None = None,
    seed: int = 0,
) -> Pairs:
    """Measure pairs of blocks on half A of the rows, and on half B what fusing them brought.

    Heads are ridge regressions on A's leading principal coordinates of each block, at the penalty
    with the lowest leave-one-out loss on A.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim).
    y
        Class indices (n,), each class with two rows or more.
    max_pairs
        Measure a random part of the pairs, and those that hold the best block; None for all.
    seed
        For the halves and the part.
    """
    first, second = halves(y, seed)
    targets = Targets(LabelSpace(np.arange(int(y.max()) + 1)), y[first])
    probed = probe_blocks(Rows(embeddings, first), targets)
    data = Labelled(probed.scores, probed.coordinates, y[first], targets.matrix)
    held = {
        block: probed.axes[block].transform(embeddings[block][second])[:, : Z.shape[1]]
        for block, Z in probed.coordinates.items()
    }
    alone = {block: _Head.fit(data, [block]).measure(held, y[second]) for block in embeddings}
    losses = {
        block: leave_one_out(decompose(Z), data.targets).loss
        for block, Z in data.coordinates.items()
    }
    blocks = tuple(embeddings)
    best = blocks.index(min(losses, key=lambda block: losses[block]))
    members = np.array(list(combinations(range(len(blocks)), 2)))
    drawn = np.ones(len(members), dtype=bool)
    if max_pairs is not None and max_pairs < len(members):
        part = np.random.default_rng(seed).choice(len(members), max_pairs, replace=False)
        drawn = np.isin(np.arange(len(members)), part)
        kept = drawn | (members == best).any(axis=1)
        members, drawn = members[kept], drawn[kept]
    couples = [(blocks[a], blocks[b]) for a, b in members]

    def measured(part: list[tuple[BlockRef, BlockRef]]) -> list[tuple[list[float], list[float]]]:
        found = []
        for pair in measure_pairs(data, part, seed):
            fused = _Head.fit(data, [pair.a, pair.b], pair.penalty).measure(held, y[second])
            accuracy, loss = alone[pair.better]
            gains = [fused[0] - accuracy, loss - fused[1]]
            found.append(([measure(pair) for measure in MEASURES.values()], gains))
        return found

    # One slice a core: within a slice, what a block does alone is worked out once.
    cuts = np.linspace(0, len(couples), n_cores() + 1).astype(int)
    slices = [couples[start:end] for start, end in pairwise(cuts)]
    rows = [row for part in parallel_map(measured, slices) for row in part]
    predicted, realised = (np.array(table) for table in zip(*rows, strict=True))
    return Pairs(
        blocks=blocks,
        members=members,
        predictors=dict(zip(MEASURES, predicted.T, strict=True)),
        realised=dict(zip(OUTCOMES, realised.T, strict=True)),
        best=best,
        drawn=drawn,
    )


def halves(y: npt.NDArray[np.intp], seed: int) -> tuple[npt.NDArray[np.intp], ...]:
    """Sorted row numbers of two halves; each has half of each class, the first the odd one."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    place = np.arange(len(y)) - np.searchsorted(y[order], y[order])
    return np.sort(order[place % 2 == 0]), np.sort(order[place % 2 == 1])


@dataclass(frozen=True)
class _Head:
    """A ridge regression on some blocks' coordinates; ``weights`` (columns, n_classes)."""

    blocks: list[BlockRef]
    weights: Floats
    centre: Floats

    @classmethod
    def fit(cls, data: Labelled, blocks: list[BlockRef], penalty: float | None = None) -> _Head:
        Z = np.concatenate([data.coordinates[block] for block in blocks], axis=1)
        if penalty is None:
            penalty = leave_one_out(decompose(Z), data.targets).penalty
        centre = data.targets.mean(axis=0)
        gram = Z.T @ Z
        gram[np.diag_indices_from(gram)] += np.float32(penalty)
        return cls(blocks, np.linalg.solve(gram, Z.T @ (data.targets - centre)), centre)

    def measure(
        self, held: Mapping[BlockRef, Floats], y: npt.NDArray[np.intp]
    ) -> tuple[float, float]:
        """Accuracy, and squared error summed over classes, on rows that the head did not see."""
        Z = np.concatenate([held[block] for block in self.blocks], axis=1)
        predicted = self.centre + Z @ self.weights
        targets = np.eye(len(self.centre))[y]
        loss = float(((targets - predicted) ** 2).sum(axis=1).mean())
        return float((predicted.argmax(axis=1) == y).mean()), loss
