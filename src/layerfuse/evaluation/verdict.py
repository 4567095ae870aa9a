"""The verdict in one sentence that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layerfuse.blocks import BlockScores
from layerfuse.evaluation.baselines import Baseline
from layerfuse.evaluation.comparison import Comparison, Rows, blocks_of, compare_baselines, label_of
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.pipeline import Plan
from layerfuse.resources import EncoderCost, PipelineCost, pareto_front, pipeline_cost
from layerfuse.tabular import to_frame, to_html

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Verdict", "advice_of", "decide", "judge", "sentence_of", "signed", "times", "tradeoffs"]


def sentence_of(
    rival: Comparison,
    gain: PairedDifference,
    where: str,
    knows: bool,
    ratio: float | None,
    plan: Plan,
    n_layers: Mapping[str, int],
) -> str:
    points, low, high = (100 * value for value in (gain.difference, gain.low, gain.high))
    interval = f"95 % interval {signed(low)} to {signed(high)}"
    rows = "test rows" if where == "test" else "training rows, out of fold"
    (block,) = blocks_of(rival)
    name = (
        "last layer"
        if block.layer == n_layers[block.encoder]
        else f"layer {block.layer}, the highest that was read"
    )
    over = f"{block.encoder}'s {name} ({100 * rival.measured[where]['accuracy']:.1f} %)"
    price = "" if ratio is None else f", at {times(ratio)} its time"
    what = _name_of(plan)
    if not knows:
        return f"no gain: on {rows} {what} is no better than always giving the most frequent label."
    if gain.low > 0:
        return f"{what} adds {points:.1f} points ({interval}) over {over} on {rows}{price}."
    if gain.high < 0:
        return f"{what} loses {-points:.1f} points ({interval}) against {over} on {rows}{price}."
    return f"no clear gain over {over} on {rows}: {points:+.1f} points ({interval}){price}."


def advice_of(simpler: Comparison | None, plan: Plan) -> str:
    """What is simpler and as good by cross-validation, and how to have it; or nothing."""
    if simpler is None:
        return ""
    gain = simpler.gain["cv"]
    found = "clearly better" if gain.high < 0 else "not clearly worse"
    # The pipeline's own figure beside it: the sentence before may be about test rows.
    own = 100 * (simpler.measured["cv"]["accuracy"] + gain.difference)
    return (
        f"Simpler, and by cross-validation {found} than {_name_of(plan)} ({own:.1f} %): "
        f"{_advice(simpler)}."
    )


def _name_of(plan: Plan) -> str:
    return "fusion" if len(plan.blocks) > 1 else f"block {plan.blocks[0]}"


def signed(points: float) -> str:
    """One decimal, or two where one would hide on which side of zero it lies."""
    return f"{points:+.2f}" if 0 < abs(points) < 0.05 else f"{points:+.1f}"


def times(ratio: float) -> str:
    return "less than 0.1x" if ratio < 0.05 else f"{ratio:.1f}x"


def _advice(item: Comparison) -> str:
    """A baseline, and how to have it."""
    accuracy = f"{100 * item.measured['cv']['accuracy']:.1f} %"
    blocks = ", ".join(str(block) for block in blocks_of(item))
    return {
        "majority": f"always the most frequent label ({accuracy}); nothing predicts the labels",
        "tfidf": f"TF-IDF with logistic regression ({accuracy})",
        "last_layer": f"{blocks} alone ({accuracy}; selection='last')",
        "best_block": f"{blocks} alone ({accuracy}; selection='best')",
        "last_matched": f"the last layers {blocks} ({accuracy})",
        "last_four": f"the last layers {blocks} ({accuracy})",
    }[item.baseline.name]


_SIMPLER = ("majority", "tfidf", "last_layer", "best_block", "last_matched", "last_four")


@dataclass(frozen=True, repr=False)
class Verdict:
    """One sentence, and what it rests on.

    ``advice`` is the part of the sentence that names what is simpler and as good, empty where
    nothing is. ``gained`` says whether the pipeline beats both the last layer of the best single
    encoder and the most frequent label with the 95 % interval above 0, on ``rows``;
    ``recommended`` names the cheapest way that costs less than the pipeline and is not beaten by it
    in nested resampling (``"pipeline"`` where there is none); ``time_ratio`` is its time per text
    over the last layer's.

    ``comparisons`` are those with each baseline, ``measured`` the pipeline's own accuracy, its
    interval and macro-F1 by ``"cv"`` and ``"test"``, and ``cost`` what the pipeline costs.
    """

    sentence: str
    advice: str
    gained: bool
    against: tuple[str, ...]
    gain: PairedDifference
    rows: str
    recommended: str
    time_ratio: float | None
    comparisons: tuple[Comparison, ...] = field(default=(), compare=False)
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    cost: PipelineCost | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Verdict: {self.sentence}"

    def _repr_html_(self) -> str:
        return to_html(f"Verdict: {self.sentence}", self._rows())

    def to_dict(self) -> dict[str, Any]:
        """The sentence and what it rests on; `Comparison.to_dict` has the rest."""
        return {
            "sentence": self.sentence,
            "advice": self.advice,
            "gained": self.gained,
            "against": list(self.against),
            "gain": self.gain.to_dict(),
            "rows": self.rows,
            "recommended": self.recommended,
            "time_ratio": self.time_ratio,
        }

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame with the pipeline and each baseline, measured on the verdict's rows.

        Accuracy, macro-F1 and gains are shares; ``gain`` is the pipeline's accuracy minus that of
        the row, with its 95 % interval. Costs are those of `PipelineCost`, for one text.

        Raises
        ------
        MissingExtraError
            Without the package ``pandas``.
        """
        return to_frame(self._rows(), "a verdict")

    def _rows(self) -> list[dict[str, Any]]:
        found = []
        if self.rows in self.measured:
            found.append(_row("pipeline", None, self.measured[self.rows], None, self.cost))
        for item in self.comparisons:
            own = item.baseline
            measured, gain = item.measured[self.rows], item.gain[self.rows]
            found.append(_row(own.name, own.encoder, measured, gain, item.cost))
        return found


def _row(
    name: str,
    encoder: str | None,
    measured: Mapping[str, Any],
    gain: PairedDifference | None,
    cost: PipelineCost | None,
) -> dict[str, Any]:
    low, high = measured["ci95"]
    return {
        "name": name,
        "encoder": encoder,
        "accuracy": measured["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": measured["macro_f1"],
        "gain": None if gain is None else gain.difference,
        "gain_low": None if gain is None else gain.low,
        "gain_high": None if gain is None else gain.high,
        "ms_per_text": None if cost is None else cost.ms_per_text,
        "memory_mb": None if cost is None else cost.memory_mb,
        "dims": None if cost is None else cost.dims,
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
    """Compare the pipeline with each baseline, and decide.

    Parameters
    ----------
    baselines, cv, test, costs
        As of `compare_baselines`.
    plan, scores
        The pipeline, and how good each block is on training rows.
    n_layers
        By each encoder's name.
    """
    comparisons = compare_baselines(baselines, cv, test, costs)
    cost = pipeline_cost(plan.blocks, costs)
    measured = {"cv": cv.measure(cv.predicted)}
    if test is not None:
        measured["test"] = test.measure(test.predicted)
    verdict = decide(comparisons, plan, cost, scores, n_layers)
    return replace(verdict, comparisons=tuple(comparisons), measured=measured, cost=cost)


def decide(
    comparisons: Sequence[Comparison],
    plan: Plan,
    cost: PipelineCost,
    scores: BlockScores,
    n_layers: Mapping[str, int],
) -> Verdict:
    """Put the comparisons into one sentence that a person can act on.

    The rival is the last layer that scores best on training rows; what is recommended follows from
    training rows too, so that the test set decides nothing.
    """
    where = "test" if "test" in comparisons[0].gain else "cv"
    by_name: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_name.setdefault(comparison.baseline.name, []).append(comparison)
    accuracy = {score.block: score.accuracy for score in scores}
    rival = max(by_name["last_layer"], key=lambda item: accuracy[blocks_of(item)[0]])
    gain = rival.gain[where]
    ratio = _ratio(cost, rival.cost)
    most = (cost.ms_per_text, cost.dims)
    simpler = [item for name in _SIMPLER for item in by_name.get(name, []) if _price(item) < most]
    enough = [item for item in simpler if item.gain["cv"].low <= 0]
    cheapest = min(enough, key=_price, default=None)
    # Where nothing can be known, cross-validated models err more often than they guess, each in its
    # own way: beating one of them says nothing there.
    knows = by_name["majority"][0].gain[where].low > 0
    advice = advice_of(cheapest, plan)
    sentence = sentence_of(rival, gain, where, knows, ratio, plan, n_layers)
    return Verdict(
        sentence=f"{sentence} {advice}".rstrip(),
        advice=advice,
        gained=knows and gain.low > 0,
        against=tuple(str(block) for block in blocks_of(rival)),
        gain=gain,
        rows=where,
        recommended="pipeline" if cheapest is None else cheapest.baseline.name,
        time_ratio=ratio,
    )


def tradeoffs(
    comparisons: Sequence[Comparison], plan: Plan, cost: PipelineCost, accuracy: Estimate
) -> list[dict[str, Any]]:
    """Pipelines by falling accuracy (nested, on training rows, with ``ci95``), each with its cost.

    ``on_front`` marks those that no other beats in accuracy, time, memory and dimensions at once
    (the Pareto front). Pipelines on the same blocks appear once.
    """
    points = {plan.blocks: ("pipeline", accuracy.value, cost)}
    spans = {plan.blocks: [accuracy.low, accuracy.high]}
    for item in comparisons:
        if item.cost is not None and item.baseline.plan is not None:
            found = (label_of(item), float(item.measured["cv"]["accuracy"]), item.cost)
            points.setdefault(item.baseline.plan.blocks, found)
            spans.setdefault(item.baseline.plan.blocks, item.measured["cv"]["ci95"])
    front = {point.name for point in pareto_front(points.values())}
    rows = [
        {
            **own.to_dict(),
            "name": name,
            "blocks": [str(block) for block in blocks],
            "accuracy": share,
            "ci95": spans[blocks],
            "on_front": name in front,
        }
        for blocks, (name, share, own) in points.items()
    ]
    return sorted(rows, key=lambda row: (-row["accuracy"], row["ms_per_text"]))


def _price(item: Comparison) -> tuple[float, float]:
    return (0.0, 0.0) if item.cost is None else (item.cost.ms_per_text, item.cost.dims)


def _ratio(cost: PipelineCost, other: PipelineCost | None) -> float | None:
    return cost.ms_per_text / other.ms_per_text if other and other.ms_per_text > 0 else None
