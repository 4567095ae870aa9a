"""From texts to blocks: every layer and pooling in one forward pass over each text."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from layerfuse.batching import plan_batches
from layerfuse.blocks import BlockRef, Layers, resolve_layers, resolve_poolings
from layerfuse.encoder import FrozenEncoder, Pending, Tokens
from layerfuse.errors import DataError, NoMemoryError, StorageError, is_out_of_memory
from layerfuse.events import SILENT, Reporter
from layerfuse.files import human_bytes
from layerfuse.labels import Column, as_list
from layerfuse.metering import CostRecord, Meter
from layerfuse.parallel import Behind, ahead
from layerfuse.resources import EncoderCost
from layerfuse.store import EmbeddingStore, Key, Section, keep_cost, read_cost, text_hashes
from layerfuse.store.shard import CorruptShardError

__all__ = ["Embeddings", "check_texts", "extract"]

_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
_BATCH_OVERHEAD = {"cpu": 64, "mps": 512, "cuda": 2048}  # what a batch costs beside them, in tokens
_SHARD_ROWS = 2048
_SHARD_BYTES = 192 << 20
_SAMPLED = 32  # texts that are read to learn a cost that nobody recorded
_MENDS = 20  # damaged shards that one look-up will compute again


class Embeddings(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Blocks of one encoder over some texts: a mapping from block to array (n_texts, dim).

    Arrays that lie in a store are read when they are asked for, one block at a time.
    ``n_computed`` counts the distinct texts that were not in the store, ``truncated_share`` is the
    share of texts that were cut to the encoder's token limit.
    """

    def __init__(
        self,
        refs: Sequence[BlockRef],
        source: _Source,
        n_computed: int,
        truncated: npt.NDArray[Any],
    ) -> None:
        self._refs = tuple(refs)
        self._source = source
        self.n_computed = n_computed
        self.truncated_share = float(truncated.mean())

    def __getitem__(self, ref: BlockRef) -> npt.NDArray[np.float32]:
        if ref not in self._refs:
            raise KeyError(f"{ref} was not extracted")
        return self._source.block((ref.layer, ref.pooling))

    @cached_property
    def cost(self) -> EncoderCost | None:
        """What the encoder costs, measured while texts were computed.

        ``ms_per_text`` is for the texts recorded: with a store those of the run, this one or an
        earlier one on the same kind of device, that computed the most. Where there is no record,
        the encoder is loaded and up to 32 of the texts are read. None for an encoder that was
        truncated at layer 0: it has no block to measure.
        """
        record = self._source.record()
        return None if record is None else record.cost(self._refs[0].encoder)

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)


def check_texts(texts: Column) -> list[str]:
    """The texts as a list of str, from a list, tuple, Series, numpy or Arrow array.

    Raises
    ------
    DataError
        For a single string, a table, no text at all, or a value that is not a string.
    """
    rows = as_list(texts, "texts")
    for number, text in enumerate(rows):
        if not isinstance(text, str):
            raise DataError(
                f"Text number {number} is {text!r} ({type(text).__name__}), expected a string. "
                "Drop the rows without text, or fill them with an empty string."
            )
    if not rows:
        raise DataError("There are no texts.")
    return rows


def extract(
    texts: Column,
    encoder: FrozenEncoder,
    layers: Layers = "all",
    pooling: str | Sequence[str] = ("mean",),
    store: EmbeddingStore | None = None,
    *,
    batch_tokens: int | None = None,
    reporter: Reporter = SILENT,
) -> Embeddings:
    """Compute blocks of an encoder, all layers and poolings in one forward pass.

    Equal texts are computed once. With a store, only what it does not hold is computed, shard by
    shard, and a run that was stopped goes on where it was.

    Parameters
    ----------
    texts
        n_texts strings as a list, tuple, Series, numpy or Arrow array; empty ones are allowed.
    encoder
        The frozen encoder.
    layers, pooling
        Which blocks.
    store
        Where embeddings are kept (as float16 where they fit); None keeps them in memory (float32).
    batch_tokens
        The most tokens of one batch, padding counted; halved when the device runs out of memory.

    Returns
    -------
    Embeddings
        A mapping from `BlockRef` to a float32 array of shape (n_texts, dim).

    Raises
    ------
    DataError
        For texts that are not strings.
    StorageError
        When the disk is full; finished shards are kept.
    """
    rows = check_texts(texts)
    poolings = resolve_poolings(pooling)
    wanted = resolve_layers(layers, encoder.n_layers, encoder.name)
    keys = [(layer, name) for name in poolings for layer in wanted]
    refs = [BlockRef(encoder.name, layer, name) for layer, name in keys]
    hashes, first, back = np.unique(text_hashes(rows), return_index=True, return_inverse=True)
    distinct = [rows[index] for index in first]
    budget = batch_tokens or _BATCH_TOKENS[encoder.kind]
    runner = _Runner(distinct, encoder, budget, reporter)
    if store is None:
        computed = _InMemory.compute(runner, keys, back)
        return Embeddings(refs, computed, len(distinct), computed.truncated[back])
    section = store.section(encoder.name, encoder.identity, reporter)
    stored = _Stored(section, runner, hashes, back, keys)
    n_computed = stored.complete()
    return Embeddings(refs, stored, n_computed, section.truncated(hashes, keys[0])[back])


@dataclass
class _Runner:
    """Runs an encoder over distinct texts."""

    texts: list[str]
    encoder: FrozenEncoder
    budget: int
    reporter: Reporter
    meter: Meter = field(default_factory=Meter)
    padding: list[tuple[int, int]] = field(default_factory=list)  # tokens, and with padding

    @property
    def works_ahead(self) -> bool:
        """Whether texts are tokenised and shards written beside the passes: a CPU is busy."""
        return self.encoder.kind != "cpu"

    def shards(
        self, rows: npt.NDArray[np.intp], keys: Sequence[Key]
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_], dict[Key, Any]]]:
        """Yield (row numbers, truncated, blocks) for parts of ``rows``, in the order given.

        The parts and the batches inside them follow from the order alone, so that a run that was
        stopped and goes on yields the same bytes as one that was not.
        """
        most = _SHARD_ROWS // 2 if self.works_ahead else _SHARD_ROWS  # two are in flight
        size = max(1, min(most, _SHARD_BYTES // (4 * self.encoder.dim * len(keys))))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        highest = max(layer for layer, _ in keys)
        with self.reporter.task(f"reading {self.encoder.name}", len(rows), "texts") as advance:
            self.encoder.tokenize([])  # loads what is not loaded yet, off the clock
            in_turn = ahead if self.works_ahead else map
            for part, (tokens, seconds) in zip(parts, in_turn(self._tokenize, parts), strict=True):
                self.meter.tokenized(highest, len(part), sum(map(len, tokens.ids)), seconds)
                truncated, blocks = self._read(part, tokens, keys, advance)
                yield part, truncated, blocks

    def _tokenize(self, part: npt.NDArray[np.intp]) -> tuple[Tokens, float]:
        started = time.perf_counter()
        tokens = self.encoder.tokenize([self.texts[row] for row in part])
        return tokens, time.perf_counter() - started

    def _read(
        self, part: npt.NDArray[np.intp], tokens: Tokens, keys: Sequence[Key], advance: Any
    ) -> tuple[npt.NDArray[np.bool_], dict[Key, npt.NDArray[np.float32]]]:
        layers = sorted({layer for layer, _ in keys})
        poolings = list(dict.fromkeys(pooling for _, pooling in keys))
        blocks: dict[Key, npt.NDArray[np.float32]] = {}
        for batch, read in self._read_batches(tokens.ids, layers, poolings):
            for layer, pooling in keys:
                values = read[layer][:, poolings.index(pooling)]
                if (layer, pooling) not in blocks:
                    blocks[layer, pooling] = np.empty((len(part), values.shape[1]), np.float32)
                blocks[layer, pooling][batch] = values
            advance(len(batch))
        return np.array(tokens.truncated, dtype=bool), blocks

    def _read_batches(
        self,
        ids: list[list[int]],
        layers: list[int],
        poolings: list[str],
    ) -> Iterator[tuple[list[int], dict[int, npt.NDArray[np.float32]]]]:
        """Each batch and its pooled states; a GPU gets the next batch before this one is fetched.

        Out of memory is answered by halving the budget and parting anew what is left.
        """

        waiting: deque[tuple[list[int], float, Pending]] = deque()
        queue = self._plan(ids, range(len(ids)))
        self.padding.append((sum(map(len, ids)), sum(len(b) * len(ids[b[0]]) for b in queue)))
        depth = 1 if self.works_ahead else 0
        done = 0.0
        while queue or waiting:
            if queue and len(waiting) <= depth:
                batch = queue.popleft()
                started = time.perf_counter()
                try:
                    rows = [ids[row] for row in batch]
                    waiting.append((batch, started, self.encoder.launch(rows, layers, poolings)))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(batch) == 1:
                        raise NoMemoryError(
                            f"{self.encoder.name} has no memory left to read one text of "
                            f"{len(rows[0]):,} tokens. Cut texts earlier with --max-length "
                            "(max_length=), or use a smaller model, --device cpu or --dtype "
                            "bfloat16. Finished embeddings are kept."
                        ) from error
                    self._shrink()
                    queue = self._plan(ids, [row for rows in (batch, *queue) for row in rows])
                    continue
                if queue and len(waiting) <= depth:
                    continue
            batch, started, pending = waiting.popleft()
            read = pending.result()
            started, done = max(started, done), time.perf_counter()
            self.meter.ran(layers[-1], sum(len(ids[row]) for row in batch), done - started)
            yield batch, read

    def _plan(self, ids: list[list[int]], rows: Sequence[int]) -> deque[list[int]]:
        lengths = [len(ids[row]) for row in rows]
        plan = plan_batches(lengths, self.budget, _BATCH_OVERHEAD[self.encoder.kind])
        return deque([rows[index] for index in batch] for batch in plan)

    def _shrink(self) -> None:
        import torch

        torch.cuda.empty_cache()
        self.budget = max(1, self.budget // 2)
        self.reporter.note(
            f"{self.encoder.name}: out of memory; batches are cut to {self.budget} tokens"
        )

    def record(self) -> CostRecord | None:
        """What the texts read so far took; None when no block ran."""
        import torch

        return self.meter.record(
            parameters=self.encoder.layer_parameters,
            bytes_per_parameter=self.encoder.bytes_per_parameter,
            dim=self.encoder.dim,
            stops_early=self.encoder.stops_early,
            device=self.encoder.device,
            dtype=self.encoder.dtype,
            threads=torch.get_num_threads(),
        )

    def sample(self) -> CostRecord | None:
        """Read a few of the texts as deep as it goes, for the sake of the times alone."""
        if self.encoder.highest_layer == 0:
            return None
        texts = self.texts[:_SAMPLED]  # they are in the order of their hashes, so a fair draw
        self.reporter.note(f"{self.encoder.name}: measuring its cost on {len(texts)} texts")
        runner = _Runner(texts, self.encoder, self.budget, SILENT)
        keys = [(self.encoder.highest_layer, "mean")]
        for rows in (np.arange(1), np.arange(len(texts))):  # the first is to warm up
            runner.meter = Meter(warm=True)
            for _ in runner.shards(rows, keys):
                pass
        return runner.record()


class _Source(Protocol):
    """Where the arrays come from."""

    def block(self, key: Key) -> npt.NDArray[np.float32]: ...

    def record(self) -> CostRecord | None: ...


@dataclass
class _InMemory:
    blocks: dict[Key, npt.NDArray[np.float32]]
    truncated: npt.NDArray[np.bool_]
    back: npt.NDArray[np.intp]
    runner: _Runner

    @classmethod
    def compute(cls, runner: _Runner, keys: Sequence[Key], back: npt.NDArray[np.intp]) -> _InMemory:
        n_rows = len(runner.texts)
        blocks: dict[Key, npt.NDArray[np.float32]] = {}
        truncated = np.zeros(n_rows, dtype=bool)
        for rows, cut, values in runner.shards(np.arange(n_rows), keys):
            truncated[rows] = cut
            for key, array in values.items():
                if key not in blocks:
                    blocks[key] = np.empty((n_rows, array.shape[1]), np.float32)
                blocks[key][rows] = array
        return cls(blocks, truncated, back, runner)

    def block(self, key: Key) -> npt.NDArray[np.float32]:
        return self.blocks[key][self.back]

    def record(self) -> CostRecord | None:
        return self.runner.record() or self.runner.sample()


@dataclass
class _Stored:
    section: Section
    runner: _Runner
    hashes: npt.NDArray[np.bytes_]
    back: npt.NDArray[np.intp]
    keys: Sequence[Key]
    recorded: CostRecord | None = None

    def complete(self) -> int:
        """Compute and store what is missing; return how many texts that were."""
        plan = self.section.missing(self.hashes, self.keys)
        n_rows = len(np.unique(np.concatenate([np.empty(0, np.intp), *(rows for rows, _ in plan)])))
        name, total = self.runner.encoder.name, len(self.hashes)
        self.runner.reporter.note(
            f"{name}: {total - n_rows} of {total} distinct texts are in the store"
            + (f", {n_rows} to compute" if n_rows else "")
        )
        self.runner.meter = Meter()
        self._check_room(sum(len(rows) * len(keys) for rows, keys in plan))
        with Behind() as behind:
            for rows, keys in plan:
                for part, truncated, blocks in self.runner.shards(rows, keys):
                    behind(self.section.write, self.hashes[part], truncated, blocks)
                    if not self.runner.works_ahead:
                        behind.wait()
        if n_rows:
            real, padded = map(sum, zip(*self.runner.padding, strict=True))
            self.runner.reporter.note(f"{name}: {1 - real / padded:.1%} of tokens were padding")
            self._keep(self.runner.record())
        return n_rows

    def record(self) -> CostRecord | None:
        if self.recorded is None:
            self.recorded = read_cost(self.section.folder, self.runner.encoder.device)
        if self.recorded is None:
            self._keep(self.runner.sample())
        return self.recorded

    def _keep(self, record: CostRecord | None) -> None:
        if record is not None:
            self.recorded = keep_cost(self.section.folder, record)

    def _check_room(self, n_vectors: int) -> None:
        if not n_vectors:
            return
        needed = n_vectors * self.runner.encoder.dim * 2
        free = shutil.disk_usage(self.section.folder).free
        if needed > free:
            raise StorageError(
                f"The embeddings of {self.runner.encoder.name} need about {human_bytes(needed)}, "
                f"and {self.section.folder} has {human_bytes(free)} free. Free some space, choose "
                "another folder with --store, or read fewer layers or poolings."
            )

    def block(self, key: Key) -> npt.NDArray[np.float32]:
        for _ in range(_MENDS):
            try:
                return self.section.read(self.hashes[self.back], key)
            except CorruptShardError:
                self.complete()  # the shard was set aside; compute its rows again
        raise StorageError(
            f"{self.section.folder} gives back other bytes than were written, again and again. "
            "Check the disk, or choose another folder with --store."
        )
