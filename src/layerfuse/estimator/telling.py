"""A line for each thing that a fit decides by itself."""

from __future__ import annotations

from collections.abc import Iterable

from layerfuse.encoder import FrozenEncoder
from layerfuse.estimator.gathering import Gathered
from layerfuse.events import Reporter
from layerfuse.heads import HEADS
from layerfuse.pipeline import FusedModel
from layerfuse.search import AUTO, Found, Recipe

__all__ = ["tell_candidates", "tell_choice"]


def tell_candidates(
    embeddings: Gathered, encoders: Iterable[FrozenEncoder], reporter: Reporter
) -> None:
    """Which blocks there are, what they were computed with, and whether texts were cut."""
    for encoder in encoders:
        own = [block for block in embeddings if block.encoder == encoder.name]
        layers = sorted({block.layer for block in own})
        poolings = ", ".join(dict.fromkeys(block.pooling for block in own))
        reporter.note(
            f"{encoder.name}: {len(own)} blocks to choose from (layers {_ranges(layers)}; "
            f"{poolings}), {encoder.dtype} on {encoder.device}"
        )
    if share := embeddings.truncated_share:
        limits = ", ".join(str(n) for n in sorted({encoder.max_length for encoder in encoders}))
        reporter.note(
            f"{100 * share:.1f} % of the texts were cut at {limits} tokens; --max-length "
            "(max_length=) reads more, up to an encoder's own limit"
        )


def tell_choice(found: Found, recipe: Recipe, model: FusedModel, reporter: Reporter) -> None:
    """Which blocks, fusion and head were taken, and why."""
    blocks = found.plan.blocks
    why = recipe.selection
    if recipe.selection == "greedy":
        full = len(blocks) == recipe.allowance.budget.blocks
        why += ", up to max_blocks" if full else ", no other adds more than one standard error"
    reporter.note(f"chosen: {', '.join(map(str, blocks))} ({why})")
    plan, tried = found.plan, {(trial.fusion, trial.head) for trial in found.trials}
    won = [t for t in found.trials if (t.fusion, t.head) == (plan.fusion, plan.head)]
    if won:
        gain = (
            f"Brier score {won[-1].gain:.4f} ± {won[-1].gain_se:.4f} lower than concat with ridge"
        )
        reporter.note(f"fusion {plan.fusion}, head {plan.head}: {gain} on held-out training rows")
    elif tried:
        reporter.note(
            f"fusion {plan.fusion}, head {plan.head}: none of {len(tried)} others is better by two "
            "standard errors"
        )
    if model.model.head.kind not in HEADS and recipe.head != AUTO:
        reporter.note(f"fusion {plan.fusion} brings its own head; head={recipe.head!r} is not used")


def _ranges(layers: list[int]) -> str:
    """Such as ``0 to 12``, or the numbers where there are gaps."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))
