"""Choosing blocks, fusion and head, by the labels of the training rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Selection
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.errors import check_choice
from layerfuse.fusion import check_fusion
from layerfuse.heads import HEADS
from layerfuse.parallel import spread
from layerfuse.pipeline import Plan, Task, predict_held
from layerfuse.probing import Probed, find_interaction, one_hot
from layerfuse.progress import SILENT, Reporter
from layerfuse.selection import Allowance, choose, is_informative, selection_of
from layerfuse.targets import stratified_folds, stratified_rows

__all__ = ["AUTO", "Found", "Recipe", "Trial", "check_recipe", "search"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Parts = Sequence[tuple[Labels, Labels]]

AUTO = "auto"

_RUNGS = (900, 3600, 10_000)  # rows of successive halving
_WIDTHS = (64, 100, 200)  # leading coordinates of each block that they look at
_KEPT = (2, 1)  # rivals that go on to the second and third rung
_FOLDS = 3
_FEWEST_ROWS = 300  # below, a trial could tell nothing

_FUSIONS = (
    "cooccurrence",
    "sum+residual",
    "hadamard+residual",
    "quaternion+residual",
    "matmul+residual",
    "tensor+residual",
    "voting",
    "stacking",
    "gated",
    "bilinear+residual",
)
_HEADS = ("logistic",)  # the others take longer than a search should
_PRODUCTS = "tensor+residual"  # for two blocks that say something only through their products


@dataclass(frozen=True)
class Recipe:
    """What is chosen before any label is seen; ``"auto"`` leaves fusion or head to the search."""

    selection: str
    allowance: Allowance
    fusion: str
    head: str
    task: Task


@dataclass(frozen=True)
class Trial:
    """A fusion and a head against plain concatenation with a ridge head.

    ``gain`` is the drop in the Brier score (squared error of probabilities, 0 to 2) of held-out
    rows, with ``n_rows`` in all; ``gain_se`` is its standard error; ``accuracy_gain`` a share.
    """

    fusion: str
    head: str
    n_rows: int
    gain: float
    gain_se: float
    accuracy_gain: float

    @property
    def is_sure(self) -> bool:
        """Whether the gain is above two standard errors (the best of many is above one by chance),
        and not bought with accuracy."""
        return self.gain > 2 * self.gain_se and self.accuracy_gain >= 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """What the search decided: blocks, the plan for them, and what was tried on the way."""

    selection: Selection
    plan: Plan
    trials: tuple[Trial, ...]


def check_recipe(fusion: str, head: str) -> None:
    """Raise a ConfigError for a fusion or head that is neither known nor ``"auto"``."""
    check_fusion(fusion, also=(AUTO,))
    check_choice(head, (AUTO, *HEADS), "head")


def search(probed: Probed, y: Labels, recipe: Recipe, reporter: Reporter = SILENT) -> Found:
    """Choose blocks, then fusion and head for them.

    Fusions and heads are compared by successive halving (Jamieson and Talwalkar, AISTATS 2016):
    all on a few rows, the few that beat concatenation with a ridge head on more, the best of them
    on all: what wins with few rows and dimensions need not win with many. A rival is taken
    only when its gain is above two standard errors; otherwise the plain one, which is cheaper,
    stays. Where the chosen blocks say nothing, pairs of blocks are searched for products of their
    coordinates that do.

    Parameters
    ----------
    probed
        Scores and principal coordinates of n rows.
    y
        Class indices (n,).
    recipe
        What may be chosen.
    """
    selection = choose(probed, y, recipe.selection, recipe.allowance, reporter)
    if recipe.fusion == AUTO and recipe.selection == "greedy":
        targets = one_hot(y, recipe.task.n_classes)
        if not is_informative(probed, selection.blocks, targets):
            ranked = [score.block for score in probed.scores.ranking]
            pair = find_interaction(probed.coordinates, ranked, targets)
            if pair and recipe.allowance.allows(pair):
                head = "ridge" if recipe.head == AUTO else recipe.head
                return Found(selection_of(pair, probed, y), Plan(pair, _PRODUCTS, head), ())
    plain = Plan(
        selection.blocks,
        "concat" if recipe.fusion == AUTO else recipe.fusion,
        "ridge" if recipe.head == AUTO else recipe.head,
    )
    rivals = _rivals(plain, recipe)
    if not rivals or len(y) < _FEWEST_ROWS:
        return Found(selection, plain, ())
    plan, trials = _halving(plain, rivals, probed, y, recipe.task, reporter)
    return Found(selection, plan, trials)


def _rivals(plain: Plan, recipe: Recipe) -> list[Plan]:
    """Plans to compare with the plain one, over the same blocks."""
    rivals = []
    if recipe.fusion == AUTO and len(plain.blocks) > 1:
        rivals += [Plan(plain.blocks, fusion, plain.head) for fusion in _FUSIONS]
    if recipe.head == AUTO:
        rivals += [Plan(plain.blocks, plain.fusion, head) for head in _HEADS]
    return rivals


def _halving(
    plain: Plan,
    rivals: Sequence[Plan],
    probed: Probed,
    y: Labels,
    task: Task,
    reporter: Reporter,
) -> tuple[Plan, tuple[Trial, ...]]:
    trials: list[Trial] = []
    won = plain
    for rung, most in enumerate(_RUNGS):
        rows = stratified_rows(y, most, task.seed)
        folds = stratified_folds(y[rows], _FOLDS, task.seed)[: 1 if rung == 0 else _FOLDS]
        parts = [(rows[train_rows], rows[held]) for train_rows, held in folds]

        width = _WIDTHS[rung]
        coordinates = {block: probed.coordinates[block][:, :width] for block in plain.blocks}

        def measure(
            plan: Plan,
            coordinates: Mapping[BlockRef, Floats] = coordinates,
            parts: Parts = parts,
        ) -> Floats:
            return held_out_errors(plan, coordinates, y, task, parts)

        plans = [plain, *rivals]
        with reporter.task(f"comparing fusions on {len(rows)} rows", len(plans), "fits") as advance:
            errors = {}
            for plan, values in zip(plans, spread(measure, plans), strict=True):
                errors[plan] = values
                advance(1)
        tried = {plan: _trial(plan, len(rows), errors[plain] - errors[plan]) for plan in rivals}
        trials += tried.values()
        better = sorted((p for p in rivals if tried[p].gain > 0), key=lambda p: -tried[p].gain)
        if rung + 1 == len(_RUNGS) or len(rows) == len(y):
            won = next((plan for plan in better if tried[plan].is_sure), plain)
            break
        rivals = better[: _KEPT[rung]]
        if not rivals:
            break
    return won, tuple(trials)


def held_out_errors(
    plan: Plan, coordinates: Mapping[BlockRef, Floats], y: Labels, task: Task, parts: Parts
) -> Floats:
    """Squared error and 0/1 error of each held-out row, (n_held, 2), after one temperature for all.

    ``parts`` holds rows to train on and rows that are held out; ``y`` are all rows' class indices.
    """
    logits = [predict_held(plan, coordinates, y, rows, held, task) for rows, held in parts]
    labels = np.concatenate([y[held] for _, held in parts])
    joined = np.concatenate(logits)
    proba = TemperatureCalibrator.fit(joined, labels).predict_proba(joined)
    squared = ((proba - one_hot(labels, task.n_classes)) ** 2).sum(axis=1)
    return np.stack([squared, proba.argmax(axis=1) != labels], axis=1)


def _trial(plan: Plan, n_rows: int, gains: Floats) -> Trial:
    """From the drop in both errors of each held-out row (n_held, 2)."""
    squared, wrong = gains.T
    return Trial(
        fusion=plan.fusion,
        head=plan.head,
        n_rows=n_rows,
        gain=float(squared.mean()),
        gain_se=float(squared.std() / np.sqrt(len(squared))),
        accuracy_gain=float(wrong.mean()),
    )
