"""Closed-form fusions: blocks are projected to one size and combined by a fixed operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.fusion.protocol import FittedFusion, FusionInputs, FusionKind
from layerfuse.heads import Floats
from layerfuse.probing.ridge import decompose, standardization

Doubles: TypeAlias = npt.NDArray[np.float64]

_TENSOR_DIMS = 1024  # maximum number of columns of a tensor fusion's output


class Concat(FusionKind):
    """Block-scaled concatenation: ``[z_1, ..., z_k]``, (n, sum of dims). It learns nothing."""

    name = "concat"
    no_residual = "concatenation is the residual already"

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        return FittedFusion(self, self.transform(inputs.blocks))

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> Concat:
        return self

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        return np.concatenate(blocks, axis=1, dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        return {}


def fit_projections(blocks: Sequence[Floats], size: int) -> list[Floats]:
    """Learn one map (dim, width) for each block from scaled, centered training rows (n, dim).

    Its columns are the leading principal directions, the largest entry of each positive, times one
    number with which the projected training rows have a mean square of 1, so that products of many
    vectors neither vanish nor explode. The width is ``size``, or the smallest rank of any block if
    that is less, so that all blocks have one width; constant blocks do not count, and their maps
    are 0.
    """
    found = [decompose(block).axes[:, :size] for block in blocks]
    width = min((axes.shape[1] for axes in found if axes.shape[1]), default=1)
    projections = []
    for block, axes in zip(blocks, found, strict=True):
        largest = np.abs(axes).argmax(axis=0)
        signs = np.sign(axes[largest, np.arange(axes.shape[1])])
        directions = _resize((axes * signs).astype(np.float32), width)
        spread = root_mean_square(block @ directions)
        projections.append(directions / np.float32(spread if spread > 0 else 1.0))
    return projections


def root_mean_square(values: Floats) -> float:
    """Over all entries; 0 for no entries."""
    return float(np.sqrt(np.square(values).mean(dtype=np.float64))) if values.size else 0.0


def _resize(matrix: Floats, width: int) -> Floats:
    """Cut a matrix (n, any) to its first ``width`` columns, or pad it with zeros."""
    kept = matrix[:, :width]
    return np.pad(kept, ((0, 0), (0, width - kept.shape[1])))


@dataclass(frozen=True)
class ProductFusion:
    r"""``(f(z_1 P_1, ..., z_k P_k) - mean) * scale``: the operation's output, scaled like a block.

    Block j has its projection P_j (dim, width), from `fit_projections`; ``mean`` and ``scale``
    (d_out,) bring the output's columns to mean 0 and variance 1/d_out on the training rows.
    """

    operation: Product
    projections: tuple[Floats, ...]
    mean: Floats
    scale: Floats

    @property
    def name(self) -> str:
        return self.operation.name

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        fused = self.operation.project_and_combine(self.projections, blocks)
        fused -= self.mean
        fused *= self.scale
        return fused.astype(np.float32)

    def arrays(self) -> dict[str, Floats]:
        maps = {f"projection.{index}": array for index, array in enumerate(self.projections)}
        return {**maps, "mean": self.mean, "scale": self.scale}


def _any_width(width: int, n_blocks: int) -> int:
    return width


@dataclass(frozen=True)
class Product(FusionKind):
    """A fusion by a fixed operation on projected blocks."""

    name: str
    combine: Callable[[Sequence[Doubles]], Doubles]  # arrays (n, width) to (n, d_out)
    usable_width: Callable[[int, int], int] = _any_width  # of a width, for so many blocks

    def project_and_combine(
        self, projections: Sequence[Floats], blocks: Sequence[Floats]
    ) -> Doubles:
        """Arrays (n, dim), one for each block, to (n, d_out)."""
        # In float64: a product of many blocks leaves float32's range.
        return self.combine(
            [(z @ P).astype(np.float64) for z, P in zip(blocks, projections, strict=True)]
        )

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        projections = fit_projections(inputs.blocks, inputs.size)
        width = self.usable_width(projections[0].shape[1], len(projections))
        projections = [_resize(projection, width) for projection in projections]
        mean, scale = standardization(self.project_and_combine(projections, inputs.blocks))
        fusion = ProductFusion(
            self, tuple(projections), mean.astype(np.float32), scale.astype(np.float32)
        )
        return FittedFusion(fusion, fusion.transform(inputs.blocks))

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> ProductFusion:
        width = take_tensor(arrays, "projection.0", None, None).shape[1]
        width = self.usable_width(width, n_blocks)
        maps = [take_tensor(arrays, f"projection.{i}", None, width) for i in range(n_blocks)]
        d_out = self.combine([np.zeros((1, width))] * n_blocks).shape[1]
        mean, scale = take_tensor(arrays, "mean", d_out), take_tensor(arrays, "scale", d_out)
        return ProductFusion(self, tuple(maps), mean, scale)


def _sum(vectors: Sequence[Doubles]) -> Doubles:
    """``sum_j h_j``: (n, size) each to (n, size)."""
    return np.asarray(np.sum(vectors, axis=0))


def _mean(vectors: Sequence[Doubles]) -> Doubles:
    """``1/k sum_j h_j``: (n, size) each to (n, size)."""
    return np.asarray(np.mean(vectors, axis=0))


def _hadamard(vectors: Sequence[Doubles]) -> Doubles:
    """``h_1 * ... * h_k``, entry by entry: Gwak and Jung, arXiv 2504.05764 (2025)."""
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


def _matmul_width(width: int, n_blocks: int) -> int:
    return math.isqrt(width) ** 2


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


def _quaternion_width(width: int, n_blocks: int) -> int:
    return max(4, width // 4 * 4)


def _cooccurrence(vectors: Sequence[Doubles]) -> Doubles:
    """``[2 sigmoid(s H H^T) - 1, mean_j h_j]`` with H the (k, size) matrix of a text's vectors.

    (n, size) each to (n, k^2 + size). Power-normalized co-occurrence pooling of LLMEmbed (Liu et
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


def _tensor_width(width: int, n_blocks: int) -> int:
    return min(width, math.isqrt(_TENSOR_DIMS // len(_pairs(n_blocks))))


def _pairs(n_blocks: int) -> list[tuple[int, int]]:
    """All pairs of blocks; one block is paired with itself."""
    return list(combinations(range(n_blocks), 2)) or [(0, 0)]


PRODUCTS = (
    Product("sum", _sum),
    Product("mean", _mean),
    Product("hadamard", _hadamard),
    Product("matmul", _matmul, _matmul_width),
    Product("quaternion", _quaternion, _quaternion_width),
    Product("cooccurrence", _cooccurrence),
    Product("tensor", _tensor, _tensor_width),
)
