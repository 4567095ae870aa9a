"""Encoders, stores and classifiers give eight threads what they give one."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from families import TinyModels, save_model
from helpers import Notes, batched, planted, sentences
from layerfuse import BlockRef, EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract
from layerfuse.embeddings import jobs
from layerfuse.embeddings.extraction import BlockView
from layerfuse.encoders import frozen
from layerfuse.errors import ConfigError
from layerfuse.progress import Advance

pytestmark = pytest.mark.slow

N_THREADS = 8
SECONDS = 20  # how long a test waits before it calls a lock forgotten

_COLD_START = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from layerfuse import FrozenEncoder

texts, folders = json.loads(sys.argv[1]), sys.argv[2:]
kinds = ("float32", "bfloat16")
opened = lambda: [
    FrozenEncoder.from_pretrained(folder, device="cpu", dtype=dtype)
    for folder in folders for dtype in kinds
]
read = lambda encoder, text: encoder.read(encoder.tokenize(text).ids, "all", ("mean", "last"))
shared, start = opened(), threading.Barrier(8)
stderr = sys.stderr

def work(number):
    start.wait()
    turn = shared[number % len(shared):] + shared[: number % len(shared)]
    return {id(encoder): read(encoder, texts) for encoder in turn}

with ThreadPoolExecutor(8) as threads:
    found = list(threads.map(work, range(8)))
with ThreadPoolExecutor(1) as thread:
    alone = list(thread.map(lambda encoder: read(encoder, texts), opened()))
import torch
from transformers.utils import logging
print(json.dumps({
    "equal": all(
        np.array_equal(each[id(encoder)][layer], array)
        for each in found
        for encoder, expected in zip(shared, alone, strict=True)
        for layer, array in expected.items()
    ),
    "same_stderr": sys.stderr is stderr,
    "verbosity": logging.get_verbosity(),
    "bars": logging.is_progress_bar_enabled(),
    "dtype": str(torch.get_default_dtype()),
}))
"""


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Threads take turns so often that a race is all but certain."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["bert", "llama"])
def folder(request: pytest.FixtureRequest, tiny: TinyModels) -> Path:
    return tiny(request.param)


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes other rotary frequencies into its modules for more than 8 tokens."""
    folder = save_model("llama", tmp_path_factory.mktemp("models") / "longrope")
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0], "factor": 8.0,
    }  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": rope}))
    return folder


def opened(folder: Path, **options: Any) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(folder, dtype="float32", device="cpu", **options)


Read = dict[int, np.ndarray]


def read(encoder: FrozenEncoder, texts: Sequence[str]) -> Read:
    return encoder.read(encoder.tokenize(texts).ids, "all", ("mean", "last"))


def in_threads(work: Callable[[Any], Any], items: Sequence[Any], n_threads: int) -> list[Any]:
    """Each computes by itself: what is shared are models, not kernels."""
    with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        return list(threads.map(work, items))


def assert_same(found: Sequence[Read], expected: Sequence[Read]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[layer], other[layer]) for layer in one)


class TestOneEncoder:
    @pytest.mark.parametrize("model", ["bert", "llama", "t5", "longrope"])
    def test_first_reads(
        self, tiny: TinyModels, longrope: Path, model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = longrope if model == "longrope" else tiny(model)
        texts = [*sentences(64, longest=5), *sentences(64, longest=30)]
        alone, shared = opened(folder), opened(folder)
        different = [texts[start : start + 2] for start in range(0, len(texts), 2)]
        # the main thread has another number of OpenMP threads
        by_itself = in_threads(lambda batch: read(alone, batch), different, 1)
        order = np.random.default_rng(0).permutation(8 * len(different)) % len(different)
        batches = [different[place] for place in order]  # short and long ones side by side
        expected = [by_itself[place] for place in order]
        loads: list[str] = []
        for name in ("load_model", "load_tokenizer"):
            load = getattr(frozen, name)

            def counted(*args: Any, name: str = name, load: Any = load, **options: Any) -> Any:
                loads.append(name)
                return load(*args, **options)

            monkeypatch.setattr(frozen, name, counted)
        found = in_threads(lambda batch: read(shared, batch), batches, N_THREADS)
        assert_same(found, expected)
        assert sorted(loads) == ["load_model", "load_tokenizer"]

    def test_a_tokenizer_that_truncates_and_pads_by_itself(
        self, tiny: TinyModels, tmp_path: Path
    ) -> None:
        """As the files of sentence-transformers say; switching it off changes the tokenizer."""
        from transformers import AutoTokenizer

        folder = save_model("bert", tmp_path / "own")
        tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=4)
        tokenizer.save(str(folder / "tokenizer.json"))
        texts = sentences(400, longest=30)
        expected = opened(tiny("bert")).tokenize(texts)
        shared = opened(folder)
        for found in in_threads(lambda _: shared.tokenize(texts), range(32), N_THREADS):
            assert found == expected

    def test_a_cut_beside_reads(self, folder: Path) -> None:
        texts = sentences(8)
        shared, whole = opened(folder), opened(folder)
        (expected,) = in_threads(lambda batch: read(whole, batch), [texts], 1)
        ids = shared.tokenize(texts).ids
        cut = threading.Event()

        def work(number: int) -> None:
            if number == 20:
                shared.truncate(1)
                cut.set()
            highest = number % 4
            gone = cut.is_set() and highest > 1
            refused = pytest.raises(ConfigError, match=r"\(encoder truncated at 1\)")
            with refused if gone else contextlib.suppress(ConfigError):
                found = shared.read(ids, range(highest + 1), ("mean", "last"))
                assert_same([found], [{layer: expected[layer] for layer in found}])

        in_threads(work, range(64), N_THREADS)

    def test_a_reporter_may_wait_for_another_thread(self, folder: Path) -> None:
        other_has_read = threading.Event()

        class Waiting(Notes):
            def wait(self) -> None:
                if threading.current_thread() is threading.main_thread():
                    assert other_has_read.wait(SECONDS), "a reporter runs under the lock"

            def note(self, line: str) -> None:
                self.wait()

            @contextlib.contextmanager
            def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
                other.start()
                self.wait()
                yield self.advanced.append

        def other_thread() -> None:
            encoder.reporter = Notes()
            read(encoder, ["good"])
            other_has_read.set()

        other = threading.Thread(target=other_thread, daemon=True)
        encoder = opened(folder, reporter=Waiting())
        assert len(read(encoder, ["good"])) == 4
        other.join()

    def test_copies_have_locks_of_their_own(self, folder: Path) -> None:
        encoder = opened(folder)
        (expected,) = in_threads(lambda batch: read(encoder, batch), [["good", "bad"]], 1)
        with encoder._lock:
            copies = [copy.copy(encoder), copy.deepcopy(encoder)]
            copies.append(pickle.loads(pickle.dumps(encoder)))
            found = in_threads(lambda one: read(one, ["good", "bad"]), copies, 3)
        assert_same(found, [expected] * 3)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_during_a_pass(self, folder: Path) -> None:
        encoder = opened(folder)
        in_pass, finish = threading.Event(), threading.Event()

        def stay(*_: object) -> None:
            in_pass.set()
            finish.wait(SECONDS)

        handle = encoder.stack.register_forward_pre_hook(stay)
        thread = threading.Thread(target=encoder.read, args=([[3, 4]], [1], ("mean",)))
        thread.start()
        assert in_pass.wait(SECONDS)
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)  # ends a child that waits for the lock
            try:
                found = encoder.read([[3, 4]], [0, 3], ("mean",))
                os._exit(0 if sorted(found) == [0, 3] else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        finish.set()
        thread.join()
        handle.remove()
        assert sorted(encoder.read([[3, 4]], [0, 3], ("mean",))) == [0, 3]


def test_a_fresh_process_starts_with_eight_threads(tiny: TinyModels, tmp_path: Path) -> None:
    """Several encoders, none of them loaded, and nothing imported yet."""
    command = [sys.executable, "-c", _COLD_START, json.dumps(sentences(16))]
    command += [str(tiny("bert")), str(tiny("llama"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LAYERFUSE_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "equal": True, "same_stderr": True, "verbosity": 30, "bars": True, "dtype": "torch.float32",
    }  # fmt: skip


def test_standard_error_is_left_alone_while_a_model_loads(tiny: TinyModels) -> None:
    """Another thread may write there: looked at in every call that loading makes."""
    expected, calls, replaced = sys.stderr, [], []

    def look(frame: Any, event: str, _: Any) -> None:
        calls.append(frame.f_code.co_name)
        if sys.stderr is not expected:
            replaced.append(f"{event} {frame.f_code.co_qualname}")

    encoder = opened(tiny("bert"))
    sys.setprofile(look)
    try:
        encoder.tokenize([])
    finally:
        sys.setprofile(None)
    assert "from_pretrained" in calls
    assert "find_architecture" in calls
    assert not replaced


def test_one_encoder_and_one_store(folder: Path, tmp_path: Path) -> None:
    texts, shared, store = sentences(96), opened(folder), EmbeddingStore(tmp_path / "store")
    parts = [texts[start : start + 24] for start in range(0, 96, 12)] * 2
    expected = [extract(part, opened(folder)) for part in parts[:8]] * 2
    found = in_threads(lambda part: extract(part, shared, store=store), parts, N_THREADS)
    for one, other in zip(expected, found, strict=True):
        for block in one:
            np.testing.assert_allclose(one[block], other[block], atol=2e-3)  # float16 in the store


def blocks_of(view: BlockView) -> dict[BlockRef, np.ndarray]:
    return {block: view[block] for block in view}


def assert_equal(found: dict[BlockRef, np.ndarray], expected: dict[BlockRef, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for block, array in expected.items():
        np.testing.assert_array_equal(found[block], array)


def damage(store: EmbeddingStore, every: int) -> list[Path]:
    """Flip a byte of block values in some shards."""
    damaged = sorted(store.root.glob("*/*.safetensors"))[::every]
    for number, shard in enumerate(damaged):
        data = bytearray(shard.read_bytes())
        data[-1 - 40 * number] ^= 0x10
        shard.write_bytes(data)
    return damaged


class TestOneStore:
    TEXTS = sentences(96)

    @pytest.fixture
    def filled(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[EmbeddingStore, dict[BlockRef, np.ndarray]]:
        """A store of twelve shards, filled by one thread, and what it holds."""
        monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 8})
        store = EmbeddingStore(tmp_path / "store")
        with ThreadPoolExecutor(1) as thread:
            view = thread.submit(extract, self.TEXTS, opened(folder), store=store).result()
        assert len(list(store.root.glob("*/*.safetensors"))) == 12
        return store, blocks_of(view)

    @pytest.mark.parametrize("every", [1, 3])
    def test_damaged_shards_are_repaired_once(
        self,
        folder: Path,
        filled: tuple[EmbeddingStore, dict[BlockRef, np.ndarray]],
        every: int,
    ) -> None:
        """Threads that share a view and threads that open the store themselves."""
        store, expected = filled
        shared, notes = opened(folder), Notes()
        view = extract(self.TEXTS, shared, store=store, reporter=notes)
        damaged = damage(store, every)

        def read(number: int) -> dict[BlockRef, np.ndarray]:
            order = np.random.default_rng(number).permutation(len(expected))
            own = view if number % 2 else extract(self.TEXTS, shared, store=store, reporter=notes)
            blocks = list(expected)
            arrays = {blocks[place]: own[blocks[place]] for place in order}
            return {block: arrays[block] for block in blocks}

        with ThreadPoolExecutor(N_THREADS) as threads:
            for found in threads.map(read, range(2 * N_THREADS)):
                assert_equal(found, expected)
        assert sum(notes.advanced) == 8 * len(damaged), "each shard was computed once"
        assert len(notes.about("damaged shard was set aside")) == len(damaged)
        assert len(list(store.root.glob("*/*.corrupt"))) == len(damaged)
        assert store.verify() == []

    def test_shards_that_were_lost_are_computed_again(
        self, folder: Path, filled: tuple[EmbeddingStore, dict[BlockRef, np.ndarray]]
    ) -> None:
        store, expected = filled
        notes = Notes()
        view = extract(self.TEXTS, opened(folder), store=store, reporter=notes)
        for shard in list(store.root.glob("*/*.safetensors"))[::2]:
            shard.unlink()
        with ThreadPoolExecutor(N_THREADS) as threads:
            for found in threads.map(lambda _: blocks_of(view), range(N_THREADS)):
                assert_equal(found, expected)
        assert sum(notes.advanced) == 48

    def test_new_texts_are_computed_once(
        self,
        folder: Path,
        tmp_path: Path,
        filled: tuple[EmbeddingStore, dict[BlockRef, np.ndarray]],
    ) -> None:
        single, expected = filled
        store, shared = EmbeddingStore(tmp_path / "other"), opened(folder)
        notes = Notes()

        def read(_: int) -> BlockView:
            return extract(self.TEXTS, shared, store=EmbeddingStore(store.root), reporter=notes)

        with ThreadPoolExecutor(N_THREADS) as threads:
            views = list(threads.map(read, range(N_THREADS)))
        for view in views:
            assert_equal(blocks_of(view), expected)
        assert sorted(view.n_computed for view in views) == [0] * (N_THREADS - 1) + [96]
        assert sum(notes.advanced) == 96
        written, by_one = (sorted(s.root.glob("*/*.safetensors")) for s in (store, single))
        assert [path.name for path in written] == [path.name for path in by_one]
        for one, other in zip(written, by_one, strict=True):
            assert one.read_bytes() == other.read_bytes()


def test_times_of_threads_that_read_at_once_are_not_recorded(folder: Path, tmp_path: Path) -> None:
    """Each waits inside a batch until the other is there."""
    both, texts = threading.Barrier(2, timeout=60), sentences(20)

    def wait(*_: object) -> None:
        both.wait()

    def read(place: str) -> BlockView:
        encoder, store = opened(folder), EmbeddingStore(tmp_path / place)
        handle = encoder.stack.register_forward_pre_hook(wait)
        try:
            return extract(texts, batched(encoder, 10_000), store=store)
        finally:
            handle.remove()

    with ThreadPoolExecutor(2) as threads:
        views = list(threads.map(read, ("a", "b")))
    assert list(tmp_path.glob("*/*/cost-cpu.json")) == []
    (cost,) = views[0].costs.values()  # measured when it is asked for, alone
    assert cost.n_texts == 20
    assert len(list(tmp_path.glob("a/*/cost-cpu.json"))) == 1


def test_one_classifier(folder: Path, tmp_path: Path) -> None:
    texts, labels = planted(60)
    fitted = LayerFusionClassifier([opened(folder)], cv=2, store=tmp_path / "store")
    fitted.fit(texts, labels)
    parts = [texts[start : start + 3] for start in range(0, 60, 3)] * 8
    expected = in_threads(fitted.predict_proba, parts, 1)
    found = in_threads(fitted.predict_proba, parts, N_THREADS)
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_replica_that_is_made_during_a_pass_has_none_of_its_hooks(tiny: TinyModels) -> None:
    encoder = FrozenEncoder.from_pretrained(tiny("bert"), device="cpu")
    ids = encoder.tokenize(sentences(40)).ids
    expected = encoder.read(ids, [2], ("mean",))
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        go_on.wait(SECONDS)

    blocks = encoder.architecture.blocks
    assert blocks is not None
    waiting = blocks[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(encoder.read, ids, [1], ("mean",))
        assert inside.wait(SECONDS)
        making = threads.submit(encoder.replica)
        time.sleep(0.3)  # enough to make one, if it did not wait for the pass
        go_on.set()
        reading.result(SECONDS)
        replica = making.result(SECONDS)
    waiting.remove()
    np.testing.assert_array_equal(replica.read(ids, [2], ("mean",))[2], expected[2])
