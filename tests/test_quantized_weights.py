"""Weights in eight or four bits: what they need, and how they are counted."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from families import FAMILIES, TinyModels
from helpers import Notes, sentences
from layerfuse import FrozenEncoder
from layerfuse.encoders import devices
from layerfuse.encoders.devices import count_parameters, loading_options
from layerfuse.encoders.int8 import computes_int8, quantize_linears
from layerfuse.errors import ConfigError, MissingExtraError

WITHOUT_LINEAR_LAYERS = {"falcon", "falcon-alibi", "gpt2"}
"""Their products are classes of their own."""

needs_int8 = pytest.mark.skipif(not computes_int8(), reason="this CPU does not multiply 8 bits")


def test_quantized_weights_need_cuda_and_their_package(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match="'nf4' needs a CUDA device"):
        FrozenEncoder.from_pretrained(tiny("bert"), dtype="nf4", device="cpu")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"layerfuse\[quantized\]"):
        loading_options("int8", "cuda")


def test_packed_weights_count_as_what_they_stand_for():
    packed = torch.nn.Parameter(torch.zeros(8, 1), requires_grad=False)
    assert count_parameters(packed) == 8
    packed.quant_state = SimpleNamespace(shape=torch.Size([4, 4]))
    assert count_parameters(packed) == 16


@needs_int8
@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_LINEAR_LAYERS))
def test_8_bits_on_the_cpu_are_near_the_truth_whatever_the_batch(tiny: TinyModels, family: str):
    rounded, half, exact = (
        FrozenEncoder.from_pretrained(tiny(family), device="cpu", dtype=dtype)
        for dtype in ("int8", "bfloat16", "float32")
    )
    ids = exact.tokenize(sentences(12, longest=30)).ids
    cut = FrozenEncoder.from_pretrained(tiny(family), device="cpu", dtype="int8").truncate(1)
    np.testing.assert_array_equal(*(own.read(ids, 1, ("mean",))[1] for own in (rounded, cut)))
    found, allowed, true = (own.read(ids, "all", ("mean",)) for own in (rounded, half, exact))
    for row in (0, 5):
        alone = rounded.read([ids[row]], "all", ("mean",))
        for layer, states in true.items():
            size = np.abs(states).mean()
            error, of_half = (np.abs(own[layer] - states).mean() / size for own in (found, allowed))
            assert error < 0.04
            assert error != of_half or not layer  # the blocks did compute in 8 bits
            assert np.abs(alone[layer][0] - found[layer][row]).mean() < 2 * of_half * size


@needs_int8
def test_large_states_of_few_dimensions_cost_no_accuracy():
    """As sentence encoders have them: rounded as they are, all else would become zero."""
    random = torch.Generator().manual_seed(0)
    states = torch.randn((64, 32), generator=random)
    states[:, 3] *= 1000
    linear = torch.nn.Linear(32, 16, bias=False)
    linear.weight.data = torch.randn((16, 32), generator=random)
    linear.weight.data[:, 3] /= 1000
    with torch.inference_mode():
        true = linear(states)
        assert quantize_linears(linear, torch.float32, lambda: linear(states)) == 1
        error = (linear(states) - true).norm() / true.norm()
    assert error < 0.02


@needs_int8
def test_who_shares_states_sees_what_they_are_now():
    """Layers that read one tensor share what was rounded, unless it was changed in between."""
    random = torch.Generator().manual_seed(0)
    one, two, three = (torch.nn.Linear(32, 16) for _ in range(3))
    states = torch.randn((8, 32), generator=random)

    def run(states: torch.Tensor) -> list[torch.Tensor]:
        found = [one(states), two(states)]
        states += 3
        return [*found, three(states), one(states)]

    with torch.inference_mode():
        true = run(states.clone())
        stack = torch.nn.ModuleList([one, two, three])
        assert quantize_linears(stack, torch.float32, lambda: run(states.clone())) == 3
        for own, expected in zip(run(states.clone()), true, strict=True):
            assert (own - expected).norm() / expected.norm() < 0.02
        before = states.clone()
        one(states)
        assert torch.equal(states, before)
        assert torch.equal(one(states[0]), one(states)[0])
        assert one(states[:0]).shape == (0, 16)


@needs_int8
@pytest.mark.parametrize("family", sorted(WITHOUT_LINEAR_LAYERS))
def test_models_without_linear_layers_say_so(tiny: TinyModels, family: str):
    notes = Notes()
    encoder = FrozenEncoder.from_pretrained(
        tiny(family), device="cpu", dtype="int8", reporter=notes
    )
    encoder.stack  # noqa: B018  # loads it
    assert notes.about("no linear layers")
    assert encoder.identity["dtype"] != "int8"  # which is bitsandbytes'


def test_a_cpu_that_cannot_multiply_8_bits_is_named(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(devices, "computes_int8", lambda: False)
    with pytest.raises(ConfigError, match="CPU that multiplies 8 bits"):
        FrozenEncoder.from_pretrained(tiny("bert"), dtype="int8", device="cpu")
