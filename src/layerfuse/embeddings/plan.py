"""Which texts are read together: batches by length, with as little padding as is worth it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["plan_batches"]


def plan_batches(lengths: Sequence[int], budget: int, overhead: int) -> list[list[int]]:
    """Part rows into batches by falling length so that reading them costs least.

    A batch costs its tokens, padding counted, and a fixed amount; of all ways to cut the sorted
    rows the cheapest is found by dynamic programming.

    Parameters
    ----------
    lengths
        Tokens of each row, at least 1.
    budget
        The most tokens of a batch, padding counted; a longer row is a batch by itself.
    overhead
        What a batch costs beside its tokens, in tokens.

    Returns
    -------
    Row numbers of each batch; equal lengths keep their order.
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
