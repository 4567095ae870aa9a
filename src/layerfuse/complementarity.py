"""Complementarity: which blocks or encoders are worth combining, by exact leave-one-out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.errors import ConfigError, check_choice, did_you_mean
from layerfuse.folds import Groups, standard_error
from layerfuse.labels import Column
from layerfuse.metrics import PairedDifference, check_correct_pair, paired_difference
from layerfuse.probing import probe_blocks
from layerfuse.probing.ridge import LeaveOneOut, RidgeState, decompose, leave_one_out
from layerfuse.progress import SILENT, Reporter, track
from layerfuse.targets import Targets

Floats = npt.NDArray[np.float32]
Blocks = Mapping[BlockRef, Floats]

PAIRINGS = ("encoders", "blocks")

_BEST_BLOCKS = 12


@dataclass(frozen=True)
class ProbeData:
    """Scores and leading principal coordinates (n, columns) of blocks, and the n rows' targets."""

    scores: BlockScores
    coordinates: Blocks
    targets: Targets

    @classmethod
    def probe(
        cls,
        blocks: Blocks,
        targets: Targets,
        reporter: Reporter = SILENT,
        n_jobs: int | None = None,
    ) -> ProbeData:
        """Probe each block (n, dim) once."""
        probed = probe_blocks(blocks, targets, n_jobs=n_jobs, reporter=reporter)
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
    """Two blocks on the same rows, alone and fused, all by exact leave-one-out.

    Accuracies are shares from 0 to 1; losses are squared errors of the target matrix. ``gain`` is
    the fused accuracy minus that of the more accurate block, ``loss_gain`` the lower loss of the
    two minus the fused one, with its standard error over rows. ``cka`` is the linear CKA of their
    principal coordinates, 1 for the same up to rotation and scale. Exactly one of them
    (``disagreement``), none (``double_fault``) or at least one (``oracle_accuracy``) is right on
    these shares of rows; ``yules_q`` is -1 where they are never right together, 0 where they are
    independent, and 1 at most. ``penalty`` is the fused ridge's.
    """

    a: BlockRef
    b: BlockRef
    accuracy_a: float
    accuracy_b: float
    accuracy: float
    gain: PairedDifference
    loss_a: float
    loss_b: float
    loss: float
    loss_gain: float
    loss_gain_se: float
    cka: float
    disagreement: float
    double_fault: float
    oracle_accuracy: float
    yules_q: float
    penalty: float

    def to_row(self) -> dict[str, object]:
        """Plain values by name."""
        values = {own.name: getattr(self, own.name) for own in fields(Pair)}
        blocks = {"a": str(self.a), "b": str(self.b)}
        gain = {
            "gain": self.gain.difference,
            "gain_low": self.gain.low,
            "gain_high": self.gain.high,
        }
        return values | blocks | gain

    @property
    def better(self) -> BlockRef:
        """The block with the lower loss alone."""
        return self.a if self.loss_a <= self.loss_b else self.b


@dataclass(frozen=True)
class Agreement:
    """How many rows both, one or none of two classifiers a and b get right.

    The measures are those of Kuncheva and Whitaker, "Measures of Diversity in Classifier
    Ensembles" (Machine Learning 51, 2003); all but Q are shares of rows from 0 to 1.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """Rows."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def accuracy_a(self) -> float:
        """Share of rows that a gets right."""
        return (self.both + self.only_a) / self.n

    @property
    def accuracy_b(self) -> float:
        """Share of rows that b gets right."""
        return (self.both + self.only_b) / self.n

    @property
    def disagreement(self) -> float:
        """Exactly one is right."""
        return (self.only_a + self.only_b) / self.n

    @property
    def double_fault(self) -> float:
        """Both are wrong."""
        return self.neither / self.n

    @property
    def oracle_accuracy(self) -> float:
        """At least one is right: what a perfect judge between the two would reach."""
        return 1.0 - self.neither / self.n

    @property
    def yules_q(self) -> float:
        """Yule's Q (1900), from -1 (never right together) over 0 (independent) to 1.

        Its denominator is 0 exactly when one of the two is right on every row or wrong on every
        row. Such a one is independent of any other, so that Q is 0 there.
        """
        together, apart = self.both * self.neither, self.only_a * self.only_b
        return (together - apart) / (together + apart) if together + apart else 0.0


def measure_agreement(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> Agreement:
    """Count how often two classifiers are right on the same rows; both arrays are (n,) bool."""
    a, b = check_correct_pair(correct_a, correct_b)
    return Agreement(
        both=int((a & b).sum()),
        only_a=int((a & ~b).sum()),
        only_b=int((b & ~a).sum()),
        neither=int((~a & ~b).sum()),
    )


def linear_cka(X: npt.NDArray[np.floating], Y: npt.NDArray[np.floating]) -> float:
    r"""Linear centered kernel alignment of two feature matrices over the same rows.

    :math:`\|X^T Y\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)` with centered columns (Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, section 3): 1 for features
    that are equal up to rotation, scale and offset, 0 for features that are uncorrelated in every
    pair of columns. Where there are fewer rows than columns the same numbers come from the two
    (n, n) Gram matrices, so the cost is that of the smaller way. A matrix whose columns are all
    constant says nothing, and its similarity with anything is 0.

    It is biased upwards for few rows: two random matrices of d columns give about d / (n + d).
    ``X`` (n, dim_x) and ``Y`` (n, dim_y) are finite.
    """
    a, b = _centered(X), _centered(Y)
    if len(a) < max(a.shape[1], b.shape[1]):
        left, right = a @ a.T, b @ b.T
        shared, own = float((left * right).sum()), np.linalg.norm(left) * np.linalg.norm(right)
    else:
        shared = float(np.linalg.norm(a.T @ b) ** 2)
        own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.clip(shared / own, 0.0, 1.0)) if own > 0 else 0.0


def _centered(X: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Columns of mean 0; one that is constant becomes exactly 0."""
    wide = X.astype(np.float64)  # before centering, so that a large offset is harmless
    return np.where(wide.max(axis=0) > wide.min(axis=0), wide - wide.mean(axis=0), 0.0)


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
        agreement = measure_agreement(right_a, right_b)
        loss_gain, loss_gain_se = _mean_and_se(lower.errors - fused.errors, data.targets.groups)
        yield Pair(
            a=a,
            b=b,
            accuracy_a=agreement.accuracy_a,
            accuracy_b=agreement.accuracy_b,
            accuracy=float(right.mean()),
            gain=paired_difference(right, more_accurate, seed=seed),
            loss_a=alone[a].loss,
            loss_b=alone[b].loss,
            loss=fused.loss,
            loss_gain=loss_gain,
            loss_gain_se=loss_gain_se,
            cka=linear_cka(data.coordinates[a], data.coordinates[b]),
            disagreement=agreement.disagreement,
            double_fault=agreement.double_fault,
            oracle_accuracy=agreement.oracle_accuracy,
            yules_q=agreement.yules_q,
            penalty=fused.penalty,
        )


def _mean_and_se(values: npt.NDArray[np.floating], groups: Groups | None) -> tuple[float, float]:
    return float(values.mean()), standard_error(values, groups)


@dataclass(frozen=True)
class Addition:
    """What one more block would bring to a pipeline, by exact leave-one-out.

    ``accuracy`` is with the block added, the gains are those over the pipeline alone. A block of an
    encoder that the pipeline does not read yet (``new_encoder``) costs another forward pass.
    """

    block: BlockRef
    new_encoder: bool
    accuracy: float
    gain: PairedDifference
    loss_gain: float
    loss_gain_se: float


def _additions(
    data: ProbeData,
    pipeline: Sequence[BlockRef],
    candidates: Sequence[BlockRef],
    seed: int,
    reporter: Reporter,
) -> tuple[Addition, ...]:
    """What each candidate brings at the penalty that is best without it, largest gain first."""
    matrix = data.targets.matrix
    blocks = [data.coordinates[block] for block in pipeline]
    state = RidgeState.of(blocks, matrix, groups=data.targets.groups)
    before = data.correct(matrix - state.residuals())
    encoders = {block.encoder for block in pipeline}
    others = [block for block in candidates if block not in pipeline]
    found = []
    for block in track(others, "adding", len(others), "blocks", reporter):
        residuals = state.residuals_with(data.coordinates[block])
        after = data.correct(matrix - residuals)
        saved = state.errors - np.einsum("nc,nc->n", residuals, residuals)
        gain = paired_difference(after, before, seed=seed)
        is_new, accuracy = block.encoder not in encoders, float(after.mean())
        found.append(Addition(block, is_new, accuracy, gain, *_mean_and_se(saved, state.groups)))
    return tuple(sorted(found, key=lambda addition: (-addition.loss_gain, addition.block)))


@dataclass(frozen=True, repr=False)
class EncoderComparison:
    """Pairs of blocks on the same n rows, and what to add next to ``pipeline``.

    Both ``pairs`` and ``additions`` come best first, by their gain in loss.
    """

    n: int
    pairs: tuple[Pair, ...]
    pipeline: tuple[BlockRef, ...]
    additions: tuple[Addition, ...] = ()

    @property
    def best(self) -> Pair:
        """The pair with the largest gain in loss."""
        return self.pairs[0]

    @property
    def strongest(self) -> Pair:
        """The pair with the lowest fused loss; weak blocks may gain more and still be weaker."""
        return min(self.pairs, key=lambda pair: pair.loss)

    def __repr__(self) -> str:
        best, count = self.best, len(self.pairs)
        return (
            f"EncoderComparison({count} pair{'s' if count > 1 else ''} on {self.n} rows; best "
            f"{best.a} + {best.b}: accuracy {best.accuracy:.3f} ({best.gain.difference:+.3f}), "
            f"loss gain {best.loss_gain:.4f} ± {best.loss_gain_se:.4f})"
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
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> EncoderComparison:
    """Measure which blocks are worth combining.

    Each pair is measured on the leading principal coordinates of both: how similar they are, on
    which rows each is right, and what a ridge regression on the two fused gains by exact
    leave-one-out. Pairs and additions are ranked on the rows they are measured on, so gains of the
    best are slightly optimistic; only rows that no choice has seen can confirm them.

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
        The blocks in use that others may be added to (default: the one with the lowest loss).
    groups : array-like of shape (n,), optional
        Rows with an equal value, such as the same text, are left out together.
    seed : int
        Seed of the intervals.
    n_jobs : int, optional
        Threads; None or -1 takes all cores.
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
    data = ProbeData.probe(embeddings, Targets.from_labels(y, groups), reporter, n_jobs)
    scores = BlockScores(tuple(s for s in data.scores if s.block in set(known)), "ridge")
    chosen = [score.block for score in scores.ranking]
    if pairs == "encoders" or blocks is None:
        kept = {scores.of(encoder).best.block for encoder in scores.encoders}
        if pairs == "blocks":
            kept |= {*chosen[:_BEST_BLOCKS], *(scores.last(e).block for e in scores.encoders)}
        chosen = [block for block in chosen if block in kept]
    couples = list(combinations(chosen, 2))
    pairs_found = measure_pairs(data, couples, seed)
    measured = track(pairs_found, "comparing", len(couples), "pairs", reporter)
    pipeline = used or (scores.best.block,)
    return EncoderComparison(
        n=len(data.targets),
        pairs=tuple(sorted(measured, key=lambda pair: (-pair.loss_gain, pair.a, pair.b))),
        pipeline=pipeline,
        additions=_additions(data, pipeline, known, seed, reporter),
    )


def check_pairing(pairs: str, encoders: Sequence[str]) -> None:
    """Refuse an unknown kind of pairs, and a single encoder where two are needed."""
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
    """The named blocks, all of them ``known``, without repeats; ``what`` names the option."""
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
