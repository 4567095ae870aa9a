"""Adding one block to a ridge regression without fitting it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.probing.ridge import decompose, leave_one_out

__all__ = ["RidgeState"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RidgeState:
    """The ridge regression on the blocks chosen so far.

    Attributes
    ----------
    penalty : float
        That of the lowest leave-one-out loss, in the units of the blocks' Gram matrix.
    rotation : ndarray of shape (columns, rank)
        From the concatenated blocks to the basis.
    basis : ndarray of shape (n, rank)
        U, where the hat matrix is ``U U^T``.
    leverages : ndarray of shape (n,)
        The diagonal of the hat matrix, with the intercept's share.
    fitted : ndarray of shape (n, n_outputs)
        Fitted values.
    errors : ndarray of shape (n,)
        Squared leave-one-out errors, summed over outputs.
    """

    penalty: float
    rotation: Floats
    basis: Floats
    leverages: Floats
    fitted: Floats
    errors: Floats

    @property
    def loss(self) -> float:
        """The mean of the errors."""
        return float(self.errors.mean())

    @classmethod
    def of(cls, blocks: Sequence[Floats], targets: Floats) -> RidgeState:
        """Fit centered blocks, each (n, columns), to a target matrix (n, n_outputs)."""
        space = decompose(np.concatenate(blocks, axis=1))
        result = leave_one_out(space, targets)
        roots = np.sqrt(space.eigenvalues + np.float32(result.penalty))
        basis = space.rotated / roots
        center = targets.mean(axis=0)
        return cls(
            penalty=result.penalty,
            rotation=space.axes / roots,
            basis=basis,
            leverages=1.0 / np.float32(len(targets)) + np.einsum("nd,nd->n", basis, basis),
            fitted=center + basis @ (basis.T @ (targets - center)),
            errors=result.errors.astype(np.float32),
        )

    def residuals(self, targets: Floats) -> Floats:
        """Exact leave-one-out residuals (n, n_outputs) of the chosen blocks."""
        one_minus_leverage = np.maximum(1.0 - self.leverages, 1e-6)
        return np.asarray((targets - self.fitted) / one_minus_leverage[:, None])

    def errors_with(
        self,
        block: Floats,
        targets: Floats,
        gram: Floats | None = None,
        cross: Floats | None = None,
    ) -> Floats:
        """Exact squared leave-one-out errors (n,) with ``block`` added; see `residuals_with`."""
        residuals = self.residuals_with(block, targets, gram, cross)
        return np.asarray(np.einsum("nc,nc->n", residuals, residuals))

    def residuals_with(
        self,
        block: Floats,
        targets: Floats,
        gram: Floats | None = None,
        cross: Floats | None = None,
    ) -> Floats:
        """Exact leave-one-out residuals (n, n_outputs) with ``block`` added, at the same penalty.

        By block inversion: with H the hat matrix and Z the block, ``(I - H) Z M^T`` with ``M^T M =
        (Z^T (I - H) Z + penalty)^-1`` times its own transpose is what is added to H.

        Parameters
        ----------
        block : ndarray of shape (n, columns)
            Centered.
        targets : ndarray of shape (n, n_outputs)
        gram : ndarray of shape (columns, columns), optional
            ``Z^T Z`` where it is known.
        cross : ndarray of shape (chosen columns, columns), optional
            The chosen blocks' columns times the block's, where they are known.
        """
        from scipy.linalg import solve_triangular

        shared = self.basis.T @ block if cross is None else self.rotation.T @ cross
        inner = (block.T @ block if gram is None else gram) - shared.T @ shared
        inner[np.diag_indices_from(inner)] += np.float32(self.penalty)
        root = np.linalg.cholesky((inner + inner.T) / 2)
        whitening = solve_triangular(root, np.eye(len(root), dtype=root.dtype), lower=True).T
        added = block @ whitening
        added -= self.basis @ (shared @ whitening)
        fitted = self.fitted + added @ (added.T @ targets)
        leverages = self.leverages + np.einsum("nd,nd->n", added, added)
        return np.asarray((targets - fitted) / np.maximum(1.0 - leverages, 1e-6)[:, None])
