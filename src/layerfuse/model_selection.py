"""Choosing blocks, fusion and head, by the labels of the training rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np

from layerfuse.blocks import BlockRef, Selection
from layerfuse.calibration import fit_calibration
from layerfuse.errors import check_choice
from layerfuse.folds import standard_error
from layerfuse.fusion import FUSIONS, check_fusion
from layerfuse.heads import HEADS
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Floats, Plan, Rows, find_penalty, predict_held
from layerfuse.probing import ProbeResults
from layerfuse.progress import SILENT, Reporter
from layerfuse.selection import AUTO, CostBudget, choose_with_state, find_interaction, selection_of
from layerfuse.targets import LabelSpace, Targets

Folds = Sequence[tuple[Rows, Rows]]

# What was better than a ridge head over concatenated blocks on some dataset (benchmarks/README.md).
# No fusion is: what a learned one gains on R52 is less than what balanced_ridge gains in less time.
_HEADS = ("logistic", "balanced_ridge")
_PRODUCTS = "tensor+residual"  # for two blocks that are informative only through products

_RUNGS = (900, 3600)  # rows of the rounds
_WIDTHS = (64, 100)  # leading coordinates of each block that they read
_PROMISING = 0.5  # standard errors of gain above which a candidate goes on to more rows
_FOLDS = 3
_FEWEST_ROWS = 300  # below, a trial has no power
_FALSE_WINS = 0.05
_RARE = 3  # times as many rows has the largest class, where the smallest is rare


@dataclass(frozen=True)
class SearchSpace:
    """What may be chosen.

    ``selection`` is one of `SELECTIONS`, ``fusion`` and ``head`` of `FUSIONS` and `HEADS`, or
    ``"auto"``: `search` decides. ``seed`` is that of folds, subsamples and models.
    """

    selection: str
    budget: CostBudget
    fusion: str = AUTO
    head: str = AUTO
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """A head against a ridge head, over the same fused blocks.

    ``gain`` is the drop in the Brier score (squared error of probabilities, 0 to 2) of held-out
    rows, which came from ``n_rows`` in all; ``accuracy_gain`` is a share from 0 to 1.
    ``n_candidates`` were compared in the same search.
    """

    head: str
    n_rows: int
    gain: float
    gain_se: float
    accuracy_gain: float
    n_candidates: int = 1

    @property
    def p_value(self) -> float:
        """One-sided, of no gain, times the number of candidates (Bonferroni).

        The correction is for all candidates, so that it holds although only the promising ones are
        compared on more rows.
        """
        if self.gain_se <= 0:
            return 0.0 if self.gain > 0 else 1.0
        return min(1.0, self.n_candidates * NormalDist().cdf(-self.gain / self.gain_se))

    @property
    def is_significant(self) -> bool:
        """Whether the candidate is better at the 5% level, and no less accurate."""
        return self.p_value < _FALSE_WINS and self.accuracy_gain >= 0


@dataclass(frozen=True)
class SearchResult:
    """What the search decided: blocks with their gains, what to train on them, heads compared."""

    selection: Selection
    plan: Plan
    trials: tuple[Trial, ...]


def check_search(fusion: str, head: str) -> None:
    """Raise a ConfigError for a fusion or head that is neither known nor ``"auto"``."""
    check_fusion(fusion, also=(AUTO,))
    check_choice(head, (AUTO, *HEADS), "head")


def check_links(fusion: str, head: str, space: LabelSpace) -> None:
    """Raise a ConfigError for a fusion or head that cannot be fitted to such labels."""
    if fusion != AUTO:
        space.check_link(FUSIONS[fusion].links, f"fusion={fusion!r}")
    if head != AUTO:
        space.check_link(HEADS[head].links, f"head={head!r}")


def search(
    probed: ProbeResults,
    targets: Targets,
    space: SearchSpace,
    *,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> SearchResult:
    """Choose blocks, then fusion and head for them, by n probed rows and their targets.

    Blocks are concatenated. Where the chosen ones are not informative, pairs of blocks are searched
    for products of their coordinates that are. Heads are compared in two rounds: all on a few rows,
    the promising ones on more. One is taken only when it is significantly better than a ridge head,
    which is cheaper (`Trial`).
    """
    selection, state = choose_with_state(
        probed, targets, space.selection, space.budget, n_jobs=n_jobs, reporter=reporter
    )
    any_fusion = space.fusion == AUTO and space.selection == "greedy"
    if any_fusion and not state.is_informative:
        ranked = [score.block for score in probed.scores.ranking]
        pair = find_interaction(probed.coordinates, ranked, targets)
        if pair and space.budget.allows(pair):
            plan = Plan(pair, _PRODUCTS, "ridge" if space.head == AUTO else space.head)
            return SearchResult(selection_of(pair, probed, targets), plan, ())
    baseline = Plan(
        selection.blocks,
        "concat" if space.fusion == AUTO else space.fusion,
        "ridge" if space.head == AUTO else space.head,
    )
    if space.selection == "upper" and space.head == AUTO:
        return SearchResult(selection, replace(baseline, head="logistic"), ())
    if space.head != AUTO or len(targets) < _FEWEST_ROWS:
        return SearchResult(selection, baseline, ())
    race = _Race(probed.coordinates, targets, space.seed, n_jobs)
    plan, trials = race.run(baseline, _candidates(targets), reporter)
    return SearchResult(selection, plan, trials)


def _candidates(targets: Targets) -> list[str]:
    """Heads to compare with ridge.

    Classes are balanced where some are rare, and the user has given no weights.
    """
    heads = [head for head in _HEADS if targets.space.link_name in HEADS[head].links]
    if targets.weights is not None or targets.counts.max() < _RARE * targets.counts.min():
        heads = [head for head in heads if head != "balanced_ridge"]
    return heads


@dataclass(frozen=True)
class _Race:
    """Heads against a baseline, on more and more of the rows of a search."""

    coordinates: Mapping[BlockRef, Floats]
    targets: Targets
    seed: int
    n_jobs: int | None

    def run(
        self, baseline: Plan, heads: Sequence[str], reporter: Reporter
    ) -> tuple[Plan, tuple[Trial, ...]]:
        """The winner and all trials."""
        n_candidates = len(heads)
        trials: list[Trial] = []
        for rung, most in enumerate(_RUNGS):
            if not heads:
                break
            if rung + 1 < len(_RUNGS) and len(self.targets) < 2 * most:
                continue  # few more rows are left for the next round
            rows = self.targets.sample(most, self.seed)
            folds = self.targets[rows].folds(_FOLDS, self.seed)
            folds = [(rows[train], rows[held]) for train, held in folds]
            plans = [baseline, *(replace(baseline, head=head) for head in heads)]
            errors, *others = self._errors(plans, _WIDTHS[rung], folds, reporter)
            tried = [
                _trial(head, self.targets[rows], errors - own, n_candidates)
                for head, own in zip(heads, others, strict=True)
            ]
            trials += tried
            if rung + 1 == len(_RUNGS) or len(rows) == len(self.targets):
                significant = [trial for trial in tried if trial.is_significant]
                if significant:
                    best = max(significant, key=lambda trial: trial.gain)
                    return replace(baseline, head=best.head), tuple(trials)
                break
            heads = [own.head for own in tried if own.gain > _PROMISING * own.gain_se]
        return baseline, tuple(trials)

    def _errors(
        self, plans: Sequence[Plan], width: int, folds: Folds, reporter: Reporter
    ) -> list[Floats]:
        coordinates = {b: self.coordinates[b][:, :width] for b in plans[0].blocks}

        def measure(plan: Plan) -> Floats:
            return held_out_errors(plan, coordinates, self.targets, folds, seed=self.seed)

        n_rows = sum(len(held) for _, held in folds)
        errors = []
        with reporter.task(f"comparing heads on {n_rows} rows", len(plans), "fits") as advance:
            for own in parallel_map(measure, plans, self.n_jobs):
                errors.append(own)
                advance(1)
        return errors


def held_out_errors(
    plan: Plan,
    coordinates: Mapping[BlockRef, Floats],
    targets: Targets,
    folds: Folds,
    *,
    seed: int = 0,
) -> Floats:
    """Errors (n_held, 2) of each held-out row, after one calibration for all: squared errors of
    the probabilities, and whether the prediction is wrong.

    The head's penalty is that of the first fold: searching it takes most of the time. Coordinates
    and targets are of all rows; ``folds`` are rows to train on, and held-out rows.
    """
    rows = folds[0][0]

    @cache
    def penalty() -> float:
        own = {block: coordinates[block][rows] for block in plan.blocks}
        centered = {block: Z - Z.mean(axis=0) for block, Z in own.items()}
        return find_penalty(plan, centered, targets[rows], seed=seed)

    logits = np.concatenate(
        [
            predict_held(plan, coordinates, targets[rows], rows, held, seed=seed, search=penalty)
            for rows, held in folds
        ]
    )
    truth = targets[np.concatenate([held for _, held in folds])]
    proba = fit_calibration("temperature", logits, truth).predict_proba(logits, truth.space)
    wrong = ~truth.correct(truth.space.decide(proba))
    return np.stack([truth.brier(proba), wrong], axis=1)


def _trial(head: str, targets: Targets, gains: Floats, n_candidates: int) -> Trial:
    """From the drop in both errors (n_held, 2) of each of some rows."""
    squared, wrong = gains.T
    return Trial(
        head=head,
        n_rows=len(targets),
        gain=float(squared.mean()),
        gain_se=standard_error(squared, targets.groups),
        accuracy_gain=float(wrong.mean()),
        n_candidates=n_candidates,
    )


def log_selection(
    result: SearchResult, space: SearchSpace, head_kind: str, reporter: Reporter
) -> None:
    """Report which blocks, fusion and head were chosen, and why.

    ``head_kind`` is that of the trained head, which may have come with the fusion.
    """
    plan = result.plan
    why = ": ".join(filter(None, (space.selection, result.selection.reason)))
    if space.selection == "greedy":
        full = len(plan.blocks) == space.budget.limits.blocks
        why += ", up to max_blocks" if full else ", no other gains more than one standard error"
    reporter.note(f"chosen: {', '.join(map(str, plan.blocks))} ({why})")
    tried = {trial.head for trial in result.trials}
    won = [trial for trial in result.trials if trial.head == plan.head]
    if won:
        reporter.note(
            f"fusion {plan.fusion}, head {plan.head}: Brier score {won[-1].gain:.4f} ± "
            f"{won[-1].gain_se:.4f} lower than with ridge on held-out training rows "
            f"(p = {won[-1].p_value:.2g}, {len(tried)} compared)"
        )
    elif tried:
        reporter.note(
            f"fusion {plan.fusion}, head {plan.head}: {', '.join(sorted(tried))} "
            "not significantly better"
        )
    if head_kind not in HEADS and space.head != AUTO:
        reporter.note(f"fusion {plan.fusion} brings its own head; head={space.head!r} is not used")
