"""Adding one block to a ridge regression without fitting it anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.probing.ridge import decompose, leave_one_out

__all__ = ["RidgeState"]


@dataclass(frozen=True)
class RidgeState:
    """The ridge regression on the blocks chosen so far, each (n, columns) and centred.

    Its hat matrix is ``U U^T`` with ``basis`` U (n, columns); ``leverages`` (n,) is the diagonal
    with the intercept's share, ``fitted`` (n, n_classes) the fitted values, ``errors`` (n,) the
    squared leave-one-out errors.
    """

    penalty: float
    basis: npt.NDArray[np.float32]
    leverages: npt.NDArray[np.float32]
    fitted: npt.NDArray[np.float32]
    errors: npt.NDArray[np.float32]

    @property
    def loss(self) -> float:
        return float(self.errors.mean())

    @classmethod
    def of(
        cls, blocks: Sequence[npt.NDArray[np.float32]], targets: npt.NDArray[np.float32]
    ) -> RidgeState:
        """Fit at the penalty with the lowest leave-one-out loss."""
        space = decompose(np.concatenate(blocks, axis=1))
        result = leave_one_out(space, targets)
        basis = space.rotated / np.sqrt(space.eigenvalues + np.float32(result.penalty))
        centre = targets.mean(axis=0)
        return cls(
            penalty=result.penalty,
            basis=basis,
            leverages=1.0 / np.float32(len(targets)) + np.einsum("nd,nd->n", basis, basis),
            fitted=centre + basis @ (basis.T @ (targets - centre)),
            errors=result.errors.astype(np.float32),
        )

    def residuals(self, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Exact leave-one-out residuals (n, n_classes) of the chosen blocks."""
        spare = np.maximum(1.0 - self.leverages, 1e-6)
        return np.asarray((targets - self.fitted) / spare[:, None])

    def errors_with(
        self, block: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Exact squared leave-one-out errors (n,) once ``block`` (n, columns) is added."""
        residuals = self.residuals_with(block, targets)
        return np.asarray(np.einsum("nc,nc->n", residuals, residuals))

    def residuals_with(
        self, block: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Exact leave-one-out residuals (n, n_classes) once ``block`` (n, columns) is added.

        By block inversion: with W the block less its part in the chosen blocks' hat matrix, the new
        hat matrix is the old one plus ``W (Z^T W + penalty)^-1 W^T``. The penalty stays as it is.
        """
        rest = block - self.basis @ (self.basis.T @ block)
        inner = block.T @ rest
        inner[np.diag_indices_from(inner)] += np.float32(self.penalty)
        root = np.linalg.cholesky((inner + inner.T) / 2)
        added = rest @ np.linalg.inv(root).T  # its product with itself is the new part
        fitted = self.fitted + added @ (added.T @ targets)
        spare = np.maximum(1.0 - self.leverages - np.einsum("nd,nd->n", added, added), 1e-6)
        return np.asarray((targets - fitted) / spare[:, None])
