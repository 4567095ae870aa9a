"""The three products that an eigendecomposition of features needs, in numpy or on a GPU.

A GPU is used where PyTorch finds one and the work is worth the way there; the features stay in the
machine's own memory and visit the GPU in parts, so that it holds one part beside square matrices.
"""

from __future__ import annotations

import contextlib
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["NumpyProducts", "Products", "TorchProducts", "chunks", "products_for"]

Floats = npt.NDArray[np.floating]

_CHUNK = 1 << 23  # values that are worked on at once where a whole copy would double the memory
_WORTH_IT = 5e10  # operations; about a second of one core
_ONE = Lock()
_TRACE = 1e-3  # by what share eigenvalues may miss the trace before a decomposition is not believed


def chunks(X: Floats) -> list[slice]:
    """Parts of the rows of (n, dim), of some eight million values each."""
    size = max(1, _CHUNK // max(1, X.shape[1]))
    return [slice(start, start + size) for start in range(0, len(X), size)]


class Products(Protocol):
    """What `layerfuse.probing.ridge.decompose` calls."""

    def eigh(self, Z: Floats) -> tuple[Floats, Floats]:
        """Rising eigenvalues (k,) and eigenvectors (k, k) of the smaller Gram matrix of (n, dim):
        ``Z^T Z``, or ``Z Z^T`` where there are more columns than rows."""
        ...

    def times(self, Z: Floats, vectors: Floats) -> Floats:
        """``Z @ vectors`` for a part of the rows."""
        ...


class NumpyProducts:
    """By the linear algebra library of numpy."""

    def eigh(self, Z: Floats) -> tuple[Floats, Floats]:
        gram = Z @ Z.T if Z.shape[1] > len(Z) else Z.T @ Z
        values, vectors = np.linalg.eigh(gram)
        return values, vectors

    def times(self, Z: Floats, vectors: Floats) -> Floats:
        return np.asarray(Z @ vectors)


class TorchProducts:
    """By PyTorch on a device, in the features' own precision.

    What fails there (no memory, no convergence, eigenvalues that miss the trace, a GPU that this
    PyTorch cannot use) is computed in numpy. One thread at a time: that bounds the device's memory,
    and PyTorch's solvers are not safe to be called first by several.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._vectors: tuple[Floats, torch.Tensor] | None = None  # as they were sent last

    def eigh(self, Z: Floats) -> tuple[Floats, Floats]:
        with _ONE, contextlib.suppress(RuntimeError, MemoryError):
            return self._eigh(Z)
        return NumpyProducts().eigh(Z)

    def _eigh(self, Z: Floats) -> tuple[Floats, Floats]:
        import torch

        gram = self._gram(Z)
        trace = float(gram.diagonal().sum())
        values, vectors = torch.linalg.eigh(gram)
        if not abs(float(values.sum()) - trace) <= _TRACE * abs(trace):
            raise RuntimeError("the eigenvalues do not add up to the trace")
        return values.cpu().numpy(), vectors.cpu().numpy()

    def _gram(self, Z: Floats) -> torch.Tensor:
        tall = Z.T if Z.shape[1] > len(Z) else Z
        total: torch.Tensor | None = None
        for rows in chunks(tall):
            part = self._send(tall[rows])
            total = part.T @ part if total is None else total.addmm_(part.T, part)
        assert total is not None
        return total

    def times(self, Z: Floats, vectors: Floats) -> Floats:
        with _ONE, contextlib.suppress(RuntimeError, MemoryError):
            return self._times(Z, vectors)
        return NumpyProducts().times(Z, vectors)

    def _times(self, Z: Floats, vectors: Floats) -> Floats:
        if self._vectors is None or self._vectors[0] is not vectors:
            self._vectors = vectors, self._send(vectors)
        sent = self._vectors[1]
        found = np.empty((len(Z), vectors.shape[1]), dtype=vectors.dtype)
        for rows in chunks(Z):
            found[rows] = (self._send(Z[rows]) @ sent).cpu().numpy()
        return found

    def _send(self, values: Floats) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def products_for(n: int, dim: int) -> Products:
    """Where features (n, dim) are decomposed: on a GPU if there is one and they are large."""
    small = min(n, dim)
    operations = 4.0 * n * dim * small + 9.0 * small**3
    return TorchProducts("cuda") if operations > _WORTH_IT and _has_cuda() else NumpyProducts()


@cache
def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
