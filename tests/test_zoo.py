"""Every family of transformers that can be built small: it is read as by a plain loop, or refused
by name. One of each kind and a sample of the others, or all with LAYERFUSE_ZOO=all (make soak)."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from families import VOCABULARY, build_tokenizer
from layerfuse import FrozenEncoder
from layerfuse.errors import UnsupportedModelError

TEXTS = ["the film is good", "awful", "a very great story of the market " * 4, "oil price"]
MAX_PARAMETERS = 3_000_000
MAX_SAMPLED = 100  # of which some 45 read tokens and are built
# Read block by block: encoders, decoders, encoder-decoders, positions from 2, no limit of tokens,
# a limit of their own, experts, states that begin behind the first block; texts of one length only.
KINDS = {"bert", "gemma3_text", "t5", "bart", "roberta", "recurrent_gemma", "big_bird", "mixtral"}
KINDS |= {"mamba", "rwkv", "convbert", "fnet", "yoso"}
# Read as a whole: shared blocks, towers of text, own loops, an order of its own; refused.
KINDS |= {"albert", "siglip", "aimv2", "xlm", "longformer", "led", "fsmt", "xlnet"}
KINDS |= {"qwen2_5_vl", "bros", "xmod", "hy_v4"}
SIZES = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embedding_size"), 32)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "dff", "hidden_dim"), 48)
    | dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 48)
    | dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 3)
    | dict.fromkeys(("encoder_layers", "num_encoder_layers"), 3)
    | dict.fromkeys(("decoder_layers", "num_decoder_layers"), 2)
    | dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4)
    | dict.fromkeys(("attention_heads", "encoder_attention_heads", "decoder_attention_heads"), 4)
    | dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 80)
    | dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 80)
    | dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "rotary_dim"), 4)
    | dict.fromkeys(("head_dim", "d_kv", "d_head", "sliding_window", "v_head_dim"), 8)
    | dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"), 8)
    | {"vocab_size": len(VOCABULARY), "num_key_value_heads": 2, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 24, "attention_window": 8, "sep_token_id": 2, "cls_token_id": 0}
)
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}


def small(config: Any, depth: int = 0) -> dict[str, Any]:
    """Arguments that make a family's configuration small, parts included."""
    known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map)
    values = {name: size for name, size in SIZES.items() if name in known} | TOKENS
    if "kv_lora_rank" in known:  # keys and values of all heads come from one latent
        values["num_key_value_heads"] = values["num_attention_heads"]
    parts = config.sub_configs if depth < 2 else {}
    return values | {
        name: small(part, depth + 1) for name, part in parts.items() if part is not hf.AutoConfig
    }


def build(family: str) -> Any:
    """A tiny random model that reads tokens; None where these sizes do not make one."""
    try:
        config = CONFIG_MAPPING[family](**small(CONFIG_MAPPING[family]))
        with torch.device("meta"):
            model = hf.AutoModel.from_config(config)
    except Exception:
        return None
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > MAX_PARAMETERS or model.main_input_name != "input_ids":
        return None
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(0.0, 0.2)
    return model


def deviation(encoder: FrozenEncoder, folder: Path) -> float:
    """The largest difference from the whole model's own states, text by text; where it does not
    read texts alone, from those of its text stack."""
    ids = encoder.tokenize(TEXTS).ids
    found = encoder.read(ids, "all", ("mean", "last"))
    first = encoder.architecture.traits.first
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    largest = 0.0
    for row, tokens in enumerate(ids):
        inputs = {"input_ids": torch.tensor([tokens]), "output_hidden_states": True}
        with torch.inference_mode():
            try:
                states = model(**inputs).hidden_states
            except (ValueError, TypeError, AttributeError, RuntimeError):
                states = encoder.stack(**inputs, use_cache=False).hidden_states
        assert len(states) == encoder.n_layers + 1
        for number, state in enumerate(states):
            layer = min(number + first, encoder.n_layers)
            if number < layer == encoder.n_layers and first and state is not states[-1]:
                continue  # before the final norm
            own = state[0, : len(tokens)].float()
            expected = torch.stack([own.mean(dim=0), own[-1]]).numpy()
            scale = max(1.0, float(np.abs(expected).max()))
            largest = max(largest, float(np.abs(found[layer][row] - expected).max()) / scale)
    return largest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_each_is_read_as_by_a_plain_loop_or_refused_by_name(tmp_path: Path):
    families = sorted(MODEL_MAPPING_NAMES)
    if os.environ.get("LAYERFUSE_ZOO") != "all":
        chosen = np.random.default_rng(0).choice(families, MAX_SAMPLED, replace=False)
        families = sorted({*map(str, chosen), *KINDS.intersection(families)})
    faults, read, refused = {}, [], []
    for family in families:
        model = build(family)
        if model is None:
            continue
        folder = tmp_path / family
        model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        encoder = FrozenEncoder.from_pretrained(folder, name="tiny", device="cpu", dtype="float32")
        try:
            if (largest := deviation(encoder, folder)) > 1e-4:
                faults[family] = largest
            read.append(family)
        except UnsupportedModelError as error:
            refused.append(family)
            if "tiny" not in str(error) and str(folder) not in str(error):
                faults[family] = repr(error)
        except Exception as error:
            faults[family] = repr(error)
    assert not faults
    assert len(read) > 2 * len(refused)
    assert len(read) > MAX_SAMPLED / 5
