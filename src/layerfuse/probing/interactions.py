"""Finding two blocks that are informative only together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.probing.ridge import leave_one_out, spectrum

Floats = npt.NDArray[np.float32]

_MOST_ROWS = 2000
_MOST_BLOCKS = 48
_LEADING = 32  # coordinates of each block that are joined …
_MULTIPLIED = 16  # … or multiplied with each other
_FINALISTS = 8
_SIGNIFICANT = 4.0  # standard errors: the best of a thousand pairs is above two by chance


def prior_errors(targets: Floats) -> Floats:
    """Squared leave-one-out errors (n,) of the mean of a target matrix (n, n_outputs)."""
    n = len(targets)
    return np.asarray((((targets - targets.mean(axis=0)) * (n / max(n - 1, 1))) ** 2).sum(axis=1))


def find_pair(
    coordinates: Mapping[BlockRef, Floats], candidates: Sequence[BlockRef], targets: Floats
) -> tuple[BlockRef, BlockRef] | None:
    """The most informative pair of blocks when concatenated, or None.

    All pairs of the first 48 candidates are ranked by the share of the targets' variance that a
    linear regression on both explains; the best few are checked by leave-one-out. At most 2,000
    rows are read.

    Parameters
    ----------
    coordinates : mapping from BlockRef to ndarray of shape (n, columns)
        Principal coordinates of each candidate.
    candidates : sequence of BlockRef
        Best first.
    targets : ndarray of shape (n, n_outputs)
        A target matrix.

    Returns
    -------
    tuple of two BlockRef, or None
        None where no loss is four standard errors below that of the targets' mean.
    """
    rows, blocks, centered = _prepare(coordinates, candidates, targets, _LEADING)
    stops = np.cumsum([block.shape[1] for block in blocks.values()])
    columns = dict(zip(blocks, np.split(np.arange(stops[-1]), stops[:-1]), strict=True))
    joined = np.concatenate(list(blocks.values()), axis=1)
    gram, towards = joined.T @ joined, joined.T @ centered
    gram[np.diag_indices_from(gram)] += 1e-3 * len(rows)

    def explained(a: BlockRef, b: BlockRef) -> float:
        own = np.concatenate([columns[a], columns[b]])
        return float((towards[own] * np.linalg.solve(gram[np.ix_(own, own)], towards[own])).sum())

    def join(a: BlockRef, b: BlockRef) -> Floats:
        return np.concatenate([blocks[a], blocks[b]], axis=1)

    return _best(list(blocks), explained, join, targets[rows])


def find_interaction(
    coordinates: Mapping[BlockRef, Floats], candidates: Sequence[BlockRef], targets: Floats
) -> tuple[BlockRef, BlockRef] | None:
    """The pair of blocks with the most informative products of coordinates; see `find_pair`.

    Pairs are ranked by the squared third moments ``mean(a_i b_j y_c)``, summed over i, j and c.
    """
    rows, blocks, centered = _prepare(coordinates, candidates, targets, _MULTIPLIED)

    def moments(a: BlockRef, b: BlockRef) -> float:
        weighted = blocks[b].T @ (blocks[a][:, :, None] * centered[:, None, :]).reshape(
            len(rows), -1
        )
        return float(np.square(weighted).mean())

    def join(a: BlockRef, b: BlockRef) -> Floats:
        return (blocks[a][:, :, None] * blocks[b][:, None, :]).reshape(len(rows), -1)

    return _best(list(blocks), moments, join, targets[rows])


def _prepare(
    coordinates: Mapping[BlockRef, Floats],
    candidates: Sequence[BlockRef],
    targets: Floats,
    n_columns: int,
) -> tuple[npt.NDArray[np.intp], dict[BlockRef, Floats], Floats]:
    """Rows, the first candidates' leading coordinates of variance one there, centered targets."""
    rows = np.sort(np.random.default_rng(0).permutation(len(targets))[:_MOST_ROWS])
    blocks = {}
    for block in candidates[:_MOST_BLOCKS]:
        Z = coordinates[block][rows, :n_columns]
        deviation = Z.std(axis=0)
        blocks[block] = (Z - Z.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    return rows, blocks, targets[rows] - targets[rows].mean(axis=0)


def _best(
    blocks: Sequence[BlockRef],
    rank: Callable[[BlockRef, BlockRef], float],
    join: Callable[[BlockRef, BlockRef], Floats],
    targets: Floats,
) -> tuple[BlockRef, BlockRef] | None:
    """Of the highest-ranked pairs the one of the lowest leave-one-out loss, if significant."""
    pairs = sorted(combinations(blocks, 2), key=lambda pair: -rank(*pair))[:_FINALISTS]
    before = prior_errors(targets)
    best, highest = None, 0.0
    for pair in pairs:
        gain = before - leave_one_out(spectrum(join(*pair)), targets).errors
        mean, error = float(gain.mean()), float(gain.std() / np.sqrt(len(gain)))
        if mean > highest and mean > _SIGNIFICANT * error:
            best, highest = pair, mean
    return best
