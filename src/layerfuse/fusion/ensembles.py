"""Combining what the blocks predict, one ridge regression for each: soft voting and stacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layerfuse.calibration import TemperatureCalibrator
from layerfuse.errors import ConfigError, FormatError
from layerfuse.files import take_tensor
from layerfuse.fusion.protocol import FittedFusion, FusionInputs, FusionKind
from layerfuse.heads import Floats, LinearHead, RidgeHead, ridge_leave_one_out
from layerfuse.probing import standardization
from layerfuse.targets import LabelSpace

__all__ = ["Stacking", "StackingFusion", "Voting", "VotingFusion"]

_NO_RESIDUAL = "it combines predictions, beside which there is no room"


@dataclass(frozen=True)
class _BlockHeads:
    """One linear map to scores (n, n_outputs) for each block."""

    heads: tuple[LinearHead, ...]

    def scores(self, blocks: Sequence[Floats]) -> list[Floats]:
        """Arrays (n, dim), one for each block, to ridge scores (n, n_outputs) each."""
        return [head.logits(block) for head, block in zip(self.heads, blocks, strict=True)]

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``coef.i`` and ``intercept.i`` of each block."""
        coefs = {f"coef.{i}": head.coef for i, head in enumerate(self.heads)}
        return {**coefs, **{f"intercept.{i}": head.intercept for i, head in enumerate(self.heads)}}

    @classmethod
    def fit(cls, inputs: FusionInputs) -> tuple[_BlockHeads, list[Floats]]:
        """The heads, each at the penalty of the lowest leave-one-out loss, and the leave-one-out
        scores (n, n_outputs) of each."""
        heads, unseen = [], []
        for block in inputs.blocks:
            result = ridge_leave_one_out(block, inputs.targets, inputs.row_weights)
            heads.append(
                RidgeHead.fit(block, inputs.targets, result.penalty, row_weights=inputs.row_weights)
            )
            unseen.append(np.asarray(result.predictions, dtype=np.float32))
        return cls(tuple(heads)), unseen

    @classmethod
    def load(cls, arrays: Mapping[str, Floats], n_blocks: int) -> tuple[_BlockHeads, int]:
        """The inverse of `arrays`, and n_outputs."""
        n_outputs = take_tensor(arrays, "coef.0", None, None).shape[1]
        heads = (
            LinearHead(
                take_tensor(arrays, f"coef.{i}", None, n_outputs),
                take_tensor(arrays, f"intercept.{i}", n_outputs),
            )
            for i in range(n_blocks)
        )
        return cls(tuple(heads)), n_outputs


@dataclass(frozen=True)
class VotingFusion:
    """Soft voting: ``log(1/k sum_j softmax(s_j / t_j))`` with s_j the ridge scores of block j.

    (n, dim) for each block to (n, n_outputs). Each block has a temperature t_j, fitted on its
    leave-one-out scores: ridge scores are no logits by themselves.
    """

    block_heads: _BlockHeads
    temperatures: tuple[TemperatureCalibrator, ...]

    name = "voting"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to log probabilities (n, n_outputs)."""
        return self.vote(self.block_heads.scores(blocks))

    def vote(self, scores: Sequence[Floats]) -> Floats:
        """Scores (n, n_outputs) of each block to log probabilities (n, n_outputs)."""
        proba = [
            calibrator.predict_proba(table, LabelSpace(np.arange(table.shape[1])))
            for calibrator, table in zip(self.temperatures, scores, strict=True)
        ]
        # A probability below float64's range counts as the smallest one that has a logarithm.
        mean = np.maximum(np.mean(proba, axis=0), np.finfo(np.float64).tiny)
        return np.asarray(np.log(mean), dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``coef.i``, ``intercept.i`` of each block, ``temperature`` (k,)."""
        values = [calibrator.temperature for calibrator in self.temperatures]
        return {**self.block_heads.arrays(), "temperature": np.array(values, dtype=np.float32)}


class Voting(FusionKind):
    """See `VotingFusion`. Its head passes the log probabilities on."""

    name = VotingFusion.name
    brings_head = True
    no_residual = _NO_RESIDUAL

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        block_heads, unseen = _BlockHeads.fit(inputs)
        # Temperatures are saved as float32, so that is what they are from the start.
        found = (TemperatureCalibrator.fit(s, inputs.targets).temperature for s in unseen)
        temperatures = tuple(TemperatureCalibrator(float(np.float32(value))) for value in found)
        fusion = VotingFusion(block_heads, temperatures)
        n_outputs = inputs.targets.space.n_outputs
        head = LinearHead(np.eye(n_outputs, dtype=np.float32), np.zeros(n_outputs, np.float32))
        return FittedFusion(fusion, fusion.vote(unseen), head)

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> VotingFusion:
        block_heads, _ = _BlockHeads.load(arrays, n_blocks)
        values = take_tensor(arrays, "temperature", n_blocks)
        try:
            temperatures = tuple(TemperatureCalibrator(float(value)) for value in values)
        except ConfigError as error:
            raise FormatError(
                f"Tensor 'temperature' was changed after it was saved: {error}"
            ) from error
        return VotingFusion(block_heads, temperatures)


@dataclass(frozen=True)
class StackingFusion:
    """Stacked generalization (Wolpert, Neural Networks, 1992): ``[s_1, ..., s_k]``, standardized.

    (n, dim) for each block to (n, k * n_outputs), with s_j the ridge scores of block j. A head is
    trained on leave-one-out scores; ``mean`` and ``scale`` (k * n_outputs,) are of those.
    """

    block_heads: _BlockHeads
    mean: Floats
    scale: Floats

    name = "stacking"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to standardized scores (n, k * n_outputs)."""
        return self.standardize(self.block_heads.scores(blocks))

    def standardize(self, scores: Sequence[Floats]) -> Floats:
        """Scores (n, n_outputs) of each block to features (n, k * n_outputs)."""
        joined = np.concatenate(scores, axis=1, dtype=np.float32)
        return np.asarray((joined - self.mean) * self.scale)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``coef.i``, ``intercept.i`` of each block, ``mean`` and ``scale``."""
        return {**self.block_heads.arrays(), "mean": self.mean, "scale": self.scale}


class Stacking(FusionKind):
    """See `StackingFusion`."""

    name = StackingFusion.name
    no_residual = _NO_RESIDUAL

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        block_heads, unseen = _BlockHeads.fit(inputs)
        mean, scale = standardization(np.concatenate(unseen, axis=1))
        fusion = StackingFusion(block_heads, mean.astype(np.float32), scale.astype(np.float32))
        return FittedFusion(fusion, fusion.standardize(unseen))

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> StackingFusion:
        block_heads, n_outputs = _BlockHeads.load(arrays, n_blocks)
        width = n_blocks * n_outputs
        mean, scale = take_tensor(arrays, "mean", width), take_tensor(arrays, "scale", width)
        return StackingFusion(block_heads, mean, scale)
