"""Block scaling: its laws, and its arrays there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge

from layerfuse.errors import DataError
from layerfuse.fusion import BlockScaler

Array = npt.NDArray[Any]


def blocks(n: int = 200, seed: int = 0) -> list[Array]:
    """A narrow block, a wide one of a larger scale, and one with an offset."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(n, 4)).astype(np.float32),
        (50 * rng.normal(size=(n, 90)) + 3).astype(np.float32),
        (rng.normal(size=(n, 16)) + 4300).astype(np.float32),
    ]


def joined(scaler: BlockScaler, arrays: list[Array]) -> Array:
    return np.concatenate(scaler.transform(arrays), axis=1)


def test_each_block_has_a_total_variance_of_one_and_mean_zero() -> None:
    arrays = blocks()
    scaler = BlockScaler.fit(arrays)
    scaled = scaler.transform(arrays)
    assert [part.shape for part in scaled] == [(200, 4), (200, 90), (200, 16)]
    assert {part.dtype for part in scaled} == {np.dtype(np.float32)}
    assert scaler.dims == (4, 90, 16)
    for part in scaled:
        assert part.var(axis=0, dtype=np.float64).sum() == pytest.approx(1, rel=1e-3)
        np.testing.assert_allclose(part.var(axis=0), 1 / part.shape[1], rtol=1e-2)
        np.testing.assert_allclose(part.mean(axis=0, dtype=np.float64), 0, atol=1e-4)


def test_it_is_standardisation_and_a_scale() -> None:
    arrays = blocks()
    fused = joined(BlockScaler.fit(arrays), arrays)
    exact = [
        (X - X.mean(axis=0)) / X.std(axis=0) / np.sqrt(X.shape[1])
        for X in (array.astype(np.float64) for array in arrays)
    ]
    np.testing.assert_allclose(fused, np.concatenate(exact, axis=1), atol=5e-4)


def test_other_rows_are_scaled_as_the_training_rows_were() -> None:
    arrays = blocks()
    scaler = BlockScaler.fit([array[:100] for array in arrays])
    fused = joined(scaler, arrays)
    np.testing.assert_array_equal(joined(scaler, [array[100:] for array in arrays]), fused[100:])
    one_by_one = [joined(scaler, [array[row : row + 1] for array in arrays]) for row in range(5)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), fused[:5])


def test_a_wide_block_does_not_drown_a_narrow_one() -> None:
    """A narrow block with the signal beside a wide one of noise: the fit still finds it."""
    rng = np.random.default_rng(0)
    signal, target = rng.normal(size=(300, 2)), np.zeros(300)
    target[:] = signal[:, 0]
    wide = 100 * rng.normal(size=(300, 800))
    arrays = [signal.astype(np.float32), wide.astype(np.float32)]
    fused = joined(BlockScaler.fit([array[:200] for array in arrays]), arrays)
    model = Ridge(alpha=2.0).fit(fused[:200], target[:200])
    assert model.score(fused[200:], target[200:]) > 0.8
    plain = np.concatenate(arrays, axis=1, dtype=np.float64)
    unscaled = Ridge(alpha=2.0).fit(plain[:200], target[:200])
    assert unscaled.score(plain[200:], target[200:]) < 0.5


@pytest.mark.parametrize("value", [0.0, 0.1, -4300.1])
def test_constant_columns_become_zero_even_when_they_vary_later(value: float) -> None:
    arrays = [*blocks(), np.full((200, 3), value, np.float32)]
    scaler = BlockScaler.fit(arrays)
    np.testing.assert_array_equal(scaler.transform(arrays)[-1], 0)
    arrays[-1] = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    np.testing.assert_array_equal(scaler.transform(arrays)[-1], 0)


def test_one_row_and_no_rows() -> None:
    arrays = blocks()
    scaler = BlockScaler.fit([array[:1] for array in arrays])
    np.testing.assert_array_equal(joined(scaler, arrays), 0)
    assert joined(BlockScaler.fit(arrays), [array[:0] for array in arrays]).shape == (0, 110)


def test_the_input_is_left_as_it_was() -> None:
    arrays = blocks()
    copies = [array.copy() for array in arrays]
    BlockScaler.fit(arrays).transform(arrays)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_arrays_there_and_back() -> None:
    arrays = blocks()
    scaler = BlockScaler.fit(arrays)
    saved = scaler.arrays()
    assert set(saved) == {f"{name}.{index}" for name in ("mean", "scale") for index in range(3)}
    assert all(array.dtype == np.float32 for array in saved.values())
    again = BlockScaler.from_arrays(saved, 3)
    np.testing.assert_array_equal(joined(again, arrays), joined(scaler, arrays))


def test_other_sizes_are_refused() -> None:
    arrays = blocks()
    scaler = BlockScaler.fit(arrays)
    with pytest.raises(DataError, match=r"sizes \(4, 90\), expected \(4, 90, 16\) as in training"):
        scaler.transform(arrays[:2])
    with pytest.raises(DataError, match=r"sizes \(90, 4, 16\), expected \(4, 90, 16\)"):
        scaler.transform([arrays[1], arrays[0], arrays[2]])
