"""What a study is about: its settings, its datasets, and their texts embedded by its encoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.packaged import ENCODERS, POOLINGS, Texts
from layerfuse import EmbeddingStore, FrozenEncoder, extract
from layerfuse.embeddings.extraction import BlockView
from layerfuse.errors import LayerfuseError
from layerfuse.files import digest, human_bytes
from layerfuse.progress import Reporter

PARTS = ("profiles", "fusions", "complementarity", "curves", "resources")
"""What is measured, in this order."""

DATASETS = ("sst2", "mr", "r8", "r52")

PRESETS = {
    # What the Python package index serves: two cores are enough.
    "packaged": ENCODERS,
    # Those of Gwak and Jung (2025), for a machine with a GPU and the Hub.
    "paper": (
        "google/gemma-2-2b",
        "Qwen/Qwen2.5-7B",
        "meta-llama/Llama-2-7b-chat-hf",
        "tiiuae/Falcon3-7B-Instruct",
        "mistralai/Mistral-7B-v0.3",
        "nvidia/NV-Embed-v2",
        "intfloat/e5-large-v2",
    ),
}
"""Encoders that are studied together."""

_NEED_CODE = frozenset({"nvidia/NV-Embed-v2"})  # of their repositories
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.1, "nf4": 0.65}
_OVERHEAD = 1.15  # weights and a batch's activations, over the weights alone


@dataclass(frozen=True)
class StudySettings:
    """What a run measures, wherever it works.

    ``encoders`` are names, folders or Hub names (``NAME=PLACE`` renames), ``datasets`` anything
    that `layerfuse.load_dataset` reads. Fusions are measured once for each of ``seeds`` draws of
    ``share`` (0 to 1) of the training rows, ``most_rows`` at most. ``pairs`` counts the pairs of
    blocks by which complementarity is judged, on ``pair_rows`` training rows at most.
    ``curve_shares`` (0 to 1) and ``curve_repeats`` are those of the learning curves, ``timed``
    the number of texts that resources are measured with.
    """

    preset: str = "packaged"
    datasets: tuple[str, ...] = DATASETS
    encoders: tuple[str, ...] = ENCODERS
    poolings: tuple[str, ...] = POOLINGS
    seeds: int = 1
    sample: int | None = None
    trusted: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
    max_blocks: int = 5
    share: float = 0.8
    most_rows: int = 5000
    pairs: int = 200
    pair_rows: int = 3000
    curve_shares: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    curve_repeats: int = 3
    timed: int = 64


def count_shared(datasets: Sequence[Texts]) -> list[dict[str, Any]]:
    """For each ordered pair of datasets the test texts of one that are training texts of the other.

    Texts count as equal when their letters and digits are. ``fraction`` is a share of the test
    rows; pairs that share nothing are left out.
    """

    def letters(text: str) -> str:
        return "".join(filter(str.isalnum, text.casefold()))

    train = {data.name: set(map(letters, data.train)) for data in datasets}
    shared = []
    for data in datasets:
        texts = list(map(letters, data.test))
        for other, seen in train.items():
            rows = sum(text in seen for text in texts if text)
            if other != data.name and rows:
                entry = {"test_of": data.name, "train_of": other, "rows": rows}
                shared.append({**entry, "fraction": rows / len(texts)})
    return shared


@dataclass(frozen=True)
class EmbeddedData:
    """A dataset with its blocks; arrays are read from the store when they are asked for."""

    data: Texts
    train: BlockView
    test: BlockView


@dataclass(frozen=True)
class ReadEncoder:
    """An encoder without its weights, and for each dataset the blocks of train and test."""

    encoder: FrozenEncoder
    blocks: Sequence[tuple[BlockView, BlockView]]

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def identity(self) -> str:
        """A digest of what makes its embeddings what they are."""
        return digest(json.dumps(self.encoder.identity, sort_keys=True))

    @property
    def facts(self) -> dict[str, Any]:
        encoder = self.encoder
        return {
            "layers": encoder.n_layers,
            "dim": encoder.dim,
            "dtype": encoder.dtype,
            "fingerprints": encoder.fingerprints,
        }


def read_encoder(
    given: str,
    datasets: Sequence[Texts],
    settings: StudySettings,
    store: EmbeddingStore,
    device: str,
    reporter: Reporter,
) -> ReadEncoder:
    """Embed every text in a precision that fits, and free the encoder's weights."""
    # A path may hold a "=" itself.
    alias, _, source = ("", "", given) if Path(given).exists() else given.rpartition("=")
    trusted = source in settings.trusted
    if source in _NEED_CODE and not trusted:
        raise LayerfuseError(f"It runs code of its repository; allow that with --trust {source}")
    encoder = FrozenEncoder.from_pretrained(
        source, name=alias or None, device=device, trust_remote_code=trusted, reporter=reporter
    )
    if not encoder.is_loaded and encoder.path.is_dir():
        stored = sum(file.stat().st_size for file in encoder.path.glob("*.safetensors"))
        free, on_cuda = psutil.virtual_memory().available, encoder.kind == "cuda"
        if on_cuda:
            free, _ = torch.cuda.mem_get_info(encoder.device)
        sizes = f"{human_bytes(stored)} of weights and {human_bytes(free)} free on {encoder.device}"
        chosen = choose_precision(stored, free, encoder.dtype, on_cuda=on_cuda)
        if chosen is None:
            raise LayerfuseError(f"It does not fit: {sizes}. Use a device with more memory.")
        if chosen != encoder.dtype:
            reporter.note(f"{encoder.name}: {sizes}, so it is loaded in {chosen}")
        encoder.dtype = chosen

    def embed(texts: Sequence[str]) -> BlockView:
        return extract(texts, encoder, "all", settings.poolings, store, reporter=reporter)

    blocks = []
    for data in datasets:
        reporter.note(f"{data.name} by {encoder.name}")
        blocks.append((embed(data.train), embed(data.test)))
    encoder.release()
    return ReadEncoder(encoder, blocks)


def choose_precision(stored: float, free: float, dtype: str, *, on_cuda: bool) -> str | None:
    """``dtype``, or on CUDA the least quantized one that fits; None where none does.

    ``stored`` and ``free`` are the bytes of the weight files and of the device. The files hold two
    bytes per parameter, or four in float32: the larger number of parameters is assumed.
    """
    for name in (dtype, "int8", "nf4") if on_cuda else (dtype,):
        if stored / 2 * _BYTES[name] * _OVERHEAD <= free:
            return name
    return None
