"""Poolings of padded batches against numpy, text by text; and what a new one needs."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from families import TinyModels
from layerfuse import BlockRef, FrozenEncoder, extract
from layerfuse.encoders import check_encoder
from layerfuse.errors import ConfigError
from layerfuse.pooling import POOLINGS, Pooler, Reduction
from test_encoder_parity import plain_pool

LENGTHS = (1, 5, 2, 7)
NAMES = tuple(POOLINGS)


def batch(side: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """States (batch, tokens, dim), padded with huge values, and the mask."""
    torch.manual_seed(0)
    states = torch.randn(len(LENGTHS), max(LENGTHS), 6).to(dtype)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    mask = mask.flip(1) if side == "left" else mask
    return states.masked_fill(~mask[..., None], 1e4), mask


def expected(states: torch.Tensor, mask: torch.Tensor) -> npt.NDArray[np.float64]:
    texts = [row[own] for row, own in zip(states, mask, strict=True)]
    return np.array([[plain_pool(text, name) for name in NAMES] for text in texts])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_alone_and_any_two_together(side: str, dtype: torch.dtype) -> None:
    states, mask = batch(side, dtype)
    wanted = expected(states, mask)
    for some in (*itertools.permutations(range(len(NAMES)), 2), [0], [1], [2], [3], [4], [5]):
        pooled = Pooler(mask, [NAMES[index] for index in some])(states)
        assert pooled.dtype == torch.float32
        np.testing.assert_allclose(pooled.numpy(), wanted[:, list(some)], atol=1e-5)


@pytest.mark.parametrize("name", ["cls", "last", "max"])
def test_only_means_copy_the_states_to_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states, mask = batch("right", torch.bfloat16)
    sizes = []
    convert = torch.Tensor.float
    monkeypatch.setattr(
        torch.Tensor, "float", lambda self: (sizes.append(self.numel()), convert(self))[1]
    )
    Pooler(mask, (name,))(states)
    assert sizes == [states[:, 0].numel()]


def test_a_new_pooling_is_one_entry(tiny: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(states: torch.Tensor, padding: tuple[torch.Tensor, ...]) -> torch.Tensor:
        lowest = states.index_put(padding, states.new_full((), float("inf"))).amin(dim=1)
        return states.index_put(padding, states.new_full((), -float("inf"))).amax(dim=1) - lowest

    monkeypatch.setitem(POOLINGS, "range", Reduction(spread))
    encoder = FrozenEncoder.from_pretrained(
        tiny("bert"), device="cpu", dtype="float32", layers=[2], pooling=("range", "max")
    )
    block = BlockRef.parse("bert:2:range")
    assert encoder.candidates == (block, BlockRef("bert", 2, "max"))
    texts = ["good", "the film is bad"]
    (states,) = (
        encoder.stack(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[2][0]
        for row in encoder.tokenize(texts[1:]).ids
    )
    values = extract(texts, encoder, [2], "range")[block]
    np.testing.assert_allclose(values[1], np.ptp(states.numpy(), axis=0), atol=1e-5)
    assert all(check.ok for check in check_encoder(encoder))


def test_unknown_names_are_refused_everywhere(tiny: TinyModels) -> None:
    encoder = FrozenEncoder.from_pretrained(tiny("bert"), device="cpu", dtype="float32")
    for use in (
        lambda: Pooler(torch.ones(1, 2, dtype=torch.bool), ("maen",)),
        lambda: encoder.read([[3]], "all", ("maen",)),
        lambda: BlockRef.parse("bert:2:maen"),
        lambda: FrozenEncoder.from_pretrained(tiny("bert"), pooling="maen"),
    ):
        with pytest.raises(ConfigError, match=r"Unknown pooling 'maen'\. Choose from mean, cls,"):
            use()
