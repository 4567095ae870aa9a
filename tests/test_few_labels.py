"""Four rows of each class are enough for every head and fusion."""

from __future__ import annotations

import numpy as np
import pytest

from families import VOCABULARY, TinyModels
from helpers import build
from layerfuse.heads import HEADS

pytestmark = pytest.mark.slow

FUSIONS = ("auto", "concat", "stacking", "voting", "gated")


def few(n_classes: int, each: int = 4) -> tuple[list[str], list[int]]:
    """``each`` distinct texts of every class, which a word of its own gives away."""
    telling, filling = VOCABULARY[4 : 4 + n_classes], VOCABULARY[-37:]
    rng = np.random.default_rng(0)
    labels = [label for label in range(n_classes) for _ in range(each)]
    return [f"{' '.join(rng.choice(filling, 4))} {telling[label]}" for label in labels], labels


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize(
    ("fusion", "head"),
    [*(("auto", head) for head in HEADS), *((fusion, "auto") for fusion in FUSIONS)],
)
def test_four_rows_of_each_class(tiny: TinyModels, n_classes: int, fusion: str, head: str):
    """Three blocks, so that there is something to fuse; warnings are errors here."""
    texts, labels = few(n_classes)
    options = {"selection": "top_k", "max_blocks": 3, "fusion": fusion, "head": head}
    model = build(tiny, "bert", "llama", cv=5, store=None, **options).fit(texts, labels)
    proba = model.predict_proba(texts)
    assert len(model.plan_.blocks) == 3
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert model.score(texts, labels) > 1 / n_classes
    assert model.cv_.n == len(texts)
