"""Running an encoder over texts: shards of them, in batches, with what that costs on a meter."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.embeddings.cost_record import CostRecord, Meter
from layerfuse.embeddings.plan import plan_batches
from layerfuse.embeddings.section import Key
from layerfuse.encoders import FrozenEncoder, Pending, Tokens
from layerfuse.errors import NoMemoryError, is_out_of_memory
from layerfuse.parallel import prefetch, trim_heap
from layerfuse.progress import SILENT, Reporter

__all__ = ["Runner"]

_BATCH_OVERHEAD = {"cpu": 64, "mps": 512, "cuda": 2048}  # what a batch costs beside its tokens
_SHARD_ROWS = 2048
_SHARD_WORK = 7e10  # rows times parameters: on two cores some ten seconds, which a kill may cost
_LEAST_ROWS = 64
_SHARD_BYTES = 192 << 20
_PARTS_A_COPY = 4
_SAMPLED = 32  # texts that are read to learn a cost that nobody recorded

Rows: TypeAlias = npt.NDArray[np.intp]
Read: TypeAlias = tuple[Rows, Tokens, float, npt.NDArray[np.bool_], dict[Key, Any]]
"""A part's rows, their tokens and the seconds these took, which texts were cut, and the blocks."""
Parts: TypeAlias = Iterator[Read]


@dataclass
class Runner:
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
        self, rows: Rows, keys: Sequence[Key]
    ) -> Iterator[tuple[Rows, npt.NDArray[np.bool_], dict[Key, Any]]]:
        """Yield (row numbers, truncated, blocks) for parts of ``rows``, in the order given.

        The parts and the batches inside them follow from the order alone, so that a run that was
        stopped and goes on yields the same bytes as one that was not.
        """
        highest = max(layer for layer, _ in keys)
        fitting = _SHARD_BYTES // (4 * self.encoder.dim * len(keys))
        size = max(1, min(self._most_rows(highest), fitting))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        with self.reporter.task(f"reading {self.encoder.name}", len(rows), "texts") as advance:
            self.encoder.tokenize([])  # loads what is not loaded yet, off the clock
            crew = [self, *self._helpers(len(parts))]
            read = self._read_in_turn if len(crew) == 1 else partial(_share_out, crew)
            for part, tokens, seconds, truncated, blocks in read(parts, keys, advance):
                self.meter.tokenized(highest, len(part), sum(map(len, tokens.ids)), seconds)
                yield part, truncated, blocks
                if len(part) == size:
                    trim_heap()

    def _most_rows(self, highest: int) -> int:
        """Rows of a shard: fewer of a large encoder on the CPU, for a stop loses what is not yet
        written."""
        if self.works_ahead:
            return _SHARD_ROWS // 2  # two are in flight
        rows = _SHARD_ROWS
        while rows > _LEAST_ROWS and rows * self.encoder.layer_parameters[highest] > _SHARD_WORK:
            rows //= 2
        return rows

    def _helpers(self, n_parts: int) -> list[Runner]:
        """Runners over the encoder's copies on other GPUs, with meters that nobody reads: what one
        copy takes is what it costs. A copy must have several parts to read, to be worth loading."""
        copies = self.encoder.copies(n_parts // _PARTS_A_COPY)
        if copies:
            self.reporter.note(f"{self.encoder.name}: read by {len(copies) + 1} GPUs side by side")
        return [replace(self, encoder=copy, meter=Meter()) for copy in copies]

    def _read_in_turn(self, parts: Sequence[Rows], keys: Sequence[Key], advance: Any) -> Parts:
        in_turn = prefetch if self.works_ahead else map
        for part, (tokens, seconds) in zip(parts, in_turn(self._tokenize, parts), strict=True):
            yield part, tokens, seconds, *self._read(part, tokens, keys, advance)

    def _tokenize(self, part: Rows) -> tuple[Tokens, float]:
        started = time.perf_counter()
        tokens = self.encoder.tokenize([self.texts[row] for row in part])
        return tokens, time.perf_counter() - started

    def _read(
        self, part: Rows, tokens: Tokens, keys: Sequence[Key], advance: Any
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
        runner = Runner(texts, self.encoder, self.budget, SILENT)
        keys = [(self.encoder.highest_layer, "mean")]
        for rows in (np.arange(1), np.arange(len(texts))):  # the first is to warm up
            runner.meter = Meter(warm=True)
            for _ in runner.shards(rows, keys):
                pass
        return runner.record()


def _share_out(
    crew: Sequence[Runner], parts: Sequence[Rows], keys: Sequence[Key], advance: Any
) -> Parts:
    """Each part is read by the runner that is free first; they come back in order.

    Texts are tokenised one part at a time, which takes all cores as it is.
    """
    idle: SimpleQueue[Runner] = SimpleQueue()
    tokenizing = Lock()
    for runner in crew:
        idle.put(runner)

    def read(part: Rows) -> Read:
        runner = idle.get()
        try:
            with tokenizing:
                tokens, seconds = runner._tokenize(part)
            with runner.encoder.as_current_device():
                return part, tokens, seconds, *runner._read(part, tokens, keys, advance)
        finally:
            idle.put(runner)

    yield from prefetch(read, parts, len(crew))
