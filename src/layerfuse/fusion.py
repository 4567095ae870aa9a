"""Combining the embeddings of several blocks into one feature matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError
from layerfuse.scoring import standardisation

__all__ = ["Concat"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Concat:
    """Block-scaled concatenation.

    Each column is standardised on the training rows and each block scaled by 1/sqrt(dim), so that
    all blocks have the same total variance and a wide one does not drown a narrow one.

    ``means`` and ``scales`` hold one array (dim,) for each block.
    """

    means: tuple[Floats, ...]
    scales: tuple[Floats, ...]

    @classmethod
    def fit(cls, blocks: Sequence[Floats]) -> Concat:
        """Learn means and scales from training rows, one array (n, dim) for each block."""
        learned = [standardisation(block) for block in blocks]
        return cls(
            tuple(mean.astype(np.float32) for mean, _ in learned),
            tuple(scale.astype(np.float32) for _, scale in learned),
        )

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(len(mean) for mean in self.means)

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to one array (n, sum of dims).

        Raises
        ------
        DataError
            When the number of blocks or their sizes are not those of the training rows.
        """
        if tuple(block.shape[1] for block in blocks) != self.dims:
            found = tuple(block.shape[1] for block in blocks)
            raise DataError(f"Blocks have sizes {found}, expected {self.dims} as in training.")
        fused = np.empty((len(blocks[0]), sum(self.dims)), dtype=np.float32)
        ends = np.cumsum(self.dims)
        for block, mean, scale, end in zip(blocks, self.means, self.scales, ends, strict=True):
            part = fused[:, end - len(mean) : end]
            np.subtract(block, mean, out=part)
            part *= scale
        return fused

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: per block its mean and scale."""
        return {
            f"{name}.{index}": array
            for name, group in (("mean", self.means), ("scale", self.scales))
            for index, array in enumerate(group)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], n_blocks: int) -> Concat:
        """The inverse of `arrays`."""
        return cls(
            tuple(arrays[f"mean.{index}"] for index in range(n_blocks)),
            tuple(arrays[f"scale.{index}"] for index in range(n_blocks)),
        )
