"""What a pipeline must beat to be worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.events import SILENT, Reporter
from layerfuse.model import Blocks, Training
from layerfuse.scoring import stratified_folds

__all__ = ["Baseline", "baseline_blocks", "run_baselines", "tfidf_classifier"]

Labels = npt.NDArray[np.intp]

_WORD = r"(?u)\S+"  # any run of non-space characters, so that only empty texts hold none


@dataclass(frozen=True)
class Baseline:
    """One baseline's class indices for the rows it is compared on, (n,).

    ``name`` is majority, tfidf, last_layer, best_block or last_four.
    """

    name: str
    encoder: str | None
    blocks: tuple[BlockRef, ...]
    predicted: Labels


def tfidf_classifier() -> Any:
    """TF-IDF of words and word pairs with multinomial logistic regression (C=10)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=_WORD)
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, tol=1e-3))


def baseline_blocks(scores: BlockScores) -> list[tuple[str, str, tuple[BlockRef, ...]]]:
    """The single-encoder baselines as (name, encoder, blocks), by the scores on training rows.

    ``last_layer`` and ``last_four`` take each encoder's pooling that scores best at its last
    layer; ``last_four`` joins its last four layers.
    """
    found: list[tuple[str, str, tuple[BlockRef, ...]]] = []
    encoders = list(dict.fromkeys(score.block.encoder for score in scores))
    for encoder in encoders:
        own = scores.of(encoder)
        layers = sorted({score.block.layer for score in own})
        at_last = [score.block for score in own.ranking if score.block.layer == layers[-1]]
        pooling = at_last[0].pooling
        found.append(("last_layer", encoder, (at_last[0],)))
        four = tuple(BlockRef(encoder, layer, pooling) for layer in layers[-4:])
        found.append(("last_four", encoder, four))
    best = scores.best.block
    found.append(("best_block", best.encoder, (best,)))
    return found


def run_baselines(
    training: Training,
    texts: Sequence[str],
    y: Labels,
    scores: BlockScores,
    test: tuple[Sequence[str], Blocks] | None,
    reporter: Reporter = SILENT,
) -> list[Baseline]:
    """Predict with every baseline: test rows if there are any, else measured rows out of fold.

    Parameters
    ----------
    training
        The training rows' blocks; baselines concatenate them, whatever the recipe's fusion.
    texts, y
        Training texts and class indices (n,).
    scores
        The blocks' scores on training rows.
    test
        Test texts and their blocks.
    """
    training = training.plain()
    plan = baseline_blocks(scores)
    found = []
    with reporter.task("baselines", len(plan) + 1, "baselines") as advance:
        majority = int(np.bincount(y).argmax())
        n_rows = len(training.rows) if test is None else len(test[0])
        found.append(Baseline("majority", None, (), np.full(n_rows, majority)))
        words = (
            _tfidf_out_of_fold(training, texts, y) if test is None else _tfidf(texts, y, test[0])
        )
        found.append(Baseline("tfidf", None, (), words))
        advance(1)
        for name, encoder, blocks in plan:
            if test is None:
                logits = training.out_of_fold(blocks)
            else:
                logits = training.fit(blocks).logits(test[1])
            found.append(Baseline(name, encoder, blocks, logits.argmax(axis=1)))
            advance(1)
    return found


def _tfidf(texts: Sequence[str], y: Labels, others: Sequence[str]) -> Labels:
    try:
        return np.asarray(tfidf_classifier().fit(texts, y).predict(others))
    except ValueError as error:  # no text holds a word
        if "empty vocabulary" not in str(error):
            raise
        return np.full(len(others), int(np.bincount(y).argmax()))


def _tfidf_out_of_fold(training: Training, texts: Sequence[str], y: Labels) -> Labels:
    rows = training.rows
    predicted = np.zeros(len(rows), dtype=np.intp)
    recipe = training.recipe
    for train, held in stratified_folds(y[rows], recipe.n_folds, recipe.seed):
        known = [texts[row] for row in rows[train]]
        predicted[held] = _tfidf(known, y[rows[train]], [texts[row] for row in rows[held]])
    return predicted
