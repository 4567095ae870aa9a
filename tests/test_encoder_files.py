"""Which files are an encoder: its fingerprint follows all that changes a value, nothing outside of
its folder is read, and what cannot be read is refused with the reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

from families import TinyModels, build_tokenizer, save_gguf, save_model
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract, load
from layerfuse.encoders.frozen import find_source
from layerfuse.errors import MissingExtraError, UnsupportedModelError
from layerfuse.progress import current_reporter

LAST_YEAR = (1_700_000_000, 1_700_000_000)


@pytest.fixture
def folder(tiny: TinyModels, tmp_path: Path) -> Path:
    shutil.copytree(tiny("bert"), tmp_path / "m")
    return tmp_path / "m"


def opened(folder: Path, **options: Any) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(
        folder, name="tiny", device="cpu", dtype="float32", **options
    )


def fingerprints(folder: Path, *, allow_pickle: bool = False) -> dict[str, str]:
    return replace(find_source(str(folder)), allow_pickle=allow_pickle).fingerprints()


def wide(folder: Path, seed: int) -> Path:
    """A model above 1 MiB, whose digest is remembered."""
    torch.manual_seed(seed)
    config = hf.BertConfig(
        vocab_size=64, hidden_size=128, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    hf.BertModel(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_size > 1 << 20
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_other_weights_of_the_same_size_and_time_are_other_weights(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    """As rsync -t, cp -p, archives and images with fixed dates leave them."""
    old, new = wide(tmp_path / "old", 0), wide(tmp_path / "new", 1)
    weights = shutil.copytree(old, tmp_path / "m") / "model.safetensors"
    os.utime(weights, LAST_YEAR)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10_000_000_000)  # the file has settled
    store = EmbeddingStore(tmp_path / "store")
    before = extract(["good film"], opened(tmp_path / "m"), [2], store=store)
    if how == "in place":
        weights.write_bytes((new / "model.safetensors").read_bytes())
    else:
        shutil.copy(new / "model.safetensors", tmp_path / "fresh")
        (tmp_path / "fresh").replace(weights)
    os.utime(weights, LAST_YEAR)
    after = extract(["good film"], opened(tmp_path / "m"), [2], store=store)
    expected = extract(["good film"], opened(new), [2])
    for block, array in after.items():
        np.testing.assert_allclose(array, expected[block], atol=2e-3)
        assert np.abs(array - before[block]).max() > 0.1


def test_a_digest_is_remembered_only_once_a_file_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Within a tick of its clock a file system gives a changed file the same time."""
    folder = wide(tmp_path / "m", 0)
    read: list[Path] = []
    open_file = Path.open

    def remember(path: Path, *mode: Any, **options: Any) -> Any:
        read.append(path)
        return open_file(path, *mode, **options)

    monkeypatch.setattr(Path, "open", remember)
    fingerprints(folder)
    fingerprints(folder)
    assert [path.name for path in read].count("model.safetensors") == 2
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10_000_000_000)
    fingerprints(folder)
    fingerprints(folder)
    assert [path.name for path in read].count("model.safetensors") == 3


@pytest.mark.parametrize(
    "name",
    [
        *("vocab.txt", "merges.txt", "vocab.json", "spiece.model", "source.spm", "bpe.codes"),
        *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "normalizer.json"),
        *("tokenizer.json", "tokenizer_config.json", "tekken.json", "config.json", "modeling.py"),
        *("other.safetensors", "tokenizer.model", "qwen.tiktoken", "entity_vocab.json"),
    ],
)
def test_every_file_that_may_change_a_value_changes_the_fingerprint(folder: Path, name: str):
    before = fingerprints(folder)
    content = (folder / name).read_text() if (folder / name).exists() else ""
    (folder / name).write_text(content + " ")
    assert fingerprints(folder) != before


@pytest.mark.parametrize(
    "name",
    ["README.md", "LICENSE.txt", "generation_config.json", "training_args.bin", ".gitignore"],
)
def test_other_files_do_not(folder: Path, name: str):
    before = fingerprints(folder)
    (folder / name).write_text("{}")
    assert fingerprints(folder) == before


def test_a_tokenizer_beside_a_gguf_file_counts(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"weights")
    before = fingerprints(tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert fingerprints(tmp_path / "m.gguf") != before
    assert fingerprints(tmp_path / "m.gguf")["weights"] == before["weights"]


def in_shards(folder: Path) -> Path:
    """The weights in two files, and an index of them, as large models have it; its path."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def test_shards_are_read_and_their_index_counts(tiny: TinyModels, folder: Path):
    index = in_shards(folder)
    found, expected = (extract(["good"], opened(path)) for path in (folder, tiny("bert")))
    for block, array in expected.items():
        np.testing.assert_array_equal(found[block], array)
    before = fingerprints(folder)
    index.write_text(index.read_text() + " ")
    assert fingerprints(folder) != before


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "{outside}/x.safetensors", "sub/x.safetensors"]
)
def test_an_index_that_names_other_places_is_refused(folder: Path, tmp_path: Path, place: str):
    index = in_shards(folder)
    (folder / "sub").mkdir()
    for other in (tmp_path, folder / "sub"):
        shutil.copy(folder / "model-00001-of-00002.safetensors", other / "x.safetensors")
    named = f"{place.format(outside=tmp_path)}/x.safetensors"
    index.write_text(index.read_text().replace("model-00001-of-00002.safetensors", named))
    for allow_pickle in (False, True):
        with pytest.raises(UnsupportedModelError, match=r"x\.safetensors', which is not among"):
            opened(folder, allow_pickle=allow_pickle)


def test_an_index_that_names_pickled_weights_is_refused_unless_they_are_allowed(folder: Path):
    index = in_shards(folder)
    torch.save(hf.AutoModel.from_pretrained(folder).state_dict(), folder / "weights.bin")
    index.write_text(
        index.read_text()
        .replace("model-00001-of-00002.safetensors", "weights.bin")
        .replace("model-00002-of-00002.safetensors", "weights.bin")
    )
    with pytest.raises(UnsupportedModelError, match=r"'weights\.bin', which is not among"):
        opened(folder)
    before = opened(folder, allow_pickle=True).fingerprints
    with (folder / "weights.bin").open("ab") as file:
        file.write(b" ")
    assert opened(folder, allow_pickle=True).fingerprints != before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', "[" * 99_999])
def test_a_damaged_index_is_refused(folder: Path, content: str):
    in_shards(folder).write_text(content)
    with pytest.raises(UnsupportedModelError, match="is not an index of weights"):
        opened(folder)


def end_of(folder: Path) -> str:
    """What reading ends with: the message of a refusal, or nothing and values that are finite."""
    try:
        found = extract(["good", "a bad film"], opened(folder))
    except UnsupportedModelError as error:
        return str(error)
    assert all(np.isfinite(array).all() for array in found.values())
    return ""


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Peft asks transformers for what the next version calls otherwise.
of_adapters = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
TASKS = {  # family, class, modules, the first block
    "CAUSAL_LM": ("llama", hf.AutoModelForCausalLM, ["q_proj", "down_proj"], "model.layers.0"),
    "SEQ_CLS": (
        *("bert", hf.AutoModelForSequenceClassification, ["query", "dense"]),
        "bert.encoder.layer.0",
    ),
    "FEATURE_EXTRACTION": ("bert", hf.AutoModel, ["query", "value"], "encoder.layer.0"),
}


def write_adapter(
    folder: Path, base: Path, task: str = "CAUSAL_LM", *, n_tokens: int = 0, **options: Any
) -> Any:
    """Save an adapter of ``base`` with random weights; return the model that peft makes of both."""
    _, auto, modules, _ = TASKS[task]
    torch.manual_seed(0)
    options = {"target_modules": modules, "init_lora_weights": False} | options
    model = auto.from_pretrained(base)
    if n_tokens:
        model.resize_token_embeddings(n_tokens)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=4, **options)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@of_adapters
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"alpha_pattern": 64}])
def test_an_adapter_is_read_as_peft_applies_it(
    tiny: TinyModels, tmp_path: Path, task: str, options: dict[str, Any]
):
    base = tiny(TASKS[task][0])
    if "alpha_pattern" in options:
        first = TASKS[task][3]
        name = f"{first}.mlp.down_proj" if "model" in first else f"{first}.attention.self.query"
        options = {"alpha_pattern": {name: options["alpha_pattern"]}}
    adapted = write_adapter(tmp_path / "tuned", base, task, **options)
    encoder = opened(tmp_path / "tuned")
    for text in ("good", "a bad film"):
        ids = hf.AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")
        with torch.no_grad():
            states = adapted(**ids, output_hidden_states=True).hidden_states
        read = extract([text], encoder)
        for layer in range(1, len(states) - 1):  # the last one may be normalized
            np.testing.assert_allclose(
                read[f"tiny:{layer}:mean"][0], states[layer][0].mean(0), atol=2e-5
            )
    plain = extract([text], opened(base))
    assert not np.allclose(plain["tiny:2:mean"], read["tiny:2:mean"], atol=1e-2)


@of_adapters
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [5, 66]},
    ],
)
def test_tokens_that_were_added_before_training_are_read(
    tiny: TinyModels, tmp_path: Path, options: dict[str, Any]
):
    adapted = write_adapter(tmp_path / "tuned", tiny("llama"), n_tokens=70, **options)
    tokenizer = hf.AutoTokenizer.from_pretrained(tiny("llama"))
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    tokenizer.save_pretrained(tmp_path / "tuned")
    text = "good <three> film"
    ids = tokenizer(text, return_tensors="pt")
    assert max(ids["input_ids"][0]) == 66
    with torch.no_grad():
        states = adapted(**ids, output_hidden_states=True).hidden_states
    read = extract([text], opened(tmp_path / "tuned"))
    np.testing.assert_allclose(read["tiny:2:mean"][0], states[2][0].mean(0), atol=2e-5)


@of_adapters
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the tied head
@pytest.mark.parametrize(
    ("family", "auto", "target"),
    [
        ("roberta", hf.AutoModelForSequenceClassification, "all-linear"),  # has no pooler there
        ("t5", hf.T5EncoderModel, ["q", "v"]),  # no decoder
        ("t5", hf.AutoModelForSeq2SeqLM, ["q", "lm_head"]),  # and a head here
    ],
)
def test_an_adapter_need_not_name_what_is_not_read(
    tiny: TinyModels, tmp_path: Path, family: str, auto: Any, target: Any
):
    config = peft.LoraConfig(target_modules=target, init_lora_weights=False)
    adapted = peft.get_peft_model(auto.from_pretrained(tiny(family)), config).eval()
    adapted.save_pretrained(tmp_path)
    ids = hf.AutoTokenizer.from_pretrained(tiny(family))("a bad film", return_tensors="pt")
    model = adapted.base_model.model
    encoder = model.get_encoder() if family == "t5" else model
    with torch.no_grad():
        states = encoder(**ids, output_hidden_states=True).hidden_states
    read = extract(["a bad film"], opened(tmp_path))
    np.testing.assert_allclose(read["tiny:2:mean"][0], states[2][0].mean(0), atol=2e-5)


@of_adapters
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft knows of it, too
@pytest.mark.parametrize("target", ["shared", "embed_tokens"])
def test_an_adapter_of_one_use_of_a_shared_weight_is_refused(
    tiny: TinyModels, tmp_path: Path, target: str
):
    config = peft.LoraConfig(target_modules=["q", target], init_lora_weights=False)
    model = hf.AutoModelForSeq2SeqLM.from_pretrained(tiny("t5"))
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="are one weight"):
        opened(tmp_path)


@of_adapters
def test_an_adapter_may_have_the_configuration_of_its_model_beside_it(
    tiny: TinyModels, tmp_path: Path
):
    write_adapter(tmp_path / "tuned", tiny("llama"))
    expected = find_source(str(tmp_path / "tuned")).fingerprints()
    shutil.copy(tiny("llama") / "config.json", tmp_path / "tuned")
    assert find_source(str(tmp_path / "tuned")).fingerprints() == expected


@of_adapters
def test_modes_of_files_are_not_those_of_the_model(tiny: TinyModels, tmp_path: Path):
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    for file in base.iterdir():
        file.chmod(0o666)  # as on a share
    write_adapter(tmp_path / "tuned", base)
    first = find_source(str(tmp_path / "tuned"))
    assert find_source(str(tmp_path / "tuned")) == first


@of_adapters
def test_an_adapter_of_tokens_before_the_text_is_refused(tiny: TinyModels, tmp_path: Path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = hf.AutoModelForCausalLM.from_pretrained(tiny("llama"))
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"cannot be merged.*changes no weights"):
        opened(tmp_path)


@of_adapters
def test_an_adapter_that_peft_makes_anew_each_time_is_refused(tiny: TinyModels, tmp_path: Path):
    write_adapter(tmp_path / "tuned", tiny("llama"), init_lora_weights="pissa_niter_4")
    with pytest.raises(UnsupportedModelError, match="random numbers that were not saved"):
        opened(tmp_path / "tuned")


@of_adapters
def test_an_adapter_is_merged_once_and_known_by_its_content(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tuned = tmp_path / "tuned"
    write_adapter(tuned, tiny("llama"))
    for times in (1, 0):
        find_source(str(tuned), reporter=current_reporter(verbose=1))
        assert capsys.readouterr().err.count("merging the adapter") == times
    first = find_source(str(tuned))
    assert first.origin == str(tuned)
    assert first.name == "tuned"
    for file in first.folder.iterdir():  # as programs do that clean caches
        file.unlink()
    assert find_source(str(tuned)).fingerprints() == first.fingerprints()
    assert extract(["good"], opened(tuned))  # made anew
    (first.folder / "model.safetensors").write_bytes(b"damaged")
    again = find_source(str(tuned))
    assert again.fingerprints() == first.fingerprints()
    assert extract(["good"], opened(tuned))
    weights = load_file(tuned / "adapter_model.safetensors")
    save_file(
        {name: 2 * value for name, value in weights.items()}, tuned / "adapter_model.safetensors"
    )
    other = find_source(str(tuned))
    assert other.folder != first.folder
    assert other.fingerprints()["weights"] != first.fingerprints()["weights"]


@of_adapters
def test_a_classifier_on_an_adapter_is_saved_and_loaded(tiny: TinyModels, tmp_path: Path):
    write_adapter(tmp_path / "tuned", tiny("llama"))
    texts, labels = ["good film", "a bad film", "good", "bad"] * 8, [1, 0, 1, 0] * 8
    model = LayerFusionClassifier(f"tuned={tmp_path / 'tuned'}", cv=2).fit(texts, labels)
    model.save(tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    np.testing.assert_array_equal(loaded.predict_proba(texts), model.predict_proba(texts))


@pytest.mark.slow
@of_adapters
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "does not say which model"),
        ({"base_model_name_or_path": "acme/base"}, "adapter of acme/base, which cannot be read"),
        ({"megatron_config": {}}, "Megatron"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "cannot be merged"),
        ({"peft_type": "UNHEARD_OF"}, "cannot be merged"),
        ({"base_model_name_or_path": "x" * 5000}, "File name too long"),
        ({"base_model_name_or_path": "~nobody-here/x"}, "unknown user"),
        ({"r": 3}, "size mismatch for"),
        ({"r": 10**12}, "rank is 1000000000000"),
        ({"rank_pattern": {"q_proj": 10**12}}, "rank is 1000000000000"),
        ({"target_modules": ["q_proj"]}, "do not belong together"),
        ({"target_modules": ["q_proj", "down_proj", "o_proj"]}, "do not belong together"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tiny: TinyModels, tmp_path: Path, change: dict[str, Any], said: str
):
    write_adapter(tmp_path / "tuned", tiny("llama"))
    path = tmp_path / "tuned" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsupportedModelError, match=said):
        opened(tmp_path / "tuned")


@of_adapters
def test_adapters_of_adapters_and_of_nothing_are_refused(tiny: TinyModels, tmp_path: Path):
    tuned = tmp_path / "tuned"
    write_adapter(tuned, tiny("llama"))
    path = tuned / "adapter_config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps(own | {"base_model_name_or_path": str(tuned)}))
    with pytest.raises(UnsupportedModelError, match="itself an adapter"):
        opened(tuned)
    path.write_text("[")
    with pytest.raises(UnsupportedModelError, match="does not say which model"):
        opened(tuned)
    path.write_text(json.dumps(own))
    pointer = "version https://git-lfs.github.com/spec/v1\n"
    for file in (tuned / "adapter_model.safetensors", path):
        before = file.read_bytes()
        file.write_text(pointer)
        with pytest.raises(UnsupportedModelError, match="git lfs pull"):
            opened(tuned)
        file.write_bytes(before)
    (tuned / "adapter_model.safetensors").rename(tuned / "adapter_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"no adapter_model\.safetensors"):
        opened(tuned)


def test_without_peft_an_adapter_is_named_with_its_model(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}')
    save_file({"x": np.zeros((2, 2), np.float32)}, tmp_path / "adapter_model.safetensors")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"adapter of acme/base.*layerfuse\[peft\]"):
        opened(tmp_path)


def test_an_adapter_beside_a_whole_model_is_not_ignored(folder: Path):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "acme/base"}')
    with pytest.raises(UnsupportedModelError, match="an adapter beside a whole model"):
        opened(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "m.gguf"])
def test_a_pointer_of_git_lfs_says_how_to_get_the_file(folder: Path, name: str):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / name).write_text(pointer)
    (folder / "README.md").write_text(pointer)  # nobody reads it
    with pytest.raises(
        UnsupportedModelError, match=rf"{re.escape(name)} is a pointer.*git lfs pull"
    ):
        extract(["good"], opened(folder / name if name == "m.gguf" else folder))


def test_the_folder_inside_is_pointed_to(tiny: TinyModels, tmp_path: Path):
    """As sentence-transformers saved models before 2021."""
    shutil.copytree(tiny("bert"), tmp_path / "old" / "0_Transformer")
    (tmp_path / "old" / "modules.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match=r"Did you mean .*old/0_Transformer\?"):
        opened(tmp_path / "old")


QUANTIZATIONS: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    {"quant_method": "hqq", "quant_config": {}},
    {"quant_method": "quanto", "weights": "int8"},
    {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    {"quant_method": "aqlm", "in_group_size": 8},
    {"quant_method": "vptq"},
    {"quant_method": "quark"},
    {"quant_method": "auto-round", "bits": 4},
    {"quant_method": "of-tomorrow"},
]


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=lambda each: each["quant_method"])
def test_quantized_checkpoints_say_what_they_need(tmp_path: Path, quantization: dict[str, Any]):
    folder = save_model("llama", tmp_path / "m")
    configure(folder, quantization_config=quantization)
    assert len(end_of(folder)) < 500


CONFIGS: list[dict[str, Any]] = [
    {"num_attention_heads": 0}, {"num_attention_heads": 5}, {"hidden_size": "32"},
    {"num_hidden_layers": -1}, {"num_hidden_layers": 0}, {"vocab_size": 10}, {"model_type": "no"},
    {"model_type": None}, {"hidden_act": "of-tomorrow"}, {"layer_norm_eps": None},
    {"architectures": 3}, {"max_position_embeddings": 0}, {"rope_scaling": 4},
    {"_attn_implementation": "kernels-nobody/nothing"}, {"dtype": "float128"},
]  # fmt: skip


@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_odd_configurations_end_without_a_traceback(folder: Path, values: dict[str, Any]):
    configure(folder, **values)
    end_of(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[" * 99_999, "null", "3", '"text"', "\x00", "{}"])
def test_damaged_json_ends_without_a_traceback(folder: Path, name: str, content: str):
    (folder / name).write_text(content)
    end_of(folder)


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"]
)
@pytest.mark.timeout(60)
def test_sizes_that_no_tensor_has_are_refused_before_memory_is_taken(folder: Path, name: str):
    configure(folder, **{name: 10**7})
    with pytest.raises(UnsupportedModelError, match=rf"{name}=10000000 in its configuration"):
        extract(["good"], opened(folder))


def test_an_unknown_token_that_the_vocabulary_lacks_is_refused(folder: Path):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unk_token": ""}))
    with pytest.raises(UnsupportedModelError, match="has no tokenizer that can be read"):
        extract(["good"], opened(folder))


def test_padding_that_is_none_is_refused(tmp_path: Path):
    folder = save_model("roberta", tmp_path / "m")
    configure(folder, pad_token_id=None)
    with pytest.raises(UnsupportedModelError, match=r"tiny|cannot be loaded"):
        extract(["good"], opened(folder))


@pytest.mark.parametrize("size", [0, 3, 8, 20, 40, 100, 200])
def test_a_gguf_file_that_was_cut_is_refused(tmp_path: Path, size: int):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "cut.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["<s>", "a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(UnsupportedModelError, match=r"cut\.gguf"):
        extract(["good"], opened(path))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (b"llama.block_count", (b"\3\0\0\0", b"\x40\x42\x0f\0")),
        (b"llama.block_count", (b"block_c", b"block-c")),
        (b"llama.embedding_length", (b"\x20\0\0\0", b"\0\0\x01\0")),
        (b"llama.embedding_length", (b"embedding", b"embeddinG")),
        (b"llama.feed_forward_length", (b"\x30\0\0\0", b"\0\0\0\x01")),
    ],
)
@pytest.mark.timeout(60)
def test_a_gguf_file_that_lacks_what_it_says_is_refused(
    tmp_path: Path, key: bytes, change: tuple[bytes, bytes]
):
    path = tmp_path / "m.gguf"
    save_gguf("llama", path)
    before, key, after = path.read_bytes().partition(key)
    path.write_bytes(before + (key + after).replace(*change, 1))
    with pytest.raises(UnsupportedModelError, match="holds 3 blocks of tensors up to 64 wide, but"):
        extract(["the film"], opened(path))
