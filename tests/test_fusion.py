"""The block-scaled concatenation: its laws, and its arrays there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge

from layerfuse.errors import DataError
from layerfuse.fusion import Concat

Array = npt.NDArray[Any]


def blocks(n: int = 200, seed: int = 0) -> list[Array]:
    """A narrow block, a wide one of a larger scale, and one with an offset."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(n, 4)).astype(np.float32),
        (50 * rng.normal(size=(n, 90)) + 3).astype(np.float32),
        (rng.normal(size=(n, 16)) + 4300).astype(np.float32),
    ]


def test_each_block_has_a_total_variance_of_one_and_mean_zero() -> None:
    arrays = blocks()
    fusion = Concat.fit(arrays)
    fused = fusion.transform(arrays)
    assert fused.shape == (200, 110)
    assert fused.dtype == np.float32
    assert fusion.dims == (4, 90, 16)
    for part in np.split(fused, [4, 94], axis=1):
        assert part.var(axis=0, dtype=np.float64).sum() == pytest.approx(1, rel=1e-3)
        np.testing.assert_allclose(part.var(axis=0), 1 / part.shape[1], rtol=1e-2)
        np.testing.assert_allclose(part.mean(axis=0, dtype=np.float64), 0, atol=1e-4)


def test_it_is_standardisation_and_a_scale() -> None:
    arrays = blocks()
    fused = Concat.fit(arrays).transform(arrays)
    exact = [
        (X - X.mean(axis=0)) / X.std(axis=0) / np.sqrt(X.shape[1])
        for X in (array.astype(np.float64) for array in arrays)
    ]
    np.testing.assert_allclose(fused, np.concatenate(exact, axis=1), atol=5e-4)


def test_other_rows_are_scaled_as_the_training_rows_were() -> None:
    arrays = blocks()
    fusion = Concat.fit([array[:100] for array in arrays])
    fused = fusion.transform(arrays)
    np.testing.assert_array_equal(fusion.transform([array[100:] for array in arrays]), fused[100:])
    one_by_one = [fusion.transform([array[row : row + 1] for array in arrays]) for row in range(5)]
    np.testing.assert_array_equal(np.concatenate(one_by_one), fused[:5])


def test_a_wide_block_does_not_drown_a_narrow_one() -> None:
    """A narrow block with the signal beside a wide one of noise: the fit still finds it."""
    rng = np.random.default_rng(0)
    signal, target = rng.normal(size=(300, 2)), np.zeros(300)
    target[:] = signal[:, 0]
    wide = 100 * rng.normal(size=(300, 800))
    arrays = [signal.astype(np.float32), wide.astype(np.float32)]
    fused = Concat.fit([array[:200] for array in arrays]).transform(arrays)
    model = Ridge(alpha=2.0).fit(fused[:200], target[:200])
    assert model.score(fused[200:], target[200:]) > 0.8
    plain = np.concatenate(arrays, axis=1, dtype=np.float64)
    unscaled = Ridge(alpha=2.0).fit(plain[:200], target[:200])
    assert unscaled.score(plain[200:], target[200:]) < 0.5


@pytest.mark.parametrize("value", [0.0, 0.1, -4300.1])
def test_constant_columns_become_zero_even_when_they_vary_later(value: float) -> None:
    arrays = [*blocks(), np.full((200, 3), value, np.float32)]
    fusion = Concat.fit(arrays)
    np.testing.assert_array_equal(fusion.transform(arrays)[:, -3:], 0)
    arrays[-1] = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    np.testing.assert_array_equal(fusion.transform(arrays)[:, -3:], 0)


def test_one_row_and_no_rows() -> None:
    arrays = blocks()
    fusion = Concat.fit([array[:1] for array in arrays])
    np.testing.assert_array_equal(fusion.transform(arrays), 0)
    assert Concat.fit(arrays).transform([array[:0] for array in arrays]).shape == (0, 110)


def test_the_input_is_left_as_it_was() -> None:
    arrays = blocks()
    copies = [array.copy() for array in arrays]
    Concat.fit(arrays).transform(arrays)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_arrays_there_and_back() -> None:
    arrays = blocks()
    fusion = Concat.fit(arrays)
    saved = fusion.arrays()
    assert set(saved) == {f"{name}.{index}" for name in ("mean", "scale") for index in range(3)}
    assert all(array.dtype == np.float32 for array in saved.values())
    again = Concat.from_arrays(saved, 3)
    np.testing.assert_array_equal(again.transform(arrays), fusion.transform(arrays))


def test_other_sizes_are_refused() -> None:
    arrays = blocks()
    fusion = Concat.fit(arrays)
    with pytest.raises(DataError, match=r"sizes \(4, 90\), expected \(4, 90, 16\) as in training"):
        fusion.transform(arrays[:2])
    with pytest.raises(DataError, match=r"sizes \(90, 4, 16\), expected \(4, 90, 16\)"):
        fusion.transform([arrays[1], arrays[0], arrays[2]])
