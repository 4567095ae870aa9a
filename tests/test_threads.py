"""Encoders, stores and classifiers give eight threads what they give one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from families import save_model
from helpers import planted, sentences
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract

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
