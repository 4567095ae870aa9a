"""The store's laws: nothing is computed twice, lost, mixed up or believed when it is damaged."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from families import VOCABULARY, TinyModels, save_model
from helpers import Extraction, Notes, batched, sentences
from layerfuse import BlockRef, EmbeddingStore, FrozenEncoder, extract
from layerfuse.embeddings import cost_record as costs
from layerfuse.embeddings import jobs, text_hashes
from layerfuse.embeddings.cost_record import keep_cost, read_cost
from layerfuse.embeddings.extraction import BlockView
from layerfuse.embeddings.shard import write_shard
from layerfuse.embeddings.store import SectionInfo
from layerfuse.errors import FormatError, StorageError
from layerfuse.files import read_json

TEXTS = sentences(40)


@pytest.fixture
def encoder(tiny: TinyModels) -> FrozenEncoder:
    return fresh(tiny("bert"))


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "store")


def fresh(folder: Path, **options: Any) -> FrozenEncoder:
    """An encoder object that has loaded nothing yet."""
    return FrozenEncoder.from_pretrained(
        folder, name="tiny", device="cpu", dtype="float32", **options
    )


def shards(store: EmbeddingStore) -> list[Path]:
    return sorted(store.root.glob("*/*.safetensors"))


def tensor_names(shard: Path) -> set[str]:
    with safe_open(shard, framework="numpy") as file:
        return set(file.keys()) - {"hashes", "truncated"}


def assert_same(some: BlockView, others: BlockView) -> None:
    assert list(some) == list(others)
    for ref in some:
        np.testing.assert_array_equal(some[ref], others[ref])


def data_range(shard: Path, name: str) -> tuple[int, int]:
    """First and last byte of a tensor in its file."""
    head = shard.read_bytes()
    length = struct.unpack("<Q", head[:8])[0]
    start, end = json.loads(head[8 : 8 + length])[name]["data_offsets"]
    return 8 + length + start, 8 + length + end - 1


def flip(shard: Path, place: int) -> None:
    data = bytearray(shard.read_bytes())
    data[place] ^= 0x10
    shard.write_bytes(data)


class TestWhatIsComputed:
    def test_with_a_store_is_as_without(self, encoder: FrozenEncoder, store: EmbeddingStore):
        poolings = ("mean", "last", "max")
        plain = extract(TEXTS, encoder, pooling=poolings)
        stored = extract(TEXTS, encoder, pooling=poolings, store=store)
        assert list(stored) == list(plain)
        for ref, array in plain.items():
            assert stored[ref].dtype == np.float32
            np.testing.assert_array_equal(stored[ref], array.astype(np.float16))

    def test_the_second_time_nothing_is_computed_or_loaded(
        self, tiny: TinyModels, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        first = extract(TEXTS, encoder, store=store)
        assert first.n_computed == len(TEXTS)
        notes, again = Notes(), fresh(tiny("bert"))
        second = extract(TEXTS[::-1], again, store=EmbeddingStore(store.root), reporter=notes)
        assert (second.n_computed, notes.advanced) == (0, [])
        assert notes.lines == ["tiny: 40 of 40 distinct texts are in the store"]
        for ref in first:
            np.testing.assert_array_equal(second[ref][::-1], first[ref])
        assert not again.is_loaded
        assert len(shards(store)) == 1

    def test_only_new_rows_are_computed(self, encoder: FrozenEncoder, store: EmbeddingStore):
        extract(TEXTS, encoder, store=store)
        notes, more = Notes(), sentences(140)
        mixed = np.random.default_rng(0).permutation(more).tolist()
        found = extract(mixed, encoder, store=store, reporter=notes)
        assert (found.n_computed, sum(notes.advanced)) == (100, 100)
        assert notes.about("40 of 140 distinct texts are in the store, 100 to compute")
        plain = extract(mixed, encoder)
        for ref, array in plain.items():
            np.testing.assert_allclose(found[ref], array, rtol=1e-3, atol=1e-4)

    def test_a_new_pooling_computes_only_itself(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        extract(TEXTS, encoder, store=store)
        (old,) = shards(store)
        notes = Notes()
        found = extract(TEXTS, encoder, pooling=("mean", "max"), store=store, reporter=notes)
        said = f"{len(TEXTS)} to compute ({len(TEXTS)} of them lack some layers or poolings alone)"
        assert notes.about(said)
        (new,) = set(shards(store)) - {old}
        assert tensor_names(old) == {f"{layer}:mean" for layer in range(4)}
        assert tensor_names(new) == {f"{layer}:max" for layer in range(4)}
        assert found.n_computed == len(TEXTS)
        assert_same(found, extract(TEXTS, encoder, pooling=("mean", "max"), store=store))

    def test_a_new_layer_computes_only_itself(self, encoder: FrozenEncoder, store: EmbeddingStore):
        extract(TEXTS, encoder, layers=[1], store=store)
        (old,) = shards(store)
        extract(TEXTS, encoder, layers=[0, 1, 3], store=store)
        (new,) = set(shards(store)) - {old}
        assert tensor_names(new) == {"0:mean", "3:mean"}

    def test_holes_of_every_shape_are_filled(self, encoder: FrozenEncoder, store: EmbeddingStore):
        """Some rows lack one pooling, some the other, some both: each gets just what it lacks."""
        extract(TEXTS[:20], encoder, pooling="mean", store=store)
        extract(TEXTS[10:30], encoder, pooling="last", store=store)
        before = set(shards(store))
        found = extract(TEXTS, encoder, pooling=("mean", "last"), store=store)
        assert found.n_computed == 30
        added = {}
        for shard in set(shards(store)) - before:
            poolings = tuple(sorted({name.partition(":")[2] for name in tensor_names(shard)}))
            added[poolings] = len(load_file(shard)["hashes"])
        assert added == {("last",): 10, ("mean",): 10, ("last", "mean"): 10}
        for ref, array in extract(TEXTS, encoder, pooling=("mean", "last")).items():
            np.testing.assert_allclose(found[ref], array, rtol=1e-3, atol=1e-4)

    def test_equal_texts_are_computed_once(self, encoder: FrozenEncoder, store: EmbeddingStore):
        repeated = [*TEXTS[:5], *TEXTS[:5][::-1], TEXTS[2]]
        for place in (None, store):
            found = extract(repeated, encoder, store=place)
            assert found.n_computed == 5
            for array in found.values():
                assert len(array) == 11
                np.testing.assert_array_equal(array[:5], array[5:10][::-1])
                np.testing.assert_array_equal(array[2], array[10])
        assert len(load_file(shards(store)[0])["hashes"]) == 5

    @pytest.mark.parametrize("kept", [True, False])
    def test_parts_are_all_rows_once(
        self, encoder: FrozenEncoder, store: EmbeddingStore, kept: bool
    ):
        texts = sentences(30)
        for start in range(0, 30, 10):
            extract(texts[start : start + 10], encoder, store=store)
        view = extract([*texts, *texts[:5]], encoder, store=store if kept else None)
        parts = list(view.parts(10))
        rows = np.concatenate([rows for rows, _ in parts])
        assert sorted(rows) == list(range(35))
        block = next(iter(view))
        np.testing.assert_array_equal(
            np.concatenate([part[block] for _, part in parts]), view[block][rows]
        )
        if kept:  # texts that were written together come together
            shard_of = rows % 30 // 10
            assert np.count_nonzero(np.diff(shard_of)) == 2

    def test_close_texts_are_not_equal(self, encoder: FrozenEncoder, store: EmbeddingStore):
        found = extract(["good", "good ", "Good", "\ud800"], encoder, store=store)
        assert found.n_computed == 4
        assert len(set(text_hashes(["a", "a ", "", "\ud800", "?"]).tolist())) == 5

    def test_truncated_texts_are_remembered(self, tiny: TinyModels, store: EmbeddingStore):
        texts = ["good", "good " * 50, "bad " * 3, "bad " * 40]
        for _ in range(2):
            short = fresh(tiny("bert"), max_length=10)
            found = extract([*texts, texts[1]], short, store=store)
            assert found.truncated_share == 3 / 5

    @pytest.mark.slow
    def test_what_changes_a_value_has_a_section_of_its_own(
        self, tiny: TinyModels, store: EmbeddingStore
    ):
        folder = tiny("bert")
        encoders = [
            fresh(folder),
            fresh(folder, prompt="the {text}"),
            fresh(folder, max_length=8),
            FrozenEncoder.from_pretrained(folder, name="tiny", device="cpu", dtype="bfloat16"),
            fresh(tiny("bert", seed=1)),
            fresh(tiny("bert", special=False)),
        ]
        for number, encoder in enumerate(encoders, start=1):
            assert extract(TEXTS, encoder, store=store).n_computed == len(TEXTS)
            assert len(store.sections()) == number
        renamed = FrozenEncoder.from_pretrained(folder, name="other", device="cpu", dtype="float32")
        found = extract(TEXTS, renamed, store=store)
        assert found.n_computed == 0  # a name changes no value
        assert {ref.encoder for ref in found} == {"other"}
        assert len(store.sections()) == len(encoders)

    def test_asking_for_no_known_block_is_a_key_error(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        found = extract(TEXTS, encoder, layers=[1], store=store)
        with pytest.raises(KeyError, match="tiny:2:mean is not one of the 1 blocks"):
            _ = found[BlockRef("tiny", 2, "mean")]


class TestWhatIsWritten:
    def test_values_beyond_float16_are_kept_as_float32(
        self, tmp_path: Path, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        """A decoder whose residual stream is large at some texts, and normed at its end."""
        folder = save_model("llama", tmp_path / "llama")
        weights = load_file(folder / "model.safetensors")
        embeddings = weights["embed_tokens.weight"]
        huge = 20  # the token whose row is huge
        embeddings[huge] *= 1e6
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        encoder = fresh(folder)
        texts = ["the film is good", f"the {VOCABULARY[huge]} film"]
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 1})
        found = extract(texts, encoder, store=store)
        plain = extract(texts, encoder)
        for ref, array in plain.items():
            np.testing.assert_allclose(found[ref], array, rtol=1e-3, atol=1e-3)
        largest = [
            {name: array.dtype for name, array in load_file(shard).items() if ":" in name}
            for shard in shards(store)
        ]
        by_text = sorted(largest, key=lambda dtypes: str(dtypes["0:mean"]))
        assert set(by_text[0].values()) == {np.dtype("float16")}
        assert by_text[1] == {
            "0:mean": np.float32,
            "1:mean": np.float32,
            "2:mean": np.float32,
            "3:mean": np.float16,
        }
        assert all(array.dtype == np.float32 for array in found.values())

    def test_the_largest_float16_is_still_float16(self, store: EmbeddingStore):
        section = store.section("e", {})
        hashes = np.sort(text_hashes(["a", "b"]))
        cut = np.zeros(2, bool)
        edge = np.array([[65504.0], [-65504.0]], np.float32)
        blocks = {(0, "mean"): edge, (1, "mean"): edge * 1.01}
        section.add(write_shard(section.folder, hashes, cut, blocks))
        (shard,) = shards(store)
        tensors = load_file(shard)
        assert (tensors["0:mean"].dtype, tensors["1:mean"].dtype) == (np.float16, np.float32)
        for layer, expected in enumerate((edge, edge * np.float32(1.01))):
            np.testing.assert_array_equal(section.read(hashes, (layer, "mean")), expected)

    def test_the_manifest_says_what_the_values_depend_on(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        extract(TEXTS, encoder, store=store)
        (info,) = store.sections()
        assert info.encoder == "tiny"
        assert info.identity == encoder.identity
        assert (info.shards, info.n_bytes) == (1, shards(store)[0].stat().st_size)
        assert info.idle_s < 600
        value = read_json(info.folder / "manifest.json", kind="layerfuse-store", version=1)
        assert value["identity"] == encoder.identity

    def test_prune_removes_what_it_is_told_to(self, tiny: TinyModels, store: EmbeddingStore):
        for seed in (0, 1):
            extract(TEXTS, fresh(tiny("bert", seed=seed)), store=store)
        oldest = store.sections()[-1]
        (oldest.folder / ".x.safetensors.abc.tmp").write_bytes(b"left over")
        kept = store.sections()[0].folder
        for name, age_s in ((".y.tmp", 7200), (".in-flight.tmp", 0)):
            (kept / name).write_bytes(b"left over")
            os.utime(kept / name, (time.time() - age_s,) * 2)
        gone = store.prune(lambda info: info.folder == oldest.folder)
        assert [info.folder for info in gone] == [oldest.folder]
        assert not oldest.folder.exists()
        (left,) = store.sections()
        assert left.shards == 1
        names = {path.name for path in left.folder.iterdir()}
        assert ".in-flight.tmp" in names, "another process may be writing it"
        whole = {".in-flight.tmp", "manifest.json", "cost-cpu.json"}
        assert [Path(name).suffix for name in names - whole] == [".safetensors"]


class TestCost:
    """The record of what computing took, beside the manifest."""

    def path(self, store: EmbeddingStore) -> Path:
        (path,) = store.root.glob("*/cost-*.json")
        return path

    def test_it_is_written_and_read_back(self, encoder: FrozenEncoder, store: EmbeddingStore):
        cost = extract(TEXTS, batched(encoder, 100), store=store).costs["tiny"]
        path = self.path(store)
        assert path.name == "cost-cpu.json"
        value = read_json(path, kind="layerfuse-cost", version=1)
        n_tokens = sum(map(len, encoder.tokenize(TEXTS).ids))
        assert (value["n_texts"], value["n_tokens"]) == (len(TEXTS), n_tokens)
        assert 0 < value["timed_tokens"] < n_tokens, "the first batch is left out"
        assert (value["device"], value["dtype"]) == ("cpu", "float32")
        assert value["threads"] == torch.get_num_threads()
        assert value["layer"] == 3
        record = read_cost(path.parent, "cpu")
        assert record is not None
        assert record.cost("tiny") == cost
        assert record.cost("other") == dataclasses.replace(cost, encoder="other")

    def test_a_warm_run_has_it_without_loading_the_model(
        self, tiny: TinyModels, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        first = extract(TEXTS, encoder, store=store).costs["tiny"]
        written = self.path(store).stat().st_mtime_ns
        again = fresh(tiny("bert"))
        found = extract(TEXTS[:7], again, layers=[1], store=EmbeddingStore(store.root))
        assert found.costs["tiny"] == first
        assert not again.is_loaded
        assert self.path(store).stat().st_mtime_ns == written

    def test_the_run_with_the_most_texts_is_kept(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        for n_texts, kept in ((10, 10), (15, 10), (40, 25)):  # 10, 5 and 25 are new
            cost = extract(TEXTS[:n_texts], encoder, store=store).costs["tiny"]
            assert cost.n_texts == kept

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda text: "", id="empty"),
            pytest.param(lambda text: text[:40], id="cut"),
            pytest.param(lambda text: "[]", id="list"),
            pytest.param(lambda text: '{"format": "layerfuse-cost"}', id="no version"),
            pytest.param(lambda text: text.replace('"n_texts": 40', '"n_texts": 0'), id="zero"),
            pytest.param(lambda text: text.replace('"n_texts": 40', '"n_texts": "40"'), id="text"),
            pytest.param(lambda text: text.replace('"n_texts": 40', '"n_texts": true'), id="bool"),
            pytest.param(lambda text: text.replace('"n_texts"', '"texts"'), id="name"),
            pytest.param(lambda text: text.replace('"layer": 3', '"layer": 4'), id="layer"),
            pytest.param(
                lambda text: text.replace(
                    '"bytes_per_parameter": 4.0', '"bytes_per_parameter": NaN'
                ),
                id="nan",
            ),
            pytest.param(
                lambda text: text.replace('"format_version": 1', '"format_version": 2'), id="newer"
            ),
        ],
    )
    def test_a_damaged_record_is_ignored_and_rewritten(
        self,
        tiny: TinyModels,
        encoder: FrozenEncoder,
        store: EmbeddingStore,
        change: Callable[[str], str],
    ):
        extract(TEXTS, encoder, store=store)
        path = self.path(store)
        before = path.read_text()
        path.write_text(change(before))
        assert path.read_text() != before
        assert read_cost(path.parent, "cpu") is None
        notes, again = Notes(), fresh(tiny("bert"))
        found = extract(TEXTS, again, store=store, reporter=notes)
        assert not again.is_loaded, "measured when it is asked for"
        cost = found.costs["tiny"]
        assert notes.about("tiny: measuring its cost on 32 texts")
        assert notes.advanced == []
        assert again.is_loaded
        assert cost.n_texts == 32
        record = read_cost(path.parent, "cpu")
        assert record is not None
        assert record.cost("tiny") == cost

    @pytest.mark.slow
    def test_a_store_that_has_no_record_yet(
        self, tiny: TinyModels, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        """Embeddings that were stored before records were kept."""
        extract(TEXTS[:5], encoder, store=store)
        self.path(store).unlink()
        measured = extract(TEXTS[:5], fresh(tiny("bert")), store=store).costs["tiny"]
        assert (measured.n_texts, measured.measured_layer) == (5, 3)
        again = fresh(tiny("bert"))
        assert extract(TEXTS[:5], again, store=store).costs["tiny"] == measured
        assert not again.is_loaded

    def test_each_kind_of_device_has_its_own(self, encoder: FrozenEncoder, store: EmbeddingStore):
        extract(TEXTS, encoder, store=store)
        folder = self.path(store).parent
        record = read_cost(folder, "cpu")
        assert record is not None
        other = record.model_copy(update={"device": "cuda:1", "n_texts": 5, "forward_s": 1.0})
        assert keep_cost(folder, other) == other
        assert read_cost(folder, "cuda:0") == other
        assert read_cost(folder, "cpu") == record
        assert read_cost(folder, "mps") is None

    def test_a_record_that_cannot_be_written_is_used_all_the_same(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        def refuse(path: Path, value: Any) -> None:
            raise StorageError("read-only")

        monkeypatch.setattr(costs, "write_json", refuse)
        cost = extract(TEXTS, encoder, store=store).costs["tiny"]
        assert cost.n_texts == len(TEXTS)
        assert list(store.root.glob("*/cost-*")) == []

    def test_stored_embeddings_and_manifests_are_as_before(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        extract(TEXTS, encoder, store=store)
        manifest = json.loads((self.path(store).parent / "manifest.json").read_text())
        assert set(manifest) == {"format", "format_version", "encoder", "identity"}


@pytest.mark.slow
class TestKilled:
    N_TEXTS, SHARD = 1500, 75

    def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
        self, tiny: TinyModels, tmp_path: Path
    ):
        model, texts = tiny("bert"), sentences(self.N_TEXTS)
        log = tmp_path / "log"

        def start(name: str) -> Extraction:
            return Extraction(model, tmp_path / name, texts, shard_rows=self.SHARD, log=log)

        whole = start("whole")
        began = time.perf_counter()
        whole.go()
        assert whole.result() == ("done", self.N_TEXTS)
        duration = time.perf_counter() - began
        log.unlink()

        moments, kills = np.random.default_rng(7), 0
        for _ in range(7):
            run = start("killed")
            run.go()
            time.sleep(moments.uniform(0.0, duration / 5))
            kills += run.kill()
        assert kills >= 3
        last = start("killed")
        last.go()
        kind, n_computed = last.result()
        assert kind == "done"
        assert n_computed < self.N_TEXTS, "no shard outlived the kills"
        computed = sum(int(line) for line in log.read_text().split())
        assert self.N_TEXTS <= computed <= self.N_TEXTS + kills * self.SHARD

        expected, found = (EmbeddingStore(tmp_path / name) for name in ("whole", "killed"))
        (folder,) = found.root.iterdir()
        for leftover in folder.glob(".*.tmp"):  # of the killed processes; prune spares young ones
            os.utime(leftover, (0, 0))
        found.prune(lambda info: False)
        assert all(
            path.name in ("manifest.json", "cost-cpu.json") or path.suffix == ".safetensors"
            for path in folder.iterdir()
        )
        assert [path.name for path in shards(found)] == [path.name for path in shards(expected)]
        for one, other in zip(shards(found), shards(expected), strict=True):
            assert one.read_bytes() == other.read_bytes()
        assert len(shards(found)) == self.N_TEXTS / self.SHARD
        encoder = fresh(model)
        assert_same(extract(texts, encoder, store=found), extract(texts, encoder, store=expected))
        for place in (found, expected):
            assert read_cost(next(place.root.iterdir()), "cpu") is not None

    def test_two_processes_at_once_leave_a_whole_store(self, tiny: TinyModels, tmp_path: Path):
        model, texts = tiny("bert"), sentences(600)
        store = EmbeddingStore(tmp_path / "store")
        parts = (texts[:450], texts[150:])
        runs = [
            Extraction(model, store.root, part, shard_rows=50, log=tmp_path / "log")
            for part in parts
        ]
        for run in runs:
            run.go()
        for run, part in zip(runs, parts, strict=True):
            kind, n_computed = run.result()
            assert kind == "done"
            assert n_computed <= len(part)
        assert store.verify() == []
        assert len(store.sections()) == 1
        assert list(store.root.glob("*/.*")) == []
        encoder = fresh(model)
        found = extract(texts, encoder, store=store)
        assert found.n_computed == 0
        record = read_cost(store.sections()[0].folder, "cpu")
        assert record is not None
        assert 0 < record.n_texts <= 450
        for ref, array in extract(texts, encoder).items():
            np.testing.assert_allclose(found[ref], array, rtol=1e-3, atol=1e-4)

    def test_a_full_disk_keeps_what_was_complete(self, tiny: TinyModels, tmp_path: Path):
        """No file may grow beyond 256 bytes once 250 texts were read."""
        model, texts = tiny("bert"), sentences(500)
        store, log = EmbeddingStore(tmp_path / "store"), tmp_path / "log"
        run = Extraction(model, store.root, texts, shard_rows=100, log=log, full_after=250)
        run.go()
        kind, message = run.result()
        assert kind == "StorageError"
        assert message.startswith(f"The disk has no room to write {store.root}")
        assert "What was complete before is kept; free some space" in message
        assert len(shards(store)) == 2
        assert store.verify() == []
        assert list(store.root.glob("*/.*")) == []
        notes = Notes()
        found = extract(texts, fresh(model), store=store, reporter=notes)
        assert (found.n_computed, sum(notes.advanced)) == (300, 300)


class TestWorkingAhead:
    """What runs beside a GPU, on a CPU that calls itself one."""

    @pytest.mark.slow
    def test_it_gives_the_same(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        texts = sentences(150, longest=30)
        expected = extract(texts, batched(encoder, 100), pooling=("mean", "max"))
        monkeypatch.setattr(FrozenEncoder, "kind", "cuda")
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cuda": 20})
        monkeypatch.setattr(jobs, "_GPU_OVERHEAD", 20 * encoder.layer_parameters[-1])
        threads = set()

        def watched(*arguments: Any) -> Path:
            threads.add(threading.current_thread())
            return write_shard(*arguments)

        monkeypatch.setattr(jobs, "write_shard", watched)
        found = extract(texts, batched(encoder, 100), "all", ("mean", "max"), store)
        assert threads
        assert threading.current_thread() not in threads
        assert {len(load_file(path)["hashes"]) for path in shards(store)} <= {20, 10}
        for ref, array in expected.items():
            np.testing.assert_allclose(found[ref], array, rtol=1e-3, atol=1e-4)
        assert found.costs["tiny"].ms_per_text > 0

    def test_small_models_read_few_batches(
        self, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
    ):
        """A batch costs a GPU as much work for any model: many tokens of a small one."""
        lengths = [3] * 50 + [300] * 50
        monkeypatch.setattr(FrozenEncoder, "kind", "cuda")
        found = [len(jobs.plan_batches(lengths, 10**6, jobs.batch_overhead(encoder)))]
        monkeypatch.setattr(jobs, "_GPU_OVERHEAD", 20 * encoder.layer_parameters[-1])
        found += [len(jobs.plan_batches(lengths, 10**6, jobs.batch_overhead(encoder)))]
        assert found == [1, 2]

    def test_out_of_memory_loses_no_batch(
        self, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch
    ):
        texts = sentences(60, longest=30)
        expected = extract(texts, encoder)
        monkeypatch.setattr(FrozenEncoder, "kind", "cuda")
        launch = encoder.launch

        def tight(ids: list[list[int]], *rest: Any) -> Any:
            if len(ids) > 4:
                raise torch.OutOfMemoryError("too many")
            return launch(ids, *rest)

        monkeypatch.setattr(encoder, "launch", tight)
        found = extract(texts, batched(encoder, 400))
        for ref, array in expected.items():
            np.testing.assert_allclose(found[ref], array, atol=1e-5)

    def test_a_write_that_fails_ends_the_run(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(FrozenEncoder, "kind", "cuda")

        def full(*_: Any) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr(jobs, "write_shard", full)
        with pytest.raises(StorageError, match="the disk is full"):
            extract(TEXTS, encoder, store=store)


class TestDamaged:
    def filled(self, encoder: FrozenEncoder, store: EmbeddingStore) -> tuple[Path, BlockView]:
        extract(TEXTS, encoder, store=store)
        (shard,) = shards(store)
        return shard, extract(TEXTS, encoder, store=store)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda p: flip(p, data_range(p, "2:mean")[0] + 5), id="block"),
            pytest.param(lambda p: flip(p, data_range(p, "hashes")[1]), id="hashes"),
            pytest.param(lambda p: flip(p, data_range(p, "truncated")[0]), id="truncated"),
            pytest.param(lambda p: flip(p, 3), id="header length"),
            pytest.param(lambda p: flip(p, 20), id="header"),
            pytest.param(lambda p: os.truncate(p, p.stat().st_size // 2), id="cut in half"),
            pytest.param(lambda p: os.truncate(p, p.stat().st_size - 1), id="last byte"),
            pytest.param(lambda p: os.truncate(p, 4), id="four bytes"),
            pytest.param(lambda p: os.truncate(p, 0), id="empty"),
            pytest.param(lambda p: p.write_bytes(b"\xff" * 5000), id="garbage"),
            pytest.param(lambda p: p.write_bytes(p.read_bytes() + b"more"), id="longer"),
            pytest.param(
                lambda p: save_file({"hashes": np.zeros((2, 16), np.uint8)}, p), id="other file"
            ),
        ],
    )
    def test_damage_is_found_told_and_mended(
        self,
        tiny: TinyModels,
        encoder: FrozenEncoder,
        store: EmbeddingStore,
        damage: Callable[[Path], object],
    ):
        shard, _ = self.filled(encoder, store)
        expected = {
            ref: array.copy() for ref, array in extract(TEXTS, encoder, store=store).items()
        }
        whole = shard.read_bytes()
        damage(shard)
        notes = Notes()
        found = extract(TEXTS, fresh(tiny("bert")), store=store, reporter=notes)
        assert found.truncated_share == 0
        for ref, array in expected.items():
            np.testing.assert_array_equal(found[ref], array)
        (told,) = notes.about("a damaged shard was set aside and will be computed again")
        assert str(shard) in told
        assert sum(notes.advanced) == len(TEXTS)
        assert shard.read_bytes() == whole
        assert shard.with_suffix(".corrupt").exists()
        assert store.verify() == []
        store.prune(lambda info: False)
        assert not shard.with_suffix(".corrupt").exists()

        damage(shard)
        assert store.verify() == [shard]
        assert store.verify() == []
        assert extract(TEXTS, encoder, store=store).n_computed == len(TEXTS)

    def test_a_shard_that_is_mended_may_hold_other_roundings(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        """Another batch size rounds otherwise; what is read back is what is there now."""
        extract(TEXTS, batched(encoder, 1), store=store)
        (shard,) = shards(store)
        before = shard.read_bytes()
        flip(shard, data_range(shard, "2:mean")[0])
        found = extract(TEXTS, batched(encoder, 100_000), store=store)
        expected = extract(TEXTS, batched(encoder, 100_000))
        for layer in (2, 3, 0, 1):
            ref = BlockRef("tiny", layer, "mean")
            np.testing.assert_array_equal(found[ref], expected[ref].astype(np.float16))
        assert shard.read_bytes() != before, "the roundings must differ for this test"

    def test_one_of_several_shards_is_computed_again(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 10})
        first = extract(TEXTS, encoder, store=store)
        expected = [array.copy() for array in first.values()]
        flip(shards(store)[2], data_range(shards(store)[2], "0:mean")[0])
        notes = Notes()
        again = extract(TEXTS, encoder, store=store, reporter=notes)
        assert again.n_computed == 0  # not known yet: the bytes are read when they are asked for
        for array, wanted in zip(again.values(), expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert sum(notes.advanced) == 10

    @pytest.mark.slow
    def test_a_disk_that_never_gives_back_what_was_written(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        """Each time the shard is computed again, it is damaged again."""
        shard, _ = self.filled(encoder, store)

        def spoil(*arguments: Any) -> Path:
            path = write_shard(*arguments)
            flip(shard, data_range(shard, "1:mean")[0])
            return path

        monkeypatch.setattr(jobs, "write_shard", spoil)
        flip(shard, data_range(shard, "1:mean")[0])
        notes = Notes()
        found = extract(TEXTS, encoder, store=store, reporter=notes)
        with pytest.raises(StorageError, match="other bytes than were written, again and again"):
            _ = found[BlockRef("tiny", 1, "mean")]
        assert len(notes.about("damaged shard")) == sum(notes.advanced) / len(TEXTS) == 20

    def test_reading_a_block_touches_only_its_bytes(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        shard, found = self.filled(encoder, store)
        refs = list(found)
        expected = found[refs[0]]
        first, last = data_range(shard, "2:mean")
        data = bytearray(shard.read_bytes())
        data[first : last + 1] = bytes(last + 1 - first)
        shard.write_bytes(data)
        notes = Notes()
        again = extract(TEXTS, encoder, store=store, reporter=notes)
        for ref in (refs[0], refs[1], refs[3]):
            assert again[ref].shape == expected.shape
        np.testing.assert_array_equal(again[refs[0]], expected)
        assert not notes.about("damaged")
        assert np.abs(again[refs[2]]).max() > 0
        assert notes.about("block 2:mean does not match its checksum")

    def test_a_newer_store_is_refused(self, encoder: FrozenEncoder, store: EmbeddingStore):
        shard, _ = self.filled(encoder, store)
        manifest = shard.parent / "manifest.json"
        manifest.write_text(
            manifest.read_text().replace('"format_version": 1', '"format_version": 2')
        )
        with pytest.raises(FormatError, match="format version 2, and this layerfuse reads up to 1"):
            extract(TEXTS, encoder, store=store)
        assert store.sections() == []
        assert store.prune(lambda info: True) == []
        assert shard.exists(), "what a newer version wrote is not ours to delete"

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}'])
    def test_a_damaged_manifest_is_refused(
        self, encoder: FrozenEncoder, store: EmbeddingStore, content: str
    ):
        shard, _ = self.filled(encoder, store)
        (shard.parent / "manifest.json").write_text(content)
        with pytest.raises(FormatError, match=r"manifest\.json"):
            extract(TEXTS, encoder, store=store)


def test_a_file_in_the_way_is_an_os_error(encoder: FrozenEncoder, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        extract(TEXTS, encoder, store=EmbeddingStore(tmp_path / "file"))


def test_too_little_room_is_told_before_the_work(
    encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
):
    usage = SimpleNamespace(total=10**6, used=10**6 - 5000, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"need about 10\.2 kB, and .* has 5\.0 kB free"):
        extract(TEXTS, encoder, store=store)
    assert shards(store) == []
    assert extract(TEXTS[:10], encoder, layers=[1], store=store).n_computed == 10


class TestFormat:
    """Names and bytes that stores on people's disks have: a change makes them useless."""

    IDENTITY: dict[str, Any] = {  # noqa: RUF012
        "fingerprints": {"weights": "0a", "tokenizer": "0b", "config": "0c"},
        "revision": None,
        "template": "query: {text}",
        "chat_question": None,
        "max_length": 512,
        "dtype": "float32",
    }

    def test_a_sections_folder_is_named_by_its_identity(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        assert list(encoder.identity) == list(self.IDENTITY)
        section = store.section("mini lm", self.IDENTITY)
        assert section.folder == store.root / "mini_lm-e5883c5fa56c63a0"

    def test_a_shard_of_another_section_or_dtype_is_damage(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        section, other = (
            store.section(name, {**self.IDENTITY, "prompt": prompt})
            for name, prompt in (("e", None), ("f", "query: {text}"))
        )
        hashes = text_hashes(["a"])
        values = np.ones((1, 4), dtype=np.float32)
        path = write_shard(section.folder, hashes, np.array([False]), {(1, "mean"): values})
        shutil.copy(path, other.folder / path.name)
        other.refresh()
        assert len(other.missing(hashes, [(1, "mean")])) == 1
        whole = path.read_bytes()
        assert whole.count(b'"F16"') == 1
        for kind in (b'"I16"', b'"U16"', b'"BF16"'):
            path.write_bytes(whole.replace(b'"F16"', kind.ljust(5))[: len(whole)])
            assert section.verify() == [path]
            path.write_bytes(whole)
        path.write_bytes(whole.replace(b"[1,4]", b"[4,1]"))
        assert section.verify() == [path]

    def test_a_manifest_of_another_section_is_set_aside(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        expected = {
            ref: array.copy() for ref, array in extract(TEXTS, encoder, store=store).items()
        }
        (info,) = store.sections()
        manifest = info.folder / "manifest.json"
        whole = json.loads(manifest.read_text())
        lacking = [
            json.dumps({other: value for other, value in whole.items() if other != name})
            for name in whole
        ]
        for content in (
            "{",
            "[" * 99_999,
            json.dumps({**whole, "identity": {}}),
            json.dumps({"a": 1}),
            *lacking,
        ):
            manifest.write_text(content)
            with pytest.raises(FormatError, match="store verify"):
                extract(TEXTS, encoder, store=store)
            assert store.verify() == [manifest]
            again = extract(TEXTS, encoder, store=store)
            assert again.n_computed == 0
            for ref, array in expected.items():
                np.testing.assert_array_equal(again[ref], array)
            assert store.verify() == []

    def test_a_shard_is_named_by_its_texts_and_blocks(self, store: EmbeddingStore):
        section = store.section("e", self.IDENTITY)
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        blocks = {(8, "mean"): values, (0, "cls"): values * 1e6}
        hashes = np.sort(text_hashes(["good", "b\u00e4d"]))
        path = write_shard(section.folder, hashes, np.array([True, False]), blocks)
        assert path.name == "f17615ea3e21505d039f4b1509e66d48.safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "648562ba7eb440e0"


class TestTroubledFolders:
    def test_a_link_to_itself_is_a_damaged_shard(
        self, tiny: TinyModels, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        extract(TEXTS, encoder, store=store)
        for found_by in ("verify", "extract"):
            (shard,) = shards(store)
            shard.unlink()
            shard.symlink_to(shard)
            (info,) = store.sections()
            assert info.n_bytes == 0
            if found_by == "verify":
                assert store.verify() == [shard]
            assert extract(TEXTS, fresh(tiny("bert")), store=store).n_computed == len(TEXTS)
            assert store.verify() == []

    def test_a_section_that_is_deleted_while_it_is_verified(
        self, tiny: TinyModels, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        for seed in (0, 1):
            extract(TEXTS, fresh(tiny("bert", seed=seed)), store=store)
        first, second = shards(store)
        flip(second, data_range(second, "2:mean")[0])
        listed = store.sections

        def list_and_delete() -> list[SectionInfo]:
            found = listed()
            shutil.rmtree(first.parent)
            return found

        monkeypatch.setattr(store, "sections", list_and_delete)
        assert store.verify() == [second]

    def test_a_file_that_is_renamed_while_it_is_pruned(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        extract(TEXTS, encoder, store=store)
        (shard,) = shards(store)
        leftover, listed = shard.with_name(f".{shard.name}.tmp"), Path.glob

        def list_and_rename(folder: Path, pattern: str) -> list[Path]:
            found = list(listed(folder, pattern))
            if leftover in found:
                leftover.replace(shard)
            return found

        monkeypatch.setattr(Path, "glob", list_and_rename)
        shard.replace(leftover)
        assert store.prune(lambda info: False) == []
        assert shards(store) == [shard]

    def test_a_file_that_is_renamed_while_its_section_is_deleted(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        extract(TEXTS, encoder, store=store)
        (shard,) = shards(store)
        delete = shutil.rmtree

        def fail_once(folder: Path) -> None:
            monkeypatch.setattr(shutil, "rmtree", delete)
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(shard))

        monkeypatch.setattr(shutil, "rmtree", fail_once)
        assert len(store.prune(lambda info: True)) == 1
        assert list(store.root.iterdir()) == []

    def test_a_section_that_is_deleted_while_it_is_read(
        self, encoder: FrozenEncoder, store: EmbeddingStore
    ):
        found = extract(TEXTS, encoder, store=store)
        shutil.rmtree(store.root)
        for block in found:
            with pytest.raises(StorageError, match="was deleted while it was in use"):
                _ = found[block]
        assert not store.root.exists()

    def test_a_section_that_is_deleted_while_it_is_written(
        self, encoder: FrozenEncoder, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 10})
        notes, launch = Notes(), encoder.launch

        def launch_and_delete(*arguments: Any) -> Any:
            if sum(notes.advanced) >= 20:
                shutil.rmtree(store.root, ignore_errors=True)
            return launch(*arguments)

        monkeypatch.setattr(encoder, "launch", launch_and_delete)
        with pytest.raises(StorageError, match="was deleted while it was in use"):
            extract(TEXTS, encoder, store=store, reporter=notes)
        assert not store.root.exists()
        monkeypatch.undo()
        assert extract(TEXTS, encoder, store=store).n_computed == len(TEXTS)

    @pytest.fixture
    def read_only(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """Refuses all writes, as the system does on a disk that is mounted read-only."""

        def refuse(*_: Any, **__: Any) -> Any:
            raise OSError(errno.EROFS, "Read-only file system")

        def mount() -> None:
            for name in ("mkdir", "replace", "rename", "unlink", "utime"):
                monkeypatch.setattr(os, name, refuse)
            monkeypatch.setattr(tempfile, "mkstemp", refuse)
            monkeypatch.setattr(shutil, "rmtree", refuse)

        return mount

    def test_a_read_only_store_is_read(
        self,
        tiny: TinyModels,
        encoder: FrozenEncoder,
        store: EmbeddingStore,
        read_only: Callable[[], None],
    ):
        expected = extract(TEXTS, encoder, store=store)
        read_only()
        found = extract(TEXTS[:20], fresh(tiny("bert")), store=store)
        assert found.n_computed == 0
        for block, array in found.items():
            np.testing.assert_array_equal(array, expected[block][:20])
        assert found.costs == expected.costs

    def test_what_a_read_only_store_lacks_is_a_storage_error(
        self,
        encoder: FrozenEncoder,
        store: EmbeddingStore,
        read_only: Callable[[], None],
    ):
        found = extract(TEXTS, encoder, store=store)
        (shard,) = shards(store)
        flip(shard, data_range(shard, "2:mean")[0])
        read_only()
        refused = r"Writing .* is not allowed\. Choose a folder that you may write to"
        notes = Notes()
        with pytest.raises(StorageError, match=refused):
            extract(sentences(50), encoder, store=store, reporter=notes)
        assert notes.advanced == []  # no text was read for nothing
        with pytest.raises(StorageError, match=refused):
            extract(TEXTS, encoder, store=EmbeddingStore(store.root / "new"))
        with pytest.raises(StorageError, match=refused):
            _ = found[BlockRef("tiny", 2, "mean")]  # its shard is damaged
        with pytest.raises(StorageError, match=refused):
            store.prune(lambda info: True)
        with pytest.raises(StorageError, match=refused):
            store.verify()
        assert found[BlockRef("tiny", 1, "mean")].shape == (len(TEXTS), 32)
