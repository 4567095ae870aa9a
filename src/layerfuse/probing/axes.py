"""A block's leading principal axes: the small space in which blocks are compared and fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError
from layerfuse.files import take_tensor
from layerfuse.probing.ridge import Spectrum, decompose, standardisation

__all__ = ["N_AXES", "N_SEARCHED", "PrincipalAxes"]

Floats = npt.NDArray[np.float32]

N_AXES = 384
"""The most axes of a block that heads see."""

N_SEARCHED = 200
"""The most leading axes of a block that choosing looks at."""


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
    def fit(cls, X: npt.NDArray[np.floating]) -> tuple[PrincipalAxes, Spectrum, Floats]:
        """Find the axes of training rows (n, dim).

        Returns
        -------
        The axes; the whole spectrum, on which a probe can be measured; and the leading coordinates
        (n, at most `N_SEARCHED`), by which blocks are chosen. A constant block has no axis; it gets
        one of zeros, so that it stays a block.
        """
        mean, scale = standardisation(X)
        Z = X - mean
        Z *= scale
        space = decompose(Z, overwrite=True)
        varies = len(space.eigenvalues) > 0
        axes = space.axes[:, :N_AXES] if varies else np.zeros((X.shape[1], 1))
        leading = space.rotated[:, :N_SEARCHED] if varies else np.zeros((len(X), 1))
        own = cls(mean.astype(np.float32), scale.astype(np.float32), axes.astype(np.float32))
        return own, space, np.array(leading, dtype=np.float32, order="C")

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
        """The inverse of `arrays`; a FormatError when they are missing or do not fit together."""
        axes = take_tensor(arrays, "axes", None, None)
        dim = len(axes)
        return cls(take_tensor(arrays, "mean", dim), take_tensor(arrays, "scale", dim), axes)
