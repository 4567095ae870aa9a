"""Rows that are part of longer rows, and what is learned from where most rows are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from helpers import Notes
from layerfuse.classifier.validation import TrainingData, check_training, contained_rows
from layerfuse.errors import LayerfuseWarning


def is_part(part: str, text: str) -> bool:
    a, b = part.split(), text.split()
    return len(a) < len(b) and any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1))


def checked(texts: list[str], y: list[int], fragments: str = "drop", **given: Any) -> TrainingData:
    sample_weight, groups = given.get("sample_weight"), given.get("groups")
    return check_training(texts, y, sample_weight, groups, None, fragments, Notes())


def test_fragments_are_found_as_by_comparing_all_pairs() -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(list("abc"), draw.integers(1, 10))) for _ in range(300)]
    expected = [any(is_part(text, other) for other in texts) for text in texts]
    assert contained_rows(texts).tolist() == expected
    assert 0 < sum(expected) < len(texts)


def test_equal_texts_spaces_and_pieces_of_words() -> None:
    texts = ["a fine film", "a  fine film ", "fine", "fin", "film a", "", "a fine film indeed"]
    assert contained_rows(texts).tolist() == [True, True, True, False, False, False, False]


def test_fragments_are_left_out_where_most_rows_are_fragments() -> None:
    whole = [f"the film number {i} is {'good' if i % 2 else 'bad'}" for i in range(10)]
    fragments = [text.partition("number ")[2] for text in whole]
    fragments += [text.rpartition(" is")[0] for text in whole]
    y = [i % 2 for i in range(10)] * 3
    weights, groups = np.arange(1.0, 31.0), [f"author {row}" for row in range(30)]
    with pytest.warns(LayerfuseWarning, match="20 of 30 training texts are part of a longer one"):
        found = checked(whole + fragments, y, sample_weight=weights, groups=groups)
    assert (found.texts, found.rows.tolist()) == (whole, list(range(10)))
    assert found.targets.labels.tolist() == y[:10]
    assert found.targets.weights is not None
    assert found.targets.weights.tolist() == weights[:10].tolist()
    assert found.targets.groups is None
    assert len(checked(whole + fragments, y, "keep").texts) == 30
    assert len(checked(whole + fragments[:5], y[:15]).texts) == 15


def test_a_class_that_has_only_fragments_keeps_them() -> None:
    texts = [" ".join(words) for words in itertools.permutations("abcd")] + list("abcd") * 10
    assert len(checked(texts, [0] * 24 + [1] * 40).texts) == 64
