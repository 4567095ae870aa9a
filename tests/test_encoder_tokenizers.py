"""Tokens of each text: as many as fit, its first ones, and the prompt whole; and what tokenizers
are refused."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from families import TinyModels, build_tokenizer, save_model, train_tokenizer
from layerfuse import FrozenEncoder
from layerfuse.encoders.tokenizer import TextTokenizer
from layerfuse.errors import ConfigError, UnsupportedModelError

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
AROUND = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
)
BYTES = pre_tokenizers.ByteLevel.alphabet()
Built = hf.PreTrainedTokenizerBase


def byte_level(post_processor: Any) -> Built:
    return train_tokenizer(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIAL, initial_alphabet=BYTES, show_progress=False
        ),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        post_processor=post_processor,
    )


def metaspace(model: Any, trainer: Any, post_processor: Any) -> Built:
    return train_tokenizer(
        model,
        trainer,
        pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
        post_processor=post_processor,
    )


_BUILD: dict[str, Callable[[], Built]] = {
    "roberta": lambda: byte_level(
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    ),
    "gpt2": lambda: byte_level(processors.ByteLevel(trim_offsets=True)),
    "llama3": lambda: byte_level(processors.Sequence([processors.ByteLevel(), AROUND])),
    "t5": lambda: metaspace(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
        processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)]),
    ),
    "llama": lambda: metaspace(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False),
        processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
    ),
    "bert": lambda: train_tokenizer(
        models.WordPiece(unk_token="<unk>"),  # type: ignore[call-arg]
        trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
        post_processor=AROUND,
    ),
    "words": build_tokenizer,
    "bytes": lambda: hf.ByT5Tokenizer(extra_ids=0),
    "characters": hf.CanineTokenizer,
}
_SLOW = ("bytes", "characters")
_trained = cache(lambda name: _BUILD[name]())  # training breaks ties at random


def tokenizer_of(name: str) -> Built:
    return copy.deepcopy(_trained(name))


PARTS = [
    "the", " film", "    ", "\n", "\t\t", " good", "  ", "bad ", "é", " über", "漢字", "🙂", "<s>",
    "</s>", " market", "x" * 9, ".", " ,", "\u00a0", "a", "\r\n        ", "▁", "<unk>",
]  # fmt: skip


def texts_of(name: str, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    parts = [part for part in PARTS if name not in _SLOW or part not in SPECIAL]
    return ["".join(rng.choice(parts, size=rng.integers(0, 40))) for _ in range(40)]


@pytest.mark.slow
@pytest.mark.parametrize("name", _BUILD)
@pytest.mark.parametrize("limit", [4, 9, 17])
def test_without_a_prompt_tokens_are_those_of_the_tokenizers_own_truncation(name: str, limit: int):
    tokens = TextTokenizer(tokenizer_of(name), prompt=None, chat_prompt=None, max_length=limit)
    own, texts = tokenizer_of(name), texts_of(name, limit)
    expected = own(texts, truncation=True, max_length=limit)["input_ids"]
    found = tokens(texts)
    whole = [len(row) for row in own(texts)["input_ids"]]
    assert found.truncated == [length > limit for length in whole]
    assert sum(found.truncated) > 5
    for row, wanted in zip(found.ids, expected, strict=True):
        assert row == (list(wanted) or [own.bos_token_id])


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["the film {text}", "{text}\n\n  good", "bad\n{text}  \n was"])
@pytest.mark.parametrize("name", _BUILD)
def test_with_a_prompt_the_text_is_cut_from_its_end(name: str, prompt: str):
    own, texts = tokenizer_of(name), texts_of(name, 3)
    before, after = prompt.split("{text}")
    fixed = len(own(before + after)["input_ids"])
    limit = fixed + 6
    found = TextTokenizer(own, prompt=prompt, chat_prompt=None, max_length=limit)(texts)
    filled = own([before + text + after for text in texts])["input_ids"]
    for row, whole, is_cut in zip(found.ids, filled, found.truncated, strict=True):
        assert len(row) <= limit
        assert is_cut == (len(whole) > limit)
        if not is_cut:
            assert row == list(whole)
            continue
        # what is left is the beginning and the end of all tokens, the cut inside of the text
        lead = 0
        while lead < len(row) and row[lead] == whole[lead]:
            lead += 1
        assert row[lead:] == list(whole)[len(whole) - (len(row) - lead) :]
        text = own.decode(row, skip_special_tokens=False)
        for part in (before, after):
            assert "".join(part.split()) in "".join(text.split())


def test_indented_code_keeps_its_beginning():
    """RoBERTa's offsets leave blanks out, so that tokens of blanks look empty."""
    tokenizer = tokenizer_of("roberta")
    code = "".join(f"        the film {number}\n" for number in range(100))
    found = TextTokenizer(tokenizer, prompt=None, chat_prompt=None, max_length=64)([code])
    assert len(found.ids[0]) == 64
    assert (found.ids[0][0], found.ids[0][-1]) == (0, 2)
    assert code.startswith(tokenizer.decode(found.ids[0][1:-1]))


@pytest.mark.slow
def test_a_tokenizer_that_truncates_on_the_left_keeps_the_beginning_too():
    for build in (build_tokenizer, hf.CanineTokenizer):
        own = build()
        expected = own("good bad film", truncation=True, max_length=4)["input_ids"]
        left = build()
        left.truncation_side = "left"
        found = TextTokenizer(left, prompt=None, chat_prompt=None, max_length=4)
        assert found(["good bad film"]).ids == [list(expected)]


def opened(folder: Path, **options: Any) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(
        folder, name="tiny", device="cpu", dtype="float32", **options
    )


CLASSES = [
    *("BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "T5Tokenizer", "LlamaTokenizer"),
    *("GPT2Tokenizer", "Qwen2Tokenizer", "AlbertTokenizer", "DebertaV2Tokenizer", "CLIPTokenizer"),
    *("MPNetTokenizer", "DebertaTokenizer", "GemmaTokenizer", "MBart50Tokenizer", "XLNetTokenizer"),
    *("HerbertTokenizer", "NllbTokenizer", "OpenAIGPTTokenizer", "SplinterTokenizer"),
    *("M2M100Tokenizer", "CTRLTokenizer", "BertJapaneseTokenizer", "ProphetNetTokenizer"),
    *("BertGenerationTokenizer", "MarianTokenizer", "PhobertTokenizer", "PegasusTokenizer"),
]


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_without_its_vocabulary_is_refused(tiny: TinyModels, tmp_path: Path, name: str):
    """For many classes transformers makes up a tokenizer that knows no word."""
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert"), folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    encoder = opened(folder)
    with pytest.raises(UnsupportedModelError, match=r"vocabulary|no tokenizer that can be read"):
        encoder.tokenize(["the film"])


def test_what_is_missing_is_named(tiny: TinyModels, tmp_path: Path):
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert"), folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UnsupportedModelError, match=r"lacks .*BertTokenizer.*vocab\.txt; get the"):
        opened(folder).tokenize([])


def write_tokenizer(folder: Path, tokenizer: Built) -> Path:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lost", ["words", "merges"])
def test_a_tokenizer_that_reads_all_words_alike_is_refused(
    tiny: TinyModels, tmp_path: Path, lost: str
):
    folder = tmp_path / "m"
    shutil.copytree(tiny("bert"), folder)
    write_tokenizer(folder, tokenizer_of("roberta") if lost == "merges" else build_tokenizer())
    content = json.loads((folder / "tokenizer.json").read_text())
    if lost == "merges":
        content["model"]["merges"] = []
    else:
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {word: vocabulary[word] for word in SPECIAL}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="lacks its tokenizer's vocabulary"):
        opened(folder).tokenize(["the film"])


@pytest.mark.parametrize("name", ["roberta", "t5", "llama", "bert", "words", "gpt2", "llama3"])
def test_tokenizers_that_have_a_vocabulary_are_read(tmp_path: Path, name: str):
    folder = tmp_path / "m"
    config = hf.BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    hf.BertModel(config).save_pretrained(folder)
    write_tokenizer(folder, tokenizer_of(name))
    (row,) = opened(folder).tokenize(["the film"]).ids
    assert row == tokenizer_of(name)("the film")["input_ids"]


def test_letters_alone_are_a_vocabulary(tmp_path: Path):
    """As for DNA."""
    core = build_tokenizer().backend_tokenizer
    core.model = models.WordLevel(
        {word: number for number, word in enumerate([*SPECIAL, *"ACGT"])}, unk_token="<unk>"
    )
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = save_model("bert", tmp_path / "m")
    write_tokenizer(folder, hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>"))
    assert opened(folder).tokenize(["GATC"]).ids == [[0, 6, 4, 7, 5, 2]]


def changed(folder: Path, target: Path, **values: Any) -> Path:
    """A copy with other values in tokenizer_config.json."""
    shutil.copytree(folder, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return target


@pytest.mark.parametrize("limit", [-1, 0, 1])
def test_a_limit_that_is_none_is_refused(tiny: TinyModels, tmp_path: Path, limit: Any):
    folder = changed(tiny("bert"), tmp_path / "m", model_max_length=limit)
    with pytest.raises(UnsupportedModelError, match=r"above 1\. Correct model_max_length"):
        opened(folder).tokenize(["good"])


def test_a_limit_that_is_no_number_is_refused(tiny: TinyModels, tmp_path: Path):
    folder = changed(tiny("bert"), tmp_path / "m", model_max_length="512")
    with pytest.raises(UnsupportedModelError, match="has no tokenizer that can be read"):
        opened(folder).tokenize(["good"])


@pytest.mark.parametrize("part", ["model", "pre_tokenizer", "normalizer"])
def test_a_newer_tokenizer_is_refused(tiny: TinyModels, tmp_path: Path, part: str):
    folder = changed(tiny("bert"), tmp_path / "m")
    content = json.loads((folder / "tokenizer.json").read_text())
    content[part] = {"type": "OfTomorrow"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="has no tokenizer that can be read"):
        opened(folder).tokenize(["good"])


@pytest.mark.parametrize("name", ["FSMTTokenizer", "CpmAntTokenizer", "FlaubertTokenizer"])
def test_a_missing_package_is_named(tiny: TinyModels, tmp_path: Path, name: str):
    folder = changed(tiny("bert"), tmp_path / "m", tokenizer_class=name)
    with pytest.raises(UnsupportedModelError, match=r"sacremoses|rjieba|'str' object"):
        opened(folder).tokenize(["good"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] | upper }}",
        "{{ messages[0]['content'] }} {{ messages[0]['content'] }}",
        "nothing of it",
        "{{ raise_exception('no user') }}",
        "{% for message in messages %}",
        "{{ messages[7]['content']['text'] }}",
        pytest.param(
            f"{'{% for i in range(99999) %}' * 2}{'{% endfor %}' * 2}{{{{ messages }}}}",
            id="endless",
        ),
        pytest.param("{{ 'x' * 30000000000 }}", id="large"),
    ],
)
def test_a_chat_template_that_does_not_give_the_text_is_refused(
    tiny: TinyModels, tmp_path: Path, template: str
):
    folder = changed(tiny("llama"), tmp_path / "m", chat_template=template)
    assert opened(folder).tokenize(["good"]).ids, "only a chat prompt needs it"
    with pytest.raises((UnsupportedModelError, ConfigError), match=r"template|tokenizer"):
        opened(folder, chat_prompt="film {text}").tokenize(["good"])


@pytest.mark.slow
@pytest.mark.parametrize("word", ["good film ", "goodfilm"])
def test_a_huge_text_is_tokenized_no_further_than_it_is_read(tiny: TinyModels, word: str):
    """Whole, 50 MB took minutes and gigabytes."""
    encoder = opened(tiny("roberta"))
    short = encoder.tokenize([word * 1000, word])
    started = time.process_time()
    tokens = encoder.tokenize([word * (50_000_000 // len(word)), word])
    assert time.process_time() - started < 15
    assert tokens.truncated == [True, False]
    assert tokens.ids == short.ids


def test_many_long_texts_are_tokenized_in_groups(tiny: TinyModels, monkeypatch: pytest.MonkeyPatch):
    encoder = opened(tiny("bert"))
    texts = ["good film", "", "bad " * 100, "the bank", "oil"]
    expected = encoder.tokenize(texts)
    monkeypatch.setattr("layerfuse.encoders.tokenizer._MOST_CHARACTERS", 10)
    assert encoder.tokenize(texts) == expected


def test_tokens_beyond_the_embedding_are_refused_where_they_occur(tmp_path: Path):
    folder = save_model("bert", tmp_path / "m")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("kiwi"), AddedToken("mango")])
    tokenizer.save_pretrained(folder)
    encoder = opened(folder)
    encoder.read(encoder.tokenize(["good film"]).ids, "all", ("mean",))
    ids = encoder.tokenize(["good", "a kiwi"]).ids
    with pytest.raises(UnsupportedModelError, match=r"no embedding of token 64.*resize_token_emb"):
        encoder.read(ids, "all", ("mean",))


def test_a_padding_token_beyond_the_embedding_is_not_used(tmp_path: Path):
    """As GPT-2's users add one, without growing the embedding."""
    folder = save_model("gpt2", tmp_path / "m", pad=False)
    plain = opened(folder)
    ids = plain.tokenize(["good", "a bad film of the bank"]).ids
    expected = plain.read(ids, "all", ("mean",))
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    found = opened(folder).read(ids, "all", ("mean",))
    for layer, array in expected.items():
        np.testing.assert_allclose(found[layer], array, atol=1e-6)
