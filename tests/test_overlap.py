"""Rows that are part of longer rows, and what is learned from where most rows are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from layerfuse.classifier.validation import check_parts, training_rows
from layerfuse.data import contained_rows
from layerfuse.errors import ConfigError


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def is_part(part: str, text: str) -> bool:
    a, b = part.split(), text.split()
    return len(a) < len(b) and any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1))


def test_parts_are_found_as_by_comparing_all_pairs() -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abc"), draw.integers(1, 10))) for _ in range(300)]
    expected = [any(is_part(text, other) for other in texts) for text in texts]
    assert contained_rows(texts).tolist() == expected
    assert 0 < sum(expected) < len(texts)


def test_equal_texts_spaces_and_pieces_of_words() -> None:
    texts = ["a fine film", "a  fine film ", "fine", "fin", "film a", "", "a fine film indeed"]
    assert contained_rows(texts).tolist() == [True, True, True, False, False, False, False]


def test_parts_are_left_out_where_most_rows_are_parts() -> None:
    whole = [f"the film number {i} is {'good' if i % 2 else 'bad'}" for i in range(10)]
    parts = [text.partition("number ")[2] for text in whole] + [
        text.rpartition(" is")[0] for text in whole
    ]
    y = np.array([i % 2 for i in range(10)] * 3)
    notes = Notes()
    assert training_rows(whole + parts, y, "auto", notes).tolist() == list(range(10))  # type: ignore[arg-type]
    assert "20 of 30 rows are parts" in notes.lines[0]
    assert len(training_rows(whole + parts, y, "keep", notes)) == 30  # type: ignore[arg-type]
    assert len(training_rows(whole + parts[:5], y[:15], "auto", notes)) == 15  # type: ignore[arg-type]
    assert len(notes.lines) == 1


def test_a_class_that_has_only_parts_keeps_them() -> None:
    texts = [" ".join(words) for words in itertools.permutations("abcd")] + list("abcd") * 10
    y = np.array([0] * 24 + [1] * 40)
    assert len(training_rows(texts, y, "auto", Notes())) == 64  # type: ignore[arg-type]


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep"):
        check_parts("kep")
