"""What to read and how: jobs of one shard each, and batches by token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.embeddings.shard import Key
from layerfuse.embeddings.store import Missing
from layerfuse.encoders import FrozenEncoder

_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
# What a batch costs beside its tokens, in tokens; on a GPU in FLOP, some milliseconds' work.
_BATCH_OVERHEAD = {"cpu": 64, "mps": 512}
_GPU_OVERHEAD = 4e12
SHARD_ROWS = {"cpu": 2048, "mps": 1024, "cuda": 8192}
# Texts times parameters: some ten seconds on two cores or on one GPU, which a kill may cost.
SHARD_WORK = {"cpu": 7e10, "mps": 7e11, "cuda": 2e13}
_SHARD_BYTES = {"cpu": 192 << 20, "mps": 192 << 20, "cuda": 1 << 30}  # three are in memory at once
_MIN_ROWS = 64


@dataclass(frozen=True, eq=False)
class ShardJob:
    """One shard to compute: plain data that can be pickled and run in another process.

    ``rows`` (n_texts,) are the numbers of ``texts`` among those planned, ``keys`` the layer and
    pooling of each block, ``batch_tokens`` the most tokens of one batch, padding counted.
    """

    rows: npt.NDArray[np.intp]
    texts: tuple[str, ...]
    keys: tuple[Key, ...]
    batch_tokens: int


def plan_shards(texts: Sequence[str], missing: Missing, encoder: FrozenEncoder) -> list[ShardJob]:
    """Divide what is missing into jobs; the encoder's weights are not needed.

    The jobs and the batches inside them follow from the order of the texts alone, so that a run
    that was stopped and goes on yields the same bytes as one that was not.

    ``texts`` are distinct and in the order of their hashes; ``missing`` is that of
    `Section.missing`.
    """
    budget = encoder.batch_tokens or _BATCH_TOKENS[encoder.kind]
    jobs = []
    for rows, keys in missing:
        fitting = _SHARD_BYTES[encoder.kind] // (4 * encoder.dim * len(keys))
        size = max(1, min(_max_rows(encoder, max(layer for layer, _ in keys)), fitting))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            jobs.append(ShardJob(part, tuple(texts[row] for row in part), keys, budget))
    return jobs


def _max_rows(encoder: FrozenEncoder, highest: int) -> int:
    """Texts of a shard: fewer for a large encoder, as a kill loses what is unwritten."""
    rows = SHARD_ROWS[encoder.kind]
    while rows > _MIN_ROWS and rows * encoder.layer_parameters[highest] > SHARD_WORK[encoder.kind]:
        rows //= 2
    return rows


def batch_overhead(encoder: FrozenEncoder) -> int:
    """What a batch costs beside its tokens, in tokens."""
    if encoder.kind in _BATCH_OVERHEAD:
        return _BATCH_OVERHEAD[encoder.kind]
    return int(_GPU_OVERHEAD / (2 * encoder.layer_parameters[-1]))


def plan_batches(lengths: Sequence[int], budget: int, overhead: int) -> list[list[int]]:
    """Group texts into batches by falling length so that reading them costs least.

    A batch costs its tokens, padding counted, and a fixed ``overhead`` in tokens; of all ways to
    cut the sorted texts into batches within the ``budget`` (a longer text is one by itself) the
    cheapest is found by dynamic programming. Texts of equal lengths keep their order.

    Examples
    --------
    >>> plan_batches([3, 9, 3, 9, 3], budget=100, overhead=1)
    [[1, 3], [0, 2, 4]]
    """
    widths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-widths, kind="stable")
    widths = widths[order]
    n = len(widths)
    least = np.full(n + 1, np.iinfo(np.int64).max)
    least[0] = 0
    starts = np.zeros(n + 1, dtype=np.intp)  # of the batch that ends before a row
    for start, width in enumerate(widths):
        size = min(max(1, budget // int(width)), n - start)
        ends = slice(start + 1, start + size + 1)
        costs = least[start] + overhead + width * np.arange(1, size + 1)
        better = costs < least[ends]
        least[ends][better] = costs[better]
        starts[ends][better] = start
    batches: list[list[int]] = []
    end = n
    while end:
        batches.append(order[starts[end] : end].tolist())
        end = int(starts[end])
    return batches[::-1]
