"""From texts to blocks: every layer and pooling in one forward pass over each text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Layers, Poolings, resolve_layers, resolve_poolings
from layerfuse.embeddings.cost_record import CostRecord, Meter, keep_cost, read_cost
from layerfuse.embeddings.runner import Runner
from layerfuse.embeddings.section import Key, Section, text_hashes
from layerfuse.embeddings.shard import CorruptShardError
from layerfuse.embeddings.store import EmbeddingStore
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError, DataError, StorageError, did_you_mean
from layerfuse.files import human_bytes
from layerfuse.parallel import BackgroundTask
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import EncoderCost
from layerfuse.targets import Column, as_list

__all__ = [
    "Embeddings",
    "Gathered",
    "Rows",
    "check_texts",
    "extract",
    "gather",
    "gather_blocks",
    "most_missing",
]

_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
_MENDS = 20  # damaged shards that one look-up will compute again

_Plan: TypeAlias = Sequence[tuple[npt.NDArray[np.intp], tuple[Key, ...]]]
"""Rows and the blocks that all of them lack; a row is in one pair at most."""


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
    runner = Runner(distinct, encoder, budget, reporter)
    if store is None:
        computed = _InMemory.compute(runner, keys, back)
        return Embeddings(refs, computed, len(distinct), computed.truncated[back])
    section = store.section(encoder.name, encoder.identity, reporter)
    stored = _Stored(section, runner, hashes, back, keys)
    n_computed = stored.complete()
    return Embeddings(refs, stored, n_computed, section.truncated(hashes, keys[0])[back])


class _Source(Protocol):
    """Where the arrays come from."""

    def block(self, key: Key) -> npt.NDArray[np.float32]: ...

    def record(self) -> CostRecord | None: ...


@dataclass
class _InMemory:
    blocks: dict[Key, npt.NDArray[np.float32]]
    truncated: npt.NDArray[np.bool_]
    back: npt.NDArray[np.intp]
    runner: Runner

    @classmethod
    def compute(cls, runner: Runner, keys: Sequence[Key], back: npt.NDArray[np.intp]) -> _InMemory:
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
    runner: Runner
    hashes: npt.NDArray[np.bytes_]
    back: npt.NDArray[np.intp]
    keys: Sequence[Key]
    recorded: CostRecord | None = None

    def complete(self) -> int:
        """Compute and store what is missing; return how many texts that were."""
        plan = self.section.missing(self.hashes, self.keys)
        n_rows = _n_rows(plan)
        name, total = self.runner.encoder.name, len(self.hashes)
        self.runner.reporter.note(
            f"{name}: {total - n_rows} of {total} distinct texts are in the store"
            + (f", {n_rows} to compute" if n_rows else "")
        )
        self.runner.meter, self.runner.padding = Meter(), []
        self._check_room(sum(len(rows) * len(keys) for rows, keys in plan))
        self._compute(plan)
        if n_rows:
            real, padded = map(sum, zip(*self.runner.padding, strict=True))
            self.runner.reporter.note(f"{name}: {1 - real / padded:.1%} of tokens were padding")
            self._keep(self.runner.record())
        return n_rows

    def _compute(self, plan: _Plan) -> None:
        """Read and store what is planned; when stopped, say how much of it all is stored."""
        try:
            with BackgroundTask() as behind:
                for rows, keys in plan:
                    for part, truncated, blocks in self.runner.shards(rows, keys):
                        behind(self.section.write, self.hashes[part], truncated, blocks)
                        if not self.runner.works_ahead:
                            behind.wait()
        except KeyboardInterrupt:
            self.section.refresh()  # the last shard may have been written and not yet counted
            total = len(self.hashes)
            stored = total - _n_rows(self.section.missing(self.hashes, self.keys))
            self.runner.reporter.note(
                f"{self.runner.encoder.name}: stopped with {stored:,} of {total:,} distinct texts "
                "stored; those of the part that was being read are lost"
            )
            raise

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


def _n_rows(plan: _Plan) -> int:
    """Rows that lack a block; each is in one part of the plan."""
    return sum(len(rows) for rows, _ in plan)


class Gathered(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Blocks of several encoders: a mapping from block to array (n_texts, dim)."""

    def __init__(self, parts: Sequence[Embeddings]) -> None:
        self._parts = {ref: part for part in parts for ref in part}
        self._encoders = tuple(parts)
        self.n_computed = sum(part.n_computed for part in parts)
        self.truncated_share = max((part.truncated_share for part in parts), default=0.0)

    def __getitem__(self, ref: BlockRef) -> npt.NDArray[np.float32]:
        return self._parts[ref][ref]

    @property
    def costs(self) -> dict[str, EncoderCost]:
        """What each encoder costs, by its name; see `Embeddings.cost`."""
        costs = (part.cost for part in self._encoders)
        return {cost.encoder: cost for cost in costs if cost is not None}

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class Rows(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Some rows of each block."""

    def __init__(
        self,
        embeddings: Mapping[BlockRef, npt.NDArray[np.float32]],
        rows: npt.NDArray[np.intp],
    ) -> None:
        self._embeddings = embeddings
        self._rows = rows

    def __getitem__(self, block: BlockRef) -> npt.NDArray[np.float32]:
        return self._embeddings[block][self._rows]

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._embeddings)

    def __len__(self) -> int:
        return len(self._embeddings)


def gather(
    texts: Sequence[str],
    encoders: Sequence[FrozenEncoder],
    layers: Layers,
    pooling: Poolings,
    store: EmbeddingStore | None,
    *,
    batch_tokens: int | None = None,
    reporter: Reporter = SILENT,
) -> Gathered:
    """`extract` with each encoder in turn.

    Raises
    ------
    ConfigError
        For poolings of an encoder that is not there.
    """
    by_name = _by_name(encoders, pooling)
    return Gathered(
        [
            extract(
                texts,
                encoder,
                layers,
                by_name[encoder.name],
                store,
                batch_tokens=batch_tokens,
                reporter=reporter,
            )
            for encoder in encoders
        ]
    )


def gather_blocks(
    texts: Sequence[str],
    encoders: Sequence[FrozenEncoder],
    blocks: Sequence[BlockRef],
    store: EmbeddingStore | None,
    *,
    batch_tokens: int | None = None,
    reporter: Reporter = SILENT,
) -> Gathered:
    """Given blocks: of each encoder in use its layers in their poolings, and none above."""
    parts = []
    for encoder in encoders:
        own = [block for block in blocks if block.encoder == encoder.name]
        if own:
            layers = sorted({block.layer for block in own})
            poolings = tuple(dict.fromkeys(block.pooling for block in own))
            parts.append(
                extract(
                    texts,
                    encoder,
                    layers,
                    poolings,
                    store,
                    batch_tokens=batch_tokens,
                    reporter=reporter,
                )
            )
    return Gathered(parts)


def most_missing(
    texts: Sequence[str],
    encoders: Sequence[FrozenEncoder],
    layers: Layers,
    pooling: Poolings,
    store: EmbeddingStore | None,
) -> int:
    """Distinct texts that `gather` would have to read, with the encoder that has most of them."""
    by_name = _by_name(encoders, pooling)
    hashes = np.unique(text_hashes(texts))
    if store is None:
        return len(hashes)
    counts = []
    for encoder in encoders:
        wanted = resolve_layers(layers, encoder.n_layers, encoder.name)
        keys = [(at, way) for way in resolve_poolings(by_name[encoder.name]) for at in wanted]
        plan = store.section(encoder.name, encoder.identity).missing(hashes, keys)
        counts.append(len({row for rows, _ in plan for row in rows.tolist()}))
    return max(counts)


def _by_name(
    encoders: Sequence[FrozenEncoder], pooling: Poolings
) -> dict[str, str | Sequence[str]]:
    names = [encoder.name for encoder in encoders]
    given = dict(pooling) if isinstance(pooling, Mapping) else dict.fromkeys(names, pooling)
    if unknown := [name for name in given if name not in names]:
        raise ConfigError(
            f"A pooling names {unknown[0]!r}, which is not one of the encoders "
            f"({', '.join(names)}).{did_you_mean(unknown[0], names)}"
        )
    return {name: given.get(name, "mean") for name in names}
