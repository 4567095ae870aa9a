"""What is compared: probed blocks with their labels, and blocks named by a user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.metrics import PairedDifference, paired_difference
from layerfuse.probing import (
    Agreement,
    LeaveOneOut,
    RidgeState,
    decompose,
    leave_one_out,
    linear_cka,
    measure_agreement,
    probe_blocks,
)
from layerfuse.progress import SILENT, Reporter
from layerfuse.targets import Column, Targets

__all__ = [
    "HEADLINE",
    "MEASURES",
    "PAIRINGS",
    "Addition",
    "Comparison",
    "Labelled",
    "Pair",
    "additions_to",
    "check_pairing",
    "compare",
    "find_blocks",
    "measure_pairs",
    "rank_additions",
]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Labelled:
    """Probed blocks and the labels that they were probed with.

    ``coordinates`` maps each block to its leading principal coordinates (n, columns), ``y`` holds
    class indices (n,) and ``targets`` the same as one-hot rows (n, n_classes).
    """

    scores: BlockScores
    coordinates: Mapping[BlockRef, Floats]
    y: npt.NDArray[np.intp]
    targets: Floats

    @classmethod
    def probe(
        cls, embeddings: Mapping[BlockRef, Floats], y: Column, reporter: Reporter
    ) -> Labelled:
        """Probe each block (n, dim) once; ``y`` (n,) may be labels of any kind."""
        targets = Targets.from_labels(y)
        probed = probe_blocks(embeddings, targets, reporter=reporter)
        return cls(probed.scores, probed.coordinates, targets.codes, targets.matrix)

    def correct(self, residuals: Floats) -> npt.NDArray[np.bool_]:
        """Whether predictions with these residuals (n, n_classes) name the right class, (n,)."""
        return np.asarray((self.targets - residuals).argmax(axis=1) == self.y)


def find_blocks(
    named: Sequence[BlockRef | str], known: Iterable[BlockRef], what: str
) -> tuple[BlockRef, ...]:
    """The named blocks without repeats; ``what`` is what a message calls the place of the name.

    Raises
    ------
    ConfigError
        For text that is no block, a block that is not ``known``, or no block at all.
    """
    names = [named] if isinstance(named, (str, BlockRef)) else named
    refs = dict.fromkeys(BlockRef.parse(n) if isinstance(n, str) else n for n in names)
    texts = dict.fromkeys(map(str, known))
    for ref in refs:
        if str(ref) not in texts:
            encoders = ", ".join(dict.fromkeys(text.rsplit(":", 2)[0] for text in texts))
            raise ConfigError(
                f"{what} names {ref}, which is not one of the {len(texts)} blocks that are read "
                f"(encoders: {encoders}).{did_you_mean(str(ref), texts)} Give its encoder, layer "
                "and pooling to be read as well."
            )
    if not refs:
        raise ConfigError(f"{what} names no block. Write one as encoder:layer:pooling.")
    return tuple(refs)


@dataclass(frozen=True)
class Addition:
    """What one more block would bring to a pipeline, by exact leave-one-out.

    ``accuracy`` is a share from 0 to 1 with the block added, ``gain`` that minus the pipeline's,
    with its 95 % paired interval; ``loss_gain`` is the drop in squared leave-one-out loss and
    ``loss_gain_se`` the standard error of that over rows. ``new_encoder`` says that the pipeline
    has no block of this encoder yet, so that adding costs another forward pass.
    """

    block: BlockRef
    new_encoder: bool
    accuracy: float
    gain: PairedDifference
    loss_gain: float
    loss_gain_se: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "block": str(self.block),
            "new_encoder": self.new_encoder,
            "accuracy": self.accuracy,
            "gain": self.gain.to_dict(),
            "loss_gain": self.loss_gain,
            "loss_gain_se": self.loss_gain_se,
        }


def rank_additions(
    embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
    y: Column,
    to: Sequence[BlockRef | str] | None = None,
    *,
    candidates: Sequence[BlockRef | str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> tuple[Addition, ...]:
    """Rank blocks by how much each would lower the leave-one-out loss of a pipeline.

    Each candidate is added to the ridge regression on the pipeline's blocks by block inversion, at
    the penalty that is best without it, as the greedy selection does. Ranking many candidates on
    the rows they are measured on makes the winner look a little better than it is.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim).
    y
        Labels (n,), of any kind.
    to
        The blocks in use, as `BlockRef` or ``"encoder:layer:pooling"``; by default the block with
        the lowest leave-one-out loss.
    candidates
        Blocks that may be added; by default all others.
    seed
        For the intervals.

    Returns
    -------
    tuple of Addition
        The largest gain in loss first.

    Raises
    ------
    ConfigError
        For a block that is not one of ``embeddings``.
    DataError
        When rows and labels differ in number, or there is only one class.
    """
    known = list(embeddings)
    pipeline = None if to is None else find_blocks(to, known, "to")
    others = None if candidates is None else find_blocks(candidates, known, "candidates")
    data = Labelled.probe(embeddings, y, reporter)
    return additions_to(
        data, pipeline or (data.scores.best.block,), others or known, seed, reporter
    )


def additions_to(
    data: Labelled,
    pipeline: Sequence[BlockRef],
    candidates: Sequence[BlockRef],
    seed: int,
    reporter: Reporter,
) -> tuple[Addition, ...]:
    """`rank_additions` on blocks that have been probed already; the pipeline's own are skipped."""
    state = RidgeState.of([data.coordinates[block] for block in pipeline], data.targets)
    before = data.correct(state.residuals(data.targets))
    encoders = {block.encoder for block in pipeline}
    others = [block for block in candidates if block not in pipeline]
    found = []
    with reporter.task("adding", len(others), "blocks") as advance:
        for block in others:
            residuals = state.residuals_with(data.coordinates[block], data.targets)
            saved = state.errors - np.einsum("nc,nc->n", residuals, residuals)
            after = data.correct(residuals)
            addition = Addition(
                block=block,
                new_encoder=block.encoder not in encoders,
                accuracy=float(after.mean()),
                gain=paired_difference(after, before, seed=seed),
                loss_gain=float(saved.mean()),
                loss_gain_se=float(saved.std() / np.sqrt(len(saved))),
            )
            found.append(addition)
            advance(1)
    return tuple(sorted(found, key=lambda addition: (-addition.loss_gain, addition.block)))


_LISTED_ROWS = 20


@dataclass(frozen=True)
class Pair:
    """Two blocks on the same n rows, alone and fused, all by exact leave-one-out.

    ``cka`` is the linear CKA of their principal coordinates, ``agreement`` counts the rows that
    both, one or none of them gets right. Accuracies are shares from 0 to 1; losses are squared
    errors of the one-hot targets, summed over classes and averaged over rows. ``accuracy``,
    ``loss`` and ``penalty`` are those of the two fused (block-scaled concatenation, ridge).

    ``gain`` is the fused accuracy minus that of the more accurate block, with its 95 % paired
    interval; ``loss_gain`` is the loss of the block with the lower loss minus the fused loss, with
    the standard error of that over rows. ``only_a`` and ``only_b`` are the numbers of the rows,
    from 0, that only this block gets right.
    """

    a: BlockRef
    b: BlockRef
    cka: float
    agreement: Agreement
    loss_a: float
    loss_b: float
    accuracy: float
    loss: float
    penalty: float
    gain: PairedDifference
    loss_gain: float
    loss_gain_se: float
    only_a: tuple[int, ...] = field(repr=False)
    only_b: tuple[int, ...] = field(repr=False)

    @property
    def accuracy_a(self) -> float:
        return self.agreement.accuracy_a

    @property
    def accuracy_b(self) -> float:
        return self.agreement.accuracy_b

    @property
    def better(self) -> BlockRef:
        """The block with the lower loss alone."""
        return self.a if self.loss_a <= self.loss_b else self.b

    @property
    def headline(self) -> float:
        """The measure that pairs are ranked by, `HEADLINE`; the more, the better together."""
        return MEASURES[HEADLINE](self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of the rows that one alone gets right the count and the first 20."""
        return {
            "a": str(self.a),
            "b": str(self.b),
            "cka": self.cka,
            **self.agreement.to_dict(),
            "accuracy_a": self.accuracy_a,
            "accuracy_b": self.accuracy_b,
            "accuracy": self.accuracy,
            "loss_a": self.loss_a,
            "loss_b": self.loss_b,
            "loss": self.loss,
            "gain": self.gain.to_dict(),
            "loss_gain": self.loss_gain,
            "loss_gain_se": self.loss_gain_se,
            **{
                name: {"count": len(rows), "rows": list(rows[:_LISTED_ROWS])}
                for name, rows in (("only_a", self.only_a), ("only_b", self.only_b))
            },
        }


MEASURES: dict[str, Callable[[Pair], float]] = {
    "loss_gain": lambda pair: pair.loss_gain,
    "negative_loss": lambda pair: -pair.loss,
    "accuracy_gain": lambda pair: pair.gain.difference,
    "cka_distance": lambda pair: 1.0 - pair.cka,
    "disagreement": lambda pair: pair.agreement.disagreement,
    "negative_q": lambda pair: -pair.agreement.yules_q,
    "negative_double_fault": lambda pair: -pair.agreement.double_fault,
    "oracle_gain": lambda pair: (
        pair.agreement.oracle_accuracy - max(pair.accuracy_a, pair.accuracy_b)
    ),
    "accuracy_balance": lambda pair: -abs(pair.accuracy_a - pair.accuracy_b),
    "least_accuracy": lambda pair: min(pair.accuracy_a, pair.accuracy_b),
}
"""Numbers that may say which pair is worth fusing, each turned so that more promises more."""

HEADLINE = "loss_gain"
"""The one of `MEASURES` that pairs are ranked by and that is shown first."""


def measure_pairs(
    data: Labelled, pairs: Iterable[tuple[BlockRef, BlockRef]], seed: int = 0
) -> Iterator[Pair]:
    """Measure pairs in turn, each block alone only once; ``seed`` is for the intervals.

    Blocks alone and fused are measured on the same principal coordinates, so that a difference
    never comes from what those leave out.
    """
    alone: dict[BlockRef, LeaveOneOut] = {}
    for a, b in pairs:
        for block in (a, b):
            if block not in alone:
                alone[block] = _fit(data, [block])
        yield _measure(data, a, b, alone[a], alone[b], seed)


def _measure(
    data: Labelled,
    a: BlockRef,
    b: BlockRef,
    alone_a: LeaveOneOut,
    alone_b: LeaveOneOut,
    seed: int,
) -> Pair:
    fused = _fit(data, [a, b])
    right_a, right_b, right = (
        np.asarray(found.predictions.argmax(axis=1) == data.y)
        for found in (alone_a, alone_b, fused)
    )
    better = alone_a if alone_a.loss <= alone_b.loss else alone_b
    saved = better.errors - fused.errors
    rival = right_a if right_a.sum() >= right_b.sum() else right_b
    return Pair(
        a=a,
        b=b,
        cka=linear_cka(data.coordinates[a], data.coordinates[b]),
        agreement=measure_agreement(right_a, right_b),
        loss_a=alone_a.loss,
        loss_b=alone_b.loss,
        accuracy=float(right.mean()),
        loss=fused.loss,
        penalty=fused.penalty,
        gain=paired_difference(right, rival, seed=seed),
        loss_gain=float(saved.mean()),
        loss_gain_se=float(saved.std() / np.sqrt(len(saved))),
        only_a=_rows(right_a & ~right_b),
        only_b=_rows(right_b & ~right_a),
    )


def _fit(data: Labelled, blocks: list[BlockRef]) -> LeaveOneOut:
    """The ridge regression on the blocks' coordinates side by side."""
    joined = np.concatenate([data.coordinates[block] for block in blocks], axis=1)
    return leave_one_out(decompose(joined), data.targets)


def _rows(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


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
