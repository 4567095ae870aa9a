"""Choosing blocks from their principal coordinates, by the labels of the training rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores, Selection
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.parallel import n_cores, spread
from layerfuse.probing import Probed, RidgeState, find_pair, one_hot, prior_errors, probe_blocks
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import Budget, EncoderCost, pipeline_cost
from layerfuse.targets import Column, find_classes

__all__ = [
    "SELECTIONS",
    "Allowance",
    "check_selection",
    "choose",
    "is_informative",
    "select_blocks",
    "selection_of",
]

SELECTIONS = ("last", "best", "top_k", "greedy")

_CANDIDATES = 32  # the greedy search looks at the best of this many blocks …
_PER_ENCODER = 8  # … and at this many of every encoder

Floats = npt.NDArray[np.float32]


def select_blocks(
    embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
    y: Column,
    method: str = "greedy",
    *,
    max_blocks: int = 5,
    reporter: Reporter = SILENT,
) -> Selection:
    """Choose blocks that predict the labels well together.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim).
    y
        Labels (n,), of any kind.
    method
        ``"last"``: the last layer of each encoder, at its best pooling. ``"best"``: the single
        block with the lowest leave-one-out loss. ``"top_k"``: the ``max_blocks`` best ones.
        ``"greedy"``: forward selection (Efroymson, 1960) on the leave-one-out loss of a ridge
        regression over the block-scaled concatenation; stops at ``max_blocks`` or when no gain is
        above one standard error. Of blocks whose gains are within one standard error of the largest
        the one that costs least is taken: an encoder in use before a new one, a low layer before a
        high one.
    max_blocks
        The most blocks to choose.

    Raises
    ------
    ConfigError
        For an unknown method or a number of blocks below 1.
    """
    check_selection(method)
    if max_blocks < 1:
        raise ConfigError(f"max_blocks={max_blocks} chooses nothing; give at least 1.")
    allowance = Allowance(Budget(blocks=max_blocks), {})
    _, codes = find_classes(y)
    probed = probe_blocks(embeddings, codes, reporter=reporter)
    return choose(probed, codes, method, allowance, reporter)


@dataclass(frozen=True)
class Allowance:
    """A budget, and by each encoder's name what reading it costs.

    The costs may be left out where the budget limits nothing but the number of blocks.
    """

    budget: Budget
    costs: Mapping[str, EncoderCost]

    def allows(self, blocks: Sequence[BlockRef]) -> bool:
        """Whether a pipeline on these blocks keeps the budget."""
        return not self.exceeded(blocks)

    def price(self, blocks: Sequence[BlockRef]) -> tuple[float, ...]:
        """What ties are decided by, the less the better: the parameters that these blocks run;
        where costs are not known the encoders read, then the layers."""
        highest: dict[str, int] = {}
        for block in blocks:
            highest[block.encoder] = max(block.layer, highest.get(block.encoder, 0))
        if not set(highest) <= set(self.costs):
            return float(len(highest)), float(sum(highest.values()))
        run = (self.costs[encoder].parameters_at(layer) for encoder, layer in highest.items())
        return (float(sum(run)),)

    def exceeded(self, blocks: Sequence[BlockRef]) -> list[str]:
        """The limits that these blocks break, as a person would say them."""
        limits = set(self.budget.limits)
        if limits <= {"blocks"}:
            most = self.budget.blocks
            over = most is not None and len(blocks) > most
            return [f"{len(blocks)} blocks of at most {most}"] if over else []
        return self.budget.exceeded(pipeline_cost(blocks, self.costs))


def choose(
    probed: Probed,
    y: npt.NDArray[np.intp],
    method: str,
    allowance: Allowance,
    reporter: Reporter = SILENT,
) -> Selection:
    """`select_blocks` on blocks that have been probed already, within a budget.

    Raises
    ------
    ConfigError
        When no block alone keeps the budget, or the last layers do not.
    """
    check_selection(method)
    classes, encoded = find_classes(y)
    targets = one_hot(encoded, len(classes))
    ranked = [s.block for s in probed.scores.ranking if allowance.allows([s.block])]
    if not ranked:
        nearest = min(probed.scores.ranking, key=lambda score: score.block.layer).block
        raise ConfigError(
            f"The budget leaves no block: {nearest} alone takes "
            f"{', '.join(allowance.exceeded([nearest]))}. Give a larger budget or smaller encoders."
        )
    if method == "greedy":
        return _greedy(probed, ranked, targets, allowance, reporter)
    if method == "last":
        chosen = _last_layers(probed.scores)
        if over := allowance.exceeded(chosen):
            raise ConfigError(
                f"The last layers break the budget ({', '.join(over)}). Give a larger budget, "
                "fewer encoders or selection='greedy'."
            )
    else:
        chosen = []
        for block in ranked[:1] if method == "best" else ranked:
            if allowance.allows([*chosen, block]):
                chosen.append(block)
    return selection_of(chosen, probed, encoded, method)


def selection_of(
    blocks: Sequence[BlockRef], probed: Probed, y: npt.NDArray[np.intp], method: str = "greedy"
) -> Selection:
    """The selection of given blocks, in their order; ``y`` are class indices (n,)."""
    targets = one_hot(y, int(y.max()) + 1)
    path = [
        RidgeState.of([probed.coordinates[block] for block in blocks[: count + 1]], targets)
        for count in range(len(blocks))
    ]
    return _selection(blocks, method, probed.scores, targets, [state.loss for state in path])


def check_selection(method: str) -> None:
    """Raise a ConfigError for an unknown method."""
    if method not in SELECTIONS:
        raise ConfigError(
            f"Unknown selection {method!r}. Choose from {', '.join(SELECTIONS)}."
            + did_you_mean(method, SELECTIONS)
        )


def _last_layers(scores: BlockScores) -> list[BlockRef]:
    chosen = []
    for encoder in dict.fromkeys(score.block.encoder for score in scores):
        own = scores.of(encoder)
        last = max(score.block.layer for score in own)
        chosen.append(next(s.block for s in own.ranking if s.block.layer == last))
    return chosen


def _candidates(ranked: Sequence[BlockRef]) -> list[BlockRef]:
    """The best blocks overall, and the best of every encoder."""
    kept = list(ranked[:_CANDIDATES])
    for encoder in dict.fromkeys(block.encoder for block in ranked):
        kept += [block for block in ranked if block.encoder == encoder][:_PER_ENCODER]
    return list(dict.fromkeys(kept))


def _greedy(
    probed: Probed,
    ranked: Sequence[BlockRef],
    targets: npt.NDArray[np.float32],
    allowance: Allowance,
    reporter: Reporter,
) -> Selection:
    chosen, losses = _start(probed, ranked, targets, allowance), []
    # What each candidate brought when it was last tried, at first an unreachable hope.
    hopes = {b: np.inf for b in _candidates(ranked) if b not in chosen}
    most = min(allowance.budget.blocks or len(ranked), len(ranked))
    if len(chosen) > 1:  # a pair: the loss on the way to it
        losses.append(RidgeState.of([probed.coordinates[chosen[0]]], targets).loss)
    with reporter.task("selecting", most, "blocks") as advance:
        while True:
            advance(1)
            state = RidgeState.of([probed.coordinates[block] for block in chosen], targets)
            losses.append(state.loss)
            # A candidate that breaks the budget now will break it later: costs only grow.
            hopes = {b: hope for b, hope in hopes.items() if allowance.allows([*chosen, b])}
            found = _most_helpful(state, probed, hopes, targets)
            ties = _tied(found)
            if not ties:
                break
            price = {block: allowance.price([*chosen, block]) for block in ties}
            best = min(ties, key=lambda block: (price[block], -hopes[block]))
            chosen.append(best)
            del hopes[best]
    return _selection(chosen, "greedy", probed.scores, targets, losses)


def _start(
    probed: Probed,
    ranked: Sequence[BlockRef],
    targets: npt.NDArray[np.float32],
    allowance: Allowance,
) -> list[BlockRef]:
    """The best block, or the best pair where no block says anything for itself."""
    best = [ranked[0]]
    if is_informative(probed, best, targets):
        return best
    pair = find_pair(probed.coordinates, ranked, targets)
    return list(pair) if pair and allowance.allows(pair) else best


def is_informative(
    probed: Probed, blocks: Sequence[BlockRef], targets: npt.NDArray[np.float32]
) -> bool:
    """Whether blocks, concatenated, beat the class frequencies by three standard errors."""
    errors = RidgeState.of([probed.coordinates[block] for block in blocks], targets).errors
    gains = prior_errors(targets) - errors
    return bool(gains.mean() > 3 * gains.std() / np.sqrt(len(gains)))


def _most_helpful(
    state: RidgeState,
    probed: Probed,
    hopes: dict[BlockRef, float],
    targets: npt.NDArray[np.float32],
) -> dict[BlockRef, Floats]:
    """What the most helpful candidates bring: squared error that each row is spared, (n,).

    A candidate seldom brings more than it did before another block was added (the gain has
    diminishing returns), so candidates are tried by falling hope, and those that could not come
    within a standard error of the best even if they brought all they hoped for are not tried
    (accelerated greedy; Minoux, 1978).
    """

    def gains_of(block: BlockRef) -> Floats:
        return state.errors - state.errors_with(probed.coordinates[block], targets)

    found: dict[BlockRef, Floats] = {}
    enough = 0.0
    by_hope = iter(sorted(hopes, key=lambda block: -hopes[block]))
    while blocks := list(islice(by_hope, n_cores())):
        if hopes[blocks[0]] < enough:
            break
        for block, gains in zip(blocks, spread(gains_of, blocks), strict=True):
            hopes[block] = float(gains.mean())
            found[block] = gains
            enough = max(enough, hopes[block] - _standard_error(gains))
    return found


def _tied(found: Mapping[BlockRef, Floats]) -> list[BlockRef]:
    """The candidate with the largest gain and those within one standard error of it, each with a
    gain above one standard error of its own."""
    sure = [block for block, gains in found.items() if gains.mean() > _standard_error(gains)]
    if not sure:
        return []
    most = found[max(sure, key=lambda block: float(found[block].mean()))]
    return [
        block
        for block in sure
        if (most - found[block]).mean() <= _standard_error(most - found[block])
    ]


def _standard_error(values: Floats) -> float:
    return float(values.std() / np.sqrt(len(values)))


def _selection(
    chosen: Sequence[BlockRef],
    method: str,
    scores: BlockScores,
    targets: npt.NDArray[np.float32],
    losses: Sequence[float],
) -> Selection:
    """``losses`` are those of the first block, the first two, and so on."""
    gains = pairwise([float(prior_errors(targets).mean()), *losses])
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
