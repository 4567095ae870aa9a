"""Dataset audit: repeated, conflicting and leaked texts, rare classes, near-duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING
from zlib import crc32

from layerfuse.data.dataset import Split, TextDataset
from layerfuse.folds import normalize
from layerfuse.labels import each_label
from layerfuse.targets import alike_labels, odd_labels

if TYPE_CHECKING:
    from datasketch import MinHash
    from py3langid.langid import LanguageIdentifier


NEAR = 0.8
"""Jaccard similarity of words and word pairs from which two texts are near-duplicates."""

_SMALL_CLASS = 5  # training rows; fewer are too few to learn much from
_BANDS, _ROWS = 16, 4  # of a signature: a pair at 0.8 shares a band with probability 0.9998
_MOST_CANDIDATES = 20
_PIECES, _PIECE = 200, (60, 1000)  # sampled pieces of text whose language is told; characters each
_LETTERS = 0.3  # share of a text's characters below which it tells no language
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Finding:
    """How many rows, and which (counted from 0)."""

    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SplitAudit:
    """The audit of one split: the number of rows, and those of each class, largest first.

    ``unlabeled`` rows were skipped; rows are numbered as in the file.
    ``empty`` are rows without text, ``duplicates`` those that repeat the text of an earlier row,
    ``over_long`` those of more characters than the audit was told. ``conflicts`` are the distinct
    texts with two labels or more, ``conflict_rows`` the rows of each of them.
    """

    rows: int
    classes: dict[str, int]
    empty: Finding
    duplicates: Finding
    over_long: Finding
    conflicts: int
    conflict_rows: tuple[tuple[int, ...], ...]
    unlabeled: int = 0


@dataclass(frozen=True)
class LanguageShare:
    """An ISO 639 code and the share of sampled texts (0 to 1) that look like its language."""

    code: str
    share: float


@dataclass(frozen=True)
class Audit:
    """The audit of a dataset.

    ``leaks`` are test rows whose text, ignoring case and runs of white space, is in train;
    ``untested_classes`` are only in train and ``unseen_classes`` only in the test split;
    ``small_classes`` are those with fewer than 5 training rows. Labels of ``alike_classes`` differ
    only in case and white space, those of ``odd_classes`` read like a missing value, such as "nan".
    ``languages`` are those of the training texts, see `find_languages`.
    """

    name: str
    splits: dict[str, SplitAudit]
    test_name: str | None
    leaks: Finding
    untested_classes: tuple[str, ...]
    unseen_classes: tuple[str, ...]
    small_classes: dict[str, int]
    alike_classes: tuple[tuple[str, ...], ...] = ()
    odd_classes: tuple[str, ...] = ()
    languages: tuple[LanguageShare, ...] = ()


def audit(dataset: TextDataset, max_chars: int = 2000) -> Audit:
    """Count what biases scores: repeats, conflicts, leaks from train to test, rare classes.

    Parameters
    ----------
    dataset : TextDataset
        All of its splits are audited.
    max_chars : int
        Characters above which a text counts as too long; 2,000 are about 500 English tokens.
    """
    train, test = dataset.splits.get("train", Split(())), dataset.test or Split(())
    seen = set(map(normalize, train.texts))
    numbered = zip(test.rows, map(normalize, test.texts), strict=True)
    leaks = (row for row, text in numbered if text and text in seen)
    trained, tested = _class_counts(train), _class_counts(test)
    every = dict.fromkeys(name for part in dataset.splits.values() for name in _class_counts(part))
    return Audit(
        name=dataset.name,
        splits={name: _audit_split(split, max_chars) for name, split in dataset.splits.items()},
        test_name=dataset.test_name,
        leaks=_finding(leaks),
        untested_classes=tuple(name for name in trained if tested and name not in tested),
        unseen_classes=tuple(name for name in tested if trained and name not in trained),
        small_classes={name: count for name, count in trained.items() if count < _SMALL_CLASS},
        alike_classes=alike_labels(every),
        odd_classes=odd_labels(every),
        languages=find_languages(train.texts),
    )


def _audit_split(split: Split, max_chars: int) -> SplitAudit:
    groups: dict[str, list[int]] = {}
    kinds: dict[str, set[object]] = {}
    numbered = list(zip(split.rows, split.texts, strict=True))
    labels = split.labels or (None,) * len(split)
    for (row, text), label in zip(numbered, labels, strict=True):
        if text.strip():
            key = normalize(text)
            groups.setdefault(key, []).append(row)
            kinds.setdefault(key, set()).add(label)
    conflicts = [rows for text, rows in groups.items() if len(kinds[text]) > 1]
    return SplitAudit(
        rows=len(split),
        classes=_class_counts(split),
        empty=_finding(row for row, text in numbered if not text.strip()),
        duplicates=_finding(sorted(row for rows in groups.values() for row in rows[1:])),
        over_long=_finding(row for row, text in numbered if len(text) > max_chars),
        conflicts=len(conflicts),
        conflict_rows=tuple(map(tuple, conflicts)),
        unlabeled=split.n_unlabeled,
    )


def find_languages(texts: Sequence[str]) -> tuple[LanguageShare, ...]:
    """Tell the languages of texts, the most frequent first, by py3langid (Lui and Baldwin, 2012).

    Up to 200 pieces are looked at, drawn evenly; short texts are joined to pieces of 60 characters,
    as a few words tell little. Texts of digits and signs are left out; "zxx" are other codes.

    Examples
    --------
    >>> find_languages(["Die Rechnung wurde nie bezahlt, und der Kunde wartet noch immer."])
    (LanguageShare(code='de', share=1.0),)
    """
    least, most = _PIECE
    pieces, piece = [], ""
    drawn = texts[:: max(1, len(texts) // (4 * _PIECES))]
    for text in filter(_has_letters, drawn):
        piece = f"{piece}\n{text[:most]}".strip()
        if len(piece) >= least:
            pieces.append(piece)
            piece = ""
    pieces = pieces[:: -(-len(pieces) // _PIECES)] if pieces else [piece] if piece else []
    codes = Counter(_identifier().classify(piece)[0] for piece in pieces)
    return tuple(LanguageShare(code, count / len(pieces)) for code, count in codes.most_common())


def _has_letters(text: str) -> bool:
    characters = "".join(text[: _PIECE[1]].split())
    return sum(map(str.isalpha, characters)) > _LETTERS * len(characters)


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _finding(rows: Iterable[int]) -> Finding:
    found = tuple(rows)
    return Finding(len(found), found)


def _class_counts(split: Split) -> dict[str, int]:
    labels = (label for own in split.labels or () for label in each_label(own))
    return {str(label): count for label, count in Counter(labels).most_common()}


@dataclass(frozen=True)
class NearDuplicate:
    """Row ``row`` of the texts resembles row ``other`` of the others by ``similarity`` (0 to 1)."""

    row: int
    other: int
    similarity: float


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], threshold: float = NEAR
) -> list[NearDuplicate]:
    """Find for each text the most similar of the others, where it reaches ``threshold``.

    Texts are sets of their words and pairs of neighboring words, in lower case. Candidates come
    from locality-sensitive hashing of MinHash signatures (Broder, 1997; Indyk and Motwani, 1998);
    their Jaccard similarity is exact. Time and memory are linear in the number of words.

    Parameters
    ----------
    texts, others : sequence of str
        Such as test texts and training texts.
    threshold : float
        Least Jaccard similarity, from 0 to 1. A pair at 0.8 is found with probability 0.9998.

    Returns
    -------
    list of NearDuplicate
        Most similar first.

    Examples
    --------
    >>> near_duplicates(["A fine film"], ["dull", "a fine film!"])
    [NearDuplicate(row=0, other=1, similarity=1.0)]
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    for row, signature in _signatures(others):
        # Of many texts made from one template a few are enough; all of them would take n^2 time.
        if len(index.query(signature)) < _MOST_CANDIDATES:
            index.insert(row, signature, check_duplication=False)

    @lru_cache(maxsize=10_000)
    def shingles_of(other: int) -> set[str]:
        return _shingles(others[other])

    found = []
    for row, signature in _signatures(texts):
        own = _shingles(texts[row])
        pairs = (
            NearDuplicate(row, other, len(own & theirs) / len(own | theirs))
            for other in sorted(index.query(signature))
            for theirs in (shingles_of(other),)
        )
        best = max(pairs, key=lambda pair: pair.similarity, default=None)
        if best is not None and best.similarity >= threshold:
            found.append(best)
    return sorted(found, key=lambda pair: -pair.similarity)


def _shingles(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    return {*words, *map(" ".join, pairwise(words))}


def _signatures(texts: Sequence[str]) -> Iterator[tuple[int, MinHash]]:
    """The row and MinHash signature of each text that has a word."""
    from datasketch import MinHash

    rows = [row for row, text in enumerate(texts) if _WORD.search(text)]
    shingles = ([part.encode() for part in _shingles(texts[row])] for row in rows)
    signatures = MinHash.generator(shingles, num_perm=_BANDS * _ROWS, hashfunc=crc32)
    yield from zip(rows, signatures, strict=True)
