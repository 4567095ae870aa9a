"""Rows that are part of other rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["contained_rows"]

_KEY = 3  # words by which the start of a longer text is looked up


def contained_rows(texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mark texts (n,) whose words are, in order and without gaps, a part of a longer text.

    Words are what lies between spaces. Phrases of a treebank are such rows: what is learned from
    the sentence is known about its phrases. Takes time and memory linear in the number of words.
    """
    words = [tuple(text.split()) for text in texts]
    by_start: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for text in words:
        by_start[text[:_KEY]].add(text)
    contained = set()
    for text in set(words):
        for start in range(len(text)):
            for length in range(1, _KEY + 1):
                for part in by_start.get(text[start : start + length], ()):
                    if len(part) < len(text) and text[start : start + len(part)] == part:
                        contained.add(part)
    return np.array([text in contained for text in words])
