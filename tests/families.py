"""Tiny random models of every supported family, and a tiny tokenizer, built in code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal, Protocol

import numpy as np
import torch
import transformers as hf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

N_LAYERS = 3
_WORDS = [
    "the", "a", "film", "is", "was", "good", "bad", "great", "awful", "plot", "story", "of",
    "and", "not", "very", "news", "market", "oil", "price", "bank", "trade", "ship", "grain",
]  # fmt: skip
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
VOCABULARY = [*_SPECIAL, *_WORDS, *[f"w{number}" for number in range(64 - len(_WORDS) - 4)]]

_COMMON = {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
}
_GROUPED = {**_COMMON, **_SIZES, "num_key_value_heads": 2, "head_dim": 8}


def _gemma(config: type) -> Any:
    return config(**_GROUPED, sliding_window=16, query_pre_attn_scalar=8)


FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(**_COMMON, **_SIZES),
    "roberta": lambda: hf.RobertaConfig(**_COMMON, **_SIZES),
    "mpnet": lambda: hf.MPNetConfig(**_COMMON, **_SIZES),
    "deberta-v2": lambda: hf.DebertaV2Config(
        **_COMMON, **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm", position_buckets=8, share_att_key=True,
        position_biased_input=False,
    ),
    "deberta-v2-conv": lambda: hf.DebertaV2Config(
        **_COMMON, **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"],
        conv_kernel_size=3, conv_act="gelu",
    ),
    "modernbert": lambda: hf.ModernBertConfig(
        **_COMMON, **_SIZES, cls_token_id=0, sep_token_id=2, local_attention=8
    ),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=len(VOCABULARY), pad_token_id=1, dim=32, hidden_dim=48, n_layers=N_LAYERS,
        n_heads=4, max_position_embeddings=66,
    ),
    "llama": lambda: hf.LlamaConfig(**_GROUPED),
    "qwen2": lambda: hf.Qwen2Config(**{k: v for k, v in _GROUPED.items() if k != "head_dim"}),
    "qwen3": lambda: hf.Qwen3Config(**_GROUPED),
    "gemma2": lambda: _gemma(hf.Gemma2Config),
    "gemma3": lambda: _gemma(hf.Gemma3TextConfig),
    "mistral": lambda: hf.MistralConfig(**_GROUPED, sliding_window=16),
    "falcon": lambda: hf.FalconConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=N_LAYERS,
        num_attention_heads=4, multi_query=True,
    ),
    "falcon-alibi": lambda: hf.FalconConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=N_LAYERS, num_attention_heads=4, alibi=True,
        multi_query=False,
    ),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=66, n_embd=32, n_layer=N_LAYERS, n_head=4,
        bos_token_id=0, eos_token_id=2,
    ),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_COMMON, **_SIZES),
    "opt": lambda: hf.OPTConfig(
        **_COMMON, hidden_size=32, ffn_dim=48, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        max_position_embeddings=66, word_embed_proj_dim=16,
    ),
    "t5": lambda: hf.T5Config(
        vocab_size=len(VOCABULARY), d_model=32, d_kv=8, d_ff=48, num_layers=N_LAYERS, num_heads=4,
        pad_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
}  # fmt: skip


def build_tokenizer(*, pad: bool = True, special: bool = True) -> hf.PreTrainedTokenizerFast:
    """Words split at spaces; ``<s> … </s>`` around a text when ``special``."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"pad_token": "<pad>"} if pad else {}),
    )


def train_tokenizer(
    model: Any, trainer: Any, *, special: Sequence[str] = _SPECIAL, **parts: Any
) -> hf.PreTrainedTokenizerFast:
    """A tokenizer trained on the words of the tiny vocabulary.

    ``model`` and ``trainer`` are of `tokenizers`; ``parts`` are a tokenizer's (pre-tokenizer, ...).
    """
    core = Tokenizer(model)
    for name, part in parts.items():
        setattr(core, name, part)
    core.train_from_iterator([" ".join(_WORDS)] * 3, trainer)
    start, pad, end, unknown = special
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=start, pad_token=pad, eos_token=end, unk_token=unknown
    )


def _byte_level() -> hf.PreTrainedTokenizerFast:
    """For families whose class of tokenizer replaces any other than its own."""
    return train_tokenizer(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=64, special_tokens=_SPECIAL, show_progress=False),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )


def save_model(family: str, folder: Path, *, seed: int = 0, **tokenizer: bool) -> Path:
    """Write a tiny random model of the family, with its tokenizer, as a model folder."""
    torch.manual_seed(seed)
    model = hf.AutoModel.from_config(FAMILIES[family]())
    # Weights of a realistic size: with the default 0.02 all layers would be nearly equal.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    own = _byte_level() if family == "qwen2" else build_tokenizer(**tokenizer)
    own.save_pretrained(folder)
    return folder


def save_gguf(family: Literal["llama", "qwen2"], path: Path) -> None:
    """Write a tiny random model and its tokenizer as a GGUF file."""
    import gguf

    dim, inner, n_heads = 32, 48, 4
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(66)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_heads // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // n_heads)
    words = [*_SPECIAL, "\u2581", *ascii_lowercase, *(f"a{letter}" for letter in ascii_lowercase)]
    words += ["the", "th", "\u2581the", "film", "fi", "lm", "\u2581film"]
    if family == "llama":
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([0.0] * len(words))
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*alphabet, "th", "the", "Ġthe", "<|endoftext|>", "<|im_end|>"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["t h", "th e", "Ġ the"])
        writer.add_token_types([1] * (len(words) - 2) + [3, 3])
        writer.add_bos_token_id(len(words) - 2)
        writer.add_eos_token_id(len(words) - 1)
    writer.add_vocab_size(len(words))
    writer.add_token_list(words)
    half = dim // 2
    block: dict[str, tuple[int, ...]] = {
        "attn_q": (dim, dim), "attn_k": (half, dim), "attn_v": (half, dim),
        "attn_output": (dim, dim), "ffn_gate": (inner, dim), "ffn_up": (inner, dim),
        "ffn_down": (dim, inner), "attn_norm": (dim,), "ffn_norm": (dim,),
    }  # fmt: skip
    shapes = {f"blk.{i}.{name}.weight": own for i in range(N_LAYERS) for name, own in block.items()}
    if family == "qwen2":
        for i, (name, size) in product(range(N_LAYERS), [("q", dim), ("k", half), ("v", half)]):
            shapes[f"blk.{i}.attn_{name}.bias"] = (size,)
    table = (len(words), dim)
    shapes |= {"token_embd.weight": table, "output_norm.weight": (dim,), "output.weight": table}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TinyModels(Protocol):
    """Called with a family of `FAMILIES`, a seed and options of the tokenizer."""

    def __call__(self, family: str, *, seed: int = 0, **tokenizer: bool) -> Path: ...
