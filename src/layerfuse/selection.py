"""Choosing blocks from their principal coordinates, by the labels of the training rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores, Selection
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.events import SILENT, Reporter
from layerfuse.scoring import (
    Probed,
    RidgeState,
    decompose,
    leave_one_out,
    one_hot,
    probe_blocks,
)

__all__ = ["SELECTIONS", "check_selection", "choose", "select_blocks"]

SELECTIONS = ("last", "best", "top_k", "greedy")

_CANDIDATES = 32  # the greedy search looks at the best of this many blocks …
_PER_ENCODER = 8  # … and at this many of every encoder

Coordinates = Mapping[BlockRef, npt.NDArray[np.float32]]


def select_blocks(
    embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
    y: npt.ArrayLike,
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
        Labels (n,).
    method
        ``"last"``: the last layer of each encoder, at its best pooling. ``"best"``: the single
        block with the lowest leave-one-out loss. ``"top_k"``: the ``max_blocks`` best ones.
        ``"greedy"``: forward selection (Efroymson, 1960) on the leave-one-out loss of a ridge
        regression over the block-scaled concatenation; stops at ``max_blocks`` or when the best
        gain is under one standard error.
    max_blocks
        The most blocks to choose.

    Raises
    ------
    ConfigError
        For an unknown method or a number of blocks below 1.
    """
    return choose(probe_blocks(embeddings, y, reporter=reporter), y, method, max_blocks, reporter)


def choose(
    probed: Probed,
    y: npt.ArrayLike,
    method: str,
    max_blocks: int,
    reporter: Reporter = SILENT,
) -> Selection:
    """`select_blocks` on blocks that have been probed already."""
    check_selection(method, max_blocks)
    classes, encoded = np.unique(np.asarray(y), return_inverse=True)
    targets = one_hot(encoded, len(classes))
    scores = probed.scores
    if method == "greedy":
        chosen = _greedy(probed, targets, max_blocks, reporter)
    elif method == "last":
        chosen = _last_layers(scores)
    else:
        count = 1 if method == "best" else max_blocks
        chosen = [score.block for score in scores.ranking[:count]]
    return _selection(chosen, method, scores, _gains(probed, targets, chosen))


def check_selection(method: str, max_blocks: int) -> None:
    """Raise a ConfigError for an unknown method or a number of blocks below 1."""
    if method not in SELECTIONS:
        raise ConfigError(
            f"Unknown selection {method!r}. Choose from {', '.join(SELECTIONS)}."
            + did_you_mean(method, SELECTIONS)
        )
    if max_blocks < 1:
        raise ConfigError(f"max_blocks={max_blocks} chooses nothing; give at least 1.")


def _last_layers(scores: BlockScores) -> list[BlockRef]:
    chosen = []
    for encoder in dict.fromkeys(score.block.encoder for score in scores):
        own = scores.of(encoder)
        last = max(score.block.layer for score in own)
        chosen.append(next(s.block for s in own.ranking if s.block.layer == last))
    return chosen


def _candidates(scores: BlockScores) -> list[BlockRef]:
    """The best blocks overall, and the best of every encoder."""
    kept = [score.block for score in scores.ranking[:_CANDIDATES]]
    for encoder in dict.fromkeys(score.block.encoder for score in scores):
        kept += [score.block for score in scores.of(encoder).ranking[:_PER_ENCODER]]
    return list(dict.fromkeys(kept))


def _greedy(
    probed: Probed, targets: npt.NDArray[np.float32], max_blocks: int, reporter: Reporter
) -> list[BlockRef]:
    chosen = [probed.scores.best.block]
    # What each candidate brought when it was last tried, at first an unreachable hope.
    hopes = {b: np.inf for b in _candidates(probed.scores) if b != chosen[0]}
    with reporter.task("selecting", max_blocks - 1, "blocks") as advance:
        while len(chosen) < max_blocks:
            state = RidgeState.of([probed.coordinates[block] for block in chosen], targets)
            best, gains = _most_helpful(state, probed, hopes, targets)
            if best is None or gains.mean() < gains.std() / np.sqrt(len(gains)):
                break
            chosen.append(best)
            del hopes[best]
            advance(1)
    return chosen


def _most_helpful(
    state: RidgeState,
    probed: Probed,
    hopes: dict[BlockRef, float],
    targets: npt.NDArray[np.float32],
) -> tuple[BlockRef | None, npt.NDArray[np.float32]]:
    """The candidate with the largest gain, and its gain in squared error for each row (n,).

    A candidate seldom brings more than it did before another block was added (the gain has
    diminishing returns), so candidates are tried by falling hope, and those that could not win even
    if they brought all they hoped for are not tried (accelerated greedy; Minoux, 1978).
    """
    best, best_gains = None, np.zeros(len(targets), dtype=np.float32)
    for block in sorted(hopes, key=lambda block: -hopes[block]):
        if hopes[block] < best_gains.mean():
            break
        gains = state.errors - state.errors_with(probed.coordinates[block], targets)
        hopes[block] = float(gains.mean())
        if hopes[block] > best_gains.mean():
            best, best_gains = block, gains
    return best, best_gains


def _gains(
    probed: Probed, targets: npt.NDArray[np.float32], chosen: Sequence[BlockRef]
) -> tuple[float, ...]:
    """The drop in leave-one-out loss at each step; the first against the class frequencies."""
    n = len(targets)
    alone = ((targets - targets.mean(axis=0)) * (n / max(n - 1, 1))) ** 2
    losses = [float(alone.sum(axis=1).mean())]
    for count in range(1, len(chosen) + 1):
        blocks = [probed.coordinates[block] for block in chosen[:count]]
        losses.append(leave_one_out(decompose(np.concatenate(blocks, axis=1)), targets).loss)
    return tuple(before - after for before, after in pairwise(losses))


def _selection(
    chosen: Sequence[BlockRef], method: str, scores: BlockScores, gains: tuple[float, ...]
) -> Selection:
    others = [s.block for s in scores.ranking if s.block not in chosen]
    ranking = dict.fromkeys(chosen, 1) | {b: 2 + i for i, b in enumerate(others)}
    blocks = [score.block for score in scores]
    return Selection(
        blocks=tuple(chosen),
        method=method,
        support_=tuple(block in chosen for block in blocks),
        ranking_=tuple(ranking[block] for block in blocks),
        gains_=gains,
    )
