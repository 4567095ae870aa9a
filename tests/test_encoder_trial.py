"""What a trial finds out when a model is first loaded: its states, its dtype, its batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from families import _COMMON, _GROUPED, _SIZES, FAMILIES, TinyModels, build_tokenizer, save_model
from helpers import Notes, sentences
from layerfuse import EmbeddingStore, FrozenEncoder, extract
from layerfuse.encoders import check_encoder, devices
from layerfuse.errors import UnsupportedModelError
from layerfuse.files import cache_dir
from layerfuse.pooling import POOLINGS

pytestmark = pytest.mark.slow

V = _COMMON["vocab_size"]
VISION = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
SEQ2SEQ = {
    **_COMMON, "d_model": 32, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 66, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4,
    "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
GEMMA = {**_GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
LONG = {**_SIZES, "max_position_embeddings": 130}

PADDED_OTHERWISE: dict[str, Callable[[], Any]] = {
    "fnet": lambda: hf.FNetConfig(
        **_COMMON, hidden_size=32, num_hidden_layers=3, intermediate_size=48,
        max_position_embeddings=66,
    ),
    "convbert": lambda: hf.ConvBertConfig(
        **_COMMON, **_SIZES, embedding_size=32, head_ratio=2, conv_kernel_size=3
    ),
    "mobilebert": lambda: hf.MobileBertConfig(
        **_COMMON, **_SIZES, embedding_size=16, true_hidden_size=32, use_bottleneck=False
    ),
    "yoso": lambda: hf.YosoConfig(**_COMMON, **_SIZES, use_expectation=True),
    "nystromformer": lambda: hf.NystromformerConfig(
        **_COMMON, **_SIZES, num_landmarks=64, segment_means_seq_len=64, conv_kernel_size=3
    ),
    "reformer": lambda: hf.ReformerConfig(
        **_COMMON, hidden_size=32, attn_layers=["local"] * 3, num_attention_heads=4,
        attention_head_size=8, feed_forward_size=48, local_attn_chunk_length=4,
        axial_pos_embds=False, max_position_embeddings=66,
    ),
}  # fmt: skip
OTHER_STATES: dict[str, Callable[[], Any]] = {
    "longformer": lambda: hf.LongformerConfig(
        **_COMMON, **LONG, attention_window=[8] * 3, sep_token_id=2
    ),
    "led": lambda: hf.LEDConfig(
        **{name: value for name, value in SEQ2SEQ.items() if name != "max_position_embeddings"},
        max_encoder_position_embeddings=130, max_decoder_position_embeddings=66,
        attention_window=8,
    ),
    "bigbird": lambda: hf.BigBirdConfig(
        **_COMMON, **{**_SIZES, "max_position_embeddings": 256}, block_size=4, num_random_blocks=1
    ),
    "xlnet": lambda: hf.XLNetConfig(**_COMMON, d_model=32, n_layer=3, n_head=4, d_inner=48),
    "squeezebert": lambda: hf.SqueezeBertConfig(
        **_COMMON, **_SIZES, embedding_size=32, q_groups=1, k_groups=1, v_groups=1,
        post_attention_groups=1, intermediate_groups=1, output_groups=1,
    ),
    "layoutlm": lambda: hf.LayoutLMConfig(**_COMMON, **_SIZES),
    "fsmt": lambda: hf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=V, tgt_vocab_size=V, d_model=32, encoder_layers=3,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=66,
    ),
    "mamba": lambda: hf.MambaConfig(
        **_COMMON, hidden_size=32, state_size=4, num_hidden_layers=3
    ),
    "bart": lambda: hf.BartConfig(**SEQ2SEQ),
    "marian": lambda: hf.MarianConfig(**SEQ2SEQ),
    "switch": lambda: hf.SwitchTransformersConfig(
        vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_sparse_encoder_layers=1,
        num_heads=4, num_experts=4, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
    "t5gemma": lambda: hf.T5GemmaConfig(encoder=GEMMA, decoder=GEMMA),
    "clip": lambda: hf.CLIPConfig(text_config={**_COMMON, **_SIZES}, vision_config=VISION),
}  # fmt: skip
MULTIMODAL: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: hf.Gemma3Config(text_config=GEMMA, vision_config=VISION),
    "llava": lambda: hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_GROUPED), vision_config=hf.CLIPVisionConfig(**VISION)
    ),
    "mistral3": lambda: hf.Mistral3Config(
        text_config=hf.MistralConfig(**_GROUPED),
        vision_config=hf.PixtralVisionConfig(**VISION, head_dim=8),
    ),
    "qwen2-vl": lambda: hf.Qwen2VLConfig(
        text_config={
            **{name: value for name, value in _GROUPED.items() if name != "head_dim"},
            "rope_parameters": MROPE,
        },
        vision_config={
            "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2,
        },
    ),
}  # fmt: skip
ALL = PADDED_OTHERWISE | OTHER_STATES | MULTIMODAL


def save(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = hf.AutoModel.from_config(ALL[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path, **options: Any) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(
        folder, name="tiny", **{"device": "cpu", "dtype": "float32"} | options
    )


def plain(folder: Path, ids: list[list[int]]) -> list[dict[int, np.ndarray]]:
    """Each text's own states, (tokens, dim), by layer: of the whole model, or its text encoder.

    Mamba's first state is what its first block gives, all others' what it receives.
    """
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    stack = model.get_encoder() if model.config.is_encoder_decoder else model
    stack = getattr(stack, "text_model", stack)
    first = int(model.config.model_type == "mamba")
    found = []
    for row in ids:
        with torch.inference_mode():
            states = stack(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        states = [state[0][: len(row)] for state in states]  # Reformer pads by itself
        layers = {min(at + first, len(states) - 1): state for at, state in enumerate(states)}
        found.append({layer: state.numpy() for layer, state in layers.items()})
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_layer_equals_the_models_own_states(tmp_path: Path, name: str):
    folder, notes = save(name, tmp_path / name), Notes()
    encoder = opened(folder, reporter=notes)
    texts = [*sentences(8), "the " * 40, "bad"]
    ids = encoder.tokenize(texts).ids
    found = encoder.read(ids, "all", ("mean", "last", "max"))
    for row, states in enumerate(plain(folder, ids)):
        assert set(found) - set(states) <= {0}
        for layer, expected in states.items():
            pooled = np.stack([expected.mean(0), expected[-1], expected.max(0)])
            scale = max(1.0, float(np.abs(pooled).max()))
            np.testing.assert_allclose(found[layer][row], pooled, atol=2e-5 * scale)
    assert all(check.ok for check in check_encoder(encoder))
    about = notes.about("of one length at a time")
    assert len(about) == (name in PADDED_OTHERWISE)


@pytest.mark.parametrize("name", ["longformer", "convbert", "mamba", "gemma3", "reformer"])
def test_a_cut_model_that_was_never_tried_gives_the_same(tmp_path: Path, name: str):
    folder = save(name, tmp_path / name)
    cut = opened(folder)
    cut._highest = 1  # as a bundle's encoder is cut before anything is known
    ids = cut.tokenize(sentences(6)).ids
    some = cut.read(ids, [0, 1], ("mean",))
    again = opened(folder).truncate(1).read(ids, [0, 1], ("mean",))
    every = opened(folder).read(ids, "all", ("mean",))
    for layer, array in some.items():
        np.testing.assert_array_equal(array, again[layer])
        np.testing.assert_allclose(array, every[layer], atol=1e-6)


CAUSAL = {
    *("falcon", "falcon-alibi", "gemma2", "gemma3", "gpt-neox", "gpt2", "llama", "mistral", "opt"),
    *("qwen2", "qwen3"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_masked_where_tokens_see_what_follows(
    tiny: TinyModels, monkeypatch: pytest.MonkeyPatch, family: str
):
    encoder = FrozenEncoder.from_pretrained(tiny(family), device="cpu", dtype="float32")
    assert encoder.architecture.traits.causal == (family in CAUSAL)
    masks = []
    stack = encoder.stack
    forward = stack.forward

    def watched(*arguments: Any, **options: Any) -> Any:
        masks.append("attention_mask" in options)
        return forward(*arguments, **options)

    monkeypatch.setattr(stack, "forward", watched)
    encoder.read([[5, 6, 7], [5, 6, 7, 8, 9]], "all", ["mean"])
    assert masks == [family not in CAUSAL]


def test_what_depends_on_chunks_keeps_its_mask(tmp_path: Path):
    """The texts of a trial are shorter than one, so that it would look causal."""
    config = hf.ReformerConfig(
        **_COMMON, hidden_size=32, num_attention_heads=4, attention_head_size=8,
        feed_forward_size=48, attn_layers=["lsh", "local"], axial_pos_embds=False,
        max_position_embeddings=128, is_decoder=True, hash_seed=0, lsh_attn_chunk_length=64,
        local_attn_chunk_length=64,
    )  # fmt: skip
    hf.ReformerModel(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert not opened(tmp_path).architecture.traits.causal


def test_transformers_does_not_warn_of_padding_that_no_token_sees(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = FAMILIES["gpt2"]()
    config.pad_token_id = 1
    hf.AutoModel.from_config(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    warn = logging.Logger.warning_once  # type: ignore[attr-defined]  # of transformers
    warn.cache_clear()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        encoder = opened(tmp_path)
        encoder.read([[5, 6, 7], [5, 6, 7, 8, 9]], "all", ["mean"])
    finally:
        logger.removeHandler(caplog.handler)
    assert encoder.architecture.traits.causal
    assert not [record for record in caplog.records if "attention_mask" in record.getMessage()]


def test_the_trial_is_made_once(tiny: TinyModels, monkeypatch: pytest.MonkeyPatch):
    folder = tiny("bert")
    encoder = opened(folder)
    assert not encoder.is_loaded
    traits = encoder.architecture.traits
    assert (traits.n_layers, traits.dim, traits.by_blocks, traits.batches) == (3, 32, True, "any")
    again = opened(folder)
    assert (again.n_layers, again.dim, again.layer_parameters) == (3, 32, traits.layer_parameters)
    assert not again.is_loaded
    monkeypatch.setattr("layerfuse.encoders.frozen.examine", None)
    again.tokenize(["good"])


@pytest.mark.parametrize(
    ("old", "damage"),
    [
        *((None, text) for text in ("", "{", "{}", '{"n_layers": 9}', "[1]", "[" * 99_999)),
        ('"n_layers": 3', '"n_layers": 2'),
        ('"first": 0', '"first": 1'),
        ('"dtype": "float32"', '"dtype": ""'),
        ('"checksum": "', '"checksum": "0'),
    ],
)
def test_damaged_traits_are_found_out_again(tiny: TinyModels, old: str | None, damage: str):
    folder = tiny("bert")
    assert opened(folder).n_layers == 3
    (file,) = (cache_dir() / "traits").glob("*.json")
    good = file.read_text()
    file.write_text(damage if old is None else good.replace(old, damage))
    assert file.read_text() != good
    assert opened(folder).n_layers == 3
    assert file.read_text() == good


class TestDtype:
    @pytest.fixture(autouse=True)
    def _fast_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "_has_fast_bfloat16", lambda kind: True)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        config = hf.DebertaConfig(
            **_COMMON, **_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]
        )
        torch.manual_seed(0)
        hf.DebertaModel(config).save_pretrained(tmp_path / "m")
        build_tokenizer().save_pretrained(tmp_path / "m")
        return tmp_path / "m"

    def test_auto_is_float32_where_a_model_cannot_compute_in_bfloat16(
        self, folder: Path, tmp_path: Path
    ):
        store, notes = EmbeddingStore(tmp_path / "store"), Notes()
        encoder = opened(folder, dtype="auto", reporter=notes)
        assert encoder.dtype == "bfloat16"
        found = extract(["good", "a film"], encoder, store=store)
        assert (encoder.dtype, encoder.identity["dtype"]) == ("float32", "float32")
        assert notes.about("cannot compute in bfloat16, so it is read in float32")
        for block, array in extract(["good", "a film"], opened(folder)).items():
            np.testing.assert_allclose(found[block], array, atol=2e-3)  # stored as float16
        later = opened(folder, dtype="auto")
        assert later.identity == encoder.identity
        assert not later.is_loaded
        assert extract(["good", "a film"], later, store=store).n_computed == 0

    def test_what_was_asked_for_is_refused(self, folder: Path):
        for _ in range(2):  # found out, and known
            with pytest.raises(UnsupportedModelError, match=r"in bfloat16\. Use --dtype fl"):
                extract(["good"], opened(folder, dtype="bfloat16"))

    def test_models_that_can_are_read_in_bfloat16(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), dtype="auto")
        extract(["good"], encoder)
        assert encoder.dtype == "bfloat16"

    def test_a_router_that_casts_itself_to_float32_is_read(self, tmp_path: Path):
        folder = save("switch", tmp_path / "m")
        half, exact = (
            opened(folder, dtype=dtype).read([[5, 6, 7]], [0, 3], ("mean",))
            for dtype in ("bfloat16", "float32")
        )
        for layer, array in exact.items():
            np.testing.assert_allclose(half[layer], array, atol=0.05 * np.abs(array).max())


def test_a_folder_of_a_t5_encoder_alone(tmp_path: Path):
    torch.manual_seed(0)
    whole = hf.T5Model(hf.T5Config(**T5))
    encoder = hf.T5EncoderModel(hf.T5Config(**T5))
    encoder.load_state_dict(whole.state_dict(), strict=False)
    found = []
    for name, model in (("whole", whole), ("encoder", encoder)):
        model.save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
        found.append(extract(["good", "a bad film"], opened(tmp_path / name)))
    assert (
        json.loads((tmp_path / "encoder" / "config.json").read_text())["is_encoder_decoder"]
        is False
    )
    for block, array in found[0].items():
        np.testing.assert_array_equal(found[1][block], array)


def test_a_decoder_that_was_not_saved_is_not_missed(tmp_path: Path):
    """As SONAR has only M2M100's encoder."""
    torch.manual_seed(0)
    model = hf.M2M100Model(hf.M2M100Config(**SEQ2SEQ))
    weights = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("decoder")
    }
    build_tokenizer().save_pretrained(tmp_path / "m")
    model.save_pretrained(tmp_path / "whole")
    build_tokenizer().save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "m", state_dict=weights)
    found, whole = (extract(["good"], opened(tmp_path / name)) for name in ("m", "whole"))
    for block, array in whole.items():
        np.testing.assert_array_equal(found[block], array)


def test_states_that_are_not_one_of_each_token_are_refused_by_name(tmp_path: Path):
    config = hf.CanineConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, local_transformer_stride=16, num_hash_buckets=64,
    )  # fmt: skip
    hf.CanineModel(config).save_pretrained(tmp_path / "m")
    hf.CanineTokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match=r"\(CanineModel\) cannot be read layer"):
        extract(["good"], opened(tmp_path / "m"))


def test_a_model_that_guesses_is_refused(tmp_path: Path):
    """Reformer's hashes are drawn anew in each pass."""
    config = hf.ReformerConfig(
        **_COMMON, hidden_size=32, attn_layers=["lsh"] * 3, num_attention_heads=4,
        attention_head_size=8, feed_forward_size=48, lsh_attn_chunk_length=4, num_buckets=8,
        axial_pos_embds=False, max_position_embeddings=66,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.ReformerModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    model.save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match=r"other values each time"):
        extract(["good"], opened(tmp_path / "m"))


def test_longrope_is_read_by_what_is_long(tmp_path: Path):
    """A batch longer than the first training's texts has other frequencies for all of them."""
    folder = save_model("llama", tmp_path / "m")
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "factor": 8.0,
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": rope}))
    encoder = opened(folder)
    ids = encoder.tokenize(["good bad " * length for length in (1, 25, 15, 16, 2)]).ids
    assert sorted(map(len, ids)) == [4, 6, 32, 34, 52]
    together = encoder.read(ids, "all", tuple(POOLINGS))
    for row, tokens in enumerate(ids):
        for layer, array in encoder.read([tokens], "all", tuple(POOLINGS)).items():
            np.testing.assert_allclose(array[0], together[layer][row], atol=1e-5)
