"""Faster linear layers, attention and norms give the values of the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from families import FAMILIES, VOCABULARY, TinyModels, build_tokenizer
from helpers import sentences
from layerfuse import FrozenEncoder
from layerfuse.encoders import devices, frozen
from layerfuse.pooling import POOLINGS

WITH_RMS_NORMS = {"llama", "mistral", "qwen2", "qwen3", "t5"}
"""Gemma's add 1 to the weight, and so are left as they are."""


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Opens encoders that run PyTorch's own kernels."""

    def opened(folder: Any, **options: Any) -> FrozenEncoder:
        with monkeypatch.context() as patch:
            patch.setattr(frozen, "pack_linears", lambda stack: 0)
            patch.setattr(frozen, "use_plain_attention", lambda stack: False)
            encoder = FrozenEncoder.from_pretrained(folder, device="cpu", **options)
            assert encoder.stack is not None  # loads it
            return encoder

    return opened


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_torch(tiny: TinyModels, plain_torch: Any, family: str, dtype: str):
    ours = FrozenEncoder.from_pretrained(tiny(family), device="cpu", dtype=dtype)
    peer = plain_torch(tiny(family), dtype=dtype)
    exact = plain_torch(tiny(family), dtype="float32")
    ids, poolings = ours.tokenize(sentences(12, longest=30)).ids, tuple(POOLINGS)
    for rows in (ids, [ids[0]] * 3):  # with and without padding
        mine, theirs, true = (each.read(rows, "all", poolings) for each in (ours, peer, exact))
        for layer, array in theirs.items():
            if dtype == "float32":
                np.testing.assert_allclose(mine[layer], array, atol=2e-5)
                continue
            size = np.abs(true[layer]).max()
            error, allowed = (np.abs(x[layer] - true[layer]).mean() / size for x in (mine, theirs))
            assert error < 1.5 * allowed + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", sorted(WITH_RMS_NORMS | {"bert", "gemma3"}))
def test_fused_norms_are_as_near_to_the_truth(
    tiny: TinyModels, plain_torch: Any, family: str, dtype: str
):
    ours, peer = (plain_torch(tiny(family), dtype=dtype) for _ in range(2))
    exact = plain_torch(tiny(family), dtype="float32")
    n_fused = devices.fuse_norms(ours.stack)
    assert bool(n_fused) == (family in WITH_RMS_NORMS)
    ids = ours.tokenize(sentences(12, longest=30)).ids
    mine, theirs, true = (each.read(ids, "all", ("mean", "last")) for each in (ours, peer, exact))
    for layer, array in theirs.items():
        size = np.abs(true[layer]).max()
        error, allowed = (np.abs(x - true[layer]).mean() / size for x in (mine[layer], array))
        assert error < 1.5 * allowed + 1e-3


class _Norm(torch.nn.Module):
    """An RMS norm whose weight is everywhere the same."""

    variance_epsilon = 1e-5

    def __init__(self, dim: int = 4096, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((dim,), weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


class _Centered(_Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class _OverAll(_Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.pow(2).mean() + 1e-5).rsqrt()


class _OfMatrices(_Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.ndim == 2
        return super().forward(x)


class _OtherEpsilon(_Norm):
    variance_epsilon = 1e-6


class _InFloat32(_Norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).float()


class _Gated(_Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * gate)


class _AlwaysGated(_Norm):
    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(x * gate)


@pytest.mark.parametrize("weight", [1.0, 0.01, 0.0])
def test_norms_of_another_kind_stay(weight: float):
    kinds = [_Centered, _OverAll, _OfMatrices, _OtherEpsilon, _Gated, _AlwaysGated]
    for kind in kinds if weight else kinds[-2:]:
        norm = kind(weight=weight)
        assert devices.fuse_norms(torch.nn.Sequential(norm)) == 0, kind
        assert "forward" not in vars(norm)
    assert devices.fuse_norms(_InFloat32(weight=weight).bfloat16()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [1.0, 0.01, 0.0])
def test_rms_norms_of_any_weight_are_fused(weight: float, dtype: torch.dtype):
    assert devices.fuse_norms(_Norm(weight=weight).to(dtype)) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of kernels that are not there
def test_models_of_gated_norms_are_read(tmp_path: Path, plain_torch: Any):
    config = hf.Mamba2Config(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8,
        n_groups=1, state_size=8, chunk_size=8, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    hf.AutoModel.from_config(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    encoder = plain_torch(tmp_path, dtype="float32")
    ids = encoder.tokenize(sentences(3)).ids
    expected = encoder.read(ids, "all", ["mean"])
    assert devices.fuse_norms(encoder.stack) == 3  # those before the mixers and the last
    for layer, array in encoder.read(ids, "all", ["mean"]).items():
        np.testing.assert_allclose(array, expected[layer], atol=1e-5)


@pytest.mark.slow
def test_linear_layers_are_packed(tiny: TinyModels):
    encoder = FrozenEncoder.from_pretrained(tiny("llama"), device="cpu", dtype="float32")
    linears = [m for m in encoder.stack.modules() if type(m) is torch.nn.Linear]
    assert linears
    assert all("forward" in module.__dict__ for module in linears)


def test_large_models_keep_one_copy(tiny: TinyModels, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "_MAX_BYTES", 100)
    encoder = FrozenEncoder.from_pretrained(tiny("llama"), device="cpu", dtype="float32")
    assert not any("forward" in module.__dict__ for module in encoder.stack.modules())


@pytest.mark.parametrize("tiles", [False, True])
def test_plain_attention_is_for_bfloat16_without_tile_units(
    tiny: TinyModels, tiles: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles})

    def chosen(dtype: str) -> str:
        encoder = FrozenEncoder.from_pretrained(tiny("llama"), device="cpu", dtype=dtype)
        return str(encoder.stack.config._attn_implementation)

    assert chosen("bfloat16") == ("sdpa" if tiles else devices._PLAIN_ATTENTION)
    assert chosen("float32") == "sdpa"
