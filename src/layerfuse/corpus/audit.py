"""What a person should know about a dataset before believing a score on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from layerfuse.corpus.dataset import Split, TextDataset

__all__ = ["Audit", "Finding", "SplitAudit", "audit"]

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
