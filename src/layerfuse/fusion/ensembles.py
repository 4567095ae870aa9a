"""Combining what the blocks predict, one ridge regression for each: soft voting and stacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layerfuse.calibration import TemperatureCalibrator
from layerfuse.files import take_tensor
from layerfuse.fusion.protocol import FittedFusion, FusionInputs, FusionKind
from layerfuse.heads import Floats, LinearHead, RidgeHead, ridge_leave_one_out
from layerfuse.probing.ridge import standardization
from layerfuse.targets import LabelSpace

_NO_RESIDUAL = "it combines predictions, beside which there is no room"


@dataclass(frozen=True)
class VotingFusion:
    """Soft voting: ``log(1/k sum_j softmax(s_j / t_j))`` with s_j the ridge scores of block j.

    (n, dim) for each block to (n, n_outputs). Each block has a temperature t_j, fitted on its
    leave-one-out scores: ridge scores are no logits by themselves. ``heads`` give s_j / t_j.
    """

    heads: tuple[LinearHead, ...]
    name = "voting"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        return _vote(_scores(self.heads, blocks))

    def arrays(self) -> dict[str, Floats]:
        return _arrays(self.heads)


class Voting(FusionKind):
    """See `VotingFusion`. Its head passes the log probabilities on."""

    name = VotingFusion.name
    links = ("softmax",)
    brings_head = True
    no_residual = _NO_RESIDUAL

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        n_outputs = inputs.targets.space.n_outputs
        heads, unseen = _fit_heads(inputs)
        ts = [np.float32(TemperatureCalibrator.fit(s, inputs.targets).temperature) for s in unseen]
        scaled = (
            LinearHead(head.coef / t, head.intercept / t) for head, t in zip(heads, ts, strict=True)
        )
        votes = _vote([scores / t for scores, t in zip(unseen, ts, strict=True)])
        head = LinearHead(np.eye(n_outputs, dtype=np.float32), np.zeros(n_outputs, np.float32))
        return FittedFusion(VotingFusion(tuple(scaled)), votes, head)

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> VotingFusion:
        return VotingFusion(_load_heads(arrays, n_blocks))


def _vote(logits: Sequence[Floats]) -> Floats:
    """Logits (n, n_outputs) of each block to log probabilities (n, n_outputs)."""
    proba = [LabelSpace(np.arange(table.shape[1])).link(table) for table in logits]
    # A probability below float64's range counts as the smallest one that has a logarithm.
    mean = np.maximum(np.mean(proba, axis=0), np.finfo(np.float64).tiny)
    return np.asarray(np.log(mean), dtype=np.float32)


@dataclass(frozen=True)
class StackingFusion:
    """Stacked generalization (Wolpert, Neural Networks, 1992): ``[s_1, ..., s_k]``, standardized.

    (n, dim) for each block to (n, k * n_outputs), with s_j the ridge scores of block j. A head is
    trained on leave-one-out scores; ``mean`` and ``scale`` (k * n_outputs,) are of those.
    """

    heads: tuple[LinearHead, ...]
    mean: Floats
    scale: Floats
    name = "stacking"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        return self.standardize(_scores(self.heads, blocks))

    def standardize(self, scores: Sequence[Floats]) -> Floats:
        """Scores (n, n_outputs) of each block to features (n, k * n_outputs)."""
        joined = np.concatenate(scores, axis=1, dtype=np.float32)
        return np.asarray((joined - self.mean) * self.scale)

    def arrays(self) -> dict[str, Floats]:
        return {**_arrays(self.heads), "mean": self.mean, "scale": self.scale}


class Stacking(FusionKind):
    """See `StackingFusion`."""

    name = StackingFusion.name
    no_residual = _NO_RESIDUAL

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        heads, unseen = _fit_heads(inputs)
        mean, scale = standardization(np.concatenate(unseen, axis=1))
        fusion = StackingFusion(heads, mean.astype(np.float32), scale.astype(np.float32))
        return FittedFusion(fusion, fusion.standardize(unseen))

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> StackingFusion:
        heads = _load_heads(arrays, n_blocks)
        width = n_blocks * heads[0].shape[1]
        mean, scale = take_tensor(arrays, "mean", width), take_tensor(arrays, "scale", width)
        return StackingFusion(heads, mean, scale)


def _fit_heads(inputs: FusionInputs) -> tuple[tuple[RidgeHead, ...], list[Floats]]:
    """A ridge head for each block, and its leave-one-out scores (n, n_outputs)."""
    targets, seed = inputs.targets, inputs.seed
    found = [ridge_leave_one_out(block, targets) for block in inputs.blocks]
    heads = (
        RidgeHead.fit(block, targets, own.penalty, seed=seed)
        for block, own in zip(inputs.blocks, found, strict=True)
    )
    return tuple(heads), [np.asarray(own.predictions, dtype=np.float32) for own in found]


def _scores(heads: Sequence[LinearHead], blocks: Sequence[Floats]) -> list[Floats]:
    return [head.logits(block) for head, block in zip(heads, blocks, strict=True)]


def _arrays(heads: Sequence[LinearHead]) -> dict[str, Floats]:
    own = [(f"{name}.{i}", a) for i, head in enumerate(heads) for name, a in head.arrays().items()]
    return dict(own)


def _load_heads(arrays: Mapping[str, Floats], n_blocks: int) -> tuple[LinearHead, ...]:
    """The inverse of `_arrays`."""
    width = take_tensor(arrays, "coef.0", None, None).shape[1]
    pairs = (
        (
            take_tensor(arrays, f"coef.{i}", None, width),
            take_tensor(arrays, f"intercept.{i}", width),
        )
        for i in range(n_blocks)
    )
    return tuple(LinearHead(coef, intercept) for coef, intercept in pairs)
