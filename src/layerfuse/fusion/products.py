"""Blocks of different sizes brought to one size by their leading principal directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.probing import standardization

__all__ = [
    "PROJECTED",
    "Projected",
    "fit_projected",
    "fit_projections",
    "load_projected",
    "principal_directions",
    "root_mean_square",
    "widened",
]

Floats = npt.NDArray[np.float32]


def fit_projections(blocks: Sequence[Floats], size: int) -> list[Floats]:
    """Learn one map (dim, width) for each block from scaled, centred training rows (n, dim).

    Its columns are the leading principal directions, times one number with which the projected
    training rows have a mean square of 1, so that products of many vectors neither vanish nor
    explode. The width is ``size``, or the smallest rank of any block if that is less, so that all
    blocks have one width; blocks of constants do not count, and their maps are 0.
    """
    found = [principal_directions(block, size) for block in blocks]
    ranks = [directions.shape[1] for directions in found if directions.shape[1]]
    width = min(ranks, default=1)
    projections = []
    for block, directions in zip(blocks, found, strict=True):
        kept = _padded(directions[:, :width], width)
        spread = root_mean_square(block @ kept)
        projections.append(kept / np.float32(spread if spread > 0 else 1.0))
    return projections


def widened(projections: Sequence[Floats], width: int) -> list[Floats]:
    """Cut maps (dim, any) to their first ``width`` columns, or fill them up with zeros."""
    return [_padded(projection[:, :width], width) for projection in projections]


def principal_directions(Z: Floats, size: int) -> Floats:
    """The leading principal directions (dim, at most ``size``) of centred features (n, dim).

    By the smaller of the two Gram matrices; the largest entry of each direction is positive.
    """
    wide = Z.shape[1] > Z.shape[0]
    values, vectors = np.linalg.eigh(Z @ Z.T if wide else Z.T @ Z)
    values, vectors = values[-size:], vectors[:, -size:]
    # Directions below the precision of the Gram matrix carry only rounding errors.
    kept = values > values[-1] * max(Z.shape) * np.finfo(np.float32).eps
    vectors = vectors[:, kept & (values > 0)][:, ::-1]
    if wide:
        vectors = Z.T @ vectors
        vectors /= np.linalg.norm(vectors, axis=0)
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return np.ascontiguousarray(vectors * signs, dtype=np.float32)


def root_mean_square(values: Floats) -> float:
    """Over all entries; 0 for no entries."""
    return float(np.sqrt(np.square(values).mean(dtype=np.float64))) if values.size else 0.0


def _padded(matrix: Floats, width: int) -> Floats:
    return np.pad(matrix, ((0, 0), (0, width - matrix.shape[1])))


_TENSOR_DIMS = 1024  # the most columns of a tensor fusion's output

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Projected:
    r"""``(f(z_1 P_1, ..., z_k P_k) - mean) * scale``: the operation's output, scaled like a block.

    ``projections`` holds one array (dim, size) for each block: its leading principal directions
    times one number (`fit_projections`). ``mean`` and ``scale`` (d_out,) bring the output's columns
    to mean 0 and variance 1/d_out on the training rows. ``name`` names the operation f, one of
    `PROJECTED`.
    """

    name: str
    projections: tuple[Floats, ...]
    mean: Floats
    scale: Floats

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to features (n, d_out)."""
        fused = _combine(self.name, self.projections, blocks)
        fused -= self.mean
        fused *= self.scale
        return fused.astype(np.float32)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``projection.i`` of each block, ``mean`` and ``scale``."""
        maps = {f"projection.{index}": array for index, array in enumerate(self.projections)}
        return {**maps, "mean": self.mean, "scale": self.scale}


def fit_projected(name: str, blocks: Sequence[Floats], size: int) -> Projected:
    """Learn a closed-form fusion from scaled, centred training rows, one (n, dim) per block.

    ``size`` is the most columns of a projected block; see `fit_projections`.
    """
    projections = fit_projections(blocks, size)
    width = _width(name, projections[0].shape[1], len(blocks))
    projections = widened(projections, width)
    mean, scale = standardization(_combine(name, projections, blocks))
    return Projected(name, tuple(projections), mean.astype(np.float32), scale.astype(np.float32))


def load_projected(name: str, arrays: Mapping[str, Floats], n_blocks: int) -> Projected:
    """The inverse of `Projected.arrays`; a FormatError when they do not fit together."""
    width = take_tensor(arrays, "projection.0", None, None).shape[1]
    maps = (take_tensor(arrays, f"projection.{index}", None, width) for index in range(n_blocks))
    d_out = width
    if name == "cooccurrence":
        d_out = width + n_blocks**2
    elif name == "tensor":
        d_out = len(_pairs(n_blocks)) * width**2
    mean, scale = take_tensor(arrays, "mean", d_out), take_tensor(arrays, "scale", d_out)
    return Projected(name, tuple(maps), mean, scale)


def _width(name: str, width: int, n_blocks: int) -> int:
    """The columns that an operation can use of vectors with ``width`` columns."""
    if name == "matmul":
        return math.isqrt(width) ** 2
    if name == "tensor":
        return min(width, math.isqrt(_TENSOR_DIMS // len(_pairs(n_blocks))))
    return max(4, width // 4 * 4) if name == "quaternion" else width


def _pairs(n_blocks: int) -> list[tuple[int, int]]:
    """All pairs of blocks; one block is paired with itself."""
    return list(combinations(range(n_blocks), 2)) or [(0, 0)]


def _combine(name: str, projections: Sequence[Floats], blocks: Sequence[Floats]) -> Doubles:
    # In float64: a product of many blocks leaves float32's range.
    vectors = [
        (block @ projection).astype(np.float64)
        for block, projection in zip(blocks, projections, strict=True)
    ]
    return PROJECTED[name](vectors)


def _sum(vectors: Sequence[Doubles]) -> Doubles:
    """``sum_j h_j``: (n, size) each to (n, size)."""
    return np.asarray(np.sum(vectors, axis=0))


def _mean(vectors: Sequence[Doubles]) -> Doubles:
    """``1/k sum_j h_j``: (n, size) each to (n, size)."""
    return np.asarray(np.mean(vectors, axis=0))


def _hadamard(vectors: Sequence[Doubles]) -> Doubles:
    """``h_1 * ... * h_k``, entry by entry: (n, size) each to (n, size).

    Gwak and Jung, arXiv 2504.05764 (2025).
    """
    return np.asarray(np.prod(vectors, axis=0))


def _matmul(vectors: Sequence[Doubles]) -> Doubles:
    """``H_1 H_2 ... H_k`` with each vector as a matrix (r, r), r^2 = size: to (n, size).

    Gwak and Jung, arXiv 2504.05764 (2025).
    """
    n, size = vectors[0].shape
    r = math.isqrt(size)
    product = vectors[0].reshape(n, r, r)
    for vector in vectors[1:]:
        product = product @ vector.reshape(n, r, r)
    return product.reshape(n, size).copy()


def _quaternion(vectors: Sequence[Doubles]) -> Doubles:
    """The Hamilton product ``q_1 q_2 ... q_k`` of size/4 quaternions per vector: to (n, size).

    The first quarter of a vector holds the real parts, then come i, j and k. Parcollet et al.,
    "Quaternion Recurrent Neural Networks" (ICLR 2019); Gwak and Jung, arXiv 2504.05764 (2025).
    """
    product = np.split(vectors[0], 4, axis=1)
    for vector in vectors[1:]:
        (a, b, c, d), (e, f, g, h) = product, np.split(vector, 4, axis=1)
        product = [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ]
    return np.concatenate(product, axis=1)


def _cooccurrence(vectors: Sequence[Doubles]) -> Doubles:
    """``[2 sigmoid(s H H^T) - 1, mean_j h_j]`` with H the (k, size) matrix of a text's vectors.

    (n, size) each to (n, k^2 + size). Power-normalised co-occurrence pooling of LLMEmbed (Liu et
    al., ACL 2024). Projected training rows have a mean square of 1, so that the
    diagonal of H H^T is ``size`` on average: s = 1/size keeps the sigmoid from saturating.
    """
    H = np.stack(vectors, axis=1)
    n, k, size = H.shape
    pooled = np.tanh(H @ H.transpose(0, 2, 1) / (2.0 * size))  # tanh(x / 2) = 2 sigmoid(x) - 1
    return np.concatenate([pooled.reshape(n, k * k), H.mean(axis=1)], axis=1)


def _tensor(vectors: Sequence[Doubles]) -> Doubles:
    """``vec(h_a h_b^T)`` of every pair a < b: (n, size) each to (n, pairs * size^2).

    Zadeh et al., "Tensor Fusion Network" (EMNLP 2017), whose interactions of order two these are.
    """
    n, size = vectors[0].shape
    products = [
        (vectors[a][:, :, None] * vectors[b][:, None, :]).reshape(n, size**2)
        for a, b in _pairs(len(vectors))
    ]
    return np.concatenate(products, axis=1)


PROJECTED: dict[str, Callable[[Sequence[Doubles]], Doubles]] = {
    "sum": _sum,
    "mean": _mean,
    "hadamard": _hadamard,
    "matmul": _matmul,
    "quaternion": _quaternion,
    "cooccurrence": _cooccurrence,
    "tensor": _tensor,
}
"""Operations on k projected vectors, arrays (n, size) each, to (n, d_out)."""
