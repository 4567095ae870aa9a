"""Comparing encoders at their best blocks, or blocks with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.complementarity.additions import Addition, additions_to
from layerfuse.complementarity.inputs import Labelled, find_blocks
from layerfuse.complementarity.pairs import HEADLINE, Pair, measure_pairs
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.events import SILENT, Reporter
from layerfuse.labels import Column

__all__ = ["PAIRINGS", "Comparison", "check_pairing", "compare"]

PAIRINGS = ("encoders", "blocks")

_BEST_BLOCKS = 12


@dataclass(frozen=True, repr=False)
class Comparison:
    """Pairs of blocks on the same ``n`` rows, and what to add next to a pipeline.

    ``pairs`` and ``additions`` come best first, ``pairs`` by `Pair.headline` and ``additions`` by
    their gain in loss. ``pipeline`` holds the blocks that are added to.
    """

    n: int
    pairs: tuple[Pair, ...]
    pipeline: tuple[BlockRef, ...]
    additions: tuple[Addition, ...] = field(default=())

    @property
    def best(self) -> Pair:
        return self.pairs[0]

    @property
    def strongest(self) -> Pair:
        """The pair with the lowest fused loss; weak blocks may gain more and still be weaker."""
        return min(self.pairs, key=lambda pair: pair.loss)

    def __repr__(self) -> str:
        best = self.best
        return (
            f"Comparison({len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''} on {self.n} "
            f"rows; best {best.a} + {best.b}: accuracy {best.accuracy:.3f} "
            f"({best.gain.difference:+.3f}), loss gain {best.loss_gain:.4f} "
            f"± {best.loss_gain_se:.4f})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, blocks as text."""
        return {
            "n": self.n,
            "headline": {
                "measure": HEADLINE,
                "value": self.best.headline,
                "a": str(self.best.a),
                "b": str(self.best.b),
            },
            "strongest": {
                "loss": self.strongest.loss,
                "a": str(self.strongest.a),
                "b": str(self.strongest.b),
            },
            "pairs": [pair.to_dict() for pair in self.pairs],
            "pipeline": [str(block) for block in self.pipeline],
            "additions": [addition.to_dict() for addition in self.additions],
        }


def compare(
    embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
    y: Column,
    *,
    pairs: str = "encoders",
    blocks: Sequence[BlockRef | str] | None = None,
    to: Sequence[BlockRef | str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Comparison:
    """Measure which blocks are worth combining.

    Every block is probed once (`score_blocks`); then each pair is measured on the leading principal
    coordinates of both: how alike they are, on which rows each is right, and what a ridge
    regression on the two fused brings by exact leave-one-out. Blocks are chosen on the rows they
    are measured on, so gains of the best pairs are a little optimistic; rows that no choice saw
    have the last word.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim).
    y
        Labels (n,), of any kind.
    pairs
        ``"encoders"``: each pair of encoders, each at its block with the lowest leave-one-out loss.
        ``"blocks"``: each pair among the 12 best blocks overall and the best block and the last
        layer (at its best pooling) of each encoder.
    blocks
        Only these blocks, as `BlockRef` or ``"encoder:layer:pooling"``; with ``pairs="blocks"``
        each pair among all of them.
    to
        The blocks in use that others may be added to (`rank_additions`); by default the one with
        the lowest leave-one-out loss.
    seed
        For the intervals.

    Raises
    ------
    ConfigError
        For an unknown kind of pairs or block, or too few encoders or blocks for a pair.
    DataError
        When rows and labels differ in number, or there is only one class.
    """
    known = list(embeddings)
    used = None if to is None else find_blocks(to, known, "to")
    if blocks is not None:
        known = list(find_blocks(blocks, known, "blocks"))
    check_pairing(pairs, [block.encoder for block in known])
    if len(known) < 2:
        raise ConfigError("There is only one block to compare. Give at least two.")
    wanted = dict.fromkeys([*known, *(used or ())])
    data = Labelled.probe(_Some(embeddings, list(wanted)), y, reporter)
    scores = BlockScores(tuple(s for s in data.scores if s.block in set(known)), "ridge")
    if pairs == "encoders":
        chosen = _best_of_encoders(scores)
    elif blocks is None:
        chosen = _candidates(scores)
    else:
        chosen = [score.block for score in scores.ranking]
    couples = list(combinations(chosen, 2))
    measured = []
    with reporter.task("comparing", len(couples), "pairs") as advance:
        for pair in measure_pairs(data, couples, seed):
            measured.append(pair)
            advance(1)
    pipeline = used or (scores.best.block,)
    return Comparison(
        n=len(data.y),
        pairs=tuple(sorted(measured, key=lambda pair: (-pair.headline, pair.a, pair.b))),
        pipeline=pipeline,
        additions=additions_to(data, pipeline, known, seed, reporter),
    )


def check_pairing(pairs: str, encoders: Sequence[str]) -> None:
    """Raise a ConfigError for an unknown kind of pairs, or one encoder where two are needed."""
    if pairs not in PAIRINGS:
        raise ConfigError(
            f"Unknown pairs {pairs!r}. Choose from {', '.join(PAIRINGS)}."
            + did_you_mean(pairs, PAIRINGS)
        )
    names = list(dict.fromkeys(encoders))
    if pairs == "encoders" and len(names) < 2:
        raise ConfigError(
            f"Comparing encoders takes two, and there is only {', '.join(names) or 'none'}. Add "
            "another one, or compare the blocks of one encoder: --pairs blocks, or in Python "
            "pairs='blocks'."
        )


def _best_of_encoders(scores: BlockScores) -> list[BlockRef]:
    """The block of each encoder with the lowest loss, the best encoder first."""
    best: dict[str, BlockRef] = {}
    for score in scores.ranking:
        best.setdefault(score.block.encoder, score.block)
    return list(best.values())


def _candidates(scores: BlockScores) -> list[BlockRef]:
    """The best blocks overall, each encoder's best and its last layer, by falling rank."""
    ranked = [score.block for score in scores.ranking]
    kept = {*ranked[:_BEST_BLOCKS], *_best_of_encoders(scores)}
    for encoder in {block.encoder for block in ranked}:
        own = [block for block in ranked if block.encoder == encoder]
        last = max(block.layer for block in own)
        kept.add(next(block for block in own if block.layer == last))
    return [block for block in ranked if block in kept]


class _Some(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Some blocks of a mapping, each read only when it is asked for."""

    def __init__(
        self, embeddings: Mapping[BlockRef, npt.NDArray[np.float32]], blocks: list[BlockRef]
    ) -> None:
        self._embeddings = embeddings
        self._blocks = blocks

    def __getitem__(self, block: BlockRef) -> npt.NDArray[np.float32]:
        return self._embeddings[block]

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)
