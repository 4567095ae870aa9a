"""The verdict in one sentence that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping

from layerfuse.metrics import PairedDifference
from layerfuse.pipeline import Plan
from layerfuse.verdict.comparing import Comparison, blocks_of

__all__ = ["advice_of", "sentence_of", "signed", "times"]


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
