"""Encoders, stores and classifiers give eight threads what they give one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from families import save_model
from helpers import Notes, planted, sentences
from layerfuse import (
    BlockRef,
    EmbeddingStore,
    FrozenEncoder,
    LayerFusionClassifier,
    extract,
)
from layerfuse.embeddings import plan
from layerfuse.embeddings.views import BlockView

N_THREADS = 8


@pytest.fixture(scope="module", params=["bert", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads") / request.param
    save_model(request.param, folder)
    return folder


def opened(folder: Path) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(folder, dtype="float32", device="cpu")


def test_first_reads_of_one_encoder(folder: Path) -> None:
    texts = sentences(64)
    alone, shared = opened(folder), opened(folder)
    batches = [texts[start : start + 4] for start in range(0, 64, 4)] * 6

    def read(encoder: FrozenEncoder, batch: list[str]) -> dict[int, np.ndarray]:
        return encoder.read(encoder.tokenize(batch).ids, "all", ("mean", "last"))

    with ThreadPoolExecutor(1) as thread:  # the main thread has another number of OpenMP threads
        expected = list(thread.map(lambda batch: read(alone, batch), batches))
    with ThreadPoolExecutor(N_THREADS) as threads:  # weights are not loaded yet
        found = list(threads.map(lambda batch: read(shared, batch), batches))
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[layer], other[layer]) for layer in one)


def test_one_encoder_and_one_store(folder: Path, tmp_path: Path) -> None:
    texts, shared, store = sentences(96), opened(folder), EmbeddingStore(tmp_path / "store")
    parts = [texts[start : start + 24] for start in range(0, 96, 12)] * 2
    expected = [extract(part, opened(folder)) for part in parts[:8]] * 2
    with ThreadPoolExecutor(N_THREADS) as threads:
        found = list(threads.map(lambda part: extract(part, shared, store=store), parts))
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
        monkeypatch.setattr(plan, "SHARD_ROWS", 8)
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
            return extract(texts, encoder, store=store, batch_tokens=10_000)
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
    fitted = LayerFusionClassifier([folder], dtype="float32", cv=2, store=tmp_path / "store")
    fitted.fit(texts, labels)
    parts = [texts[start : start + 3] for start in range(0, 60, 3)] * 8
    with ThreadPoolExecutor(1) as thread:
        expected = list(thread.map(fitted.predict_proba, parts))
    with ThreadPoolExecutor(N_THREADS) as threads:
        found = list(threads.map(fitted.predict_proba, parts))
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
