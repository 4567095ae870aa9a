"""Measuring, choosing and resampling on training rows: the part of a fit that labels decide."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.classifier.remembering import Remembered, analysis_key, recall, remember
from layerfuse.classifier.scouting import Scouted
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.views import BlockView
from layerfuse.encoders import FrozenEncoder
from layerfuse.evaluation.baselines import rivals
from layerfuse.evaluation.nested import OutOfFold, Training, pipeline
from layerfuse.heads import HEADS
from layerfuse.model_selection import AUTO, Found, Recipe
from layerfuse.pipeline import Blocks, FusedModel
from layerfuse.probing import probe_blocks
from layerfuse.progress import Reporter
from layerfuse.targets import stratified_rows

__all__ = [
    "FIXED",
    "MEASURED_ROWS",
    "PIPELINE",
    "Analysis",
    "analyse",
    "measured_rows",
    "tell_candidates",
    "tell_choice",
]

MEASURED_ROWS = 10_000
"""Measuring and choosing use at most this many training rows, each class in its share."""

PIPELINE = "pipeline"  # the whole procedure, its search run anew in each fold
FIXED = "plan"  # what the search on all rows found, for the calibration of what ships


@dataclass(frozen=True)
class Analysis:
    """Training rows, what the search found on them, and out-of-fold logits by procedure.

    ``timings`` holds seconds: ``score_s``, ``select_s`` and ``cv_s``.
    """

    training: Training
    found: Found
    nested: dict[str, OutOfFold]
    timings: dict[str, float]


def measured_rows(y: npt.NDArray[np.intp], seed: int) -> npt.NDArray[np.intp]:
    """Numbers of the rows (of n class indices) that measuring and choosing use, sorted."""
    return stratified_rows(y, MEASURED_ROWS, seed)


def analyse(
    texts: Sequence[str],
    y: npt.NDArray[np.intp],
    embeddings: BlockView | Scouted,
    encoders: Sequence[FrozenEncoder],
    recipe: Recipe,
    n_folds: int,
    store: EmbeddingStore | None,
    reporter: Reporter,
) -> Analysis:
    """Score all blocks, search, and predict out of fold, or recall from the store what came of it.

    Parameters
    ----------
    texts, y
        Training texts and class indices (n,).
    embeddings
        Their candidate blocks, or those of the rows that `measured_rows` names.
    encoders
        Where the blocks come from.
    recipe, n_folds
        What is searched, and the folds of the nested resampling.
    store
        Keeps the outcome; None keeps nothing.
    """
    rows = measured_rows(y, recipe.task.seed)
    sample = embeddings.sample if isinstance(embeddings, Scouted) else None
    if len(rows) < len(texts):
        reporter.note(f"blocks are measured on {len(rows)} of {len(texts)} rows")
    started = time.perf_counter()
    key = analysis_key(texts, y, rows, sample or embeddings, encoders, recipe, n_folds)
    known = None if store is None else recall(store.root, key)
    if known is not None:
        reporter.note("these rows were analysed before with the same settings; that is used again")
        training = Training(embeddings, y, rows, known.probed, recipe, sample)
        spent = {"score_s": time.perf_counter() - started, "select_s": 0.0, "cv_s": 0.0}
        return Analysis(training, known.found, dict(known.nested), spent)
    measured: Blocks
    if isinstance(embeddings, Scouted):
        measured = embeddings.sample
    else:
        measured = embeddings if len(rows) == len(texts) else embeddings.take(rows)
    probed = probe_blocks(measured, y[rows], reporter=reporter)
    selecting = time.perf_counter()
    training = Training(embeddings, y, rows, probed, recipe, sample)
    found = training.search(reporter)
    resampling = time.perf_counter()
    names = [encoder.name for encoder in encoders]
    most = recipe.allowance.budget.blocks or len(probed.scores)
    procedures = {rival.key: rival.procedure for rival in rivals(names, most)}
    procedures |= {PIPELINE: pipeline, FIXED: lambda *_: found.plan}
    nested = training.out_of_fold(procedures, n_folds, reporter=reporter)
    ended = time.perf_counter()
    if store is not None:
        used = {
            block
            for procedure in procedures.values()
            for block in procedure(found, probed.scores).blocks
        }
        axes = {block: probed.axes[block] for block in used}
        remember(store.root, key, Remembered(probed.scores, axes, found, nested))
    timings = {
        "score_s": selecting - started,
        "select_s": resampling - selecting,
        "cv_s": ended - resampling,
    }
    return Analysis(training, found, nested, timings)


def tell_candidates(
    embeddings: BlockView, encoders: Iterable[FrozenEncoder], reporter: Reporter
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
