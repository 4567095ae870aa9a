"""GGUF files are unpacked once; what is kept gives the same values, or is not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from families import save_gguf
from layerfuse import FrozenEncoder
from layerfuse.files import fingerprint_file, write_checksums

pytest.importorskip("gguf")
TEXTS = ["the film was good", "the ship and the grain of the bank", "", "the  the\nthe"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path, dtype: str = "float32") -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(path, device="cpu", dtype=dtype)


def weights(encoder: FrozenEncoder) -> dict[str, torch.Tensor]:
    state = encoder.stack.state_dict()
    return state | {f"buffer {name}": value for name, value in encoder.stack.named_buffers()}


def states(encoder: FrozenEncoder) -> np.ndarray:
    read = encoder.read(encoder.tokenize(TEXTS).ids, "all", ["mean"])
    return np.concatenate(list(read.values()))


def kept(cache: Path, part: str) -> Path:
    (folder,) = cache.glob(f"gguf/{part}-*")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_equals_what_the_file_gives(
    tmp_path: Path, cache: Path, family: str, dtype: str
):
    path = tmp_path / "tiny.gguf"
    save_gguf(family, path)
    direct, again = load(path, dtype), load(path, dtype)
    first, ids = weights(direct), direct.tokenize(TEXTS).ids
    assert sorted(p.name.partition("-")[0] for p in (cache / "gguf").iterdir()) == sorted(
        [dtype, "tokenizer"]
    )
    second = weights(again)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name
    assert again.tokenize(TEXTS).ids == ids
    assert np.array_equal(states(direct), states(again))
    assert again.identity == direct.identity
    assert again.fingerprints == {"weights": fingerprint_file(path)}


@pytest.mark.slow
def test_what_is_kept_is_what_is_read_and_a_damaged_one_is_made_again(tmp_path: Path, cache: Path):
    path = tmp_path / "tiny.gguf"
    save_gguf("llama", path)
    first = weights(load(path))
    file = kept(cache, "float32") / "model.safetensors"
    good = file.read_bytes()
    save_file({k: v * 2 for k, v in load_file(file).items()}, file, {"format": "pt"})
    write_checksums(file.parent)
    (name,) = (key for key in first if key.endswith("embed_tokens.weight"))
    assert torch.equal(weights(load(path))[name], first[name] * 2)
    file.write_bytes(good[:-4] + b"\0\0\0\0")
    assert torch.equal(weights(load(path))[name], first[name])
    assert file.read_bytes() == good


@pytest.mark.parametrize("part", ["float32", "tokenizer"])
def test_checksums_that_are_damaged_are_made_again(tmp_path: Path, cache: Path, part: str):
    path = tmp_path / "tiny.gguf"
    save_gguf("llama", path)
    first = states(load(path))
    sums = kept(cache, part) / "SHA256SUMS"
    good = sums.read_bytes()
    sums.write_bytes(b"\xff\0" + good[2:])
    assert np.array_equal(states(load(path)), first)
    assert sums.read_bytes() == good


def test_another_tokenizer_beside_the_file_is_read(tmp_path: Path, cache: Path):
    path = tmp_path / "tiny.gguf"
    save_gguf("llama", path)
    own = load(path)
    own.tokenize(TEXTS)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    load(path).tokenize(TEXTS)
    assert len(list(cache.glob("gguf/tokenizer-*"))) == 2


def test_without_a_cache_nothing_is_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "tiny.gguf"
    save_gguf("llama", path)
    usual = states(load(path))
    (tmp_path / "a file").touch()
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "a file"))
    assert np.array_equal(states(load(path)), usual)
