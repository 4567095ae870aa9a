"""Batches: each row once, within the budget, at the least cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from layerfuse.embeddings.jobs import plan_batches


def cost(batches: Sequence[Sequence[int]], lengths: Sequence[int], overhead: int) -> int:
    return sum(overhead + len(batch) * max(lengths[row] for row in batch) for batch in batches)


def cheapest(lengths: Sequence[int], budget: int, overhead: int) -> int:
    """Over all ways to cut the sorted rows."""
    widths = sorted(lengths, reverse=True)
    found = []
    for cuts in range(2 ** (len(widths) - 1)):
        parts, start = [], 0
        for end in range(1, len(widths) + 1):
            if end == len(widths) or cuts >> (end - 1) & 1:
                parts.append(widths[start:end])
                start = end
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            found.append(sum(overhead + len(part) * part[0] for part in parts))
    return min(found)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("budget", "overhead"), [(1, 5), (40, 0), (60, 12), (10_000, 30)])
def test_no_other_way_costs_less(seed: int, budget: int, overhead: int):
    lengths = np.random.default_rng(seed).integers(1, 40, size=9).tolist()
    batches = plan_batches(lengths, budget, overhead)
    assert sorted(row for batch in batches for row in batch) == list(range(9))
    assert all(len(b) == 1 or len(b) * max(lengths[r] for r in b) <= budget for b in batches)
    assert cost(batches, lengths, overhead) == cheapest(lengths, budget, overhead)


def test_longest_first_and_equal_lengths_in_their_order():
    lengths = [3, 9, 3, 9, 3]
    assert plan_batches(lengths, 100, 1) == [[1, 3], [0, 2, 4]]
    assert plan_batches([], 100, 1) == []
