"""The protocols of fusions: what is fitted, and the kinds that can be fitted; residual forms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from layerfuse.heads import ANY_LINK, Floats, LinearHead
from layerfuse.targets import Targets

RESIDUAL = "+residual"
"""What follows the operation's name in the name of its residual form."""


class Fusion(Protocol):
    """Several scaled, centered blocks to one feature matrix; numpy only."""

    @property
    def name(self) -> str:
        """A name of `FUSIONS`."""

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to features (n, d_out)."""

    def arrays(self) -> dict[str, Floats]:
        """What must be saved; `load_fusion` is the inverse."""


@dataclass(frozen=True)
class FusionInputs:
    """What fusions are fitted on; see `fit_fusion`."""

    blocks: Sequence[Floats]
    targets: Targets
    size: int
    seed: int


@dataclass(frozen=True)
class FittedFusion:
    """A fusion, its output for its training rows, and the head that came with it, if any.

    ``features`` (n, d_out) are what a head is to be trained on: ``transform`` of the training
    blocks, except for ``stacking`` and ``voting``, where each row's features come from models that
    did not see it.
    """

    fusion: Fusion
    features: Floats
    head: LinearHead | None = None


class FusionKind(ABC):
    """How a fusion is fitted and loaded.

    A new one is a new file, and an object in the tuple of `layerfuse.fusion`.
    """

    name: str  # in `FUSIONS`
    links: tuple[str, ...] = ANY_LINK  # of targets that it can be fitted to
    brings_head: bool = False  # whether the fusion comes with a head, so that none can be chosen
    no_residual: str | None = None  # why there is no residual form, or None where there is one

    @abstractmethod
    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        """Fit on training rows.

        With ``residual`` a head that comes with the fusion reads the blocks beside its output.
        """

    @abstractmethod
    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> Fusion:
        """The inverse of `Fusion.arrays`; a FormatError when they do not fit together."""

    def forms(self) -> tuple[FusionKind, ...]:
        """The fusion, and its residual form if there is one."""
        return (self,) if self.no_residual else (self, _ResidualKind(self))


@dataclass(frozen=True)
class Residual:
    """An operation's output with the scaled blocks beside it: ``[f(z), z_1, ..., z_k]``.

    For a linear head this contains the additive residual of He et al. (CVPR 2016): weights on
    ``f(z) + R z`` are, for any map R, weights on ``f(z)`` and on ``z``.
    """

    operation: Fusion

    @property
    def name(self) -> str:
        return self.operation.name + RESIDUAL

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        return np.concatenate([self.operation.transform(blocks), *blocks], axis=1, dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        return self.operation.arrays()


class _ResidualKind(FusionKind):
    """The residual form of an operation."""

    def __init__(self, operation: FusionKind) -> None:
        self.operation = operation
        self.name = operation.name + RESIDUAL
        self.brings_head = operation.brings_head
        self.links = operation.links

    def fit(self, inputs: FusionInputs, *, residual: bool = True) -> FittedFusion:
        own = self.operation.fit(inputs, residual=True)
        features = np.concatenate([own.features, *inputs.blocks], axis=1, dtype=np.float32)
        return FittedFusion(Residual(own.fusion), features, own.head)

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> Residual:
        return Residual(self.operation.load(arrays, n_blocks))
