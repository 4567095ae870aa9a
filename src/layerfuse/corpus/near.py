"""Rows of one set of texts that are nearly rows of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NEAR", "NearDuplicate", "near_duplicates"]

NEAR = 0.8
"""Jaccard similarity of words and word pairs from which two texts count as nearly the same."""

_BANDS, _ROWS = 16, 4  # a pair at 0.8 shares a band with a probability of 0.9998
_PRIME = (1 << 31) - 1
_BITS = 26

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NearDuplicate:
    """Row ``row`` of the texts is like row ``other`` of the others, by ``similarity`` (0 to 1)."""

    row: int
    other: int
    similarity: float


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], threshold: float = NEAR
) -> list[NearDuplicate]:
    """For each text the most alike of the others, where it reaches ``threshold``.

    Texts are sets of their words and pairs of neighbouring words, in lower case; candidates come
    from MinHash signatures in bands (Broder, 1997; Indyk and Motwani, 1998), their Jaccard
    similarity is then exact up to hash collisions. Most alike first. Time and memory are linear in
    the number of words.
    """
    if not texts or not others:
        return []
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=1 << _BITS,
        ngram_range=(1, 2),
        token_pattern=r"(?u)\w+",  # noqa: S106  # a pattern of words
        binary=True,
        norm=None,
        alternate_sign=False,
        dtype=np.float32,
    )
    own, other = hashing.transform(texts), hashing.transform(others)
    rows, candidates = _candidates(_signatures(own), _signatures(other))
    filled = (_sizes(own)[rows] > 0) & (_sizes(other)[candidates] > 0)
    rows, candidates = rows[filled], candidates[filled]
    if not len(rows):
        return []
    shared = np.asarray(own[rows].multiply(other[candidates]).sum(axis=1)).ravel()
    union = _sizes(own)[rows] + _sizes(other)[candidates] - shared
    similarity = shared / union
    best: dict[int, NearDuplicate] = {}
    for place in np.argsort(-similarity, kind="stable"):
        if similarity[place] < threshold:
            break
        row = int(rows[place])
        found = NearDuplicate(row, int(candidates[place]), float(similarity[place]))
        best.setdefault(row, found)
    return list(best.values())


def _sizes(table: Any) -> Ints:
    return np.asarray(np.diff(table.indptr), dtype=np.int64)


def _signatures(table: Any) -> Ints:
    """MinHash signatures (n, bands x rows) of the rows of a sparse table; -1 for an empty row."""
    random = np.random.default_rng(0)
    found = np.full((table.shape[0], _BANDS * _ROWS), -1, dtype=np.int64)
    filled = np.flatnonzero(_sizes(table))
    if not len(filled):
        return found
    items, starts = table.indices.astype(np.int64), table.indptr[filled]
    for column in range(found.shape[1]):
        factor, offset = random.integers(1, _PRIME, 2)
        found[filled, column] = np.minimum.reduceat((items * factor + offset) % _PRIME, starts)
    return found


def _candidates(own: Ints, other: Ints) -> tuple[Ints, Ints]:
    """Pairs of rows that share a band: for each row the first of the others in each band."""
    pairs = []
    for band in range(_BANDS):
        columns = slice(band * _ROWS, (band + 1) * _ROWS)
        a, b = _keys(own[:, columns]), _keys(other[:, columns])
        known, first = np.unique(b, return_index=True)
        places = np.minimum(np.searchsorted(known, a), len(known) - 1)
        hit = np.flatnonzero(known[places] == a)
        pairs.append(np.stack([hit, first[places[hit]]], axis=1))
    both = np.unique(np.concatenate(pairs), axis=0)
    return both[:, 0], both[:, 1]


def _keys(columns: Ints) -> Ints:
    """One number for each row of signatures."""
    key = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key.astype(np.int64)
