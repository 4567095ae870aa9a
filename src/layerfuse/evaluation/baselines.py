"""Baselines that a pipeline has to beat: the most frequent label, TF-IDF and single layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import NOT_MODELS, BlockRef, BlockScores
from layerfuse.evaluation.nested import (
    NestedSearch,
    PlanStrategy,
    TrainingSample,
    decide_out_of_fold,
)
from layerfuse.heads.linear import logistic_model
from layerfuse.model_selection import Folds, SearchResult
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import RIDGES, Blocks, Plan, Rows
from layerfuse.progress import SILENT, Reporter, track
from layerfuse.targets import Decisions, Targets

Floats = npt.NDArray[np.float64]

_WORD = r"(?u)\S+"  # any run of non-space characters, so that only empty texts hold none


@dataclass(frozen=True)
class BaselineStrategy:
    """A baseline that reads ``encoder`` (None: any): how it arrives at a plan."""

    name: str
    encoder: str | None
    choose: PlanStrategy


@dataclass(frozen=True)
class Baseline:
    """The predictions of one baseline.

    Its name is majority, tfidf, last_layer, last_four, last_matched, best_block or first_N (the
    first N chosen blocks, concatenated), ``encoder`` that of its first block; encoder and plan are
    None where no encoder is read. ``out_of_fold`` (n_sample,) are decisions for the rows of the
    sample by models that did not see them, ``predicted`` (n_test,) those for test rows.
    """

    name: str
    encoder: str | None
    plan: Plan | None
    out_of_fold: Decisions
    predicted: Decisions | None

    def __str__(self) -> str:
        return self.name if self.encoder is None else f"{self.name}:{self.encoder}"

    def on(self, rows: str) -> Decisions | None:
        """Decisions for ``"cv"`` or ``"test"`` rows."""
        return self.out_of_fold if rows == "cv" else self.predicted


@dataclass(frozen=True)
class TrainingRows:
    """All n training rows, and the indices (n_sample,) of those that are the sample.

    Baselines on blocks that are not among ``blocks`` learn from the sample alone.
    """

    texts: Sequence[str]
    targets: Targets
    sample: Rows
    blocks: Blocks


def baseline_strategies(sample: TrainingSample) -> list[BaselineStrategy]:
    """The baselines that read encoders.

    All have a ridge head, one that balances classes where the pipeline's does: what that brings is
    no merit of its blocks. ``last_layer`` and ``last_four`` take each encoder's pooling that scores
    best at its last layer; ``last_four`` concatenates its last four layers. ``last_matched``
    concatenates as many last layers as the pipeline has blocks, so that it is as wide, of the
    encoder whose last layer scores best.
    """
    strategies = []
    for encoder in sample.probed.scores.encoders:
        if encoder in NOT_MODELS:
            continue
        strategies.append(BaselineStrategy("last_layer", encoder, _last_of(encoder, 1)))
        strategies.append(BaselineStrategy("last_four", encoder, _last_of(encoder, 4)))
    strategies.append(BaselineStrategy("last_matched", None, _last_matched))
    strategies.append(BaselineStrategy("best_block", None, _best_block))
    strategies += [
        BaselineStrategy(f"first_{count}", None, _first(count))
        for count in range(1, sample.max_blocks)
    ]
    return strategies


def _last_of(encoder: str, count: int) -> PlanStrategy:
    return lambda result, scores: _last_layers(result, scores, encoder, count)


def _ridge(result: SearchResult, blocks: tuple[BlockRef, ...]) -> Plan:
    """On these blocks, with classes balanced where they are in the pipeline."""
    head = result.plan.head
    return Plan(blocks, head=head if head in RIDGES else "ridge")


def _last_layers(result: SearchResult, scores: BlockScores, encoder: str, count: int) -> Plan:
    """The last ``count`` layers of one encoder, at the pooling that is best at the very last."""
    pooling = scores.last(encoder).block.pooling
    layers = sorted({score.block.layer for score in scores.of(encoder)})
    return _ridge(result, tuple(BlockRef(encoder, layer, pooling) for layer in layers[-count:]))


def _last_matched(result: SearchResult, scores: BlockScores) -> Plan:
    lasts = (scores.last(name) for name in scores.encoders if name not in NOT_MODELS)
    best = min(lasts, key=lambda score: (score.loss, score.block.layer)).block
    return _last_layers(result, scores, best.encoder, len(result.plan.blocks))


def _best_block(result: SearchResult, scores: BlockScores) -> Plan:
    return _ridge(result, (scores.best.block,))


def _first(count: int) -> PlanStrategy:
    return lambda result, _: _ridge(result, result.plan.blocks[:count])


def run_baselines(
    sample: TrainingSample,
    search: NestedSearch,
    training: TrainingRows,
    *,
    test: tuple[Sequence[str], Blocks] | None = None,
    reporter: Reporter = SILENT,
) -> list[Baseline]:
    """Predict with every baseline, out of fold and for test texts and blocks if there are any."""
    result = search.result
    itself = {f"first_{count}" for count in range(len(result.plan.blocks), sample.max_blocks)}
    strategies = [own for own in baseline_strategies(sample) if own.name not in itself]
    plans = [own.choose(result, sample.probed.scores) for own in strategies]
    nested = sample.out_of_fold([own.choose for own in strategies], search, reporter)
    logits_of = {plan: own.logits for plan, own in zip(plans[::-1], nested[::-1], strict=True)}
    texts, targets = training.texts, training.targets
    in_sample = [texts[row] for row in training.sample]

    def predict(plan: Plan) -> Decisions | None:
        if test is None:
            return None
        if set(plan.blocks) <= set(training.blocks):
            model = sample.fit(plan, training.blocks, targets)
        else:
            model = sample.fit(plan, sample.blocks, sample.targets)
        space = targets.space.tuned(logits_of[plan], sample.targets)
        return space.decide(model.logits(test[1]))

    distinct = list(dict.fromkeys(plans))
    predicted = parallel_map(predict, distinct, sample.n_jobs)
    predicted = track(predicted, "baselines", len(distinct), "baselines", reporter)
    decisions = dict(zip(distinct, predicted, strict=True))
    words = tfidf_out_of_fold(in_sample, sample.targets, search.folds, sample.n_jobs)
    majority, tfidf = None, None
    if test is not None:
        majority = np.repeat(targets.most_frequent[:1], len(test[0]), axis=0)
        space = targets.space.tuned(words, sample.targets)
        tfidf = space.decide(tfidf_proba(texts, targets, test[0]))
    most = np.repeat(targets.most_frequent[:1], len(in_sample), axis=0)
    of_words = decide_out_of_fold(words, nested[0].plan_of, sample.targets)  # of the same folds
    baselines = [
        Baseline("majority", None, None, most, majority),
        Baseline("tfidf", None, None, of_words, tfidf),
    ]
    for strategy, plan, own in zip(strategies, plans, nested, strict=True):
        decided = own.decide(sample.targets)
        encoder = plan.blocks[0].encoder
        baselines.append(Baseline(strategy.name, encoder, plan, decided, decisions[plan]))
    return baselines


def tfidf_proba(texts: Sequence[str], targets: Targets, others: Sequence[str]) -> Floats:
    """Probabilities (n_others, n_outputs) by TF-IDF of words with logistic regression (C=10).

    They are shares of rows where no text has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD)
    try:
        known = words.fit_transform(texts)
    except ValueError as error:  # no text holds a word
        if "empty vocabulary" not in str(error):
            raise
        return np.tile(targets.counts / len(targets), (len(others), 1))
    model = logistic_model(targets.space, tol=1e-3)
    model.fit(10.0, known, targets, None)
    return model.proba(words.transform(others), targets.space.n_outputs)


def tfidf_out_of_fold(
    texts: Sequence[str], targets: Targets, folds: Folds, n_jobs: int | None = 1
) -> Floats:
    """Such probabilities (n, n_outputs) of rows, by models of the other folds."""

    def predict(fold: tuple[Rows, Rows]) -> Floats:
        rows, held = fold
        known = [texts[row] for row in rows]
        return tfidf_proba(known, targets[rows], [texts[row] for row in held])

    proba = np.tile(targets.counts / len(targets), (len(targets), 1))
    for (_, held), own in zip(folds, parallel_map(predict, folds, n_jobs), strict=True):
        proba[held] = own
    return proba
