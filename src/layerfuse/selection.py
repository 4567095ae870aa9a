"""Choosing blocks from their principal coordinates, by the labels of the training rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, islice, pairwise

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import NOT_MODELS, BlockRef, BlockScores, Selection, highest_layers
from layerfuse.errors import ConfigError, check_choice
from layerfuse.folds import Groups, standard_error
from layerfuse.labels import Column
from layerfuse.parallel import parallel_map
from layerfuse.probing import ProbeResults, probe_blocks
from layerfuse.probing.ridge import RidgeState, leave_one_out, prior_errors, spectrum, weight_rows
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import Budget, EncoderCost, pipeline_cost
from layerfuse.targets import Targets

SELECTIONS = ("last", "best", "top_k", "greedy", "upper")
AUTO = "auto"

_CANDIDATES = 32  # the greedy search looks at the best of this many blocks …
_PER_ENCODER = 8  # … and at this many of every encoder
_UPPER = 4  # layers that "upper" averages
_CERTAIN = 4  # standard errors by which a single block has to be better than they
_PAIR_ROWS = 2000
_PAIR_BLOCKS = 48
_LEADING = 32  # coordinates of each block that are joined …
_MULTIPLIED = 16  # … or multiplied with each other
_FINALISTS = 8
_SIGNIFICANT = 4.0  # standard errors: the best of a thousand pairs is above two by chance
_BATCH = 2  # candidates whose gains are computed before the next look at the upper bounds

FEW_ROWS, FEW_PER_CLASS = 1000, 100
"""With fewer labeled rows, in all and of the median class, ``"auto"`` takes the upper layers:
differences between single blocks are mostly noise.
"""

Floats = npt.NDArray[np.float32]


def select_blocks(
    embeddings: Mapping[BlockRef, Floats],
    y: Column,
    method: str = "greedy",
    *,
    max_blocks: int = 5,
    groups: Column | None = None,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> Selection:
    """Choose blocks that predict the labels well together.

    Parameters
    ----------
    embeddings : mapping from BlockRef to ndarray of shape (n, dim)
    y : array-like of shape (n,)
        Labels of any kind.
    method : {"greedy", "upper", "top_k", "best", "last"}
        ``"last"``: the last layer of each encoder, at its best pooling. ``"best"``: the single
        block with the lowest leave-one-out loss. ``"top_k"``: the ``max_blocks`` best ones.
        ``"greedy"``: forward selection (Efroymson, 1960) on the leave-one-out loss of a ridge
        regression over the block-scaled concatenation; stops at ``max_blocks`` or when no gain is
        above one standard error. Of blocks whose gains are within one standard error of the largest
        the cheapest is taken: an encoder in use before a new one, a low layer before a high one.
        ``"upper"``: the highest four layers of one encoder, that where they predict best together,
        or the highest alone where it is better by a standard error. With few labels any finer
        choice follows noise: another block is taken where it is better by four.
    max_blocks : int
        Blocks to choose, at most.
    groups : array-like of shape (n,), optional
        Rows with an equal value, such as the same text, are left out together.
    n_jobs : int, optional
        Threads, as in scikit-learn; None takes all cores.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError
        For an unknown method or a number of blocks below 1.

    Examples
    --------
    >>> y = np.arange(40) % 2
    >>> noise = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    >>> blocks = {BlockRef("e", 0, "mean"): noise[0], BlockRef("e", 1, "mean"): noise[1]}
    >>> blocks[BlockRef("e", 1, "mean")][:, 0] += 4 * y
    >>> [str(block) for block in select_blocks(blocks, y).blocks]
    ['e:1:mean']
    """
    check_choice(method, SELECTIONS, "selection")
    if max_blocks < 1:
        raise ConfigError(f"max_blocks={max_blocks} chooses nothing; give at least 1.")
    targets = Targets.from_labels(y, groups)
    probed = probe_blocks(embeddings, targets, n_jobs=n_jobs, reporter=reporter)
    budget = CostBudget(Budget(blocks=max_blocks), {})
    return choose(probed, targets, method, budget, n_jobs=n_jobs, reporter=reporter)


@dataclass(frozen=True)
class CostBudget:
    """Limits of a pipeline, and the costs that they are compared with.

    Attributes
    ----------
    limits : Budget
    costs : mapping from str to EncoderCost
        By the encoders' names; may be empty where only the number of blocks is limited.
    """

    limits: Budget
    costs: Mapping[str, EncoderCost]

    def allows(self, blocks: Sequence[BlockRef]) -> bool:
        """Whether a pipeline on these blocks is within the limits."""
        return not self.exceeded(blocks)

    def cost_key(self, blocks: Sequence[BlockRef]) -> tuple[float, ...]:
        """What ties are broken by, the smaller the better: parameters in use.

        Where costs are not known: the number of encoders, then of layers.
        """
        highest = highest_layers(blocks)
        if not set(highest) <= set(self.costs):
            return float(len(highest)), float(sum(highest.values()))
        used = (self.costs[encoder].parameters_at(layer) for encoder, layer in highest.items())
        return (float(sum(used)),)

    def exceeded(self, blocks: Sequence[BlockRef]) -> list[str]:
        """The limits that these blocks exceed, as messages name them."""
        if set(self.limits.limits) <= {"blocks"}:
            most = self.limits.blocks
            over = most is not None and len(blocks) > most
            return [f"{len(blocks)} blocks of at most {most}"] if over else []
        return self.limits.exceeded(pipeline_cost(blocks, self.costs))


def choose(
    probed: ProbeResults,
    targets: Targets,
    method: str,
    budget: CostBudget,
    *,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> Selection:
    """`select_blocks` on blocks that have been probed with the same targets, within a budget.

    Raises
    ------
    ConfigError
        When no block alone is within the budget, or the last layers are not.
    """
    return choose_with_state(probed, targets, method, budget, n_jobs=n_jobs, reporter=reporter)[0]


def choose_with_state(
    probed: ProbeResults,
    targets: Targets,
    method: str,
    budget: CostBudget,
    *,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> tuple[Selection, RidgeState]:
    """`choose`, and the ridge regression on the chosen blocks.

    It may lack the last of them, where no other could follow.
    """
    check_choice(method, SELECTIONS, "selection")
    ranked = [s.block for s in probed.scores.ranking if budget.allows([s.block])]
    if not ranked:
        nearest = min(probed.scores.ranking, key=lambda score: score.block.layer).block
        raise ConfigError(
            f"The budget leaves no block: {nearest} alone takes "
            f"{', '.join(budget.exceeded([nearest]))}. Give a larger budget or smaller encoders."
        )
    if method == "greedy":
        return _greedy(probed, ranked, targets, budget, n_jobs, reporter)
    if method == "upper":
        return _upper(probed, ranked, targets, budget)
    if method == "last":
        names = [name for name in probed.scores.encoders if name not in NOT_MODELS]
        chosen = [probed.scores.last(name).block for name in names]
        if over := budget.exceeded(chosen):
            raise ConfigError(
                f"The last layers exceed the budget ({', '.join(over)}). Give a larger budget, "
                "fewer encoders or selection='greedy'."
            )
    else:
        chosen = []
        for block in ranked[:1] if method == "best" else ranked:
            if budget.allows([*chosen, block]):
                chosen.append(block)
    return _of_blocks(chosen, probed, targets, method)


def selection_of(blocks: Sequence[BlockRef], probed: ProbeResults, targets: Targets) -> Selection:
    """The selection of given blocks, in their order, as the greedy one."""
    return _of_blocks(blocks, probed, targets, "greedy")[0]


def _of_blocks(
    blocks: Sequence[BlockRef], probed: ProbeResults, targets: Targets, method: str
) -> tuple[Selection, RidgeState]:
    weights = targets.unit_weights
    coordinates = [weight_rows(probed.coordinates[block], weights) for block in blocks]
    path = [_fit(coordinates[: count + 1], targets) for count in range(len(blocks))]
    losses = [state.loss for state in path]
    return _selection(blocks, method, probed.scores, path[-1], losses), path[-1]


def _fit(blocks: Sequence[Floats], targets: Targets) -> RidgeState:
    weights, groups = targets.unit_weights, targets.groups
    return RidgeState.of(blocks, targets.matrix, row_weights=weights, groups=groups)


def check_selection(method: str) -> None:
    """Raise a ConfigError for a method that is neither one of `SELECTIONS` nor ``"auto"``."""
    check_choice(method, (AUTO, *SELECTIONS), "selection")


def resolve_selection(method: str, targets: Targets) -> str:
    """What ``"auto"`` means for these rows: ``"upper"`` with few labels, else ``"greedy"``."""
    if method != AUTO:
        return method
    return "upper" if few_labels(targets) else "greedy"


def few_labels(targets: Targets) -> bool:
    """Whether there are too few rows to choose single layers."""
    counts = np.sort(targets.counts[targets.counts > 0])
    return len(targets) < FEW_ROWS and bool(counts[len(counts) // 2] < FEW_PER_CLASS)


def _candidates(ranked: Sequence[BlockRef]) -> list[BlockRef]:
    """The best blocks overall, and the best of every encoder."""
    kept = list(ranked[:_CANDIDATES])
    for encoder in dict.fromkeys(block.encoder for block in ranked):
        kept += [block for block in ranked if block.encoder == encoder][:_PER_ENCODER]
    return list(dict.fromkeys(kept))


def _upper(
    probed: ProbeResults, ranked: Sequence[BlockRef], targets: Targets, budget: CostBudget
) -> tuple[Selection, RidgeState]:
    def fit(blocks: Sequence[BlockRef]) -> tuple[Selection, RidgeState]:
        return _of_blocks(blocks, probed, targets, "upper")

    def is_better(one: RidgeState, other: RidgeState, n_errors: int = 1) -> bool:
        gains = other.errors - one.errors
        return bool(gains.mean() > n_errors * standard_error(gains, targets.groups))

    found = []
    others = [block for block in ranked if block.encoder in NOT_MODELS]
    for encoder in dict.fromkeys(block.encoder for block in ranked if block not in others):
        own = [block for block in ranked if block.encoder == encoder]
        top = max(own, key=lambda block: block.layer)  # the first of them is the best pooling
        chosen: list[BlockRef] = []
        for block in sorted(own, key=lambda block: -block.layer):
            same = block.pooling == top.pooling and len(chosen) < _UPPER
            if same and budget.allows([*chosen, block]):
                chosen.append(block)
        together, alone = fit(chosen), fit(chosen[:1])
        found.append(alone if is_better(alone[1], together[1]) else together)
    best = fit(ranked[:1])
    selection, state = min(found, key=lambda one: one[1].loss, default=best)
    if is_better(best[1], state, _CERTAIN):
        selection, state = best
    for block in others:  # words and other columns, which were asked for
        blocks = [*selection.blocks, block]
        if block not in selection.blocks and budget.allows(blocks):
            joined = fit(blocks)
            if is_better(joined[1], state):
                selection, state = joined
    if few_labels(targets):
        few = f"{len(targets)} labeled rows are too few to choose among all layers reliably"
        reason = f"{few} (fewer than {FEW_ROWS:,}, and than {FEW_PER_CLASS} per class)"
        selection = replace(selection, reason=reason)
    return selection, state


def _greedy(
    probed: ProbeResults,
    ranked: Sequence[BlockRef],
    targets: Targets,
    budget: CostBudget,
    n_jobs: int | None,
    reporter: Reporter,
) -> tuple[Selection, RidgeState]:
    weights = targets.unit_weights
    first = _fit([weight_rows(probed.coordinates[ranked[0]], weights)], targets)
    chosen, losses = [ranked[0]], [first.loss]
    pair = None if first.is_informative else find_pair(probed.coordinates, ranked, targets)
    if pair and budget.allows(pair):
        chosen = list(pair)
    promising = _candidates(ranked)
    coordinates = {
        block: weight_rows(probed.coordinates[block], weights)
        for block in dict.fromkeys([*chosen, *promising])
    }
    if len(chosen) > 1:
        losses = [_fit([coordinates[chosen[0]]], targets).loss]
    candidates = _Candidates(coordinates, chosen, promising, n_jobs)
    most = min(budget.limits.blocks or len(ranked), len(ranked))
    state = first
    with reporter.task("selecting", most, "blocks") as advance:
        while True:
            advance(1)
            # A candidate that exceeds the budget now will exceed it later: costs only grow.
            candidates.keep(lambda block: budget.allows([*chosen, block]))
            if len(chosen) > 1 and (candidates or len(chosen) > len(losses)):
                state = _fit([coordinates[block] for block in chosen], targets)
                losses[len(chosen) - 1 :] = [state.loss]
            ties = _tied(candidates.lazy_greedy_gains(state), targets.groups)
            if not ties:
                break
            best = min(ties, key=lambda b: (budget.cost_key([*chosen, b]), -candidates.bound(b)))
            chosen.append(best)
            losses.append(losses[-1] - candidates.bound(best))  # at the penalty without it
            candidates.add(best)
    return _selection(chosen, "greedy", probed.scores, first, losses), state


class _Candidates:
    """The blocks that may be added, and what is known of each.

    A candidate seldom brings more than it did before another block was added (the gain has
    diminishing returns), so that its last gain is taken as an upper bound.
    """

    def __init__(
        self,
        coordinates: Mapping[BlockRef, Floats],
        chosen: Sequence[BlockRef],
        candidates: Sequence[BlockRef],
        n_jobs: int | None,
    ) -> None:
        self._coordinates = coordinates
        self._n_jobs = n_jobs
        self._chosen = list(chosen)
        self._upper_bounds = {block: np.inf for block in candidates if block not in chosen}
        self._grams: dict[BlockRef, Floats] = {}
        self._crosses: dict[BlockRef, list[Floats]] = {block: [] for block in candidates}

    def __bool__(self) -> bool:
        return bool(self._upper_bounds)

    def keep(self, allowed: Callable[[BlockRef], bool]) -> None:
        """Drop the candidates that are not allowed."""
        self._upper_bounds = {b: bound for b, bound in self._upper_bounds.items() if allowed(b)}

    def bound(self, block: BlockRef) -> float:
        """The upper bound of a candidate's gain."""
        return self._upper_bounds[block]

    def add(self, block: BlockRef) -> None:
        """Move a candidate to the chosen blocks."""
        self._chosen.append(block)
        del self._upper_bounds[block]

    def lazy_greedy_gains(self, state: RidgeState) -> dict[BlockRef, Floats]:
        """The drop in each row's squared error (n,) by the most helpful candidates.

        Candidates are tried by falling upper bound until no other could come within a standard
        error of the best (accelerated greedy; Minoux, 1978).
        """
        gains: dict[BlockRef, Floats] = {}
        enough = 0.0
        by_bound = iter(sorted(self._upper_bounds, key=lambda block: -self._upper_bounds[block]))
        while blocks := list(islice(by_bound, _BATCH)):
            if self._upper_bounds[blocks[0]] < enough:
                break
            errors = parallel_map(lambda block: self._errors(state, block), blocks, self._n_jobs)
            for block, own in zip(blocks, errors, strict=True):
                gains[block] = state.errors - own
                self._upper_bounds[block] = float(gains[block].mean())
                error = standard_error(gains[block], state.groups)
                enough = max(enough, self._upper_bounds[block] - error)
        return gains

    def _errors(self, state: RidgeState, block: BlockRef) -> Floats:
        """Squared errors (n,) with a candidate added; products of blocks are computed once."""
        Z, crosses = self._coordinates[block], self._crosses[block]
        if block not in self._grams:
            self._grams[block] = Z.T @ Z
        crosses += [self._coordinates[other].T @ Z for other in self._chosen[len(crosses) :]]
        return state.errors_with(Z, self._grams[block], np.concatenate(crosses))


def _tied(gains: Mapping[BlockRef, Floats], groups: Groups | None) -> list[BlockRef]:
    """The candidate with the largest gain and those within one standard error of it.

    Each has a gain above one standard error of its own.
    """
    positive = [block for block, own in gains.items() if own.mean() > standard_error(own, groups)]
    if not positive:
        return []
    largest = gains[max(positive, key=lambda block: float(gains[block].mean()))]
    return [
        block
        for block in positive
        if (largest - gains[block]).mean() <= standard_error(largest - gains[block], groups)
    ]


def _selection(
    chosen: Sequence[BlockRef],
    method: str,
    scores: BlockScores,
    state: RidgeState,
    losses: Sequence[float],
) -> Selection:
    """``losses`` are those of the first block, the first two, and so on."""
    gains = pairwise([float(state.prior_errors.mean()), *losses])
    others = [s.block for s in scores.ranking if s.block not in chosen]
    ranking = dict.fromkeys(chosen, 1) | {b: 2 + i for i, b in enumerate(others)}
    blocks = [score.block for score in scores]
    return Selection(
        blocks=tuple(chosen),
        method=method,
        support_=tuple(block in chosen for block in blocks),
        ranking_=tuple(ranking[block] for block in blocks),
        gains_=tuple(before - after for before, after in gains),
    )


def find_pair(
    coordinates: Mapping[BlockRef, Floats], candidates: Sequence[BlockRef], targets: Targets
) -> tuple[BlockRef, BlockRef] | None:
    """The most informative pair of blocks when concatenated, or None.

    All pairs of the first 48 candidates are ranked by the share of the targets' variance that a
    linear regression on both explains; the best few are checked by leave-one-out. At most 2,000
    rows are read. Coordinates are principal ones (n, columns), candidates the best first. None
    where no loss is four standard errors below that of the targets' mean.
    """
    rows, blocks, centered = _standardized(coordinates, candidates, targets, _LEADING)
    stops = np.cumsum([block.shape[1] for block in blocks.values()])
    columns = dict(zip(blocks, np.split(np.arange(stops[-1]), stops[:-1]), strict=True))
    joined = np.concatenate(list(blocks.values()), axis=1)
    gram, towards = joined.T @ joined, joined.T @ centered
    gram[np.diag_indices_from(gram)] += 1e-3 * len(rows)

    def explained(a: BlockRef, b: BlockRef) -> float:
        own = np.concatenate([columns[a], columns[b]])
        return float((towards[own] * np.linalg.solve(gram[np.ix_(own, own)], towards[own])).sum())

    def join(a: BlockRef, b: BlockRef) -> Floats:
        return np.concatenate([blocks[a], blocks[b]], axis=1)

    return _best_pair(list(blocks), explained, join, targets[rows])


def find_interaction(
    coordinates: Mapping[BlockRef, Floats], candidates: Sequence[BlockRef], targets: Targets
) -> tuple[BlockRef, BlockRef] | None:
    """The pair of blocks with the most informative products of coordinates; see `find_pair`.

    Pairs are ranked by the squared third moments ``mean(a_i b_j y_c)``, summed over i, j and c.
    """
    rows, blocks, centered = _standardized(coordinates, candidates, targets, _MULTIPLIED)

    @lru_cache(maxsize=1)  # pairs come by their first block
    def weighted(a: BlockRef) -> Floats:
        return (blocks[a][:, :, None] * centered[:, None, :]).reshape(len(rows), -1)

    def moments(a: BlockRef, b: BlockRef) -> float:
        return float(np.square(blocks[b].T @ weighted(a)).mean())

    def join(a: BlockRef, b: BlockRef) -> Floats:
        return (blocks[a][:, :, None] * blocks[b][:, None, :]).reshape(len(rows), -1)

    return _best_pair(list(blocks), moments, join, targets[rows])


def _standardized(
    coordinates: Mapping[BlockRef, Floats],
    candidates: Sequence[BlockRef],
    targets: Targets,
    n_columns: int,
) -> tuple[npt.NDArray[np.intp], dict[BlockRef, Floats], Floats]:
    """Rows, the first candidates' leading coordinates of variance one there, centered targets."""
    rows = np.sort(np.random.default_rng(0).permutation(len(targets))[:_PAIR_ROWS])
    blocks = {}
    for block in candidates[:_PAIR_BLOCKS]:
        Z = coordinates[block][rows, :n_columns]
        deviation = Z.std(axis=0)
        blocks[block] = (Z - Z.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    matrix = targets.matrix[rows]
    return rows, blocks, matrix - matrix.mean(axis=0)


def _best_pair(
    blocks: Sequence[BlockRef],
    rank: Callable[[BlockRef, BlockRef], float],
    join: Callable[[BlockRef, BlockRef], Floats],
    targets: Targets,
) -> tuple[BlockRef, BlockRef] | None:
    """Of the highest-ranked pairs the one of the lowest leave-one-out loss, if significant."""
    pairs = sorted(combinations(blocks, 2), key=lambda pair: -rank(*pair))[:_FINALISTS]
    matrix, groups = targets.matrix, targets.groups
    before = prior_errors(matrix, groups)
    best, highest = None, 0.0
    for pair in pairs:
        gain = before - leave_one_out(spectrum(join(*pair)), matrix, groups=groups).errors
        mean, error = float(gain.mean()), standard_error(gain, groups)
        if mean > highest and mean > _SIGNIFICANT * error:
            best, highest = pair, mean
    return best
