"""What a person should know about a dataset before believing a score on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.data.dataset import Split, TextDataset

__all__ = [
    "NEAR",
    "Audit",
    "Finding",
    "NearDuplicate",
    "SplitAudit",
    "audit",
    "contained_rows",
    "near_duplicates",
]

_EXAMPLES = 5
_FEW = 5  # train rows under which a class is too small to learn much from


@dataclass(frozen=True)
class Finding:
    """How many rows, and the first of them (counted from 0)."""

    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SplitAudit:
    """One split.

    ``classes`` counts the rows of each class, largest first. ``duplicates`` are rows that repeat
    an earlier row's text. ``conflicts`` counts the distinct texts that have two labels or more;
    ``conflict_rows`` are the rows of the first few. ``over_long`` rows have more characters than
    the hint that the audit was given.
    """

    rows: int
    classes: dict[str, int]
    empty: Finding
    duplicates: Finding
    over_long: Finding
    conflicts: int
    conflict_rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Audit:
    """The audit of a dataset.

    ``leaks`` are rows of the test split whose text, ignoring case and runs of white space, is in
    train. ``untested_classes`` are only in train, ``unseen_classes`` only in the test split;
    ``small_classes`` have fewer than 5 rows in train.
    """

    name: str
    splits: dict[str, SplitAudit]
    test_name: str | None
    leaks: Finding
    untested_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    small_classes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, tuples, strings and numbers."""
        return asdict(self)


def audit(dataset: TextDataset, max_tokens_hint_chars: int = 2000) -> Audit:
    """Count what makes scores untrue: repeats, conflicts, leaks from train to test, rare classes.

    ``max_tokens_hint_chars`` is the number of characters that an encoder's token limit is taken
    to hold; 2,000 are about 500 English tokens.
    """
    splits = {
        name: _audit_split(split, max_tokens_hint_chars) for name, split in dataset.splits.items()
    }
    train, test = dataset.splits.get("train", Split(())), dataset.test or Split(())
    seen = set(map(_normalised, train.texts))
    leaks = [row for row, text in enumerate(map(_normalised, test.texts)) if text and text in seen]
    learnt, tested = _class_counts(train), _class_counts(test)
    return Audit(
        name=dataset.name,
        splits=splits,
        test_name=dataset.test_name,
        leaks=_finding(leaks),
        untested_classes=tuple(name for name in learnt if tested and name not in tested),
        unseen_classes=tuple(name for name in tested if learnt and name not in learnt),
        small_classes={name: count for name, count in learnt.items() if count < _FEW},
    )


def _audit_split(split: Split, limit: int) -> SplitAudit:
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(split.texts):
        groups.setdefault(text, []).append(row)
    labels = split.labels or (None,) * len(split)
    conflicts = [rows for rows in groups.values() if len({labels[row] for row in rows}) > 1]
    return SplitAudit(
        rows=len(split),
        classes=_class_counts(split),
        empty=_finding(row for row, text in enumerate(split.texts) if not text.strip()),
        duplicates=_finding(sorted(row for rows in groups.values() for row in rows[1:])),
        over_long=_finding(row for row, text in enumerate(split.texts) if len(text) > limit),
        conflicts=len(conflicts),
        conflict_rows=tuple(tuple(rows[:_EXAMPLES]) for rows in conflicts[:_EXAMPLES]),
    )


def _finding(rows: Iterable[int]) -> Finding:
    found = tuple(rows)
    return Finding(len(found), found[:_EXAMPLES])


def _class_counts(split: Split) -> dict[str, int]:
    return {str(label): count for label, count in Counter(split.labels or ()).most_common()}


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


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
