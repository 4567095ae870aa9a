"""Weights in eight or four bits: what they need, and how they are counted."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from families import TinyModels
from layerfuse import FrozenEncoder
from layerfuse.encoders.devices import count_parameters, loading_options
from layerfuse.errors import ConfigError, MissingExtraError


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
