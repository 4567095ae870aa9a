"""The leading principal axes of a block, in which blocks are compared and fused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError
from layerfuse.files import take_tensor
from layerfuse.probing.ridge import Spectrum, decompose, standardization

Floats = npt.NDArray[np.float32]

N_AXES = 384
"""Principal axes of a block that heads see, at most."""

N_SEARCHED = 160
"""Leading axes of a block by which blocks are chosen, at most."""


@dataclass(frozen=True)
class PrincipalAxes:
    """The map from an embedding to the principal coordinates of a block.

    Each column is standardized on the training rows and scaled by 1/sqrt(dim), so that every block
    has a total variance of one and a wide one does not drown a narrow one; then the block is
    rotated onto its leading principal axes (Pearson, 1901).

    Attributes
    ----------
    mean, scale : ndarray of shape (dim,)
    axes : ndarray of shape (dim, rank)
        With orthonormal columns.
    """

    mean: Floats
    scale: Floats
    axes: Floats

    @classmethod
    def fit(cls, X: npt.NDArray[np.floating]) -> tuple[PrincipalAxes, Spectrum, Floats]:
        """Find the axes of training rows.

        Parameters
        ----------
        X : ndarray of shape (n, dim)

        Returns
        -------
        axes : PrincipalAxes
            A constant block has no axis; it gets one of zeros, so that it stays a block.
        space : Spectrum
            Of all axes, for a probe.
        leading : ndarray of shape (n, at most N_SEARCHED)
            The coordinates by which blocks are chosen.
        """
        mean, scale = standardization(X)
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
        """Columns of the embedding."""
        return int(self.axes.shape[0])

    @property
    def rank(self) -> int:
        """Principal coordinates."""
        return int(self.axes.shape[1])

    def transform(self, X: Floats) -> Floats:
        """Embeddings (n, dim) to principal coordinates (n, rank), centered on the training rows.

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
