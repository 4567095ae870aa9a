"""From texts to blocks: order, batches, limits, prompts, and models that cannot be read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

from families import N_LAYERS, VOCABULARY, TinyModels, build_tokenizer, save_gguf, save_model
from helpers import Notes, batched, sentences
from layerfuse import BlockRef, EmbeddingStore, FrozenEncoder, extract
from layerfuse.cluster import RayCluster
from layerfuse.embeddings import jobs
from layerfuse.embeddings.extraction import BlockView, extract_all, extract_blocks
from layerfuse.embeddings.jobs import ShardJob, ShardResult, plan_shards, run_shard
from layerfuse.errors import (
    ConfigError,
    DataError,
    NotFoundError,
    StorageError,
    UnsupportedModelError,
)
from processes import server
from test_encoder_parity import POOLINGS, assert_close, plain_loop

ID = {word: number for number, word in enumerate(VOCABULARY)}


def ids(text: str) -> list[int]:
    return [ID.get(word, ID["<unk>"]) for word in text.split()]


def opened(folder: Path, **options: Any) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(
        folder, name="tiny", device="cpu", dtype="float32", **options
    )


def with_limit(source: Path, target: Path, **settings: Any) -> Path:
    """A copy of a model folder with other settings of the tokenizer."""
    shutil.copytree(source, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return target


class TestOrderAndBatches:
    @pytest.mark.slow
    def test_shuffled_lengths_come_back_in_order(self, tiny: TinyModels):
        texts = sentences(60, longest=30)
        encoder = opened(tiny("bert"))
        found = extract(texts, batched(encoder, 200))
        for layer in range(N_LAYERS + 1):
            alone = [
                encoder.read(encoder.tokenize([text]).ids, [layer], ("mean",))[layer][0, 0]
                for text in texts
            ]
            array = found[BlockRef("tiny", layer, "mean")]
            np.testing.assert_allclose(array, np.stack(alone), atol=1e-5)

    def test_shuffling_the_texts_shuffles_the_rows(self, tiny: TinyModels):
        texts, encoder = sentences(50), opened(tiny("llama"))
        order = np.random.default_rng(0).permutation(50)
        straight = extract(texts, encoder, pooling=POOLINGS)
        shuffled = extract([texts[row] for row in order], encoder, pooling=POOLINGS)
        for ref, array in straight.items():
            np.testing.assert_array_equal(shuffled[ref], array[order])

    @pytest.mark.slow
    @pytest.mark.parametrize("budget", [1, 10, 64, 100_000])
    def test_batches_keep_to_the_token_budget(
        self, tiny: TinyModels, budget: int, monkeypatch: pytest.MonkeyPatch
    ):
        encoder = opened(tiny("bert"))
        shapes = []
        encoder.stack.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 37})
        texts = sentences(100, longest=30)
        notes = Notes()
        extract(texts, batched(encoder, budget), reporter=notes)
        assert sum(rows for rows, _ in shapes) == sum(notes.advanced) == 100
        assert all(rows == 1 or rows * width <= budget for rows, width in shapes)
        n_shards = 3
        if budget == 1:
            assert len(shapes) == 100
        if budget == 100_000:
            assert n_shards <= len(shapes) < 15, "no more batches than the padding is worth"
        real = sum(len(row) for row in encoder.tokenize(texts).ids)
        padded = sum(rows * width for rows, width in shapes)
        assert padded < 1.3 * real, "texts of like length go together"

    def test_batches_and_shards_change_only_roundings(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        texts, encoder = sentences(60), opened(tiny("modernbert"))
        whole = extract(texts, encoder, pooling=POOLINGS)
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 7})
        parts = extract(texts, batched(encoder, 30), pooling=POOLINGS)
        for ref, array in whole.items():
            np.testing.assert_allclose(parts[ref], array, atol=2e-5)

    def test_shards_of_a_large_encoder_have_fewer_rows(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        """So that a run that is stopped has written some; deeper layers count, higher ones not."""
        encoder, texts = opened(tiny("bert")), sentences(300)
        whole = encoder.layer_parameters

        def rows(highest: int) -> int:
            planned = plan_shards(texts, [(np.arange(300), ((highest, "mean"),))], encoder)
            assert [text for job in planned for text in job.texts] == texts
            return max(len(job.rows) for job in planned)

        assert rows(3) == 300
        monkeypatch.setattr(jobs, "SHARD_WORK", {"cpu": 200.0 * whole[3]})
        assert rows(3) == 128
        monkeypatch.setattr(jobs, "SHARD_WORK", {"cpu": 1.0})
        assert rows(3) == rows(1) == 64
        monkeypatch.setattr(jobs, "SHARD_WORK", {"cpu": 300.0 * whole[1]})
        assert rows(3) < rows(1)

    def test_a_view_says_what_it_holds(self, tiny: TinyModels):
        found = extract(["good", "bad"], opened(tiny("bert")), [0, 3])
        assert repr(found) == "<BlockView rows=2 blocks=2: tiny:0:mean to tiny:3:mean>"
        one = found.select([BlockRef("tiny", 0, "mean")])
        assert repr(one) == "<BlockView rows=2 blocks=1: tiny:0:mean>"

    def test_blocks_come_in_the_order_of_poolings_and_layers(self, tiny: TinyModels):
        found = extract(["good"], opened(tiny("bert")), [-1, 0, 3, 1], ("max", "mean", "max"))
        assert [str(ref) for ref in found] == [
            *("tiny:0:max", "tiny:1:max", "tiny:3:max"),
            *("tiny:0:mean", "tiny:1:mean", "tiny:3:mean"),
        ]
        assert len(found) == 6
        assert all(array.shape == (1, 32) for array in found.values())

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("too many"),
            RuntimeError("CUDA error: out of memory"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        ],
        ids=["allocator", "driver", "cublas"],
    )
    def test_out_of_memory_is_answered_by_smaller_batches(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
    ):
        """A model that can take no more than four texts at once."""
        encoder, texts = opened(tiny("bert")), sentences(40)
        expected = extract(texts, encoder)

        def guard(_: torch.nn.Module, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
            if len(kwargs["input_ids"]) > 4:
                raise error

        handle = encoder.stack.register_forward_pre_hook(guard, with_kwargs=True)
        notes = Notes()
        found = extract(texts, batched(encoder, 400), reporter=notes)
        handle.remove()
        assert notes.about("out of memory; batches are cut to ")
        for ref, array in expected.items():
            np.testing.assert_allclose(found[ref], array, atol=1e-5)

    def test_memory_is_given_back_once_the_failed_pass_has_let_go_of_it(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        encoder = opened(tiny("bert"))
        held: list[weakref.ref[torch.Tensor]] = []
        given_back: list[bool] = []

        def guard(_: torch.nn.Module, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
            activations = kwargs["input_ids"] + 1
            if len(activations) > 4:
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("too many")

        encoder.stack.register_forward_pre_hook(guard, with_kwargs=True)
        monkeypatch.setattr(
            torch.cuda, "empty_cache", lambda: given_back.append(held[-1]() is None)
        )
        extract(sentences(40), batched(encoder, 400))
        assert given_back
        assert all(given_back)


def run_alone(job: ShardJob, encoder: FrozenEncoder, folder: Path, cache: str) -> ShardResult:
    """What a worker process does."""
    os.environ["LAYERFUSE_CACHE"] = cache
    torch.set_num_threads(1)
    return run_shard(job, encoder, folder)


@pytest.mark.slow
class TestJobs:
    def test_planning_needs_no_weights(self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(jobs, "SHARD_WORK", {"cpu": 1.0})
        texts, missing = sentences(300), [(np.arange(300), ((3, "mean"),))]
        expected = plan_shards(texts, missing, opened(tiny("bert")))  # the first use is remembered
        encoder = opened(tiny("bert"))
        planned = plan_shards(texts, missing, encoder)
        assert not encoder.is_loaded
        assert [job.texts for job in planned] == [job.texts for job in expected]
        assert len(planned) == 5

    def test_another_process_writes_the_same_bytes(
        self, tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 40})
        texts, encoder = sentences(100, longest=30), opened(tiny("llama"))
        keys = ((0, "mean"), (2, "last"), (3, "mean"))
        planned = plan_shards(texts, [(np.arange(100), keys)], encoder)
        assert [len(job.texts) for job in planned] == [40, 40, 20]
        here, there = tmp_path / "here" / "section", tmp_path / "there" / "section"
        here.mkdir(parents=True)
        there.mkdir(parents=True)
        results = [run_shard(job, encoder, here) for job in planned]
        cache = os.environ["LAYERFUSE_CACHE"]
        with ProcessPoolExecutor(1, mp_context=server()) as process:
            others = [process.submit(run_alone, job, encoder, there, cache) for job in planned]
            for result, other in zip(results, others, strict=True):
                path = other.result().path
                assert path is not None
                assert result.path is not None
                assert path.name == result.path.name
                assert path.read_bytes() == result.path.read_bytes()
                assert other.result().blocks == {}
                assert other.result().cost.n_tokens == result.cost.n_tokens
        assert len(list(there.iterdir())) == 3

    def test_memory_that_ran_out_in_one_job_is_not_asked_for_in_the_next(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 20})
        encoder, notes = opened(tiny("bert")), Notes()
        launch = encoder.launch

        def tight(ids: list[list[int]], *rest: Any) -> Any:
            if len(ids) > 4:
                raise torch.OutOfMemoryError("too many")
            return launch(ids, *rest)

        monkeypatch.setattr(encoder, "launch", tight)
        extract(["good " * (1 + n % 2) + word for n, word in enumerate(VOCABULARY[4:44])],
                batched(encoder, 64), reporter=notes)  # fmt: skip
        assert len(notes.about("out of memory")) == 2, "64, 32 and 16 tokens"


class Elsewhere(RayCluster):
    """Stands in for a cluster: what it is given and gives is pickled, the last item comes first."""

    def map(
        self, open_work: Callable[[], Callable[[Any], Any]], items: Any, *, gpu: bool
    ) -> Generator[Any]:
        run = open_work()
        for item in reversed([*items()]):
            yield pickle.loads(pickle.dumps(run(pickle.loads(pickle.dumps(item)))))


class Unshared(Elsewhere):
    """A cluster whose nodes have disks of their own."""

    def map(self, *args: Any, gpu: bool) -> Generator[Any]:
        for result in super().map(*args, gpu=gpu):
            result.path.unlink()
            yield result


class TestClusters:
    @pytest.mark.parametrize("root", ["there", "memory://bucket/there"])
    def test_blocks_are_those_of_this_process(
        self, tiny: TinyModels, tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 10})
        memory = fsspec.filesystem("memory")
        memory.store.clear()  # that of the process
        encoder, texts = opened(tiny("bert")), sentences(40)
        store = EmbeddingStore(root, Elsewhere())
        found = extract(texts, encoder, store=store)
        here = extract(texts, encoder, store=EmbeddingStore(tmp_path / "here"))
        shards = [*Path("there").rglob("*.safetensors"), *memory.glob("/bucket/*/*/*.safetensors")]
        assert (found.n_computed, len(shards)) == (40, 4)
        for block in here:
            np.testing.assert_array_equal(found[block], here[block])
        assert extract(texts, encoder, store=store).n_computed == 0

    def test_nodes_that_do_not_share_the_folder(self, tiny: TinyModels, tmp_path: Path):
        store = EmbeddingStore(tmp_path / "store", Unshared())
        with pytest.raises(StorageError, match="all nodes share"):
            extract(sentences(3), opened(tiny("bert")), store=store)


class TestViews:
    @pytest.fixture(params=[False, True], ids=["in memory", "in a store"])
    def view(self, tiny: TinyModels, tmp_path: Path, request: pytest.FixtureRequest) -> BlockView:
        encoders = [
            FrozenEncoder.from_pretrained(tiny(name), name=name, device="cpu", max_length=8)
            for name in ("bert", "llama")
        ]
        store = EmbeddingStore(tmp_path) if request.param else None
        return extract_all(["good film", "bad", "good film", "bad " * 20], encoders, store)

    def test_taking_rows(self, view: BlockView):
        for rows in (np.array([3, 0, 3]), np.array([True, False, False, True])):
            part = view.take(rows)
            assert list(part) == list(view)
            for block, array in view.items():
                np.testing.assert_array_equal(part[block], array[rows])
            assert part.costs == view.costs
        assert view.truncated_share == 1 / 4
        assert view.take(np.array([3, 0, 3])).truncated_share == 2 / 3
        assert view.take(np.array([], np.intp))[BlockRef("bert", 1, "mean")].shape == (0, 32)
        again = view.take(np.array([3, 0, 1])).take(np.array([1]))
        block = next(iter(view))
        np.testing.assert_array_equal(again[block], view[block][[0]])

    def test_selecting_and_joining(self, view: BlockView):
        blocks = [BlockRef("llama", 3, "mean"), BlockRef("bert", 0, "mean")]
        part = view.select(blocks)
        assert list(part) == blocks
        assert list(part.costs) == ["llama", "bert"]
        assert part.n_computed == view.n_computed == 2 * 3
        only = [view.select([block]) for block in blocks]
        joined = BlockView.join(only)
        assert list(joined) == blocks
        for block in blocks:
            np.testing.assert_array_equal(joined[block], view[block])
        with pytest.raises(KeyError, match="bert:9:mean is not one of"):
            view.select([BlockRef("bert", 9, "mean")])
        with pytest.raises(ConfigError, match="same texts"):
            BlockView.join([only[0], only[1].take(np.array([0]))])

    def test_just_these_blocks_are_read(self, tiny: TinyModels, tmp_path: Path):
        texts = sentences(10)
        encoders = [
            FrozenEncoder.from_pretrained(tiny(name), name=name, device="cpu", dtype="float32")
            for name in ("bert", "llama")
        ]
        store = EmbeddingStore(tmp_path)
        blocks = [BlockRef("bert", 2, "max"), BlockRef("bert", 1, "mean")]
        found = extract_blocks(texts, encoders, blocks, store)
        assert list(found) == blocks
        assert not encoders[1].is_loaded
        expected = extract(texts, encoders[0], [1, 2], ("mean", "max"))
        for block in blocks:
            np.testing.assert_allclose(found[block], expected[block], rtol=1e-3, atol=1e-4)
        (shard,) = tmp_path.glob("*/*.safetensors")
        names = {name for name in load_file(shard) if ":" in name}
        assert names == {"2:max", "1:mean"}
        with pytest.raises(ConfigError, match=r"Unknown encoder 'brt'.*Did you mean 'bert'"):
            extract_blocks(texts, encoders, [BlockRef("brt", 1, "mean")], None)

    def test_an_encoders_own_layers_and_poolings(self, tiny: TinyModels):
        encoder = opened(tiny("bert"))
        encoder.layers, encoder.pooling = [0, -1], ("last", "mean")
        found = extract(["good"], encoder)
        assert [str(block) for block in found] == [
            *("tiny:0:last", "tiny:3:last", "tiny:0:mean", "tiny:3:mean"),
        ]
        assert list(extract_all(["good"], [encoder], None)) == list(found)
        assert len(extract(["good"], encoder, "all", "max")) == 4


class TestTexts:
    @pytest.mark.slow
    @pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5"])
    @pytest.mark.parametrize("special", [True, False])
    def test_empty_texts_are_read(self, tiny: TinyModels, family: str, special: bool):
        encoder = opened(tiny(family, special=special))
        assert encoder.tokenize([""]).ids == ([[0, 2]] if special else [[0]])
        found = extract(["", "good", "", "  "], encoder, pooling=POOLINGS)
        for array in found.values():
            assert np.isfinite(array).all()
            np.testing.assert_allclose(array[0], array[2])
        last = found[BlockRef("tiny", N_LAYERS, "mean")]
        assert np.abs(last[0] - last[1]).max() > 1e-3

    def test_long_texts_are_cut_and_counted(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), max_length=10)
        texts = ["good " * 8, "good " * 9, "bad " * 300, "fine"]
        found = extract(texts, encoder)
        assert found.truncated_share == 0.5
        tokens = encoder.tokenize(texts)
        assert tokens.truncated == [False, True, True, False]
        assert tokens.ids[1] == tokens.ids[0] == [0, *[ID["good"]] * 8, 2]
        assert max(map(len, tokens.ids)) == 10

    def test_the_models_own_positions_limit_the_length(self, tiny: TinyModels):
        long = "good " * 500
        for family, limit in (("bert", 66), ("roberta", 64), ("gpt2", 66), ("falcon-alibi", 100)):
            encoder = opened(tiny(family), max_length=100)
            assert len(encoder.tokenize([long]).ids[0]) == limit, family
            assert np.isfinite(extract([long], encoder)[BlockRef("tiny", 3, "mean")]).all()

    @pytest.mark.parametrize("limit", [int(1e30), 1e30, 20])
    def test_the_tokenizers_limit(self, tiny: TinyModels, tmp_path: Path, limit: float):
        """1e30 is how transformers writes that there is none."""
        folder = with_limit(tiny("bert"), tmp_path / "m", model_max_length=limit)
        (row,) = opened(folder).tokenize(["good " * 500]).ids
        assert len(row) == min(66, limit)

    def test_lone_surrogates_are_read_as_unknown_words(self, tiny: TinyModels):
        encoder = opened(tiny("bert"))
        found = extract(["good \ud83d film", "good ? film", "\udfff"], encoder)
        for array in found.values():
            np.testing.assert_allclose(array[0], array[1], atol=1e-6)

    @pytest.mark.parametrize(
        "text",
        [
            "\x00",
            "\u200b\u202e",
            "ünïcödé 你好 🚢",
            "a\nb\tc\r\n",
            "<s> </s> <pad> <unk>",
            "x" * 9999,
        ],
    )
    def test_strange_texts_are_read(self, tiny: TinyModels, text: str):
        for array in extract([text], opened(tiny("bert")), pooling=POOLINGS).values():
            assert np.isfinite(array).all()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("value", "shown"),
        [(None, "None (NoneType)"), (3.5, "3.5 (float)"), (b"bytes", "b'bytes' (bytes)")],
    )
    def test_values_that_are_no_texts_are_named(self, tiny: TinyModels, value: Any, shown: str):
        with pytest.raises(DataError) as caught:
            extract(["good", "bad", value, None], opened(tiny("bert")))
        assert str(caught.value) == (
            f"Text number 2 is {shown}, expected a string. Drop the rows without text, or fill "
            "them with an empty string."
        )

    def test_one_string_and_no_texts_are_refused(self, tiny: TinyModels):
        encoder = opened(tiny("bert"))
        with pytest.raises(
            DataError, match=r"Got one string where texts are expected\. Give a list"
        ):
            extract("good film", encoder)
        with pytest.raises(DataError, match="There are no texts"):
            extract([], encoder)

    def test_any_sequence_of_strings_will_do(self, tiny: TinyModels):
        encoder = opened(tiny("bert"))
        expected = extract(["good", "bad"], encoder)
        for texts in (
            ("good", "bad"),
            np.array(["good", "bad"]),
            pd.Series(["good", "bad"], [7, 3]),
        ):
            for ref, array in extract(texts, encoder).items():
                np.testing.assert_array_equal(array, expected[ref])


class TestPrompts:
    PROMPT = "the film is {text} not good"
    LONG = "bank " * 300

    @pytest.mark.parametrize("special", [True, False])
    def test_the_text_is_truncated_and_never_the_prompt(self, tiny: TinyModels, special: bool):
        encoder = opened(tiny("llama", special=special), prompt=self.PROMPT, max_length=20)
        (row,) = encoder.tokenize([self.LONG]).ids
        inner = row[1:-1] if special else row
        assert len(row) == 20
        assert (
            (row[0], row[-1]) == (0, 2) if special else (row[0], row[-1]) == (ID["the"], ID["good"])
        )
        n_text = len(inner) - 5
        assert inner == [*ids("the film is"), *[ID["bank"]] * n_text, *ids("not good")]
        assert encoder.tokenize([self.LONG]).truncated == [True]

    def test_the_text_keeps_its_beginning(self, tiny: TinyModels):
        words = [f"w{number}" for number in range(30)]
        encoder = opened(tiny("bert"), prompt=self.PROMPT, max_length=17)
        (row,) = encoder.tokenize([" ".join(words)]).ids
        assert row == [0, *ids("the film is"), *(ID[w] for w in words[:10]), *ids("not good"), 2]

    def test_short_and_empty_texts_are_whole(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), prompt=self.PROMPT)
        assert encoder.tokenize(["bad", ""]).ids == [
            [0, *ids("the film is bad not good"), 2],
            [0, *ids("the film is not good"), 2],
        ]

    def test_a_slow_tokenizer_is_cut_by_characters(self):
        """One that does not say which characters a token stands for."""
        from layerfuse.encoders.tokenizer import TextTokenizer

        class Slow:
            is_fast = False
            bos_token_id, eos_token_id, pad_token_id = 0, 2, 1

            def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
                around = ([0], [2]) if options["add_special_tokens"] else ([], [])
                return {"input_ids": [[*around[0], *ids(text), *around[1]] for text in texts]}

        tokenizer = TextTokenizer(Slow(), prompt=self.PROMPT, chat_prompt=None, max_length=12)
        tokens = tokenizer([self.LONG, "bad", ""])
        assert tokens.ids[0] == [0, *ids("the film is bank bank bank bank bank not good"), 2]
        assert tokens.ids[1] == [0, *ids("the film is bad not good"), 2]
        assert tokens.truncated == [True, False, False]

    def test_a_prompt_changes_what_is_read(self, tiny: TinyModels):
        ref = BlockRef("tiny", 3, "last")
        plain, asked, by_hand = (
            extract([text], opened(tiny("llama"), prompt=prompt), pooling="last")[ref]
            for text, prompt in (
                ("bad", None),
                ("bad", self.PROMPT),
                ("the film is bad not good", None),
            )
        )
        np.testing.assert_allclose(asked, by_hand, atol=1e-6)
        assert np.abs(asked - plain).max() > 1e-3

    def test_a_prompt_may_contain_special_tokens(self, tiny: TinyModels):
        encoder = opened(tiny("llama", special=False), prompt="<s> {text} </s>", max_length=6)
        assert encoder.tokenize([self.LONG]).ids == [[0, *[ID["bank"]] * 4, 2]]

    @pytest.mark.slow
    def test_a_chat_prompt_uses_the_models_own_template(self, tiny: TinyModels, tmp_path: Path):
        chat = (
            "{% for message in messages %}<s> {{ message['content'] }} </s>{% endfor %}"
            "{% if add_generation_prompt %} the{% endif %}"
        )
        folder = with_limit(tiny("llama"), tmp_path / "m", chat_template=chat)
        asked = opened(folder, chat_prompt="good not bad").tokenize(["oil price", self.LONG])
        assert asked.ids[0] == [0, *ids("good not bad oil price"), 2, ID["the"]]
        assert asked.ids[1][:4] == [0, *ids("good not bad")]
        assert asked.ids[1][-2:] == [2, ID["the"]]
        assert len(asked.ids[1]) == 66
        placed = opened(folder, chat_prompt="good {text} bad").tokenize(["oil"])
        assert placed.ids == [[0, *ids("good oil bad"), 2, ID["the"]]]

    def test_unusable_prompts_are_refused(self, tiny: TinyModels):
        folder = tiny("bert")
        for prompt in ("no slot", "{text} and {text}", ""):
            with pytest.raises(ConfigError, match=r"must contain \{text\} exactly once"):
                opened(folder, prompt=prompt)
        with pytest.raises(ConfigError, match="both a prompt and a chat prompt; choose one"):
            opened(folder, prompt="{text}", chat_prompt="good")
        with pytest.raises(ConfigError, match=r"takes 7 of at most 7 tokens.* Shorten it"):
            opened(folder, prompt=self.PROMPT, max_length=7).tokenize(["good"])
        with pytest.raises(ConfigError, match=r"has no chat template\. Use a plain prompt"):
            opened(folder, chat_prompt="good").tokenize(["good"])
        with pytest.raises(ConfigError, match="max_length=1 is too short"):
            opened(folder, max_length=1)


class TestChoices:
    @pytest.mark.parametrize("layers", [[4], 4, [0, -5], [1, 2, 99]])
    def test_layers_that_are_not_there_are_refused(self, tiny: TinyModels, layers: Any):
        with pytest.raises(
            ConfigError, match=r"tiny has no layer .*0 \(embedding output\) to 3 \(last block\)"
        ):
            extract(["good"], opened(tiny("bert")), layers)

    @pytest.mark.parametrize("layers", ["some", [], [1.5], ["1"]])
    def test_what_is_no_layer_is_refused(self, tiny: TinyModels, layers: Any):
        with pytest.raises(ConfigError, match=r"[Ll]ayer"):
            extract(["good"], opened(tiny("bert")), layers)

    def test_unknown_poolings_are_refused(self, tiny: TinyModels):
        with pytest.raises(ConfigError, match=r"'maen'. Choose from mean, .*Did you mean 'mean'\?"):
            extract(["good"], opened(tiny("bert")), pooling="maen")
        with pytest.raises(ConfigError, match="No pooling was given"):
            extract(["good"], opened(tiny("bert")), pooling=())

    def test_candidates_are_the_layers_and_poolings_as_given(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), layers=(-1, 0), pooling=["max", "mean"], batch_tokens=7)
        assert (encoder.layers, encoder.pooling) == ((-1, 0), ["max", "mean"])
        assert encoder.batch_tokens == 7
        assert [str(block) for block in encoder.candidates] == [
            *("tiny:0:max", "tiny:3:max"),
            *("tiny:0:mean", "tiny:3:mean"),
        ]
        every = opened(tiny("bert"))
        assert every.candidates == tuple(BlockRef("tiny", layer, "mean") for layer in range(4))
        assert encoder.identity == every.identity, "stores don't depend on them"
        with pytest.raises(ConfigError, match="tiny has no layer 9"):
            assert opened(tiny("bert"), layers=9).candidates

    def test_the_identity_has_the_names_of_existing_stores(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), prompt="the {text}", max_length=9)
        assert encoder.identity == {
            "fingerprints": encoder.fingerprints, "revision": None, "template": "the {text}",
            "chat_question": None, "max_length": 9, "dtype": "float32",
        }  # fmt: skip
        assert opened(tiny("bert"), chat_prompt="good").identity["chat_question"] == "good"

    def test_layers_above_a_cut_are_not_loaded(self, tiny: TinyModels):
        encoder = opened(tiny("bert")).truncate(-3)
        assert (encoder.highest_layer, encoder.n_layers) == (1, 3)
        assert len(extract(["good"], encoder, [0, 1])) == 2
        with pytest.raises(ConfigError, match=r"layer 3 is not loaded \(encoder truncated at 1\)"):
            extract(["good"], encoder, [3])

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"device": "gpu"}, "Unknown device 'gpu'"),
            ({"device": "cuda:all"}, "Unknown device 'cuda:all'. Choose from auto, cpu, cuda, "),
            ({"dtype": "float16x"}, "Unknown dtype 'float16x'.*Did you mean 'float16'"),
            ({"batch_tokens": 0}, "batch_tokens=0 is too few"),
        ],
    )
    def test_unusable_settings_are_refused(
        self, tiny: TinyModels, option: dict[str, str], message: str
    ):
        options = {"device": "cpu", "dtype": "float32", **option}
        with pytest.raises(ConfigError, match=message):
            FrozenEncoder.from_pretrained(tiny("bert"), **options)

    def test_a_cuda_device_beyond_the_last_is_refused(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(
            ConfigError, match=r"Unknown device 'cuda:2'\. Choose from cuda:0, cuda:1"
        ):
            FrozenEncoder.from_pretrained(tiny("bert"), device="cuda:2", dtype="float32")


class TestModels:
    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_a_tokenizer_without_a_pad_token(self, tiny: TinyModels, family: str):
        texts = sentences(20)
        with_pad, without = (
            extract(texts, opened(tiny(family, pad=pad)), pooling=POOLINGS) for pad in (True, False)
        )
        assert build_tokenizer(pad=False).pad_token_id is None
        for ref, array in with_pad.items():
            np.testing.assert_allclose(without[ref], array, atol=1e-5)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_refused(
        self, tiny: TinyModels, tmp_path: Path, value: float
    ):
        folder = save_model("llama", tmp_path / "broken")
        weights = load_file(folder / "model.safetensors")
        weights["layers.1.mlp.down_proj.weight"][3, 3] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        encoder = opened(folder)
        assert len(extract(["good"], encoder, [0, 1])) == 2  # below the damage all is well
        with pytest.raises(
            UnsupportedModelError, match=r"not finite at layer 2 in float32.*Use --d"
        ):
            extract(["good"], encoder)

    def test_a_model_of_images_is_refused(self, tmp_path: Path):
        folder = tmp_path / "vit"
        config = hf.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            image_size=8, patch_size=4,
        )  # fmt: skip
        hf.ViTModel(config).save_pretrained(folder)
        with pytest.raises(UnsupportedModelError, match="has no tokenizer files"):
            opened(folder)
        build_tokenizer().save_pretrained(folder)
        with pytest.raises(
            UnsupportedModelError, match=r"not a text model: it has no single stack"
        ):
            extract(["good"], opened(folder))

    @pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "mpnet"])
    @pytest.mark.parametrize(
        "beside",
        [
            None,
            "LICENSE.txt",
        ],
    )
    def test_a_folder_without_a_tokenizer_is_refused(
        self, tiny: TinyModels, tmp_path: Path, family: str, beside: str | None
    ):
        """transformers would make one up that knows no word."""
        for name in ("config.json", "model.safetensors"):
            shutil.copy(tiny(family) / name, tmp_path)
        if beside:
            (tmp_path / beside).write_text("Apache-2.0")
        with pytest.raises(UnsupportedModelError, match=r"has no tokenizer files"):
            extract(["good"], opened(tmp_path))

    @pytest.mark.parametrize("lost", ["encoder.layer.1.intermediate.dense.weight", "encoder.layer"])
    def test_missing_weights_are_refused(self, tiny: TinyModels, tmp_path: Path, lost: str):
        folder = tmp_path / "m"
        shutil.copytree(tiny("bert"), folder)
        weights = load_file(folder / "model.safetensors")
        kept = {name: array for name, array in weights.items() if not name.startswith(lost)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UnsupportedModelError, match="weights"):
            extract(["good"], opened(folder))

    def test_a_model_without_the_pooler_is_read_all_the_same(
        self, tiny: TinyModels, tmp_path: Path
    ):
        """Many checkpoints leave out what reading does not need."""
        folder = tmp_path / "m"
        shutil.copytree(tiny("bert"), folder)
        weights = load_file(folder / "model.safetensors")
        kept = {name: array for name, array in weights.items() if "pooler" not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        found = extract(["good"], opened(folder))
        for ref, array in extract(["good"], opened(tiny("bert"))).items():
            np.testing.assert_array_equal(found[ref], array)

    def test_pickled_weights_are_read_only_when_allowed(self, tiny: TinyModels, tmp_path: Path):
        folder = tmp_path / "pickled"
        shutil.copytree(tiny("bert"), folder)
        model = hf.AutoModel.from_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(
            UnsupportedModelError, match=r"only pytorch_model.bin, which can run.*allow_pickle=True"
        ):
            opened(folder)
        allowed = extract(["good", "bad film"], opened(folder, allow_pickle=True))
        for ref, array in extract(["good", "bad film"], opened(tiny("bert"))).items():
            np.testing.assert_array_equal(allowed[ref], array)

    def test_folders_that_hold_no_model_are_refused(self, tiny: TinyModels, tmp_path: Path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UnsupportedModelError, match=r"has no config\.json"):
            opened(tmp_path / "empty")
        shutil.copy(tiny("bert") / "config.json", tmp_path / "empty")
        with pytest.raises(
            UnsupportedModelError, match=r"has no \.safetensors weights\. Is it a model"
        ):
            opened(tmp_path / "empty")
        with pytest.raises(UnsupportedModelError, match=r"is a file, but not a \.gguf file"):
            opened(tiny("bert") / "config.json")
        with pytest.raises(
            NotFoundError, match=r"Unknown encoder 'minillm'. Did you mean 'minilm'"
        ):
            FrozenEncoder.from_pretrained("minillm")

    @pytest.mark.parametrize("size", [0, 4, 5000])
    def test_damaged_weights_are_refused(self, tiny: TinyModels, tmp_path: Path, size: int):
        folder = tmp_path / "m"
        shutil.copytree(tiny("bert"), folder)
        os.truncate(folder / "model.safetensors", size)
        with pytest.raises(UnsupportedModelError, match="cannot be loaded as a text encoder"):
            extract(["good"], opened(folder))

    def test_weights_of_other_sizes_are_refused(self, tiny: TinyModels, tmp_path: Path):
        folder = tmp_path / "m"
        shutil.copytree(tiny("bert"), folder)
        config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 64}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match="cannot be loaded as a text encoder"):
            extract(["good"], opened(folder))

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_damaged_json_is_refused(self, tiny: TinyModels, tmp_path: Path, name: str):
        folder = tmp_path / "m"
        shutil.copytree(tiny("bert"), folder)
        (folder / name).write_text("{")
        with pytest.raises(UnsupportedModelError, match=r"cannot be loaded|no tokenizer that can"):
            extract(["good"], opened(folder))

    def test_a_pickled_encoder_has_no_weights_and_works(self, tiny: TinyModels):
        encoder = opened(tiny("bert"), prompt="the {text}").truncate(2)
        expected = extract(["good", "bad"], encoder, [0, 2])
        data = pickle.dumps(encoder)
        assert len(data) < 2000
        again = pickle.loads(data)
        assert not again.is_loaded
        assert (again.identity, again.highest_layer) == (encoder.identity, 2)
        for ref, array in extract(["good", "bad"], again, [0, 2]).items():
            np.testing.assert_array_equal(array, expected[ref])

    def test_blocks_that_are_not_found_cost_memory_only(self, tmp_path: Path):
        """ALBERT runs one and the same block again and again."""
        folder = tmp_path / "albert"
        torch.manual_seed(0)
        config = hf.AlbertConfig(
            vocab_size=64, embedding_size=16, hidden_size=32, intermediate_size=48,
            num_hidden_layers=N_LAYERS, num_attention_heads=4, max_position_embeddings=66,
            pad_token_id=1, bos_token_id=0, eos_token_id=2,
        )  # fmt: skip
        hf.AlbertModel(config).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
        notes = Notes()
        encoder = opened(folder, reporter=notes)
        texts = sentences(10)
        tokens = encoder.tokenize(texts).ids
        expected = plain_loop(folder, tokens)
        for layer, array in encoder.read(tokens, "all", POOLINGS).items():
            assert_close(array, expected[layer])
        found = extract(texts, encoder, [1, 3], ("mean", "max"))
        assert len(found) == 4
        assert notes.about("all hidden states of a batch are kept")
        assert len(extract(texts, opened(folder).truncate(1), [1])) == 1


class TestCost:
    def test_it_is_measured_while_texts_are_read(self, tiny: TinyModels):
        encoder, texts = opened(tiny("bert")), sentences(60)
        found = extract([*texts, *texts[:10]], batched(encoder, 100))
        cost = found.costs["tiny"]
        assert cost == found.costs["tiny"]
        assert (cost.encoder, cost.n_texts, cost.dims) == ("tiny", 60, 32)
        assert cost.parameters == encoder.layer_parameters
        assert cost.bytes_per_parameter == 4
        assert cost.tokens_per_text == np.mean([len(row) for row in encoder.tokenize(texts).ids])
        assert 0 < cost.tokenize_ms_per_text < cost.ms_per_text < 1000
        assert (cost.device, cost.dtype, cost.threads) == ("cpu", "float32", 1)
        assert (cost.measured_layer, cost.stops_early) == (N_LAYERS, True)

    def test_the_clock_runs_for_reading_and_tokenising_only(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        """A clock that only the encoder moves: 0.5 s for a tokenisation, 1 ms for a token and
        block, and 100 s for whatever it does first."""
        clock = [0.0]
        monkeypatch.setattr(jobs.time, "perf_counter", lambda: clock[0])
        encoder, texts = opened(tiny("bert")), sentences(50)
        launch, tokenize = encoder.launch, encoder.tokenize

        def slow_launch(ids: list[list[int]], layers: list[int], *rest: Any) -> Any:
            clock[0] += 0.001 * sum(map(len, ids)) * layers[-1] + (100 if cold else 0)
            cold.clear()
            return launch(ids, layers, *rest)

        def slow_tokenize(rows: list[str]) -> Any:
            clock[0] += 0.5 if rows else 100
            return tokenize(rows)

        monkeypatch.setattr(encoder, "launch", slow_launch)
        monkeypatch.setattr(encoder, "tokenize", slow_tokenize)
        tokens_per_text = np.mean([len(row) for row in tokenize(texts).ids])
        for layers in ("all", [1], [0, 2]):
            cold = [True]
            cost = extract(texts, batched(encoder, 60), layers).costs["tiny"]
            assert cost.tokenize_ms_per_text == pytest.approx(500 / 50)
            # the time at full depth follows from any layer
            assert cost.ms_per_text == pytest.approx(10 + N_LAYERS * tokens_per_text)
            assert cost.ms_at(1) == pytest.approx(10 + tokens_per_text)

    def test_a_run_of_layer_0_alone_says_nothing_of_the_blocks(self, tiny: TinyModels):
        """So that a few texts are read for it."""
        encoder, notes = opened(tiny("bert")), Notes()
        found = extract(sentences(40), encoder, [0], reporter=notes)
        cost = found.costs["tiny"]
        assert (cost.n_texts, cost.measured_layer) == (32, N_LAYERS)
        assert sum(notes.advanced) == 40
        assert notes.about("tiny: measuring its cost on 32 texts")
        low = extract(sentences(40), opened(tiny("bert")).truncate(1), [0]).costs["tiny"]
        assert low.measured_layer == 1
        assert low.parameters == encoder.layer_parameters
        assert extract(sentences(40), opened(tiny("bert")).truncate(0), [0]).costs == {}

    def test_failed_batches_are_off_the_clock(
        self, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
    ):
        encoder, clock = opened(tiny("bert")), [0.0]
        monkeypatch.setattr(jobs.time, "perf_counter", lambda: clock[0])
        launch = encoder.launch

        def tight(ids: list[list[int]], *rest: Any) -> Any:
            clock[0] += 50 if len(ids) > 4 else 0.001 * sum(map(len, ids))
            if len(ids) > 4:
                raise torch.OutOfMemoryError("too many")
            return launch(ids, *rest)

        monkeypatch.setattr(encoder, "launch", tight)
        cost = extract(sentences(40), batched(encoder, 400)).costs["tiny"]
        assert cost.ms_per_text == pytest.approx(cost.tokens_per_text)

    def test_one_batch_is_better_than_none(self, tiny: TinyModels):
        cost = extract(["good"], opened(tiny("bert"))).costs["tiny"]
        assert cost.n_texts == 1
        assert cost.ms_per_text > 0

    def test_each_encoder_of_several_has_its_cost(self, tiny: TinyModels):
        names = ("bert", "llama")
        encoders = [FrozenEncoder.from_pretrained(tiny(n), name=n, device="cpu") for n in names]
        costs = extract_all(sentences(10), encoders, None).costs
        assert list(costs) == list(names)
        for encoder in encoders:
            assert costs[encoder.name].parameters == encoder.layer_parameters
            assert costs[encoder.name].dtype == encoder.dtype


def test_parameters_where_the_blocks_are_not_found(tmp_path: Path):
    """One block's weights serve all layers, so that every layer needs all of them."""
    folder = tmp_path / "albert"
    config = hf.AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, intermediate_size=48,
        num_hidden_layers=N_LAYERS, num_attention_heads=4, max_position_embeddings=66,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    hf.AlbertModel(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    encoder = opened(folder)
    total = sum(weight.numel() for weight in encoder.stack.parameters())
    assert encoder.layer_parameters == (total,) * (N_LAYERS + 1)
    for layers in ([0], [1, 3]):
        cost = extract(sentences(10), encoder, layers).costs["tiny"]
        assert (cost.stops_early, cost.measured_layer, cost.n_texts) == (False, N_LAYERS, 10)
        assert cost.ms_at(0) == cost.ms_at(3) == cost.ms_per_text


def test_parameters_of_a_gguf_file(tmp_path: Path):
    """Its weights are unpacked to the dtype asked for; the language-model head is left out."""
    pytest.importorskip("gguf")
    save_gguf("llama", tmp_path / "tiny.gguf")
    dim = 32
    per_block = 2 * dim * dim + 2 * dim * dim // 2 + 3 * 48 * dim + 2 * dim
    embeddings = len(VOCABULARY) * dim
    for dtype, n_bytes in (("float32", 4), ("bfloat16", 2)):
        encoder = FrozenEncoder.from_pretrained(tmp_path / "tiny.gguf", device="cpu", dtype=dtype)
        assert encoder.layer_parameters == (
            embeddings,
            embeddings + per_block,
            embeddings + 2 * per_block,
            embeddings + 3 * per_block + dim,
        )
        assert encoder.bytes_per_parameter == n_bytes


def test_a_gguf_file_is_known_by_what_it_holds(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"weights")
    (tmp_path / "linked.gguf").symlink_to(tmp_path / "model.gguf")
    (tmp_path / "renamed.gguf").write_bytes(b"weights")
    (tmp_path / "other.gguf").write_bytes(b"others")
    own, linked, renamed, other = (
        FrozenEncoder.from_pretrained(tmp_path / f"{name}.gguf", name="one").fingerprints
        for name in ("model", "linked", "renamed", "other")
    )
    assert own == linked == renamed != other
