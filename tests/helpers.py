"""Sentences for tiny models, a reporter that remembers, extraction in a process of its own."""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from families import VOCABULARY, TinyModels
from layerfuse import EmbeddingStore, FrozenEncoder, LayerFusionClassifier, extract
from layerfuse.embeddings import jobs
from layerfuse.probing.ridge import standardization
from layerfuse.progress import Advance
from processes import fork


def sentences(count: int, *, seed: int = 0, longest: int = 12) -> list[str]:
    """Distinct texts of 1 to ``longest`` words of the tiny vocabulary."""
    rng = np.random.default_rng(seed)
    words = VOCABULARY[4:]
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(rng.choice(words, size=rng.integers(1, longest + 1)))] = None
    return list(found)


_TELLING = (
    ("good", "great"),
    ("bad", "awful"),
    ("market", "bank"),
    ("oil", "price"),
    ("ship", "grain"),
)


def planted(n: int, n_classes: int = 2, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of filling words with two words that give the label away, and the labels.

    Labels are the first telling word of their class, each as frequent as the others.
    """
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for row in rng.permutation(n):
        telling = _TELLING[row % n_classes]
        words = list(rng.choice(VOCABULARY[-37:], size=rng.integers(2, 6)))
        for word in rng.choice(telling, size=2):
            words.insert(rng.integers(len(words) + 1), word)
        texts.append(" ".join(words))
        labels.append(telling[0])
    return texts, labels


def scaled(arrays: Sequence[npt.NDArray[Any]], n: int | None = None) -> list[npt.NDArray[Any]]:
    """Blocks with centred columns and a total variance of one, by their first ``n`` rows."""
    found = []
    for array in arrays:
        mean, scale = standardization(array[:n])
        found.append(((array - mean) * scale).astype(np.float32))
    return found


def batched(encoder: FrozenEncoder, tokens: int) -> FrozenEncoder:
    """The encoder itself, from now on with at most so many tokens in a batch."""
    encoder.batch_tokens = tokens
    return encoder


_OF_ENCODER = {"layers", "pooling", "prompts", "max_length", "device", "dtype", "batch_tokens"}
_OF_ENCODER |= {"windows", "overlap", "max_windows"}


def build(tiny: TinyModels, *families: str, **options: Any) -> LayerFusionClassifier:
    """A classifier on tiny models named by their family, quick by default.

    Options of encoders are for all of them; ``prompts`` and ``pooling`` may go by family.
    """
    own = {"device": "cpu", "dtype": "float32"}
    own |= {name: options.pop(name) for name in _OF_ENCODER & set(options)}
    prompts, pooling = own.pop("prompts", {}), own.pop("pooling", ("mean",))
    encoders = [
        FrozenEncoder.from_pretrained(
            tiny(family),
            name=family,
            prompt=prompts.get(family),
            pooling=pooling.get(family, "mean") if isinstance(pooling, dict) else pooling,
            **own,
        )
        for family in families or ("bert",)
    ]
    return LayerFusionClassifier(encoders, **{"cv": 3, **options})


class Notes:
    """A reporter that remembers lines, and for each task how far it went."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.advanced: list[int] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        yield self.advanced.append

    def about(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]


class _Child(Notes):
    """Appends each advance to a log file, and lets the disk be full after some texts."""

    def __init__(self, log: Path, full_after: int | None) -> None:
        super().__init__()
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._full_after = full_after

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(count: int, /) -> None:
            self.advanced.append(count)
            os.write(self._log, f"{count}\n".encode())
            if self._full_after is not None and sum(self.advanced) >= self._full_after:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))
                self._full_after = None

        yield advance


def _work(
    pipe: Connection,
    cache: Path,
    model: Path,
    store: Path,
    texts: Sequence[str],
    shard_rows: int,
    log: Path,
    full_after: int | None,
) -> None:
    import torch

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.environ["LAYERFUSE_CACHE"] = str(cache)
    jobs.SHARD_ROWS = {"cpu": shard_rows}
    encoder = FrozenEncoder.from_pretrained(model, name="tiny", device="cpu", dtype="float32")
    encoder.tokenize([""])  # the model is loaded
    pipe.send("ready")
    pipe.recv()
    reporter = _Child(log, full_after)
    try:
        found = extract(texts, encoder, store=EmbeddingStore(store), reporter=reporter)
    except Exception as error:
        pipe.send((type(error).__name__, str(error)))
    else:
        pipe.send(("done", found.n_computed))


class Extraction:
    """`extract` with a store, all layers, mean pooling, in another process."""

    def __init__(
        self,
        model: Path,
        store: Path,
        texts: Sequence[str],
        *,
        shard_rows: int,
        log: Path,
        full_after: int | None = None,
    ) -> None:
        self._pipe, theirs = Pipe()
        cache = Path(os.environ["LAYERFUSE_CACHE"])
        arguments = (theirs, cache, model, store, texts, shard_rows, log, full_after)
        self.process = fork(_work, *arguments)
        theirs.close()
        assert self._pipe.recv() == "ready"

    def go(self) -> None:
        """Let it begin; until then it has only loaded the model."""
        self._pipe.send("go")

    def result(self) -> tuple[str, Any]:
        """``("done", n_computed)`` or the error's name and message; the process has ended well."""
        result: tuple[str, Any] = self._pipe.recv()
        self.process.join()
        assert self.process.exitcode == 0
        return result

    def kill(self) -> bool:
        """SIGKILL; False when it had already ended."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode != 0
