"""Principal axes against a plain singular value decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from layerfuse.blocks import BlockRef
from layerfuse.errors import DataError, FormatError
from layerfuse.probing import PrincipalAxes, probe_blocks
from layerfuse.probing.probe import N_AXES, N_SEARCHED
from layerfuse.targets import Targets

Array = npt.NDArray[Any]
BLOCK = BlockRef("e", 0, "mean")


def features(n: int, dim: int, *, seed: int = 0, offset: float = 0.0) -> Array:
    """Columns that share factors of falling strength, so that no two axes are alike."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, dim)) * 0.8 ** np.arange(dim)
    X = factors @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return (X / X.std(axis=0) + offset).astype(np.float32)


def fit(X: Array) -> tuple[PrincipalAxes, Array]:
    """The axes of a block and its coordinates, as scoring leaves them."""
    probed = probe_blocks({BLOCK: X}, Targets.from_labels(np.arange(len(X)) % 2))
    return probed.axes[BLOCK], probed.coordinates[BLOCK]


def by_svd(X: Array) -> tuple[Array, Array]:
    """Coordinates (n, rank) and axes (dim, rank) in float64, in descending order."""
    X = X.astype(np.float64)
    deviation = X.std(axis=0)
    varies = deviation > 1e-6
    Z = np.where(varies, (X - X.mean(axis=0)) / np.where(varies, deviation, 1), 0)
    left, values, right = np.linalg.svd(Z / np.sqrt(X.shape[1]), full_matrices=False)
    kept = values > 1e-6
    return left[:, kept] * values[kept], right[kept].T


def aligned(found: Array, expected: Array) -> Array:
    """``found`` with each column's sign turned to that of ``expected``."""
    return found * np.sign((found * expected).sum(axis=0))


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (300, 12), (9, 14)])
def test_they_are_those_of_a_singular_value_decomposition(n: int, dim: int) -> None:
    X = features(n, dim)
    axes, _ = fit(X)
    coordinates, directions = by_svd(X)
    assert (axes.dim, axes.rank) == (dim, min(dim, n - 1))
    np.testing.assert_allclose(aligned(axes.axes, directions), directions, atol=2e-3)
    found = axes.transform(X)
    np.testing.assert_allclose(aligned(found, coordinates), coordinates, atol=1e-4)
    np.testing.assert_allclose(axes.axes.T @ axes.axes, np.eye(axes.rank), atol=1e-3)


def test_new_rows_go_where_the_training_rows_say() -> None:
    X, others = features(80, 10), features(15, 10, seed=1)
    axes, _ = fit(X)
    _, directions = by_svd(X)
    Z = (others - X.mean(axis=0)) / X.std(axis=0) / np.sqrt(10)
    expected = Z @ directions
    np.testing.assert_allclose(aligned(axes.transform(others), expected), expected, atol=1e-4)
    alone = np.concatenate([axes.transform(row[None]) for row in others])
    np.testing.assert_allclose(alone, axes.transform(others), atol=1e-6)
    assert axes.transform(others[:0]).shape == (0, 10)


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (9, 14), (40, 300)])
def test_every_block_has_a_total_variance_of_one(n: int, dim: int) -> None:
    X = features(n, dim) * np.float32(37)
    coordinates = fit(X)[0].transform(X)
    np.testing.assert_allclose(coordinates.mean(axis=0), 0, atol=1e-5)
    assert coordinates.var(axis=0).sum() == pytest.approx(1, rel=1e-4)
    assert (np.diff(coordinates.var(axis=0)) <= 1e-6).all()


@pytest.mark.parametrize(("n", "dim"), [(60, 8), (9, 14), (400, 260)])
def test_the_coordinates_of_scoring_are_the_leading_ones(n: int, dim: int) -> None:
    X = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    axes, coordinates = fit(X)
    assert coordinates.shape == (n, min(dim, n - 1, N_SEARCHED))
    np.testing.assert_allclose(axes.transform(X)[:, :N_SEARCHED], coordinates, atol=1e-5)


def test_a_block_with_more_columns_keeps_the_leading_ones() -> None:
    X = np.random.default_rng(0).normal(size=(700, 560)).astype(np.float32)
    axes, coordinates = fit(X)
    assert (axes.rank, coordinates.shape[1]) == (N_AXES, N_SEARCHED)
    expected = by_svd(X)[0].var(axis=0)[:N_AXES]
    np.testing.assert_allclose(axes.transform(X).var(axis=0), expected, rtol=1e-2)


@pytest.mark.parametrize("offset", [4300.0, -4300.0])
def test_a_large_offset_is_forgiven_in_float32(offset: float) -> None:
    """What an attention sink adds to a mean must not eat the digits of the rest."""
    X = features(200, 12, offset=offset)
    found = fit(X)[0].transform(X)
    expected, _ = by_svd(X)
    np.testing.assert_allclose(aligned(found, expected), expected, atol=2e-3)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)


def test_a_block_of_constants_stays_a_block() -> None:
    X = np.full((20, 6), 2.5, np.float32)
    axes, coordinates = fit(X)
    assert (axes.dim, axes.rank, coordinates.shape) == (6, 1, (20, 1))
    others = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    for found in (axes.transform(X), axes.transform(others), coordinates):
        assert (found == 0).all()


def test_constant_columns_play_no_part() -> None:
    X = features(60, 8)
    beside = np.concatenate([X, np.full((60, 8), -4300.1, np.float32)], axis=1)
    found, alone = fit(beside)[0].transform(beside), fit(X)[0].transform(X)
    assert found.shape == alone.shape
    np.testing.assert_allclose(aligned(found, alone) * np.sqrt(2), alone, atol=1e-4)


@pytest.mark.parametrize("X", [features(60, 8), features(9, 14), np.ones((12, 4), np.float32)])
def test_arrays_there_and_back(X: Array) -> None:
    axes, _ = fit(X)
    saved = {name: array.copy() for name, array in axes.arrays().items()}
    assert {array.dtype for array in saved.values()} == {np.dtype(np.float32)}
    again = PrincipalAxes.from_arrays(saved)
    np.testing.assert_array_equal(again.transform(X), axes.transform(X))
    for name, array in saved.items():
        with pytest.raises(FormatError):
            PrincipalAxes.from_arrays({key: saved[key] for key in saved if key != name})
        for changed in (array[None], array.astype(np.float64), array[:-1]):
            with pytest.raises(FormatError):
                PrincipalAxes.from_arrays({**saved, name: changed})


@pytest.mark.parametrize("dim", [0, 7, 9])
def test_embeddings_of_another_size_are_refused(dim: int) -> None:
    axes, _ = fit(features(60, 8))
    with pytest.raises(DataError, match=f"{dim} columns, expected 8 as in training"):
        axes.transform(np.zeros((3, dim), np.float32))
