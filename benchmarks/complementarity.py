"""Which number, taken from training rows, says best what fusing two blocks will bring on others.

Pairs of blocks of the packaged encoders, 500 drawn at random for each set and all that hold the
best block, are measured on one half of the rows (A). Then a head is trained on A for each pair and
each block, and the gain of fusing is read off the other half (B).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import RESULTS
from benchmarks.packaged import DATASETS, ENCODERS, MOST_ROWS, POOLINGS, embed, read_sets
from layerfuse import BlockRef
from layerfuse.complementarity import MEASURES, Labelled, measure_pairs
from layerfuse.estimator.gathering import Rows
from layerfuse.parallel import n_cores, spread
from layerfuse.scoring import decompose, leave_one_out, one_hot, probe_blocks, stratified_rows

MAX_PAIRS = 500
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


def run() -> list[dict[str, Any]]:
    results, correlations = [], []
    for texts in read_sets(DATASETS):
        name = texts.name
        rows = stratified_rows(texts.y, MOST_ROWS, seed=0)
        start = time.perf_counter()
        embeddings = Rows(embed(texts.train, ENCODERS, POOLINGS), rows)
        pairs = measure_predictors(embeddings, texts.y[rows], max_pairs=MAX_PAIRS)
        # Not for the repository, but a new predictor can be tried on it in seconds.
        raw = RESULTS / "raw" / f"complementarity-{name}.npz"
        raw.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            raw,
            blocks=np.array([str(block) for block in pairs.blocks]),
            members=pairs.members,
            drawn=pairs.drawn,
            **{f"predictor_{key}": values for key, values in pairs.predictors.items()},
            **{f"realised_{key}": values for key, values in pairs.realised.items()},
        )
        correlations.append(correlate(pairs))
        results.append(
            {
                "dataset": name,
                "rows": len(rows),
                "classes": int(texts.y.max()) + 1,
                "blocks": len(pairs.blocks),
                "pairs": len(pairs.members),
                "seconds": time.perf_counter() - start,
                "realised": {key: _spread(values) for key, values in pairs.realised.items()},
                "top_pick": top_picks(pairs),
                "correlations": summarise(correlations[-1:]),
            }
        )
        print(f"\n{name}: {len(pairs.members)} pairs, {results[-1]['seconds']:.0f} s")
        show(results[-1]["correlations"])
    if correlations:
        median = summarise(correlations)
        names = [result["dataset"] for result in results]
        print(f"\nmedian of {', '.join(names)}")
        show(median)
        results.append({"dataset": "median", "datasets": names, "correlations": median})
    return results


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
    probed = probe_blocks(Rows(embeddings, first), y[first])
    targets = one_hot(y[first], int(y.max()) + 1)
    data = Labelled(probed.scores, probed.coordinates, y[first], targets)
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
    rows = [row for part in spread(measured, slices) for row in part]
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


Correlations = dict[str, dict[str, dict[str, tuple[float, Floats]]]]
"""By group, outcome and predictor: the correlation, and that of each resample (n_resamples,)."""


def correlate(pairs: Pairs, n_resamples: int = 500, seed: int = 0) -> Correlations:
    """Spearman's rank correlation of each predictor with each outcome.

    Pairs that share a block are not independent, so blocks are drawn again with replacement and a
    pair counts as often as both of its blocks together (of the pairs with the best block: as often
    as the other block). How the rows were parted is not drawn again.
    """
    random = np.random.default_rng(seed)
    n = len(pairs.blocks)
    draws = [np.bincount(random.integers(n, size=n), minlength=n) for _ in range(n_resamples)]
    found: Correlations = {}
    for group, mask in pairs.groups().items():
        kept = np.flatnonzero(mask)
        rows = [kept]
        for times in draws:
            counts = times.copy()
            if group == "with the best block":
                counts[pairs.best] = 1
            rows.append(np.repeat(kept, counts[pairs.members[kept]].prod(axis=1)))
        found[group] = {
            outcome: {name: (0.0, np.empty(0)) for name in MEASURES} for outcome in OUTCOMES
        }
        for outcome in OUTCOMES:
            for name in MEASURES:
                values = [
                    spearman(pairs.predictors[name][part], pairs.realised[outcome][part])
                    for part in rows
                ]
                found[group][outcome][name] = (values[0], np.array(values[1:]))
    return found


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation of two arrays (n,); 0 where one of them is constant or empty."""
    from scipy.stats import rankdata

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def summarise(sets: list[Correlations]) -> dict[str, Any]:
    """The median over data sets and its 95 % interval over resamples; of one set its own."""
    return {
        group: {
            outcome: {
                name: _estimate([found[group][outcome][name] for found in sets])
                for name in MEASURES
            }
            for outcome in OUTCOMES
        }
        for group in sets[0]
    }


def _estimate(values: list[tuple[float, Floats]]) -> dict[str, float]:
    resampled = np.median([resamples for _, resamples in values], axis=0)
    low, high = np.quantile(resampled, (0.025, 0.975))
    value = float(np.median([value for value, _ in values]))
    return {"value": value, "low": float(low), "high": float(high)}


def top_picks(pairs: Pairs) -> dict[str, Any]:
    """What the pair that each predictor puts first brought on B, beside the most there was."""
    return {
        group: {
            outcome: {
                **{
                    name: float(pairs.realised[outcome][mask][values[mask].argmax()])
                    for name, values in pairs.predictors.items()
                },
                "most": float(pairs.realised[outcome][mask].max()),
            }
            for outcome in OUTCOMES
        }
        for group, mask in pairs.groups().items()
        if mask.any()
    }


def _spread(values: Floats) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return {"p5": float(low), "median": float(middle), "p95": float(high)}


def show(correlations: Mapping[str, Any]) -> None:
    """Print a table: predictors down, questions across."""
    for outcome in OUTCOMES:
        print(f"rank correlation with the {outcome.replace('_', ' ')} on B")
        print(f"{'':24}" + "".join(f"{group:>24}" for group in correlations))
        for name in MEASURES:
            cells = [correlations[group][outcome][name] for group in correlations]
            texts = [f"{c['value']:+.2f} ({c['low']:+.2f}, {c['high']:+.2f})" for c in cells]
            print(f"{name:24}" + "".join(f"{text:>24}" for text in texts))
