"""Two blocks: how alike they are, where each is right alone, and what fusing them brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.complementarity.inputs import Labelled
from layerfuse.metrics import PairedDifference, paired_difference
from layerfuse.scoring import (
    Agreement,
    LeaveOneOut,
    decompose,
    leave_one_out,
    linear_cka,
    measure_agreement,
)

__all__ = ["HEADLINE", "MEASURES", "Pair", "measure_pairs"]

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
