"""A few rows of each class: the automatic choice against last layers, words and greedy selection.

Rows to learn from are drawn from the training rows; test rows are only measured on. bbc-news has no
test rows, so that 1,000 of its rows are held out; mpnet reads the first 128 tokens of its articles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import measured, save
from layerfuse import EmbeddingStore, FrozenEncoder, load_dataset
from layerfuse.classifier.validation import check_training
from layerfuse.embeddings.extraction import BlockView, extract_all
from layerfuse.errors import LayerfuseError
from layerfuse.evaluation.baselines import tfidf_proba
from layerfuse.evaluation.nested import TrainingSample, nested_plan
from layerfuse.metrics import share_interval
from layerfuse.model_selection import SearchSpace
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks
from layerfuse.progress import SILENT
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, resolve_selection
from layerfuse.targets import Targets

Correct = npt.NDArray[np.bool_]

DATASETS = ("sst2", "mr", "r8", "bbc-news")
ENCODERS = (("mpnet",),)
DRAWS = {8: 20, 16: 20, 64: 10}  # by rows of each class
_HELD_OUT = {"bbc-news": 1000}
_MAX_LENGTH = {"bbc-news": 128}
_MOST_ROWS = 4000  # training rows that are drawn from


@dataclass(frozen=True)
class Rows:
    """Texts with their targets, and all blocks of them."""

    texts: Sequence[str]
    targets: Targets
    blocks: BlockView

    def take(self, rows: npt.NDArray[np.intp]) -> Rows:
        texts = [self.texts[row] for row in rows]
        return Rows(texts, self.targets[rows], self.blocks.take(rows))


@dataclass(frozen=True)
class Draw:
    """Accuracies on test rows of what was learned from one draw of rows; ``matched`` is that of the
    automatic choice with classes weighted as in the draw, which the nested estimate is of."""

    accuracy: Mapping[str, float]
    nested: float
    matched: float
    nested_holds: bool


def run() -> list[dict[str, Any]]:
    results = measured("few_labels")
    done = {(result["dataset"], result["encoders"]) for result in results}
    for encoders in ENCODERS:
        for name in DATASETS:
            if (name, "+".join(encoders)) in done:
                continue
            try:
                train, test = read(name, encoders)
            except LayerfuseError as error:
                print(f"{name} is left out: {error}")
                continue
            for each, count in DRAWS.items():
                draws = [measure(train, test, each, seed) for seed in range(count)]
                results.append(summary(name, encoders, each, draws))
            save("few_labels", results)  # what is measured is kept if the rest is interrupted
    return results


def read(name: str, encoders: Sequence[str]) -> tuple[Rows, Rows]:
    """Training rows without fragments of others, and test rows, all layers read."""
    dataset = load_dataset(name)
    train, test = dataset.train, dataset.test
    if test is None:
        every = Targets.from_labels(train.labels or ())
        held = every.sample(_HELD_OUT[name], 123)
        rest = np.setdiff1d(np.arange(len(every)), held)
        train, test = train.take(rest.tolist()), train.take(held.tolist())
    learned = check_training(train.texts, train.labels or (), None, None, None, "drop", SILENT)
    targets = learned.targets
    rows = targets.sample(_MOST_ROWS, 78, 200)
    limit = {"max_length": _MAX_LENGTH[name]} if name in _MAX_LENGTH else {}
    models = [FrozenEncoder.from_pretrained(encoder, **limit) for encoder in encoders]
    texts, store = [learned.texts[row] for row in rows], EmbeddingStore()
    truth = targets.space.encode(test.labels or ())
    return (
        Rows(texts, targets[rows], extract_all(texts, models, store)),
        Rows(test.texts, truth, extract_all(test.texts, models, store)),
    )


def measure(train: Rows, test: Rows, each: int, seed: int) -> Draw:
    """Learn from ``each`` rows of every class."""
    random = np.random.default_rng([seed, each])
    codes = train.targets.codes
    drawn = [random.permutation(np.flatnonzero(codes == code))[:each] for code in np.unique(codes)]
    own = train.take(np.sort(np.concatenate(drawn)))
    targets, truth = own.targets, test.targets
    probed = probe_blocks(own.blocks, targets)
    budget = CostBudget(Budget(blocks=5), {})
    correct: dict[str, Correct] = {}

    def learn(name: str, sample: TrainingSample, plan: Plan) -> None:
        model = sample.fit(plan, own.blocks, targets)
        correct[name] = truth.correct(truth.space.decide(model.logits(test.blocks)))

    automatic = SearchSpace(resolve_selection("auto", targets), budget, seed=seed)
    sample = TrainingSample(own.blocks, targets, probed, automatic)
    folds = targets.folds(5, seed)
    search = sample.search_nested(folds)
    result, (nested,) = search.result, sample.out_of_fold([nested_plan], search)
    learn("auto", sample, result.plan)
    greedy = TrainingSample(own.blocks, targets, probed, SearchSpace("greedy", budget, seed=seed))
    learn("greedy", greedy, greedy.search().plan)
    for encoder in probed.scores.encoders:
        last = probed.scores.last(encoder).block
        learn(f"last layer of {encoder}", sample, Plan((last,)))
        learn(f"last layer of {encoder}, logistic", sample, Plan((last,), head="logistic"))
    learn("all layers", sample, Plan(tuple(score.block for score in probed.scores)))
    words = tfidf_proba(own.texts, targets, test.texts)
    correct["tfidf"] = truth.correct(truth.space.decide(words))
    proba = nested.calibrated("temperature", targets)
    estimate = targets.correct(targets.space.decide(proba))
    own_nested = share_interval(int(estimate.sum()), len(estimate))
    of_class = [correct["auto"][truth.codes == code] for code in range(len(targets.counts))]
    weights = targets.counts / len(targets)
    recalls = np.array([own.mean() for own in of_class])
    matched = float(weights @ recalls)
    variances = recalls * (1 - recalls) / [len(own) for own in of_class]
    below = own_nested.value < matched
    half = own_nested.high - own_nested.value if below else own_nested.value - own_nested.low
    joint = math.hypot(half, 1.96 * math.sqrt(weights**2 @ variances))
    return Draw(
        accuracy={name: float(own.mean()) for name, own in correct.items()},
        nested=own_nested.value,
        matched=matched,
        nested_holds=abs(own_nested.value - matched) <= joint,
    )


def summary(name: str, encoders: Sequence[str], each: int, draws: Sequence[Draw]) -> dict[str, Any]:
    """Means over draws; ``gain`` is that of the automatic choice over each other way, with a 95%
    interval over draws."""
    from scipy.stats import t

    ways = list(draws[0].accuracy)
    values = {way: np.array([draw.accuracy[way] for draw in draws]) for way in ways}
    gains = {}
    for way in ways[1:]:
        gain = values["auto"] - values[way]
        half = t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / math.sqrt(len(gain))
        gains[way] = {"gain": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half}
    result = {
        "dataset": name,
        "encoders": "+".join(encoders),
        "per_class": each,
        "accuracy": {way: float(own.mean()) for way, own in values.items()},
        "gains": gains,
        "nested": float(np.mean([draw.nested for draw in draws])),
        "matched": float(np.mean([draw.matched for draw in draws])),
        "nested_holds": sum(draw.nested_holds for draw in draws),
        "draws": [asdict(draw) for draw in draws],
    }
    last = gains["last layer of mpnet"]
    print(
        f"{name}, {result['encoders']}, {each} a class: {100 * values['auto'].mean():.1f}, "
        f"{100 * last['gain']:+.1f} ({100 * last['low']:+.1f} to {100 * last['high']:+.1f}) over "
        f"mpnet's last layer; nested holds in {result['nested_holds']} of {len(draws)}"
    )
    return result
