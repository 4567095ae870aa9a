"""Windows: what a long text is cut into, that each is read like a text, and how they are pooled."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layerfuse
from families import TinyModels, build_tokenizer
from helpers import Notes, build, planted, sentences
from layerfuse import BlockRef, EmbeddingStore, FrozenEncoder, extract
from layerfuse.blocks import split_pooling
from layerfuse.embeddings.extraction import extract_blocks
from layerfuse.encoders.tokenizer import TextTokenizer, WindowLimits
from layerfuse.errors import ConfigError, LayerfuseWarning
from layerfuse.export import FORMATS, write_export
from layerfuse.export.protocol import Source
from layerfuse.pooling import WINDOW_POOLINGS
from layerfuse.progress import SILENT
from layerfuse.serving.registry import load_models, predict
from test_encoder_tokenizers import _BUILD, texts_of, tokenizer_of

OVER = ("mean", "max", "first", "last")


def opened(folder: Path, **options: Any) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(
        folder, name="tiny", device="cpu", dtype="float32", **options
    )


def tokenizer(name: str, prompt: str | None = None) -> TextTokenizer:
    return TextTokenizer(tokenizer_of(name), prompt=prompt, chat_prompt=None, max_length=64)


class TestSplit:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("prompt", "length"), [(None, 9), (None, 17), ("the film {text} was", 29)]
    )
    @pytest.mark.parametrize("name", _BUILD)
    def test_pieces_are_the_text_and_fit(self, name: str, length: int, prompt: str | None):
        tokens, texts = tokenizer(name, prompt), texts_of(name, length)
        found = tokens.split(texts, WindowLimits(length, 0.0, 64))
        long = 0
        for text, pieces, share in zip(texts, found.pieces, found.shares, strict=True):
            assert "".join(pieces) == text
            assert share == 1
            whole = len(tokens([text]).ids[0])
            assert (len(pieces) == 1) == (whole <= length)
            long += len(pieces) > 1
            for piece, ids in zip(pieces, tokens(pieces).ids, strict=True):
                assert len(ids) <= length or len(piece) == 1
        assert long > 0

    def test_an_overlap_repeats_the_end_of_the_window_before(self):
        text = " ".join(f"w{number}" for number in range(40))
        limits = WindowLimits(12, 0.3, 64)
        ((pieces,), _) = _split(build_tokenizer(), text, limits)
        for one, following in pairwise(pieces):
            words = following.split()
            assert words[:3] == one.split()[-3:]
            assert words[3] not in one.split()

    def test_windows_are_of_equal_length_between_words(self):
        text = " ".join(["the film was good"] * 9)
        ((pieces,), shares) = _split(build_tokenizer(), text, WindowLimits(16, 0.0, 64))
        assert [len(piece.split()) for piece in pieces] == [12, 12, 12]
        assert shares == [1]

    def test_a_text_of_too_many_windows_is_cut(self):
        text = " ".join(f"w{number}" for number in range(40))
        ((pieces,), shares) = _split(build_tokenizer(), text, WindowLimits(10, 0.0, 2))
        assert " ".join(text.split()[:16]) == "".join(pieces).strip()
        assert shares == [len("".join(pieces)) / len(text)]

    def test_a_prompt_that_fills_a_window_is_refused(self):
        with pytest.raises(ConfigError, match="prompt alone"):
            tokenizer("words", "the film {text} was").split(["a"], WindowLimits(5, 0.0, 64))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["gpt2", "llama3", "t5", "llama", "bert", "bytes"])
    @pytest.mark.parametrize(
        "text",
        [" " * 3_000, "🙂👩‍👩‍👧" * 300, "漢字" * 700, "", "\n\n\t" * 500, "﷽" * 60, "e\u0301" * 400,
         "\ud83d" * 50, "x" * 3_000],
        ids=["blanks", "emoji", "han", "empty", "lines", "ligature", "marks", "surrogates", "word"],
    )  # fmt: skip
    def test_any_text_is_read_to_its_end(self, name: str, text: str):
        tokens = tokenizer(name)
        ((pieces,), shares) = _split(tokenizer_of(name), text, WindowLimits(40, 0.0, 10_000))
        assert "".join(pieces) == text or len(pieces) > 1
        assert len("".join(pieces)) == len(text)
        assert shares == [1]
        lengths = [len(ids) for ids in tokens(pieces).ids]
        assert all(n <= 40 or len(piece) == 1 for n, piece in zip(lengths, pieces, strict=True))

    @pytest.mark.slow
    def test_a_word_of_ten_megabytes_is_bounded(self):
        tokens = tokenizer("bert")
        found = tokens.split(["x" * 10_000_000], WindowLimits(40, 0.0, 8))
        assert len(found.pieces[0]) <= 8
        assert found.shares[0] < 1


def _split(own: Any, text: str, limits: WindowLimits) -> tuple[list[tuple[str, ...]], list[float]]:
    found = TextTokenizer(own, prompt=None, chat_prompt=None, max_length=64).split([text], limits)
    return found.pieces, found.shares


class TestPooling:
    def test_pooled_by_hand(self):
        values = np.arange(18, dtype=np.float32).reshape(6, 3)
        values[4] = -5
        counts = np.array([2, 1, 3])
        parts = [values[:2], values[2:3], values[3:]]
        by_hand = {
            "mean": [part.mean(axis=0) for part in parts],
            "max": [part.max(axis=0) for part in parts],
            "first": [part[0] for part in parts],
            "last": [part[-1] for part in parts],
        }
        assert set(by_hand) == set(WINDOW_POOLINGS)
        for name, pool in WINDOW_POOLINGS.items():
            pooled = pool(values, counts)
            assert pooled.dtype == np.float32
            np.testing.assert_allclose(pooled, by_hand[name], rtol=1e-6)

    def test_blocks_name_both_poolings(self):
        block = BlockRef.parse("a:b:6:cls/max")
        assert block == BlockRef("a:b", 6, "cls/max")
        assert block.windowed
        assert not BlockRef.parse("a:6:cls").windowed
        assert split_pooling("cls/max") == ("cls", "max")
        for wrong in ("a:6:cls/median", "a:6:median/max", "a:6:cls/", "a:6:/max"):
            with pytest.raises(ConfigError, match="Unknown pooling"):
                BlockRef.parse(wrong)


TEXTS = [*sentences(30, longest=4), *sentences(30, longest=40, seed=1)]


class TestBlocks:
    @pytest.mark.slow
    @pytest.mark.parametrize("family", ["bert", "gpt2"])
    def test_a_windows_value_is_that_of_the_piece_read_alone(self, tiny: TinyModels, family: str):
        options = {"max_length": 12, "overlap": 0.2, "pooling": ("mean", "last")}
        encoder = opened(tiny(family), windows=OVER, **options)
        view = extract(TEXTS, encoder)
        assert len(view) == 4 * 2 * 4
        plain = opened(tiny(family), **options)
        pieces = encoder.split(TEXTS).pieces
        for row, own in enumerate(pieces):
            alone = extract(list(own), plain)
            for block, array in view.items():
                over_tokens, over = split_pooling(block.pooling)
                values = alone[BlockRef("tiny", block.layer, over_tokens)]
                pooled = WINDOW_POOLINGS[over or ""](values, np.array([len(own)]))
                np.testing.assert_allclose(array[row], pooled[0], atol=2e-5)
        assert max(map(len, pieces)) > 2

    def test_texts_of_one_window_are_as_without(self, tiny: TinyModels):
        texts = [text for text in TEXTS if len(text.split()) <= 10]
        plain = extract(texts, opened(tiny("bert"), max_length=12))
        found = extract(texts, opened(tiny("bert"), max_length=12, windows=OVER))
        for block, array in found.items():
            same = plain[BlockRef("tiny", block.layer, split_pooling(block.pooling)[0])]
            np.testing.assert_array_equal(array, same)

    def test_another_pooling_over_windows_reads_nothing(self, tiny: TinyModels, tmp_path: Path):
        store = EmbeddingStore(tmp_path / "store")
        first = extract(TEXTS, opened(tiny("bert"), max_length=12, windows="mean"), store=store)
        assert first.n_computed > len(TEXTS)
        again = opened(tiny("bert"), max_length=12, windows=("max", "last"))
        second = extract(TEXTS, again, store=store)
        assert second.n_computed == 0
        assert second[BlockRef("tiny", 1, "mean/max")].shape == (60, 32)
        assert not again.is_loaded, "the tokenizer alone cuts the texts"
        short = [text for text in TEXTS if len(text.split()) <= 10]
        assert extract(short, opened(tiny("bert"), max_length=12), store=store).n_computed == 0

    def test_views_take_rows_and_repeats(self, tiny: TinyModels):
        view = extract([*TEXTS, *TEXTS[::-1]], opened(tiny("bert"), max_length=12, windows="max"))
        array = view[BlockRef("tiny", 2, "mean/max")]
        np.testing.assert_array_equal(array[60:], array[:60][::-1])
        rows = np.array([50, 3, 50, 0])
        taken = view.take(rows)
        np.testing.assert_array_equal(taken[BlockRef("tiny", 2, "mean/max")], array[rows])
        parts = list(view.parts(25))
        assert sorted(np.concatenate([own for own, _ in parts])) == list(range(120))

    def test_the_models_limits_hold(self, tiny: TinyModels, tmp_path: Path):
        folder = shutil.copytree(tiny("bert"), tmp_path / "limited")
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9}))
        encoder = opened(folder, windows="mean")
        assert encoder.window_length == 9
        assert opened(tiny("bert"), windows="mean").window_length == 66  # its positions
        notes = Notes()
        extract(TEXTS, encoder, store=EmbeddingStore(tmp_path / "store"), reporter=notes)
        assert notes.about("at most 9 tokens")
        for broken in ("{", "[]", '{"max_seq_length": "9"}', '{"max_seq_length": null}'):
            (folder / "sentence_bert_config.json").write_text(broken)
            assert opened(folder, windows="mean").window_length == 66

    def test_what_is_cut_is_counted(self, tiny: TinyModels):
        texts = [*(f"w{row} good film" for row in range(3)), " ".join(["good"] * 48)]
        cut = extract(texts, opened(tiny("bert"), max_length=12))
        assert cut.truncated_share == 1 / 4
        assert cut.read_share == pytest.approx((3 * 5 + 12) / (3 * 5 + 50))
        notes = Notes()
        encoder = opened(tiny("bert"), max_length=12, windows="mean", max_windows=2)
        found = extract(texts, encoder, reporter=notes)
        assert found.truncated_share == 1 / 4
        assert found.truncated.tolist() == [[False, False, False, True]]
        assert 0.4 < found.read_share < 0.7
        assert notes.about("--max-windows")
        whole = extract(texts, opened(tiny("bert"), max_length=12, windows="mean"))
        assert (whole.truncated_share, whole.read_share) == (0, 1)

    def test_costs_count_all_windows(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), max_length=12, windows="mean")
        n_windows = np.mean([len(own) for own in encoder.split(TEXTS).pieces])
        pieces = [piece for own in encoder.split(TEXTS).pieces for piece in own]
        tokens = np.mean([len(own) for own in encoder.tokenize(list(set(pieces))).ids])
        cost = extract(TEXTS, encoder).costs["tiny"]
        assert cost.tokens_per_text == pytest.approx(n_windows * tokens)
        assert cost.ms_per_text > cost.tokenize_ms_per_text > 0

    def test_eight_threads_see_what_one_sees(self, tiny: TinyModels, tmp_path: Path):
        alone = extract(TEXTS, opened(tiny("bert"), max_length=12, windows=OVER))
        encoder = opened(tiny("bert"), max_length=12, windows=OVER)
        store = EmbeddingStore(tmp_path / "store")
        with ThreadPoolExecutor(8) as executor:
            views = list(executor.map(lambda own: extract(TEXTS, encoder, store=own),
                                      [None, store] * 8))  # fmt: skip
        for number, view in enumerate(views):
            for block, array in view.items():
                limit = 2e-3 if number % 2 else 0  # the store keeps float16
                np.testing.assert_allclose(array, alone[block], atol=limit)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"windows": ("median",)}, "Unknown pooling over windows"),
            ({"windows": ()}, "No pooling over windows"),
            ({"windows": "mean", "overlap": 0.6}, "overlap"),
            ({"windows": "mean", "max_windows": 0}, "max_windows"),
        ],
    )
    def test_unusable_options(self, tiny: TinyModels, options: dict[str, Any], message: str):
        with pytest.raises(ConfigError, match=message):
            opened(tiny("bert"), **options)

    def test_blocks_of_the_other_kind_are_refused(self, tiny: TinyModels):
        block = BlockRef("tiny", 1, "mean")
        with pytest.raises(ConfigError, match="windows"):
            extract_blocks(TEXTS, [opened(tiny("bert"), windows="mean")], [block], None)
        over = BlockRef("tiny", 1, "mean/max")
        with pytest.raises(ConfigError, match="windows"):
            extract_blocks(TEXTS, [opened(tiny("bert"))], [over], None)


@pytest.mark.slow
def test_a_classifier_over_windows_is_saved_served_and_not_exported(
    tiny: TinyModels, tmp_path: Path
) -> None:
    """The words that tell are far behind the first window."""
    texts, labels = planted(80)
    rng = np.random.default_rng(0)
    filling = [" ".join(rng.choice(["the", "a", "of", "and"], 14)) for _ in texts]
    texts = [f"{before} {text}" for before, text in zip(filling, texts, strict=True)]
    options = {"max_length": 12, "selection": "best", "fusion": "concat", "head": "ridge"}
    with pytest.warns(LayerfuseWarning, match=r"bert: 12 tokens.*--windows"):
        cut = build(tiny, store=None, **options).fit(texts, labels)
    model = build(tiny, store=None, windows=("mean", "max", "last"), **options).fit(texts, labels)
    assert model.cv_.accuracy.value > cut.cv_.accuracy.value + 0.2
    assert cut.read_share_ < 0.8
    assert model.read_share_ == 1
    assert all(block.windowed for block in model.model_.blocks)
    model.save(tmp_path / "bundle")
    again = layerfuse.load(tmp_path / "bundle", device="cpu")
    proba = model.predict_proba(texts)
    np.testing.assert_array_equal(again.predict_proba(texts), proba)
    (served,) = load_models({"m": tmp_path / "bundle"}, {}, "cpu", SILENT).values()
    assert served.info.encoders[0].max_windows == 64
    (answer,) = predict([(served, tuple(texts))])
    ranked = [dict(row.ranked) for row in answer]
    known = [[own[label] for label in model.classes_.tolist()] for own in ranked]
    np.testing.assert_allclose(known, proba, atol=1e-5)
    assert not any(row.truncated for row in answer)
    with pytest.raises(ConfigError, match=r"bert:\d:mean/\w+ pools over several windows"):
        write_export(
            Source(model.model_, tuple(model.encoders_)),
            FORMATS["onnx"],
            tmp_path / "out",
            texts[:4],
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.index
def test_a_packaged_encoder_reads_windows_of_its_own_length() -> None:
    encoder = FrozenEncoder.from_pretrained("minilm", dtype="float32", windows=("mean", "max"))
    assert encoder.window_length == 256
    text = "The ship left the harbour at dawn; prices of grain rose. " * 40
    (pieces,) = encoder.split([text]).pieces
    assert len(pieces) > 1
    assert "".join(pieces) == text
    alone = extract(list(pieces), FrozenEncoder.from_pretrained("minilm", dtype="float32"))
    found = extract([text], encoder)
    for layer in (0, 3, 6):
        values = alone[BlockRef("minilm", layer, "mean")]
        for over, by_hand in (("mean", values.mean(axis=0)), ("max", values.max(axis=0))):
            array = found[BlockRef("minilm", layer, f"mean/{over}")][0]
            np.testing.assert_allclose(array, by_hand, atol=1e-5)
