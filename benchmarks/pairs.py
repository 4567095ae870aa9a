"""What measures of two blocks on one half of the rows say about fusing them, on the other half."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from layerfuse import BlockRef
from layerfuse.complementarity import Pair, ProbeData, measure_pairs
from layerfuse.embeddings.extraction import BlockView
from layerfuse.parallel import n_cores, parallel_map
from layerfuse.probing import probe_blocks
from layerfuse.targets import Targets

OUTCOMES = ("accuracy_gain", "loss_gain")

MEASURES: dict[str, Callable[[Pair], float]] = {
    "loss_gain": lambda pair: pair.loss_gain,
    "negative_loss": lambda pair: -pair.loss,
    "accuracy_gain": lambda pair: pair.gain.difference,
    "cka_distance": lambda pair: 1.0 - pair.cka,
    "disagreement": lambda pair: pair.disagreement,
    "negative_q": lambda pair: -pair.yules_q,
    "negative_double_fault": lambda pair: -pair.double_fault,
    "oracle_gain": lambda pair: pair.oracle_accuracy - max(pair.accuracy_a, pair.accuracy_b),
    "accuracy_balance": lambda pair: -abs(pair.accuracy_a - pair.accuracy_b),
    "least_accuracy": lambda pair: min(pair.accuracy_a, pair.accuracy_b),
}
"""Predictors of the gain from fusing a pair, each signed so that higher promises more."""

HEADLINE = "loss_gain"
"""The one of `MEASURES` that `layerfuse.compare` ranks pairs by."""

Floats = npt.NDArray[Any]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Pairs:
    """Every pair's predictors on half A of the rows, and what fusing it brought on half B.

    ``members`` (n_pairs, 2) are the numbers of its blocks in ``blocks``. ``predictors`` and
    ``realized`` have a row for each pair, and columns `MEASURES` and `OUTCOMES`. The realized gains
    are against the block of the pair that had the lower leave-one-out loss on A. ``best`` is the
    number of the block with the lowest such loss of all; ``drawn`` (n_pairs,) says which pairs are
    there by chance and not for holding it.
    """

    blocks: tuple[BlockRef, ...]
    members: Labels
    predictors: pd.DataFrame
    realized: pd.DataFrame
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
    embeddings: BlockView,
    targets: Targets,
    *,
    max_pairs: int | None = None,
    seed: int = 0,
) -> Pairs:
    """Measure pairs of blocks (n, dim) on half A of the rows, and on B what fusing them brought.

    Heads are ridge regressions on A's leading principal coordinates of each block, at the penalty
    with the lowest leave-one-out loss on A. Each class has two rows or more. ``max_pairs`` measures
    a random part of the pairs, and those with the best block.
    """
    first, second = halves(targets.codes, seed)
    probed = probe_blocks(embeddings.take(first), targets[first])
    coordinates = probed.coordinates
    data = ProbeData(probed.scores, coordinates, targets[first])
    matrix, truth, others = data.targets.matrix, targets[second], embeddings.take(second)
    center = matrix.mean(axis=0)
    held_out = {
        block: probed.axes[block].transform(others[block])[:, : Z.shape[1]]
        for block, Z in coordinates.items()
    }

    def measure(pair: Sequence[BlockRef], penalty: float) -> tuple[float, float]:
        """Accuracy on B, and squared error summed over classes, of a head trained on A."""
        Z = np.concatenate([coordinates[block] for block in pair], axis=1)
        gram = Z.T @ Z
        gram[np.diag_indices_from(gram)] += np.float32(penalty)
        weights = np.linalg.solve(gram, Z.T @ (matrix - center))
        predicted = center + np.concatenate([held_out[block] for block in pair], axis=1) @ weights
        correct = truth.correct(truth.space.decide(predicted))
        return float(correct.mean()), float(truth.brier(predicted.astype(np.float64)).mean())

    fits = {block: data.fit([block]) for block in coordinates}
    alone = {block: measure([block], fit.penalty) for block, fit in fits.items()}
    blocks = tuple(embeddings)
    best = blocks.index(min(fits, key=lambda block: fits[block].loss))
    members = np.array(list(combinations(range(len(blocks)), 2)))
    drawn = np.ones(len(members), dtype=bool)
    if max_pairs is not None and max_pairs < len(members):
        part = np.random.default_rng(seed).choice(len(members), max_pairs, replace=False)
        drawn = np.isin(np.arange(len(members)), part)
        kept = drawn | (members == best).any(axis=1)
        members, drawn = members[kept], drawn[kept]

    def measure_slice(slice_: Iterable[tuple[BlockRef, BlockRef]]) -> list[list[float]]:
        rows = []
        for pair in measure_pairs(data, slice_, seed):
            accuracy, loss = measure([pair.a, pair.b], pair.penalty)
            before, loss_before = alone[pair.better]
            predictors = [predictor(pair) for predictor in MEASURES.values()]
            rows.append([*predictors, accuracy - before, loss_before - loss])
        return rows

    # One slice a core: within a slice, what a block does alone is worked out once.
    couples = [(blocks[a], blocks[b]) for a, b in members]
    cuts = np.linspace(0, len(couples), n_cores() + 1).astype(int)
    slices = [couples[start:end] for start, end in pairwise(cuts)]
    table = pd.DataFrame([row for rows in parallel_map(measure_slice, slices) for row in rows])
    predictors, realized = table.iloc[:, : len(MEASURES)], table.iloc[:, len(MEASURES) :]
    return Pairs(
        blocks=blocks,
        members=members,
        predictors=predictors.set_axis(list(MEASURES), axis=1),
        realized=realized.set_axis(OUTCOMES, axis=1),
        best=best,
        drawn=drawn,
    )


def halves(y: Labels, seed: int) -> tuple[Labels, Labels]:
    """Sorted row numbers of two halves; each has half of each class, the first the odd one."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    place = np.arange(len(y)) - np.searchsorted(y[order], y[order])
    return np.sort(order[place % 2 == 0]), np.sort(order[place % 2 == 1])


def correlate(pairs: Pairs, n_resamples: int = 500, seed: int = 0) -> dict[str, Floats]:
    """Rank correlations (1 + n_resamples, n_predictors, n_outcomes) by group of pairs.

    The first are those of the pairs, the others those of resamples. Pairs that share a block are
    not independent, so blocks are drawn again with replacement and a pair counts as often as both
    of its blocks together (of the pairs with the best block: as often as the other block). How the
    rows were split is not drawn again.
    """
    random = np.random.default_rng(seed)
    n = len(pairs.blocks)
    draws = [np.bincount(random.integers(n, size=n), minlength=n) for _ in range(n_resamples)]
    correlations = {}
    for group, mask in pairs.groups().items():
        kept = np.flatnonzero(mask)
        samples = [kept]
        for draw in draws:
            times = draw.copy()
            if group == "with the best block":
                times[pairs.best] = 1
            samples.append(np.repeat(kept, times[pairs.members[kept]].prod(axis=1)))
        correlations[group] = np.stack(
            [spearman(pairs.predictors.iloc[own], pairs.realized.iloc[own]) for own in samples]
        )
    return correlations


def spearman(predictors: pd.DataFrame, outcomes: pd.DataFrame) -> Floats:
    """Rank correlations (n_predictors, n_outcomes); 0 where a column is constant or empty."""
    table = np.column_stack([predictors, outcomes])
    whole: Floats = pd.DataFrame(table).corr("spearman").fillna(0.0).to_numpy()
    return whole[: predictors.shape[1], predictors.shape[1] :]


def summarize(datasets: Sequence[Mapping[str, Floats]]) -> dict[str, Any]:
    """By group, outcome and predictor the median over datasets and its 95 % interval over
    resamples; of one dataset its own."""
    summary: dict[str, Any] = {}
    for group in datasets[0]:
        middle = np.median([correlations[group] for correlations in datasets], axis=0)
        low, high = np.quantile(middle[1:], (0.025, 0.975), axis=0)
        estimates = np.stack([middle[0], low, high], axis=-1)
        summary[group] = {
            outcome: {
                name: dict(zip(("value", "low", "high"), own.tolist(), strict=True))
                for name, own in zip(MEASURES, estimates[:, column], strict=True)
            }
            for column, outcome in enumerate(OUTCOMES)
        }
    return summary


def top_picks(pairs: Pairs) -> dict[str, Any]:
    """What the pair that each predictor puts first brought on B, beside the most there was."""
    picks: dict[str, Any] = {}
    for group, mask in pairs.groups().items():
        if mask.any():
            first = pairs.predictors[mask].idxmax()
            picks[group] = {
                outcome: {
                    **{name: float(gains[row]) for name, row in first.items()},
                    "most": float(gains[mask].max()),
                }
                for outcome, gains in pairs.realized.items()
            }
    return picks
