"""The pipeline and each baseline, measured on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from layerfuse.blocks import BlockRef, BlockScores, to_frame, to_html
from layerfuse.evaluation.baselines import Baseline
from layerfuse.metrics import Estimate, PairedDifference, share_interval
from layerfuse.pipeline import Floats, Plan, is_ridge
from layerfuse.resources import EncoderCost, PipelineCost, pareto_front, pipeline_cost
from layerfuse.targets import Decisions, Targets

if TYPE_CHECKING:
    import pandas as pd

_SIMPLER = ("majority", "tfidf", "last_layer", "best_block", "last_matched", "last_four")
_SIGNIFICANT = 0.05
_PROBE_ROWS, _PROBE_DIMS = 1000, 50  # of the training and of the test rows; of each block


@dataclass(frozen=True)
class Score:
    """Accuracy with its 95% interval and macro-F1, as shares from 0 to 1.

    Where texts have any number of labels, ``accuracy`` is micro-F1 here and in what follows from it
    (`VerdictSummary.metric`).
    """

    accuracy: Estimate
    macro_f1: float


@dataclass(frozen=True)
class BaselineScore(Score):
    """A baseline's score; ``gain`` is the pipeline's accuracy minus the baseline's."""

    gain: PairedDifference


@dataclass(frozen=True)
class Rows:
    """Targets of n rows and the pipeline's decisions (n,) for them; ``seed`` is for intervals."""

    targets: Targets
    decisions: Decisions
    seed: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def score(self) -> Score:
        """The pipeline's."""
        return self._score(self.decisions)

    def compare(self, decisions: Decisions) -> BaselineScore:
        """The score of a baseline's decisions (n,)."""
        own = self._score(decisions)
        gain = self.targets.compare(self.decisions, decisions, seed=self.seed)
        return BaselineScore(own.accuracy, own.macro_f1, gain)

    def _score(self, decisions: Decisions) -> Score:
        certain = self.targets.space.targets(decisions).matrix
        measured = self.targets.evaluate(certain, decisions, seed=self.seed)
        return Score(measured.headline, measured.macro_f1.value)


@dataclass(frozen=True)
class BaselineComparison:
    """The pipeline against one `Baseline`, which may read no blocks and cost nothing.

    ``cv`` is by nested out-of-fold predictions of training rows, ``test`` on test rows, if any.
    """

    name: str
    encoder: str | None
    blocks: tuple[BlockRef, ...]
    cv: BaselineScore
    test: BaselineScore | None
    cost: PipelineCost | None

    @property
    def label(self) -> str:
        """The baseline's name, with its encoder where each encoder has one of that name."""
        of_encoder = self.encoder and self.name.startswith("last")
        return f"{self.name} ({self.encoder})" if of_encoder else self.name

    @property
    def is_step(self) -> bool:
        """Whether it is a step of the selection path (the first N blocks)."""
        return self.name.startswith("first_")

    def on(self, rows: str) -> BaselineScore:
        """The score on ``"test"`` rows, or by ``"cv"``."""
        return self.cv if rows == "cv" or self.test is None else self.test


def compare_baselines(
    baselines: Sequence[Baseline],
    cv: Rows,
    test: Rows | None,
    costs: Mapping[str, EncoderCost],
) -> list[BaselineComparison]:
    """Measure the pipeline against each baseline on the same rows; ``costs`` are by encoder."""
    found = []
    for baseline in baselines:
        blocks = () if baseline.plan is None else baseline.plan.blocks
        predicted = baseline.predicted
        on_test = None if test is None or predicted is None else test.compare(predicted)
        cost = pipeline_cost(blocks, costs) if blocks else None
        own = cv.compare(baseline.out_of_fold)
        found.append(
            BaselineComparison(baseline.name, baseline.encoder, blocks, own, on_test, cost)
        )
    return found


@dataclass(frozen=True)
class VerdictSummary:
    """Whether the pipeline was worth it.

    The ``sentence`` begins with the ``headline`` (how accurate the pipeline is, and whether a
    baseline is significantly better) and ends with the ``advice``, which names a simpler baseline
    that is as good and may be empty. ``rows`` is ``"test"`` where there are test rows, else
    ``"cv"``: nested out-of-fold predictions. ``gained`` says whether the pipeline is significantly
    better than both the last layer of the best single encoder and the most frequent label: the 95%
    intervals on ``rows`` are above 0. ``against`` is the block of that last layer, ``gain`` the
    pipeline's accuracy minus its own, ``time_ratio`` the pipeline's time per text over its own.
    ``recommended`` is the cheapest baseline that costs less than the pipeline and is not
    significantly worse in nested resampling, or ``"pipeline"``. ``metric`` says what is compared:
    accuracy, or micro-F1 where texts have any number of labels.
    """

    sentence: str
    headline: str
    advice: str
    gained: bool
    against: tuple[str, ...]
    gain: PairedDifference
    rows: Literal["cv", "test"]
    recommended: str
    time_ratio: float | None
    metric: str

    @property
    def comparison(self) -> str:
        """The sentence without headline and advice."""
        return self.sentence.removeprefix(self.headline).removesuffix(self.advice).strip()


@dataclass(frozen=True, repr=False)
class Verdict(VerdictSummary):
    """Whether the pipeline was worth it, and the numbers behind it; see `VerdictSummary`.

    ``cv`` and ``test`` (None without test rows) are the pipeline's own scores; ``simpler`` are the
    baselines that cost less and are not significantly worse on training rows, cheapest first.
    """

    comparisons: tuple[BaselineComparison, ...] = field(compare=False)
    cv: Score = field(compare=False)
    test: Score | None = field(compare=False)
    cost: PipelineCost = field(compare=False)
    simpler: tuple[BaselineComparison, ...] = field(compare=False)

    def __repr__(self) -> str:
        return f"Verdict: {self.sentence}"

    def _repr_html_(self) -> str:
        return to_html(f"Verdict: {self.sentence}", self._table())

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with the pipeline and each baseline, measured on the verdict's rows.

        Accuracy, macro-F1 and gains are shares; ``gain`` is the pipeline's accuracy minus that of
        the row, with its 95% interval. Costs are those of `PipelineCost`, for one text.

        Raises
        ------
        MissingExtraError
            Without the package ``pandas``.
        """
        return to_frame(self._table(), "a verdict")

    def _table(self) -> list[dict[str, object]]:
        own = self.cv if self.test is None else self.test
        return [
            _table_row("pipeline", None, own, self.cost),
            *(_table_row(i.name, i.encoder, i.on(self.rows), i.cost) for i in self.comparisons),
        ]


def _table_row(
    name: str, encoder: str | None, score: Score, cost: PipelineCost | None
) -> dict[str, object]:
    gain = score.gain if isinstance(score, BaselineScore) else None
    return {
        "name": name,
        "encoder": encoder,
        "accuracy": score.accuracy.value,
        "accuracy_low": score.accuracy.low,
        "accuracy_high": score.accuracy.high,
        "macro_f1": score.macro_f1,
        "gain": gain and gain.difference,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "ms_per_text": cost and cost.ms_per_text,
        "memory_mb": cost and cost.memory_mb,
        "dims": cost and cost.dims,
    }


def judge(
    baselines: Sequence[Baseline],
    cv: Rows,
    test: Rows | None,
    plan: Plan,
    scores: BlockScores,
    costs: Mapping[str, EncoderCost],
    reason: str = "",
) -> Verdict:
    """Compare the pipeline with each baseline, and put the result into words.

    The pipeline (``plan``) is measured against the last layer that scores best on training rows.
    What is recommended follows from training rows too, so that the test set decides nothing.
    ``costs`` are by encoder; ``reason`` is that of the selection.
    """
    comparisons = tuple(compare_baselines(baselines, cv, test, costs))
    where: Literal["cv", "test"] = "cv" if test is None else "test"
    cost = pipeline_cost(plan.blocks, costs)
    accuracy = {score.block: score.accuracy for score in scores}
    lasts = [item for item in comparisons if item.name == "last_layer"]
    last = max(lasts, key=lambda item: accuracy[item.blocks[0]])
    most = (cost.ms_per_text, cost.dims)
    simpler = sorted(
        (item for item in comparisons if item.name in _SIMPLER),
        key=lambda item: _SIMPLER.index(item.name),
    )
    enough = [item for item in simpler if _cost_key(item) < most and item.cv.gain.low <= 0]
    enough.sort(key=_cost_key)
    cheapest = enough[0] if enough else None
    # Where nothing can be learned, cross-validated models err more often than they guess, each in
    # its own way: beating one of them means nothing there.
    informative = simpler[0].on(where).gain.low > 0
    gain = last.on(where).gain
    ratio = None
    if last.cost is not None and last.cost.ms_per_text > 0:
        ratio = cost.ms_per_text / last.cost.ms_per_text
    advice = "" if cheapest is None else _advice(cheapest, cv.score, plan)
    (block,) = last.blocks
    layer = f"{block.encoder}'s last layer"
    if block.layer != costs[block.encoder].n_layers:
        layer = f"{block.encoder}'s layer {block.layer}, the highest that was read"
    better = [item for item in simpler if item.on(where).gain.high < 0]
    headline = _headline(cv if test is None else test, where, plan, better)
    against = "It is no better than always predicting the most frequent label."
    if informative:
        against = _against(last, where, layer, ratio, plan)
    few = f"{reason}." if reason else ""
    return Verdict(
        sentence=" ".join(filter(None, (headline, against, few, advice))),
        headline=headline,
        advice=advice,
        gained=informative and gain.low > 0,
        against=tuple(map(str, last.blocks)),
        gain=gain,
        rows=where,
        recommended="pipeline" if cheapest is None else cheapest.name,
        time_ratio=ratio,
        metric=cv.targets.space.metric,
        comparisons=comparisons,
        cv=cv.score,
        test=None if test is None else test.score,
        cost=cost,
        simpler=tuple(enough),
    )


def _headline(rows: Rows, where: str, plan: Plan, better: Sequence[BaselineComparison]) -> str:
    """What the classifier gets right, and the best of the baselines that get more right."""
    own = rows.score.accuracy
    kind = "test texts" if where == "test" else "training texts, held out in turn"
    said = (
        f"{_name_of(plan)} {rows.targets.space.headline(own.value)} "
        f"(95% interval {100 * own.low:.1f} to {100 * own.high:.1f}) of {len(rows):,} {kind}"
    )
    if not better:
        return f"{said}."
    best = max(better, key=lambda item: item.on(where).accuracy.value)
    others = f" (and {len(better) - 1} more)" if len(better) > 1 else ""
    return f"{said}. Significantly better: {_describe(best, where)}{others}."


def _against(
    last: BaselineComparison, where: str, name: str, ratio: float | None, plan: Plan
) -> str:
    """The comparison with the last layer of the best single encoder."""
    if plan.blocks == last.blocks and is_ridge(plan):
        return f"It is {name} alone: there is nothing to gain over it."
    gain = last.on(where).gain
    interval = f"95% interval {signed(100 * gain.low)} to {signed(100 * gain.high)}"
    price = "" if ratio is None else f", at {times(ratio)} its time"
    how = "not significantly " if gain.low <= 0 <= gain.high else "significantly "
    how += "better" if gain.difference >= 0 else "worse"
    same = f"{name} with a {plan.head} head, " if plan.blocks == last.blocks else ""
    than = f"{name} with a ridge head" if same else name
    return (
        f"It is {same}{how} than {than} ({_percent(last.on(where).accuracy.value)}): "
        f"{signed(100 * gain.difference)} points ({interval}){price}."
    )


def _advice(simpler: BaselineComparison, own: Score, plan: Plan) -> str:
    """The baseline that is simpler and as good by cross-validation, and how to get it."""
    how = "significantly better" if simpler.cv.gain.high < 0 else "not significantly worse"
    # The pipeline's own figure beside it: the sentence before may be about test rows.
    return (
        f"Simpler, and by cross-validation {how} than {_name_of(plan)} "
        f"({_percent(own.accuracy.value)}): {_describe(simpler, 'cv')}."
    )


def _describe(item: BaselineComparison, where: str) -> str:
    """A baseline, its accuracy, and how to get it."""
    accuracy = _percent(item.on(where).accuracy.value)
    blocks = ", ".join(map(str, item.blocks))
    return {
        "majority": f"always the most frequent label ({accuracy}): the texts do not help",
        "tfidf": f"TF-IDF with logistic regression ({accuracy})",
        "last_layer": f"{blocks} alone ({accuracy}; selection='last')",
        "best_block": f"{blocks} alone ({accuracy}; selection='best')",
    }.get(item.name, f"the last layers {blocks} ({accuracy})")


def _name_of(plan: Plan) -> str:
    count = len(plan.blocks)
    return f"fusion of {count} blocks" if count > 1 else f"block {plan.blocks[0]}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def signed(points: float) -> str:
    """One decimal, or two where one would hide on which side of zero it lies."""
    return f"{points:+.2f}" if 0 < abs(points) < 0.05 else f"{points:+.1f}"


def times(ratio: float) -> str:
    """A ratio of two times, such as ``1.6x``."""
    return "less than 0.1x" if ratio < 0.05 else f"{ratio:.1f}x"


def _cost_key(item: BaselineComparison) -> tuple[float, float]:
    return (0.0, 0.0) if item.cost is None else (item.cost.ms_per_text, item.cost.dims)


@dataclass(frozen=True)
class GeneralizationGap:
    """Test accuracy against the nested estimate, and whether test rows are like training rows.

    ``difference`` is test accuracy minus nested accuracy (-1 to 1), with Newcombe's 95% interval
    (1998), ``class_shares_p`` the p-value of a chi-square test that both have the same class
    shares, ``told_apart`` how often (0 to 1) a cross-validated linear probe on the fused blocks
    tells a test row from a training row; 0.5 is a guess. ``sentence`` is what follows from them,
    where the interval of ``difference`` leaves 0 out; else it is empty.
    """

    difference: Estimate
    class_shares_p: float
    told_apart: Estimate
    sentence: str


def measure_gap(cv: Rows, test: Rows, blocks: Sequence[tuple[Floats, Floats]]) -> GeneralizationGap:
    """Compare test rows with training rows, in accuracy, class shares and embeddings.

    ``blocks`` are the principal coordinates (n, rank) and (n_test, rank) of the pipeline's blocks.
    The probe is a classifier two-sample test (Lopez-Paz and Oquab, ICLR 2017).
    """
    from scipy.stats import chi2_contingency

    nested, tested = cv.score.accuracy, test.score.accuracy
    value = tested.value - nested.value
    low = value - np.hypot(tested.value - tested.low, nested.high - nested.value)
    high = value + np.hypot(tested.high - tested.value, nested.value - nested.low)
    difference = Estimate(value, float(low), float(high))
    counts = np.array([cv.targets.counts, test.targets.counts])
    p_value = float(chi2_contingency(counts[:, counts.any(axis=0)]).pvalue)
    told_apart = _tell_apart(blocks, cv.seed)
    sentence = ""
    if not low <= 0 <= high:
        where = "higher" if value > 0 else "lower"
        shares = "class shares differ" if p_value < _SIGNIFICANT else "class shares do not differ"
        kind = "texts differ too" if p_value < _SIGNIFICANT else "texts differ"
        if told_apart.low <= 0.5:
            kind = "texts look alike"
        sentence = (
            f"Test {cv.targets.space.metric} is significantly {where} than nested "
            f"cross-validation on training rows ({_percent(nested.value)}): "
            f"{signed(100 * value)} points (95% interval {signed(100 * low)} to "
            f"{signed(100 * high)}). Between training and test rows, "
            f"{shares} (p = {p_value:.2g}) and {kind}: a probe tells them apart for "
            f"{100 * told_apart.value:.0f} of 100 (a guess: 50)."
        )
    return GeneralizationGap(difference, p_value, told_apart, sentence)


def _tell_apart(blocks: Sequence[tuple[Floats, Floats]], seed: int) -> Estimate:
    """Cross-validated accuracy of telling as many test rows from training rows."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    count = min(_PROBE_ROWS, *(len(side) for side in blocks[0]))
    if count < 2:
        return share_interval(1, 2)
    random, parts = np.random.default_rng(seed), []
    for place in range(2):
        rows = random.permutation(len(blocks[0][place]))[:count]
        parts.append(np.hstack([pair[place][rows, :_PROBE_DIMS] for pair in blocks]))
    truth = np.repeat([0, 1], count)
    probe = RidgeClassifierCV(alphas=np.logspace(-2, 3, 6))
    folds = StratifiedKFold(min(5, count), shuffle=True, random_state=seed)
    found = cross_val_predict(probe, np.concatenate(parts), truth, cv=folds)
    return share_interval(int((found == truth).sum()), len(truth))


@dataclass(frozen=True)
class Tradeoff:
    """A pipeline, its nested accuracy on training rows (a share), and its cost.

    ``on_front`` says that no other beats it in accuracy, time, memory and dimensions at once (the
    Pareto front).
    """

    name: str
    blocks: tuple[BlockRef, ...]
    accuracy: Estimate
    cost: PipelineCost
    on_front: bool


def tradeoffs(
    comparisons: Sequence[BaselineComparison], plan: Plan, cost: PipelineCost, accuracy: Estimate
) -> list[Tradeoff]:
    """The pipeline and the baselines that read blocks, by falling accuracy; equal blocks once."""
    points = {plan.blocks: ("pipeline", accuracy, cost)}
    for item in comparisons:
        if item.cost is not None:
            points.setdefault(item.blocks, (item.label, item.cv.accuracy, item.cost))
    front = pareto_front((share.value, own) for _, share, own in points.values())
    found = [
        Tradeoff(name, blocks, share, own, on_front)
        for (blocks, (name, share, own)), on_front in zip(points.items(), front, strict=True)
    ]
    return sorted(found, key=lambda one: (-one.accuracy.value, one.cost.ms_per_text))
