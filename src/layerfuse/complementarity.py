"""Complementarity: which blocks or encoders are worth combining, by exact leave-one-out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.errors import ConfigError, check_choice, did_you_mean
from layerfuse.groups import Groups, standard_error
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

Floats = npt.NDArray[np.float32]
Blocks = Mapping[BlockRef, Floats]

PAIRINGS = ("encoders", "blocks")

_BEST_BLOCKS = 12


@dataclass(frozen=True)
class ProbeData:
    """Probed blocks and the targets that they were probed with.

    Attributes
    ----------
    scores : BlockScores
        Of each block.
    coordinates : mapping of BlockRef to ndarray of shape (n, columns)
        Leading principal coordinates of each block.
    targets : Targets
        Of the n rows.
    """

    scores: BlockScores
    coordinates: Blocks
    targets: Targets

    @classmethod
    def probe(cls, blocks: Blocks, targets: Targets, reporter: Reporter = SILENT) -> ProbeData:
        """Probe each block (n, dim) once."""
        probed = probe_blocks(blocks, targets, reporter=reporter)
        return cls(probed.scores, probed.coordinates, targets)

    def correct(self, predictions: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Whether predictions (n, n_outputs) of the target matrix are right, (n,)."""
        return self.targets.correct(self.targets.space.decide(predictions))

    def fit(self, blocks: Sequence[BlockRef]) -> LeaveOneOut:
        """The ridge regression on the blocks' coordinates side by side."""
        joined = np.concatenate([self.coordinates[block] for block in blocks], axis=1)
        return leave_one_out(decompose(joined), self.targets.matrix, groups=self.targets.groups)


@dataclass(frozen=True)
class Pair:
    """Two blocks on the same n rows, alone and fused, all by exact leave-one-out.

    Accuracies are shares from 0 to 1; losses are squared errors of the target matrix, summed over
    outputs and averaged over rows.

    Attributes
    ----------
    a, b : BlockRef
        The two blocks.
    cka : float
        Linear CKA of their principal coordinates, from 0 to 1.
    agreement : Agreement
        Counts of the rows that both, one or none of them gets right.
    loss_a, loss_b : float
        Of each alone.
    accuracy, loss, penalty : float
        Of the two fused: block-scaled concatenation, ridge.
    gain : PairedDifference
        The fused accuracy minus that of the more accurate block.
    loss_gain, loss_gain_se : float
        The lower loss of the two minus the fused loss, and its standard error over rows.
    only_a, only_b : tuple of int
        Rows, from 0, that only this block gets right.
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
        """The measure that pairs are ranked by, `HEADLINE`; higher is better."""
        return MEASURES[HEADLINE](self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the numbers of rows."""
        names = ("accuracy_a", "accuracy_b", "accuracy", "loss_a", "loss_b", "loss", "loss_gain",
                 "loss_gain_se")  # fmt: skip
        return {
            "a": str(self.a),
            "b": str(self.b),
            "cka": self.cka,
            **self.agreement.to_dict(),
            **{name: getattr(self, name) for name in names},
            "gain": self.gain.to_dict(),
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
"""Predictors of the gain from fusing a pair, each signed so that higher promises more."""

HEADLINE = "loss_gain"
"""The one of `MEASURES` that pairs are ranked by and that is shown first."""


def measure_pairs(
    data: ProbeData, pairs: Iterable[tuple[BlockRef, BlockRef]], seed: int = 0
) -> Iterator[Pair]:
    """Measure pairs in turn, each block alone only once; ``seed`` is for the intervals.

    Blocks alone and fused are measured on the same principal coordinates, so that a difference
    never comes from what those omit.
    """
    alone: dict[BlockRef, LeaveOneOut] = {}
    for a, b in pairs:
        for block in (a, b):
            if block not in alone:
                alone[block] = data.fit([block])
        fused = data.fit([a, b])
        right_a, right_b, right = (
            data.correct(result.predictions) for result in (alone[a], alone[b], fused)
        )
        lower = min(alone[a], alone[b], key=lambda result: result.loss)
        more_accurate = right_a if right_a.sum() >= right_b.sum() else right_b
        loss_gain, loss_gain_se = _mean_and_se(lower.errors - fused.errors, data.targets.groups)
        yield Pair(
            a=a,
            b=b,
            cka=linear_cka(data.coordinates[a], data.coordinates[b]),
            agreement=measure_agreement(right_a, right_b),
            loss_a=alone[a].loss,
            loss_b=alone[b].loss,
            accuracy=float(right.mean()),
            loss=fused.loss,
            penalty=fused.penalty,
            gain=paired_difference(right, more_accurate, seed=seed),
            loss_gain=loss_gain,
            loss_gain_se=loss_gain_se,
            only_a=tuple(np.flatnonzero(right_a & ~right_b).tolist()),
            only_b=tuple(np.flatnonzero(right_b & ~right_a).tolist()),
        )


def _mean_and_se(values: npt.NDArray[np.floating], groups: Groups | None) -> tuple[float, float]:
    return float(values.mean()), standard_error(values, groups)


@dataclass(frozen=True)
class Addition:
    """What one more block would bring to a pipeline, by exact leave-one-out.

    Attributes
    ----------
    block : BlockRef
        The block to add.
    new_encoder : bool
        Whether the pipeline reads no block of this encoder yet, so that adding costs another
        forward pass.
    accuracy : float
        With the block added, a share from 0 to 1.
    gain : PairedDifference
        That accuracy minus the pipeline's.
    loss_gain, loss_gain_se : float
        The drop in squared leave-one-out loss, and its standard error over rows.
    """

    block: BlockRef
    new_encoder: bool
    accuracy: float
    gain: PairedDifference
    loss_gain: float
    loss_gain_se: float


def rank_additions(
    embeddings: Blocks,
    y: Column,
    to: Sequence[BlockRef | str] | None = None,
    *,
    candidates: Sequence[BlockRef | str] | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> tuple[Addition, ...]:
    """Rank blocks by how much each would lower the leave-one-out loss of a pipeline.

    Each candidate is added to the ridge regression on the pipeline's blocks by block inversion, at
    the penalty that is best without it, as the greedy selection does. Because candidates are ranked
    on the rows they are measured on, the best of many looks slightly better than it is.

    Parameters
    ----------
    embeddings : mapping of BlockRef to ndarray of shape (n, dim)
        Each block.
    y : array-like of shape (n,)
        Labels of any kind.
    to : sequence of BlockRef or str, optional
        The blocks in use; by default the block with the lowest leave-one-out loss.
    candidates : sequence of BlockRef or str, optional
        Blocks that may be added; by default all others.
    seed : int
        For the intervals.
    reporter : Reporter
        Receives progress.

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
    data = ProbeData.probe(embeddings, Targets.from_labels(y), reporter)
    return _additions(data, pipeline or (data.scores.best.block,), others or known, seed, reporter)


def _additions(
    data: ProbeData,
    pipeline: Sequence[BlockRef],
    candidates: Sequence[BlockRef],
    seed: int,
    reporter: Reporter,
) -> tuple[Addition, ...]:
    """`rank_additions` of blocks that have been probed; the pipeline's own are skipped."""
    matrix = data.targets.matrix
    blocks = [data.coordinates[block] for block in pipeline]
    state = RidgeState.of(blocks, matrix, groups=data.targets.groups)
    before = data.correct(matrix - state.residuals())
    encoders = {block.encoder for block in pipeline}
    others = [block for block in candidates if block not in pipeline]
    found = []
    with reporter.task("adding", len(others), "blocks") as advance:
        for block in others:
            residuals = state.residuals_with(data.coordinates[block])
            after = data.correct(matrix - residuals)
            saved = state.errors - np.einsum("nc,nc->n", residuals, residuals)
            found.append(
                Addition(
                    block,
                    block.encoder not in encoders,
                    float(after.mean()),
                    paired_difference(after, before, seed=seed),
                    *_mean_and_se(saved, state.groups),
                )
            )
            advance(1)
    return tuple(sorted(found, key=lambda addition: (-addition.loss_gain, addition.block)))


@dataclass(frozen=True, repr=False)
class EncoderComparison:
    """Pairs of blocks on the same rows, and what to add next to a pipeline.

    Attributes
    ----------
    n : int
        Number of rows.
    pairs : tuple of Pair
        Best first, by `Pair.headline`.
    pipeline : tuple of BlockRef
        The blocks that are added to.
    additions : tuple of Addition
        Best first, by their gain in loss.
    """

    n: int
    pairs: tuple[Pair, ...]
    pipeline: tuple[BlockRef, ...]
    additions: tuple[Addition, ...] = ()

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
            f"EncoderComparison({len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''} on "
            f"{self.n} rows; best {best.a} + {best.b}: accuracy {best.accuracy:.3f} "
            f"({best.gain.difference:+.3f}), loss gain {best.loss_gain:.4f} "
            f"± {best.loss_gain_se:.4f})"
        )


def compare(
    embeddings: Blocks,
    y: Column,
    *,
    pairs: str = "encoders",
    blocks: Sequence[BlockRef | str] | None = None,
    to: Sequence[BlockRef | str] | None = None,
    groups: Column | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> EncoderComparison:
    """Measure which blocks are worth combining.

    Every block is probed once; then each pair is measured on the leading principal coordinates of
    both: how similar they are, on which rows each is right, and what a ridge regression on the two
    fused gains by exact leave-one-out. Blocks are chosen on the rows they are measured on, so gains
    of the best pairs are slightly optimistic; only rows that no choice has seen can confirm them.

    Parameters
    ----------
    embeddings : mapping of BlockRef to ndarray of shape (n, dim)
        Each block.
    y : array-like of shape (n,)
        Labels of any kind.
    pairs : {"encoders", "blocks"}
        ``"encoders"``: each pair of encoders, each at its block with the lowest leave-one-out loss.
        ``"blocks"``: each pair among the 12 best blocks overall and the best block and the last
        layer (at its best pooling) of each encoder.
    blocks : sequence of BlockRef or str, optional
        Only these blocks; with ``pairs="blocks"`` each pair among all of them.
    to : sequence of BlockRef or str, optional
        The blocks in use that others may be added to (`rank_additions`); by default the one with
        the lowest leave-one-out loss.
    groups : array-like of shape (n,), optional
        Rows with an equal value, such as the same text, are left out together.
    seed : int
        For the intervals.
    reporter : Reporter
        Receives progress.

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
        embeddings = {block: embeddings[block] for block in dict.fromkeys([*known, *(used or ())])}
    check_pairing(pairs, [block.encoder for block in known])
    if len(known) < 2:
        raise ConfigError("There is only one block to compare. Give at least two.")
    data = ProbeData.probe(embeddings, Targets.from_labels(y, groups), reporter)
    scores = BlockScores(tuple(s for s in data.scores if s.block in set(known)), "ridge")
    chosen = [score.block for score in scores.ranking]
    if pairs == "encoders" or blocks is None:
        kept = {scores.of(encoder).best.block for encoder in scores.encoders}
        if pairs == "blocks":
            kept |= {*chosen[:_BEST_BLOCKS], *(scores.last(e).block for e in scores.encoders)}
        chosen = [block for block in chosen if block in kept]
    couples = list(combinations(chosen, 2))
    measured = []
    with reporter.task("comparing", len(couples), "pairs") as advance:
        for pair in measure_pairs(data, couples, seed):
            measured.append(pair)
            advance(1)
    pipeline = used or (scores.best.block,)
    return EncoderComparison(
        n=len(data.targets),
        pairs=tuple(sorted(measured, key=lambda pair: (-pair.headline, pair.a, pair.b))),
        pipeline=pipeline,
        additions=_additions(data, pipeline, known, seed, reporter),
    )


def check_pairing(pairs: str, encoders: Sequence[str]) -> None:
    """Refuse an unknown kind of pairs, and a single encoder where two are needed.

    Raises
    ------
    ConfigError
        In both cases.
    """
    check_choice(pairs, PAIRINGS, "pairs")
    names = list(dict.fromkeys(encoders))
    if pairs == "encoders" and len(names) < 2:
        raise ConfigError(
            f"Comparing encoders takes two, and there is only {', '.join(names) or 'none'}. Add "
            "another one, or compare the blocks of one encoder: --pairs blocks, or in Python "
            "pairs='blocks'."
        )


def find_blocks(
    named: Sequence[BlockRef | str], known: Iterable[BlockRef], what: str
) -> tuple[BlockRef, ...]:
    """The named blocks without repeats; ``what`` is the option or parameter that names them.

    Raises
    ------
    ConfigError
        For text that is no block, a block that is not ``known``, or no block at all.
    """
    names = [named] if isinstance(named, (str, BlockRef)) else named
    refs = dict.fromkeys(BlockRef.parse(n) if isinstance(n, str) else n for n in names)
    blocks = dict.fromkeys(known)
    for ref in refs:
        if ref not in blocks:
            encoders = ", ".join(dict.fromkeys(block.encoder for block in blocks))
            raise ConfigError(
                f"{what} names {ref}, which is not one of the {len(blocks)} blocks that are read "
                f"(encoders: {encoders}).{did_you_mean(str(ref), map(str, blocks))} Give its "
                "encoder, layer and pooling to be read as well."
            )
    if not refs:
        raise ConfigError(f"{what} names no block. Write one as encoder:layer:pooling.")
    return tuple(refs)
