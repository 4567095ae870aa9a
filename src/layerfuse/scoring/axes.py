"""A block's leading principal axes: the small space in which blocks are compared and fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError
from layerfuse.scoring.ridge import Spectrum

__all__ = ["N_COMPONENTS", "PrincipalAxes"]

Floats = npt.NDArray[np.float32]

N_COMPONENTS = 200
"""The most axes that are kept of each block."""


@dataclass(frozen=True)
class PrincipalAxes:
    """How an embedding becomes a block's principal coordinates.

    Each column is standardised on the training rows and scaled by 1/sqrt(dim), so that every block
    has a total variance of one and a wide one does not drown a narrow one; then the block is turned
    onto its ``rank`` leading principal axes (Pearson, 1901).

    ``mean`` and ``scale`` are (dim,), ``axes`` (dim, rank), its columns orthonormal.
    """

    mean: Floats
    scale: Floats
    axes: Floats

    @classmethod
    def of(
        cls,
        mean: npt.NDArray[np.floating],
        scale: npt.NDArray[np.floating],
        Z: npt.NDArray[np.floating],
        space: Spectrum,
        n: int,
    ) -> PrincipalAxes:
        """The ``n`` leading axes of standardised features ``Z`` (n_rows, dim), decomposed."""
        turned = space.rotated[:, :n] / space.eigenvalues[:n]
        return cls(
            mean.astype(np.float32), scale.astype(np.float32), (Z.T @ turned).astype(np.float32)
        )

    @property
    def dim(self) -> int:
        return int(self.axes.shape[0])

    @property
    def rank(self) -> int:
        return int(self.axes.shape[1])

    def transform(self, X: Floats) -> Floats:
        """Embeddings (n, dim) to principal coordinates (n, rank), centred on the training rows.

        Raises
        ------
        DataError
            When the embeddings are of another size.
        """
        if X.shape[1] != self.dim:
            raise DataError(
                f"A block has {X.shape[1]} columns, expected {self.dim} as in training."
            )
        return np.asarray(((X - self.mean) * self.scale) @ self.axes)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved, float32."""
        return {"mean": self.mean, "scale": self.scale, "axes": self.axes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> PrincipalAxes:
        """The inverse of `arrays`."""
        return cls(arrays["mean"], arrays["scale"], arrays["axes"])
