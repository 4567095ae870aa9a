"""The first stage of every fusion: blocks of one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError
from layerfuse.files import take_tensor
from layerfuse.scoring import standardisation

__all__ = ["BlockScaler"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlockScaler:
    """Standardisation of each block.

    Each column is standardised on the training rows and each block scaled by 1/sqrt(dim), so that
    all blocks have the same total variance and a wide one does not drown a narrow one.

    ``means`` and ``scales`` hold one array (dim,) for each block.
    """

    means: tuple[Floats, ...]
    scales: tuple[Floats, ...]

    @classmethod
    def fit(cls, blocks: Sequence[Floats]) -> BlockScaler:
        """Learn means and scales from training rows, one array (n, dim) for each block."""
        learned = [standardisation(block) for block in blocks]
        return cls(
            tuple(mean.astype(np.float32) for mean, _ in learned),
            tuple(scale.astype(np.float32) for _, scale in learned),
        )

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(len(mean) for mean in self.means)

    def transform(self, blocks: Sequence[Floats]) -> list[Floats]:
        """Arrays (n, dim), one for each block, to scaled float32 arrays of the same shapes.

        Raises
        ------
        DataError
            When the number of blocks or their sizes are not those of the training rows.
        """
        if tuple(block.shape[1] for block in blocks) != self.dims:
            found = tuple(block.shape[1] for block in blocks)
            raise DataError(f"Blocks have sizes {found}, expected {self.dims} as in training.")
        scaled = []
        for block, mean, scale in zip(blocks, self.means, self.scales, strict=True):
            part = np.subtract(block, mean, dtype=np.float32)
            part *= scale
            scaled.append(part)
        return scaled

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: per block its mean and scale."""
        return {
            f"{name}.{index}": array
            for name, group in (("mean", self.means), ("scale", self.scales))
            for index, array in enumerate(group)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], n_blocks: int) -> BlockScaler:
        """The inverse of `arrays`; a FormatError when they do not fit together."""
        means = tuple(take_tensor(arrays, f"mean.{index}", None) for index in range(n_blocks))
        scales = (
            take_tensor(arrays, f"scale.{index}", len(mean)) for index, mean in enumerate(means)
        )
        return cls(means, tuple(scales))
