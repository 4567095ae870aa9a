"""Packages' own formats become model folders: the weights are those that were written."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

from families import N_LAYERS, build_tokenizer
from layerfuse import FrozenEncoder
from layerfuse.data.conversion import CONVERTERS
from layerfuse.encoders import check_encoder

Arrays = dict[str, npt.NDArray[np.float32]]
_E5 = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi", "output.dense": "fo", "output.LayerNorm": "oln",
    "word_embeddings": "word", "position_embeddings": "pos", "token_type_embeddings": "type",
    "LayerNorm": "ln",
}  # fmt: skip


def coarse(model: torch.nn.Module) -> Arrays:
    """The model's weights, made small whole numbers by sixteenths: exact in 4 bits and float16."""
    random = np.random.default_rng(0)
    found = {}
    for name, tensor in model.state_dict().items():
        values = random.integers(-8, 8, tuple(tensor.shape)).astype(np.float32) / 16
        values.reshape(-1)[::32] = -0.5  # each block of 32 has the lowest number
        found[name] = values
    return found


def tokenizer_file(folder: Path) -> None:
    """A tokenizer that, like some packaged ones, cuts and pads of its own accord."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def q4_0(values: npt.NDArray[np.float32]) -> bytes:
    """Blocks of 32 numbers: a scale, then halves of bytes, the second sixteen in the upper ones."""
    blocks = np.round(values.reshape(-1, 32) * 16 + 8).astype(np.uint8)
    packed = blocks[:, :16] | blocks[:, 16:] << 4
    scales = np.full((len(blocks), 1), 1 / 16, np.float16).view(np.uint8)
    return np.concatenate([scales, packed], axis=1).tobytes()


def write_e5(path: Path, weights: Arrays, config: hf.BertConfig) -> None:
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
             config.intermediate_size, config.vocab_size, config.max_position_embeddings,
             config.type_vocab_size)  # fmt: skip
    head = b"E5S1" + struct.pack("<I7ifi", 1, *sizes, 1e-12, 32)
    head += struct.pack("<5iQ", 2, 0, 2, 1, 3, 3) + struct.pack("<3I2f", 0, 1, 3, 0, 0) + b"abc"
    head += struct.pack("<iI", 0, 5) + b"extra"
    entries = []
    for name, values in weights.items():
        *place, last = name.removeprefix("encoder.").removeprefix("embeddings.").split(".")
        where = "emb" if name.startswith("embeddings") else f"l{place[1]}"
        part = _E5[".".join(place[2:] if place[0] == "layer" else place)]
        ending = "" if part in ("word", "pos", "type") else f".{last[0]}"
        packed = values.ndim == 2 and part not in ("pos", "type")
        entries.append((f"{where}.{part}{ending}", packed, values))
    head += struct.pack("<i", len(entries))
    start = len(head) + sum(2 + len(name) + 21 for name, _, _ in entries)
    body = b""
    for name, packed, values in entries:
        raw = q4_0(values) if packed else values.tobytes()
        place_of = struct.pack("<BIQQ", packed, values.size, start + len(body), len(raw))
        head += struct.pack("<H", len(name)) + name.encode() + place_of
        body += raw
    path.write_bytes(head + body)


def check(folder: Path, expected: Mapping[str, npt.NDArray[np.float32]]) -> FrozenEncoder:
    """The folder holds just these weights, and is one that can be read."""
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), values, err_msg=name)
    encoder = FrozenEncoder.from_pretrained(folder, device="cpu", dtype="float32")
    assert all(outcome.ok for outcome in check_encoder(encoder))
    return encoder


def folders(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    target.mkdir()
    return source, target


def test_e5(tmp_path: Path):
    source, target = folders(tmp_path)
    config = hf.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=N_LAYERS,
        num_attention_heads=4, max_position_embeddings=66,
    )  # fmt: skip
    weights = coarse(hf.BertModel(config, add_pooling_layer=False))
    write_e5(source / "e5-small-q4.bin", weights, config)
    tokenizer_file(source)
    CONVERTERS["e5"](source, target)
    encoder = check(target, weights)
    assert (encoder.n_layers, encoder.dim) == (N_LAYERS, 32)
    assert [len(ids) for ids in encoder.tokenize(["the film was very good", "oil"]).ids] == [7, 3]


_NOMIC = {
    "embeddings.word_embeddings": "token_embd", "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "attn_output_norm", "mlp.up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down",
    "post_mlp_layernorm": "layer_output_norm",
}  # fmt: skip


def test_nomic(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    source, target = folders(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "##s", "[", "]", "[a"]
    spelled = [*words[:5], "\u2581the", "\u2581film", "s", "\u2581[", "\u2581]", "\u2581[a"]
    config = hf.NomicBertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_attention_heads=4,
        head_dim=8, num_hidden_layers=N_LAYERS, max_position_embeddings=66,
    )  # fmt: skip
    weights = coarse(hf.NomicBertModel(config))
    writer = gguf.GGUFWriter(source / "any.gguf", "nomic-bert")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(66)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_rope_freq_base(1000.0)
    writer.add_token_list(spelled)
    for name, values in weights.items():
        place, _, kind = name.rpartition(".")
        layer = ""
        if place.startswith("layers."):
            _, number, place = place.split(".", 2)
            layer = f"blk.{number}."
        if place == "self_attn.q_proj":
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            writer.add_tensor(f"{layer}attn_qkv.weight", np.concatenate(parts).astype(np.float16))
        elif place in _NOMIC:
            wide = values if values.ndim == 1 else values.astype(np.float16)
            writer.add_tensor(f"{layer}{_NOMIC[place]}.{kind}", wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    CONVERTERS["nomic"](source, target)
    encoder = check(target, weights)
    assert (target / "vocab.txt").read_text().split("\n") == [*words, ""]
    assert encoder.tokenize(["The films"]).ids == [[2, 5, 6, 7, 3]]


def write_t5(path: Path, weights: Arrays) -> None:
    """As onnxruntime quantizes: embeddings unsigned, products signed and named by numbers."""
    onnx = pytest.importorskip("onnx")
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    nodes = []
    for number, (name, values) in enumerate(weights.items()):
        own = name.replace("shared", "encoder.embed_tokens").replace("encoder.", "enc.", 1)
        if values.ndim == 1:
            tensors[own] = values
            continue
        is_product = own.startswith("enc.block") and "bias" not in own
        zero, dtype = (-3, np.int8) if is_product else (140, np.uint8)
        if is_product:
            place = "/" + own.replace(".", "/").removesuffix("/weight")
            place = place.replace("/block/", "/block.").replace("/layer/", "/layer.")
            own, values = f"onnx::MatMul_{number}", values.T
            inputs, named = ["x", f"{own}_quantized", "z", "y"], f"{place}/MatMul_quant"
            nodes.append(onnx.helper.make_node("MatMulInteger", inputs, ["out"], named))
        tensors[f"{own}_quantized"] = np.round(values * 16 + zero).astype(dtype)
        tensors[f"{own}_scale"] = np.array(1 / 16, np.float32)
        tensors[f"{own}_zero_point"] = np.array(zero, dtype)
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], stored)), path)


def test_flan_t5(tmp_path: Path):
    source, target = folders(tmp_path)
    config = hf.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=N_LAYERS, num_heads=4,
        feed_forward_proj="gated-gelu", num_decoder_layers=0,
    )  # fmt: skip
    weights = coarse(hf.T5EncoderModel(config))
    weights.pop("encoder.embed_tokens.weight", None)
    write_t5(source / "encoder.onnx", weights)
    tokenizer_file(source)
    CONVERTERS["flan-t5"](source, target)
    encoder = check(target, weights)
    assert json.loads((target / "config.json").read_text())["d_kv"] == 8
    assert [len(ids) for ids in encoder.tokenize(["the film was very good", "oil"]).ids] == [7, 3]
