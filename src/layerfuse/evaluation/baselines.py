"""What a pipeline must beat to be worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.evaluation.nested import Procedure, Training
from layerfuse.model_selection import Found
from layerfuse.parallel import spread
from layerfuse.pipeline import Blocks, Plan
from layerfuse.progress import SILENT, Reporter
from layerfuse.targets import stratified_folds

__all__ = ["Baseline", "Rival", "rivals", "run_baselines", "tfidf_classifier"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

_WORD = r"(?u)\S+"  # any run of non-space characters, so that only empty texts hold none


@dataclass(frozen=True)
class Rival:
    """A simpler way to a classifier: its name, the encoder it is about if any, and the way."""

    name: str
    encoder: str | None
    procedure: Procedure

    @property
    def key(self) -> str:
        return f"{self.name}:{self.encoder}"


@dataclass(frozen=True)
class Baseline:
    """One baseline's predictions, as class indices.

    ``name`` is majority, tfidf, last_layer, last_four, last_matched, best_block or first_N (the
    first N chosen blocks, concatenated); ``plan`` is what all measured rows lead to, None where no
    encoder is read. ``out_of_fold`` (n_measured,) are predictions for training rows by models that
    did not see them, ``predicted`` (n_test,) those for test rows if there are any.
    """

    name: str
    encoder: str | None
    plan: Plan | None
    out_of_fold: Labels
    predicted: Labels | None


def rivals(encoders: Sequence[str], max_blocks: int) -> list[Rival]:
    """The baselines that read encoders.

    ``last_layer`` and ``last_four`` take each encoder's pooling that scores best at its last
    layer; ``last_four`` joins its last four layers. ``last_matched`` joins as many last layers as
    the pipeline has blocks, so that it is as wide, of the encoder whose last layer scores best.
    """
    found = []
    for encoder in encoders:
        found.append(Rival("last_layer", encoder, _last_of(encoder, 1)))
        found.append(Rival("last_four", encoder, _last_of(encoder, 4)))
    found.append(Rival("last_matched", None, _last_matched))
    found.append(Rival("best_block", None, lambda _, scores: Plan((scores.best.block,))))
    found += [Rival(f"first_{count}", None, _first(count)) for count in range(1, max_blocks)]
    return found


def _last_of(encoder: str, count: int) -> Procedure:
    return lambda _, scores: _last_layers(scores.of(encoder), count)


def _last_layers(own: BlockScores, count: int) -> Plan:
    """The last ``count`` layers of one encoder, at the pooling that is best at the very last."""
    layers = sorted({score.block.layer for score in own})
    at_last = next(score.block for score in own.ranking if score.block.layer == layers[-1])
    chosen = (BlockRef(at_last.encoder, layer, at_last.pooling) for layer in layers[-count:])
    return Plan(tuple(chosen))


def _last_matched(found: Found, scores: BlockScores) -> Plan:
    encoders = dict.fromkeys(score.block.encoder for score in scores)
    lasts = {_last_layers(scores.of(encoder), 1).blocks[0] for encoder in encoders}
    best = next(score.block for score in scores.ranking if score.block in lasts)
    return _last_layers(scores.of(best.encoder), len(found.plan.blocks))


def _first(count: int) -> Procedure:
    return lambda found, _: Plan(found.plan.blocks[:count])


def run_baselines(
    training: Training,
    found: Found,
    out_of_fold: Callable[[Rival], Floats],
    texts: Sequence[str],
    test: tuple[Sequence[str], Blocks] | None,
    *,
    n_folds: int,
    max_blocks: int,
    reporter: Reporter = SILENT,
) -> list[Baseline]:
    """Predict with every baseline, out of fold and for test rows if there are any.

    Parameters
    ----------
    training, found
        The training rows, and what the search found on them.
    out_of_fold
        Gives the logits (n_measured, n_classes) of a rival.
    texts
        Training texts (n,).
    test
        Test texts and their blocks.
    n_folds, max_blocks
        Those of the pipeline.
    """
    scores = training.probed.scores
    encoders = list(dict.fromkeys(score.block.encoder for score in scores))
    plans = [(rival, rival.procedure(found, scores)) for rival in rivals(encoders, max_blocks)]
    n_chosen = len(found.plan.blocks)
    steps = {f"first_{count}" for count in range(n_chosen, max_blocks)}  # the pipeline itself
    plans = [(rival, plan) for rival, plan in plans if rival.name not in steps]
    y = training.y
    majority = int(np.bincount(y).argmax())
    baselines = [
        Baseline(
            "majority",
            None,
            None,
            np.full(len(training.rows), majority),
            None if test is None else np.full(len(test[0]), majority),
        )
    ]
    distinct = list(dict.fromkeys(plan for _, plan in plans))
    with reporter.task("baselines", len(distinct) + 1, "baselines") as advance:
        words = _tfidf_out_of_fold(training, texts, n_folds)
        words_test = None if test is None else _tfidf(texts, y, test[0])
        baselines.append(Baseline("tfidf", None, None, words, words_test))
        advance(1)

        def predict(plan: Plan) -> Labels | None:
            return None if test is None else training.fit(plan).logits(test[1]).argmax(axis=1)

        predicted = {}
        for plan, guessed in zip(distinct, spread(predict, distinct), strict=True):
            predicted[plan] = guessed
            advance(1)
    for rival, plan in plans:
        known = out_of_fold(rival).argmax(axis=1)
        baselines.append(Baseline(rival.name, plan.blocks[0].encoder, plan, known, predicted[plan]))
    return baselines


def tfidf_classifier() -> Any:
    """TF-IDF of words with multinomial logistic regression (C=10)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD)
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, tol=1e-3))


def _tfidf(texts: Sequence[str], y: Labels, others: Sequence[str]) -> Labels:
    try:
        return np.asarray(tfidf_classifier().fit(texts, y).predict(others))
    except ValueError as error:  # no text holds a word
        if "empty vocabulary" not in str(error):
            raise
        return np.full(len(others), int(np.bincount(y).argmax()))


def _tfidf_out_of_fold(training: Training, texts: Sequence[str], n_folds: int) -> Labels:
    rows, y = training.rows, training.y
    predicted = np.zeros(len(rows), dtype=np.intp)
    for train, held in stratified_folds(y[rows], n_folds, training.recipe.task.seed):
        known = [texts[row] for row in rows[train]]
        predicted[held] = _tfidf(known, y[rows[train]], [texts[row] for row in rows[held]])
    return predicted
