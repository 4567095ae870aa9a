"""What all fusions share: the protocol, the result of a fit, concatenation and residual forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from layerfuse.heads import LinearHead

__all__ = ["RESIDUAL", "Concat", "FittedFusion", "Fusion", "Residual"]

Floats = npt.NDArray[np.float32]

RESIDUAL = "+residual"
"""What follows the operation's name in the name of its residual form."""


class Fusion(Protocol):
    """Several scaled, centred blocks to one feature matrix; numpy only."""

    @property
    def name(self) -> str: ...

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to features (n, d_out)."""

    def arrays(self) -> dict[str, Floats]:
        """What must be saved, float32; `load_fusion` is the inverse."""


@dataclass(frozen=True)
class FittedFusion:
    """A fusion, and what it makes of its training rows.

    ``features`` (n, d_out) are what a head is to be trained on: ``transform`` of the training
    blocks, save for ``stacking`` and ``voting``, where each row's features come from models that
    did not see it. ``head`` came with the fusion (trained jointly, or fixed), or is None.
    """

    fusion: Fusion
    features: Floats
    head: LinearHead | None = None


@dataclass(frozen=True)
class Concat:
    """Block-scaled concatenation: ``[z_1, ..., z_k]``, (n, sum of dims)."""

    name: str = "concat"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to one array (n, sum of dims)."""
        return np.concatenate(blocks, axis=1, dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        """Nothing: concatenation learns nothing."""
        return {}


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
        """Arrays (n, dim), one for each block, to (n, d_out of the operation + sum of dims)."""
        return np.concatenate([self.operation.transform(blocks), *blocks], axis=1, dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        """Those of the operation."""
        return self.operation.arrays()
