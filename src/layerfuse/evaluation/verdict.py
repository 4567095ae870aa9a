"""The pipeline and each baseline, measured on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from layerfuse.blocks import BlockRef, BlockScores, to_frame, to_html
from layerfuse.evaluation.nested import Baseline
from layerfuse.metrics import Estimate, PairedDifference, paired_difference
from layerfuse.pipeline import Plan
from layerfuse.resources import EncoderCost, PipelineCost, pareto_front, pipeline_cost
from layerfuse.targets import Decisions, Targets

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Score:
    """Accuracy with its 95% interval and macro-F1, as shares from 0 to 1."""

    accuracy: Estimate
    macro_f1: float


@dataclass(frozen=True)
class BaselineScore(Score):
    """A baseline's score; ``gain`` is the pipeline's accuracy minus the baseline's."""

    gain: PairedDifference


@dataclass(frozen=True)
class Rows:
    """Some rows and the pipeline's decisions for them.

    Attributes
    ----------
    targets : Targets
        Of n rows.
    decisions : ndarray of shape (n,)
        As `LabelSpace.decide` gives them.
    seed : int
        For the intervals.
    """

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
        correct, others = map(self.targets.correct, (self.decisions, decisions))
        gain = paired_difference(correct, others, seed=self.seed)
        return BaselineScore(own.accuracy, own.macro_f1, gain)

    def _score(self, decisions: Decisions) -> Score:
        certain = Targets(self.targets.space, decisions).matrix
        measured = self.targets.evaluate(certain, seed=self.seed)
        return Score(measured.accuracy, measured.macro_f1.value)


@dataclass(frozen=True)
class BaselineComparison:
    """The pipeline against one baseline.

    Attributes
    ----------
    baseline : Baseline
        With its predictions.
    cv : BaselineScore
        By nested out-of-fold predictions of training rows.
    test : BaselineScore or None
        On test rows, if there are any.
    cost : PipelineCost or None
        None where no encoder is read.
    """

    baseline: Baseline
    cv: BaselineScore
    test: BaselineScore | None
    cost: PipelineCost | None

    @property
    def blocks(self) -> tuple[BlockRef, ...]:
        """The blocks that the baseline reads."""
        return () if self.baseline.plan is None else self.baseline.plan.blocks

    @property
    def label(self) -> str:
        """The baseline's name, with its encoder where each encoder has one of that name."""
        name, encoder = self.baseline.name, self.baseline.encoder
        return f"{name} ({encoder})" if encoder and name.startswith("last") else name

    def on(self, rows: str) -> BaselineScore:
        """The score on ``"test"`` rows, or by ``"cv"``."""
        return self.cv if rows == "cv" or self.test is None else self.test


def compare_baselines(
    baselines: Sequence[Baseline],
    cv: Rows,
    test: Rows | None,
    costs: Mapping[str, EncoderCost],
) -> list[BaselineComparison]:
    """Measure the pipeline against each baseline on the same rows.

    Parameters
    ----------
    baselines : sequence of Baseline
        From `run_baselines`.
    cv, test : Rows
        Training rows with nested predictions, and test rows if there are any.
    costs : mapping of str to EncoderCost
        By each encoder's name.
    """
    return [
        BaselineComparison(
            baseline,
            cv.compare(baseline.out_of_fold),
            None
            if test is None or baseline.predicted is None
            else test.compare(baseline.predicted),
            None if baseline.plan is None else pipeline_cost(baseline.plan.blocks, costs),
        )
        for baseline in baselines
    ]


_SIMPLER = ("majority", "tfidf", "last_layer", "best_block", "last_matched", "last_four")


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether the pipeline was worth it, and the numbers behind it.

    Attributes
    ----------
    sentence : str
        How accurate the pipeline is, how it compares with the baselines, and the advice.
    headline : str
        The start of the sentence: how accurate the pipeline is.
    advice : str
        The end of the sentence, which names a simpler baseline that is as good; may be empty.
    gained : bool
        Whether the pipeline is significantly better than both the last layer of the best single
        encoder and the most frequent label: the 95% intervals on ``rows`` are above 0.
    against : tuple of str
        The block of that last layer.
    gain : PairedDifference
        The pipeline's accuracy minus that of the last layer, on ``rows``.
    rows : str
        ``"test"`` where there are test rows, else ``"cv"``: nested out-of-fold predictions.
    recommended : str
        The cheapest baseline that costs less than the pipeline and is not significantly worse in
        nested resampling; ``"pipeline"`` where there is none.
    time_ratio : float or None
        The pipeline's time per text over the last layer's.
    comparisons : tuple of BaselineComparison
        With each baseline.
    cv, test : Score
        The pipeline's own; ``test`` is None without test rows.
    cost : PipelineCost
        The pipeline's own.
    """

    sentence: str
    headline: str
    advice: str
    gained: bool
    against: tuple[str, ...]
    gain: PairedDifference
    rows: str
    recommended: str
    time_ratio: float | None
    comparisons: tuple[BaselineComparison, ...] = field(compare=False)
    cv: Score = field(compare=False)
    test: Score | None = field(compare=False)
    cost: PipelineCost = field(compare=False)

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

    def _table(self) -> list[dict[str, Any]]:
        own = self.cv if self.test is None else self.test
        found = [_table_row("pipeline", None, own, self.cost)]
        for item in self.comparisons:
            baseline = item.baseline
            found.append(_table_row(baseline.name, baseline.encoder, item.on(self.rows), item.cost))
        return found


def _table_row(
    name: str, encoder: str | None, score: Score, cost: PipelineCost | None
) -> dict[str, Any]:
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
    n_layers: Mapping[str, int],
) -> Verdict:
    """Compare the pipeline with each baseline, and put the result into words.

    The pipeline is measured against the last layer that scores best on training rows. What is
    recommended follows from training rows too, so that the test set decides nothing.

    Parameters
    ----------
    baselines : sequence of Baseline
        From `run_baselines`.
    cv, test : Rows
        Training rows with nested predictions, and test rows if there are any.
    plan : Plan
        The pipeline.
    scores : BlockScores
        Of each block on training rows.
    costs, n_layers : mapping of str to EncoderCost and int
        By each encoder's name.
    """
    comparisons = tuple(compare_baselines(baselines, cv, test, costs))
    where, measured = ("cv", cv) if test is None else ("test", test)
    cost = pipeline_cost(plan.blocks, costs)
    by_name: dict[str, list[BaselineComparison]] = {}
    for comparison in comparisons:
        by_name.setdefault(comparison.baseline.name, []).append(comparison)
    accuracy = {score.block: score.accuracy for score in scores}
    last = max(by_name["last_layer"], key=lambda item: accuracy[item.blocks[0]])
    most = (cost.ms_per_text, cost.dims)
    simpler = (item for name in _SIMPLER for item in by_name.get(name, []))
    enough = [item for item in simpler if _cost_key(item) < most and item.cv.gain.low <= 0]
    cheapest = min(enough, key=_cost_key, default=None)
    # Where nothing can be learned, cross-validated models err more often than they guess, each in
    # its own way: beating one of them means nothing there.
    informative = by_name["majority"][0].on(where).gain.low > 0
    gain = last.on(where).gain
    ratio = None
    if last.cost is not None and last.cost.ms_per_text > 0:
        ratio = cost.ms_per_text / last.cost.ms_per_text
    advice = "" if cheapest is None else _advice(cheapest, cv.score, plan)
    (block,) = last.blocks
    layer = "last layer"
    if block.layer != n_layers[block.encoder]:
        layer = f"layer {block.layer}, the highest that was read"
    told = [last, cheapest] if where == "cv" else [last]
    better = [
        _describe(item, where)
        for item in comparisons
        if item.baseline.name in _SIMPLER and item not in told and item.on(where).gain.high < 0
    ]
    against = "That is no better than always predicting the most frequent label."
    if informative:
        against = _against(last, where, f"{block.encoder}'s {layer}", ratio, plan)
    headline = _headline(measured, where, plan)
    parts = [
        headline,
        against,
        f"Significantly better: {'; '.join(better)}." if better else "",
        advice,
    ]
    return Verdict(
        sentence=" ".join(filter(None, parts)),
        headline=headline,
        advice=advice,
        gained=informative and gain.low > 0,
        against=tuple(map(str, last.blocks)),
        gain=gain,
        rows=where,
        recommended="pipeline" if cheapest is None else cheapest.baseline.name,
        time_ratio=ratio,
        comparisons=comparisons,
        cv=cv.score,
        test=None if test is None else test.score,
        cost=cost,
    )


def _headline(rows: Rows, where: str, plan: Plan) -> str:
    accuracy = rows.score.accuracy
    kind = "test texts" if where == "test" else "held-out training texts"
    share = f"{_percent(accuracy.value)} ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"
    return f"{_name_of(plan)} classifies {share} of {len(rows):,} {kind} correctly."


def _against(
    last: BaselineComparison, where: str, name: str, ratio: float | None, plan: Plan
) -> str:
    """The comparison with the last layer of the best single encoder."""
    if plan == last.baseline.plan:
        return f"It is {name}: the pipeline and this baseline are the same."
    score = last.on(where)
    gain = score.gain
    points = f"{signed(100 * gain.difference)} points"
    interval = f"95% interval {signed(100 * gain.low)} to {signed(100 * gain.high)}"
    price = "" if ratio is None else f", at {times(ratio)} its time"
    how = "not significantly better"
    if gain.low > 0:
        how = "significantly better"
    elif gain.high < 0:
        how = "significantly worse"
    same = f"{name} with a {plan.head} head, " if plan.blocks == last.blocks else ""
    than = f"{name} with a ridge head" if same else name
    than += f" ({_percent(score.accuracy.value)})"
    return f"It is {same}{how} than {than}: {points} ({interval}){price}."


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
        "majority": f"always the most frequent label ({accuracy}); nothing predicts the labels",
        "tfidf": f"TF-IDF with logistic regression ({accuracy})",
        "last_layer": f"{blocks} alone ({accuracy}; selection='last')",
        "best_block": f"{blocks} alone ({accuracy}; selection='best')",
        "last_matched": f"the last layers {blocks} ({accuracy})",
        "last_four": f"the last layers {blocks} ({accuracy})",
    }[item.baseline.name]


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
    """The pipeline and the baselines that read blocks, by falling accuracy.

    Pipelines on the same blocks appear once.
    """
    points = {plan.blocks: ("pipeline", accuracy, cost)}
    for item in comparisons:
        if item.cost is not None:
            points.setdefault(item.blocks, (item.label, item.cv.accuracy, item.cost))
    front = {
        point.name
        for point in pareto_front((name, share.value, own) for name, share, own in points.values())
    }
    found = [
        Tradeoff(name, blocks, share, own, name in front)
        for blocks, (name, share, own) in points.items()
    ]
    return sorted(found, key=lambda one: (-one.accuracy.value, one.cost.ms_per_text))
