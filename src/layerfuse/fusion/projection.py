"""Blocks of different sizes brought to one size by their leading principal directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["fit_projections", "principal_directions", "root_mean_square", "widened"]

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
