"""Nearly equal rows are found, others are not, and quickly."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from layerfuse.data import near_duplicates

WORDS = [f"w{number}" for number in range(3000)]


def documents(count: int, length: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        " ".join(row) for row in np.array(WORDS)[rng.integers(len(WORDS), size=(count, length))]
    ]


def jaccard(a: str, b: str) -> float:
    """Of the sets of words and pairs of neighbouring words."""
    sets = [
        {*words, *(" ".join(pair) for pair in pairwise(words))}
        for words in (a.lower().split(), b.lower().split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_texts_with_few_words_changed_are_found_with_their_similarity():
    others = documents(300, 60, 0)
    changed = []
    for row, text in enumerate(others[:100]):
        words = text.split()
        words[row % 60] = "changed"
        changed.append(" ".join(words).upper())
    found = near_duplicates([*changed, *documents(100, 60, 1)], others)
    assert {(pair.row, pair.other) for pair in found} == {(row, row) for row in range(100)}
    for pair in found:
        assert pair.similarity == pytest.approx(jaccard(changed[pair.row], others[pair.other]))
    assert [pair.similarity for pair in found] == sorted(
        (pair.similarity for pair in found), reverse=True
    )


def test_the_most_alike_is_taken():
    base = " ".join(WORDS[:40])
    assert near_duplicates([base], [base.replace("w7 ", "x "), base])[0].other == 1


@pytest.mark.parametrize(
    ("texts", "others"), [([], ["a"]), (["a"], []), (["", " . "], ["", "!"]), (["a b"], ["c d"])]
)
def test_nothing_is_like_nothing(texts: list[str], others: list[str]):
    assert near_duplicates(texts, others) == []


@pytest.mark.slow
def test_twenty_thousand_rows_take_seconds():
    texts, others = documents(10_000, 20, 2), documents(9_000, 20, 3)
    started = time.perf_counter()
    found = near_duplicates(texts, [*others, *texts[:1000]])
    assert time.perf_counter() - started < 7
    assert {pair.row for pair in found} == set(range(1000))
