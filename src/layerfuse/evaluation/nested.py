"""The training sample, from which pipelines are made, and nested resampling of how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import LEXICAL_BLOCK, BlockRef, BlockScores
from layerfuse.calibration import fit_calibration
from layerfuse.embeddings.extraction import BlockView
from layerfuse.model_selection import Folds, SearchResult, SearchSpace, search
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import (
    N_LEADING,
    RIDGES,
    Blocks,
    Floats,
    FusedModel,
    Plan,
    Rows,
    find_penalty,
    is_ridge,
    is_trained_in_parts,
    predict_held,
    train,
    train_parts,
)
from layerfuse.probing import Axes, ClassCentroids, ProbeResults, probe_rows
from layerfuse.progress import SILENT, Reporter, track
from layerfuse.targets import Decisions, Targets

PlanStrategy: TypeAlias = Callable[[SearchResult, BlockScores], Plan]
"""A way to arrive at a plan from the search and the scores of a fold's training rows."""

_PART_ROWS = 16_384  # rows beyond the sample that are in memory at once


def nested_plan(result: SearchResult, scores: BlockScores) -> Plan:
    """The plan that the search found in the fold."""
    return result.plan


def decide_out_of_fold(
    scores: npt.NDArray[np.floating], fold_of: Rows, targets: Targets
) -> Decisions:
    """Decisions by scores (n, n_outputs) of models that had not seen the row.

    Where the space has thresholds, those of each fold come from the rows of the others.
    """
    decisions = targets.space.decide(scores)
    for fold in np.unique(fold_of):
        others, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        decisions[held] = targets.space.tuned(scores[others], targets[others]).decide(scores[held])
    return decisions


@dataclass(frozen=True)
class OutOfFold:
    """Logits (n, n_outputs) of rows by models that did not see them.

    ``plan_of`` (n,) is the index into ``plans`` (one for each fold) of the plan behind each row:
    scales differ between plans.
    """

    logits: Floats
    plan_of: Rows
    plans: list[Plan]

    @classmethod
    def empty(cls, n: int, n_outputs: int) -> OutOfFold:
        """To be filled by `add`."""
        return cls(np.zeros((n, n_outputs), dtype=np.float32), np.zeros(n, dtype=np.intp), [])

    def add(self, rows: Rows, plan: Plan, logits: Floats) -> None:
        """Fill in the rows of one fold."""
        self.logits[rows] = logits
        self.plan_of[rows] = len(self.plans)
        self.plans.append(plan)

    def decide(self, targets: Targets, scores: npt.ArrayLike | None = None) -> Decisions:
        """Decisions by scores (n, n_outputs), logits by default.

        Where the space has thresholds, those of each fold come from the rows of the others.
        """
        table = self.logits if scores is None else np.asarray(scores)
        return decide_out_of_fold(table, self.plan_of, targets)

    def calibrated(
        self, calibration: str | None, targets: Targets, *, unseen: bool = False
    ) -> npt.NDArray[np.float64]:
        """Probabilities (n, n_outputs), with one calibration for each kind of model.

        With ``unseen`` that of a fold's rows is learned from the other folds of its kind, where
        there are any.
        """
        proba = np.zeros(self.logits.shape)
        kinds = [(plan.fusion, plan.head) for plan in self.plans]
        for kind in dict.fromkeys(kinds):
            alike = [number for number, other in enumerate(kinds) if other == kind]
            for part in [[number] for number in alike] if unseen else [alike]:
                known = [number for number in alike if number not in part] or alike
                rows, held = (
                    np.flatnonzero(np.isin(self.plan_of, numbers)) for numbers in (known, part)
                )
                calibrator = fit_calibration(calibration, self.logits[rows], targets[rows])
                proba[held] = calibrator.predict_proba(self.logits[held], targets.space)
        return proba


@dataclass(frozen=True)
class NestedSearch:
    """What the search found on all rows, and in each fold on its training rows.

    ``folds`` are indices of training and of held-out rows; ``in_folds`` has for each the result and
    the scores of its blocks.
    """

    result: SearchResult
    folds: Folds
    in_folds: Sequence[tuple[SearchResult, BlockScores]]


@dataclass(eq=False)
class TrainingSample:
    """The n rows by which blocks, fusion and head are chosen, at all candidate blocks (n, dim).

    ``n_jobs`` are threads, None takes all cores.
    """

    blocks: Blocks
    targets: Targets
    probed: ProbeResults
    space: SearchSpace
    n_jobs: int | None = None
    _coordinates: dict[BlockRef, Floats] = field(default_factory=dict, init=False, repr=False)

    @property
    def max_blocks(self) -> int:
        """Maximum number of blocks that a pipeline can have."""
        return self.space.budget.limits.blocks or len(self.probed.scores)

    def search(self, reporter: Reporter = SILENT) -> SearchResult:
        """Choose blocks, fusion and head from all rows."""
        return search(self.probed, self.targets, self.space, n_jobs=self.n_jobs, reporter=reporter)

    def fit(self, plan: Plan, blocks: Blocks, targets: Targets) -> FusedModel:
        """Train a plan on all rows; the penalty of its head is found on the sample.

        ``blocks`` are the plan's of all training rows (n_all, dim), or those of the sample where it
        is all there is; ``targets`` are of these rows.
        """
        own = self.coordinates(plan.blocks)
        axes: dict[BlockRef, Axes] = {block: self.probed.axes[block] for block in plan.blocks}
        learned: dict[BlockRef, Floats] = {}
        if blocks is not self.blocks and LEXICAL_BLOCK in plan.blocks:
            axes[LEXICAL_BLOCK], learned[LEXICAL_BLOCK] = ClassCentroids.fit(
                blocks[LEXICAL_BLOCK], targets
            )
        every = own

        def coordinates(block: BlockRef, rows: Rows | slice, part: Blocks) -> Floats:
            known = learned.get(block)
            return axes[block].transform(part[block]) if known is None else known[rows]

        def penalty() -> float:
            return find_penalty(plan, own, self.targets, seed=self.space.seed)

        if blocks is not self.blocks and is_trained_in_parts(plan):
            parts = (
                blocks.parts(_PART_ROWS)
                if isinstance(blocks, BlockView)
                else [(np.arange(len(targets)), blocks)]
            )
            features = (
                (rows, np.hstack([coordinates(block, rows, part) for block in plan.blocks]))
                for rows, part in parts
            )
            model = train_parts(plan, features, targets, penalty())
        else:
            if blocks is not self.blocks:
                every = {block: coordinates(block, slice(None), blocks) for block in plan.blocks}
            model = train(plan, every, targets, seed=self.space.seed, search=penalty)
        calibrator = fit_calibration(None, (), targets)  # none yet
        return FusedModel(tuple(axes.values()), model, calibrator, targets.space)

    def search_nested(self, folds: Folds, reporter: Reporter = SILENT) -> NestedSearch:
        """`search` on all rows and on those of each fold.

        So the whole procedure can be measured, choosing included (nested resampling; Cawley and
        Talbot, JMLR 2010). The principal axes are those of all rows: they depend on no label.
        """

        def search_part(rows: Rows | None) -> tuple[SearchResult, BlockScores]:
            if rows is None:
                return self.search(), self.probed.scores
            targets = self.targets[rows]
            lexical = None
            if LEXICAL_BLOCK in self.probed.axes:
                _, lexical = ClassCentroids.fit(self.blocks[LEXICAL_BLOCK][rows], targets)
            probed = probe_rows(self.probed, rows, targets, lexical=lexical, n_jobs=self.n_jobs)
            return search(probed, targets, self.space, n_jobs=self.n_jobs), probed.scores

        parts = [None, *(rows for rows, _ in folds)]  # at once, which leaves no core idle
        searches = parallel_map(search_part, parts, self.n_jobs)
        name = "searching blocks, fusion and head"
        (result, _), *found = track(searches, name, len(parts), "folds", reporter)
        return NestedSearch(result, folds, found)

    def out_of_fold(
        self, strategies: Sequence[PlanStrategy], found: NestedSearch, reporter: Reporter = SILENT
    ) -> list[OutOfFold]:
        """For each strategy predictions of rows by models that never saw their label."""
        chosen = [[choose(*pair) for choose in strategies] for pair in found.in_folds]
        jobs = [(plan, fold) for fold, plans in enumerate(chosen) for plan in dict.fromkeys(plans)]
        logits = self._predict(jobs, found.folds, reporter)
        n_outputs = self.targets.space.n_outputs
        results = [OutOfFold.empty(len(self.targets), n_outputs) for _ in strategies]
        for fold, ((_, held), plans) in enumerate(zip(found.folds, chosen, strict=True)):
            for own, plan in zip(results, plans, strict=True):
                own.add(held, plan, logits[plan, fold])
        return results

    def _predict(
        self, jobs: Sequence[tuple[Plan, int]], folds: Folds, reporter: Reporter
    ) -> dict[tuple[Plan, int], Floats]:
        """Logits of the held-out rows of a fold, by a plan that was trained on its other rows."""
        used = dict.fromkeys(block for plan, _ in jobs for block in plan.blocks)
        coordinates = [self.coordinates(used)] * len(folds)
        if LEXICAL_BLOCK in used:
            lexical = parallel_map(lambda fold: self._lexical(*fold), folds, self.n_jobs)
            coordinates = [{**coordinates[0], LEXICAL_BLOCK: own} for own in lexical]
        ridge_plans = [plan for plan, _ in jobs if is_ridge(plan)]
        ridges = {}
        for head in {plan.head for plan in ridge_plans}:
            ridges[head] = _FoldedRidge(self, coordinates, folds, head)
            pairs = {pair for plan in ridge_plans if plan.head == head for pair in _pairs(plan)}
            for _ in parallel_map(ridges[head].prepare, sorted(pairs), self.n_jobs):
                pass

        def predict(job: tuple[Plan, int]) -> Floats:
            plan, fold = job
            if is_ridge(plan):
                return ridges[plan.head].predict(plan, fold)
            rows, held = folds[fold]
            known, seed = self.targets[rows], self.space.seed
            return predict_held(plan, coordinates[fold], known, rows, held, seed=seed)

        logits = parallel_map(predict, jobs, self.n_jobs)
        logits = track(logits, "nested resampling", len(jobs), "fits", reporter)
        return dict(zip(jobs, logits, strict=True))

    def coordinates(self, blocks: Iterable[BlockRef]) -> dict[BlockRef, Floats]:
        """Principal coordinates (n, rank) of some blocks."""
        missing = [block for block in blocks if block not in self._coordinates]

        def transform(block: BlockRef) -> Floats:
            if block == LEXICAL_BLOCK:  # as if each row had not been seen
                return np.asarray(self.probed.coordinates[block])
            return self.probed.axes[block].transform(self.blocks[block])

        found = parallel_map(transform, missing, self.n_jobs)
        self._coordinates.update(zip(missing, found, strict=True))
        return {block: self._coordinates[block] for block in blocks}

    def _lexical(self, rows: Rows, held: Rows) -> Floats:
        """Coordinates (n, rank) of the lexical block, learned from some rows for others."""
        counts = self.blocks[LEXICAL_BLOCK]
        centroids, known = ClassCentroids.fit(counts[rows], self.targets[rows])
        found = np.zeros((len(self.targets), centroids.rank), dtype=np.float32)
        found[rows], found[held] = known, centroids.transform(counts[held])
        return found


def _pairs(plan: Plan) -> Iterable[tuple[BlockRef, BlockRef]]:
    return combinations_with_replacement(sorted(plan.blocks), 2)


class _FoldedRidge:
    """One of `RIDGES` over concatenated blocks, for many plans and all folds.

    The products of two blocks' coordinates are summed once over the rows that each fold leaves out;
    the sum over its training rows is the sum over all rows less that one. The lexical block, which
    each fold learns anew, and balanced rows, whose weights it finds anew, are summed in each. The
    result is that of `predict_held`.

    ``coordinates`` are those of each fold.
    """

    def __init__(
        self, sample: TrainingSample, coordinates: Sequence[Blocks], folds: Folds, head: str
    ) -> None:
        self._coordinates = coordinates
        self._targets = [RIDGES[head].weighted(sample.targets[rows]) for rows, _ in folds]
        self._weights = sample.targets.weights
        self._is_balanced = head == "balanced_ridge"
        self._folds = folds
        self._seed = sample.space.seed
        n = len(sample.targets)
        self._left_out = [np.setdiff1d(np.arange(n), rows) for rows, _ in folds]
        together = np.concatenate(self._left_out)
        self._is_partition = np.array_equal(np.sort(together), np.arange(n))
        # Products with a column of ones are sums.
        self._beside = np.column_stack([np.ones(n, dtype=np.float32), sample.targets.matrix])
        self._products: dict[tuple[BlockRef, BlockRef], list[Floats]] = {}
        self._with_targets: dict[BlockRef, list[Floats]] = {}

    def prepare(self, pair: tuple[BlockRef, BlockRef]) -> None:
        """Sum the products of two blocks, and those of one with its targets."""
        a, b = pair
        if LEXICAL_BLOCK in pair or self._is_balanced:
            self._products[pair] = [
                self._in_fold(fold, own[a], own[b]) for fold, own in enumerate(self._coordinates)
            ]
        else:
            left, right = self._coordinates[0][a], self._coordinates[0][b]
            without = [_product(left, right, rows, self._weights) for rows in self._left_out]
            if self._is_partition:
                total = np.sum(without, axis=0)
            else:
                total = _product(left, right, np.arange(len(left)), self._weights)
            self._products[pair] = [total - part for part in without]
        if a == b:  # not by a difference: the targets of held-out rows are not read
            self._with_targets[a] = [
                self._in_fold(fold, own[a], self._beside)
                for fold, own in enumerate(self._coordinates)
            ]

    def _in_fold(self, fold: int, left: Floats, right: Floats) -> Floats:
        """``left^T right`` over the training rows of a fold, by their weights."""
        rows, weights = self._folds[fold][0], self._targets[fold].weights
        own = left[rows] if weights is None else left[rows] * weights.astype(np.float32)[:, None]
        return np.asarray(own.T @ right[rows])

    def predict(self, plan: Plan, fold: int) -> Floats:
        """Logits (n_held, n_outputs) of the fold's held-out rows."""
        from scipy.linalg import cho_factor, cho_solve

        rows, held = self._folds[fold]
        coordinates = self._coordinates[fold]
        blocks = [coordinates[block] for block in plan.blocks]
        targets = self._targets[fold]
        weights = targets.weights
        scale = np.float32(1.0 if weights is None else weights.mean())
        gram = np.block([[self._gram(a, b, fold) for b in plan.blocks] for a in plan.blocks])
        beside = np.concatenate([self._with_targets[block][fold] for block in plan.blocks])
        totals = self._beside[rows] if weights is None else self._beside[rows] * weights[:, None]
        totals = totals.sum(axis=0, dtype=np.float64).astype(np.float32)
        mean, center = beside[:, :1] / totals[0], totals[1:] / totals[0]
        gram -= mean * beside[:, 0]
        leading = {block: coordinates[block][rows, :N_LEADING] for block in plan.blocks}
        penalty = find_penalty(replace(plan, head="ridge"), leading, targets, seed=self._seed)
        gram[np.diag_indices_from(gram)] += np.float32(penalty) * scale
        factor = cho_factor(gram, overwrite_a=True)
        coef = cho_solve(factor, beside[:, 1:] - mean * totals[1:])
        features = np.concatenate([block[held] for block in blocks], axis=1)
        return np.asarray(features @ coef + (center - mean[:, 0] @ coef), dtype=np.float32)

    def _gram(self, a: BlockRef, b: BlockRef, fold: int) -> Floats:
        if (a, b) in self._products:
            return self._products[a, b][fold]
        return self._products[b, a][fold].T


def _product(
    left: Floats, right: Floats, rows: Rows, weights: npt.NDArray[np.floating] | None
) -> Floats:
    """``left^T right`` over some rows, by their weights."""
    own = left[rows] if weights is None else left[rows] * weights[rows, None].astype(np.float32)
    return np.asarray(own.T @ right[rows])
