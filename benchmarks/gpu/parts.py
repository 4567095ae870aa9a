"""Sizes, random models and texts, and clocks."""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from layerfuse import FrozenEncoder
from layerfuse.encoders.architecture import examine, find_architecture, text_stack
from layerfuse.encoders.devices import fuse_norms
from layerfuse.encoders.tokenizer import TextTokenizer

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from families import FAMILIES, VOCABULARY, build_tokenizer, save_model

POOLINGS = ("mean", "last")
GIB = 2**30
TEXTS = (
    "the film is good",
    "awful",
    "a very very great story of the market and the bank and the ship",
    "oil price news",
    "not bad",
)


@dataclass(frozen=True)
class Sizes:
    """What differs between a GPU and a CPU that only tries the code."""

    families: tuple[str, ...]
    thread_reads: int
    memory_model: Mapping[str, int]
    memory_texts: int
    memory_gib: float
    minilm_rows: int | None
    shapes: Mapping[str, tuple[str, Mapping[str, int]]]
    texts: int
    lengths: tuple[int, int]
    budgets: tuple[int, ...]
    product: int
    repeats: int
    loading_layers: int
    waits_texts: int


_LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
}  # fmt: skip
_QWEN = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 32000,
}  # fmt: skip
_MINILM = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "vocab_size": 30522,
}  # fmt: skip
_MPNET = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30522,
}  # fmt: skip
_SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 64,
}  # fmt: skip
_SMALL_BERT = {k: v for k, v in _SMALL.items() if k != "num_key_value_heads"}
FULL = Sizes(
    families=tuple(FAMILIES),
    thread_reads=200,
    memory_model={
        **_SMALL,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    memory_texts=4000,
    memory_gib=2.5,
    minilm_rows=None,
    shapes={
        "llama": ("llama", _LLAMA),
        "qwen": ("qwen2", _QWEN),
        "minilm": ("bert", _MINILM),
        "mpnet": ("bert", _MPNET),
    },
    texts=640,
    lengths=(64, 256),
    budgets=(4096, 8192, 16384, 32768, 65536),
    product=8192,
    repeats=3,
    loading_layers=4,
    waits_texts=1024,
)
TINY = Sizes(
    families=("bert", "llama", "t5"),
    thread_reads=24,
    memory_model=_SMALL,
    memory_texts=20,
    memory_gib=0.0,
    minilm_rows=50,
    shapes={
        "llama": ("llama", _SMALL),
        "qwen": ("qwen2", _SMALL),
        "minilm": ("bert", _SMALL_BERT),
        "mpnet": ("bert", _SMALL_BERT),
    },
    texts=24,
    lengths=(8, 32),
    budgets=(256, 1024),
    product=256,
    repeats=1,
    loading_layers=2,
    waits_texts=24,
)


class OutOfTimeError(Exception):
    """A section has used its time."""


@dataclass
class Context:
    """What a section is given."""

    device: str
    sizes: Sizes
    folder: Path
    deadline: float
    minilm: str | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> str:
        """The dtype of what is timed."""
        return "bfloat16" if self.on_gpu else "float32"

    def check_time(self) -> None:
        if time.perf_counter() > self.deadline:
            raise OutOfTimeError

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def peak_gib(self) -> float | None:
        """The most memory allocated since `reset_peak`."""
        return torch.cuda.max_memory_allocated() / GIB if self.on_gpu else None

    def reset_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()


@dataclass
class Notes:
    """A reporter that keeps what it is told."""

    lines: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.lines.append(line)

    def task(self, name: str, total: int, unit: str) -> Any:
        return contextlib.nullcontext(lambda count: None)


def random_texts(rng: np.random.Generator, n: int, lengths: tuple[int, int]) -> list[str]:
    """Distinct texts of so many tokens, the two special ones counted."""
    words = VOCABULARY[4:]
    return [
        " ".join(words[word] for word in rng.integers(len(words), size=length - 2))
        for length in rng.integers(lengths[0], lengths[1] + 1, size=n)
    ]


def in_memory(
    family: str, shape: Mapping[str, int], context: Context, dtype: str, max_length: int = 512
) -> FrozenEncoder:
    """An encoder of that shape over random weights made on the device; no file holds them."""
    folder = save_model(family, context.folder / f"{family}-files")  # the tokenizer's files
    encoder = FrozenEncoder.from_pretrained(
        folder, device=context.device, dtype=dtype, max_length=max_length
    )
    common = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = type(FAMILIES[family]())(**shape, **common, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(context.device):
        model = hf.AutoModel.from_config(config, dtype=getattr(torch, dtype))
    model = model.to(context.device).eval().requires_grad_(False)
    encoder._tokenizer = TextTokenizer(
        build_tokenizer(), prompt=None, chat_prompt=None, max_length=max_length
    )
    stack, pad_id = text_stack(model), common["pad_token_id"]
    traits = examine(stack, encoder.name, dtype, range(3, 40), pad_id, context.device)
    encoder._architecture = find_architecture(stack, traits, pad_id)
    if context.on_gpu:
        fuse_norms(stack)  # as loading from files does
    return encoder


def timed(
    context: Context, ways: Mapping[str, Callable[[], Any]], repeats: int, out: dict[str, Any]
) -> None:
    """Seconds and peak memory of each way, all in turn, the device waited for."""
    for name in ways:
        out[name] = {"seconds": []}
    for _ in range(repeats):
        for name, function in ways.items():
            context.check_time()
            context.reset_peak()
            context.synchronize()
            started = time.perf_counter()
            function()
            context.synchronize()
            out[name]["seconds"].append(time.perf_counter() - started)
            out[name]["median_s"] = statistics.median(out[name]["seconds"])
            out[name]["peak_gib"] = context.peak_gib()


def matrix_peak(context: Context) -> float:
    """FLOP/s of a large square product of random matrices."""
    size = context.sizes.product
    dtype = getattr(torch, context.dtype)
    a, b = (torch.randn(size, size, device=context.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    context.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    context.synchronize()
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def differences(
    ours: Mapping[int, np.ndarray] | Sequence[np.ndarray], other: Sequence[np.ndarray]
) -> tuple[float, float]:
    """The largest absolute difference, and the largest relative to a layer's largest value."""
    absolute, relative = [], []
    for layer, expected in enumerate(other):
        largest = float(np.abs(ours[layer] - expected).max())
        absolute.append(largest)
        relative.append(largest / max(float(np.abs(expected).max()), 1e-30))
    return float(np.max(absolute)), float(np.max(relative))
