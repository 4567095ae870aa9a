"""From texts to blocks: every layer and pooling in one forward pass over each text."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import (
    COLUMNS_BLOCK,
    LEXICAL_BLOCK,
    NOT_MODELS,
    BlockRef,
    Layers,
    split_pooling,
)
from layerfuse.embeddings.cost_record import (
    CostRecord,
    keep_cost,
    read_cost,
    record_cost,
    undisturbed,
)
from layerfuse.embeddings.jobs import (
    ShardJob,
    ShardResult,
    plan_shards,
    run_shard,
    run_shards,
    run_shards_on,
)
from layerfuse.embeddings.shard import CorruptShardError, Hashes, Key
from layerfuse.embeddings.store import (
    EmbeddingStore,
    Missing,
    NotStoredError,
    Section,
    text_hashes,
)
from layerfuse.encoders import FrozenEncoder, count_words
from layerfuse.errors import ConfigError, DataError, StorageError, check_choice
from layerfuse.files import check_writable, human_bytes
from layerfuse.labels import Column, as_list
from layerfuse.pooling import WINDOW_POOLINGS
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import EncoderCost


class BlockView(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Blocks over some texts: a mapping from block to array (n_rows, dim) float32.

    An array that lies in a store is read each time it is asked for. Safe to share between threads.

    Parameters
    ----------
    sources : mapping from BlockRef to its encoder's blocks
        Where each block comes from; all over the same distinct texts.
    rows : ndarray of int, (n_rows,)
        For each row the number of its distinct text.
    table : ndarray of shape (n_rows, n_features), optional
        The block of columns beside the texts, which equal texts may differ in.

    Examples
    --------
    >>> blocks = extract(texts, encoder, pooling=("mean", "max"))  # doctest: +SKIP
    >>> blocks[BlockRef("minilm", 6, "mean")].shape  # doctest: +SKIP
    (1000, 384)
    """

    def __init__(
        self,
        sources: Mapping[BlockRef, _Source],
        rows: npt.NDArray[np.intp],
        table: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._rows = rows
        self._table = table

    @classmethod
    def join(cls, views: Sequence[BlockView]) -> BlockView:
        """The blocks of one or more views over the same texts, such as those of two encoders."""
        if not views or any(not np.array_equal(view._rows, views[0]._rows) for view in views):
            raise ConfigError("Only views over the same texts can be joined, at least one of them.")
        sources = {ref: source for view in views for ref, source in view._sources.items()}
        return cls(sources, views[0]._rows)

    def __getitem__(self, ref: BlockRef | str) -> npt.NDArray[np.float32]:
        ref = BlockRef.parse(ref) if isinstance(ref, str) else ref
        if ref == COLUMNS_BLOCK and self._table is not None:
            return self._table
        return self._source(ref).read((ref.layer, ref.pooling), self._rows)

    def __iter__(self) -> Iterator[BlockRef]:
        yield from self._sources
        if self._table is not None:
            yield COLUMNS_BLOCK

    def __len__(self) -> int:
        return len(self._sources) + (self._table is not None)

    def __repr__(self) -> str:
        blocks = [str(ref) for ref in self]
        ends = " to ".join(dict.fromkeys([*blocks[:1], *blocks[-1:]]))
        return f"<BlockView rows={len(self._rows)} blocks={len(self)}: {ends}>"

    def take(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> BlockView:
        """The same blocks of some rows: ``rows`` are numbers (n,) or a mask (n_rows,)."""
        table = None if self._table is None else self._table[rows]
        return BlockView(self._sources, self._rows[rows], table)

    def with_table(self, table: npt.NDArray[np.float32]) -> BlockView:
        """The same blocks and that of columns, (n_rows, n_features)."""
        return BlockView(self._sources, self._rows, table)

    def parts(self, size: int) -> Iterator[tuple[npt.NDArray[np.intp], BlockView]]:
        """Views of all rows in parts of ``size``, each with its row numbers.

        Rows that lie together in the store come together, so that it is read about once.
        """
        order = np.arange(len(self._rows))
        for ref, source in list(self._sources.items())[:1]:
            order = source.order((ref.layer, ref.pooling), self._rows)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.take(rows)

    def select(self, blocks: Iterable[BlockRef]) -> BlockView:
        """Some of the blocks, in the order given; a KeyError for one that is not here."""
        return BlockView({ref: self._source(ref) for ref in blocks}, self._rows)

    @property
    def n_computed(self) -> int:
        """Distinct texts or windows that were not in the store, summed over encoders."""
        return sum(source.n_computed for source in self._by_encoder().values())

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Which texts were cut, for each encoder: (n_encoders, n_rows)."""
        cut = [source.truncated[self._rows] for source in self._by_encoder().values()]
        return np.array(cut, dtype=bool).reshape(len(cut), len(self._rows))

    @property
    def truncated_share(self) -> float:
        """The share of rows whose text was cut to what is read, of the encoder with the most."""
        return float(self.truncated.mean(axis=1).max(initial=0.0))

    @property
    def read_share(self) -> float:
        """The share of the texts' tokens that was read, by the encoder that read the least.

        Below 1 where texts were cut; counted on up to 1,000 of the distinct texts.
        """
        return min((source.read_share for source in self._by_encoder().values()), default=1.0)

    @property
    def costs(self) -> dict[str, EncoderCost]:
        """What each encoder costs, by its name, measured while texts were computed.

        ``ms_per_text`` is for the texts recorded: with a store those of the run, this one or an
        earlier one on the same kind of device, that computed the most. Where there is no record,
        the encoder is loaded and up to 32 of the texts are read. An encoder that was truncated at
        layer 0 has no transformer block to measure, and is left out.
        """
        costs = {name: source.cost for name, source in self._by_encoder().items()}
        return {name: cost for name, cost in costs.items() if cost is not None}

    def _source(self, ref: BlockRef) -> _Source:
        if ref not in self._sources:
            known = ", ".join(map(str, list(self)[:10]))
            raise KeyError(f"{ref} is not one of the {len(self)} blocks: {known}, ...")
        return self._sources[ref]

    def _by_encoder(self) -> dict[str, _Source]:
        return {ref.encoder: source for ref, source in self._sources.items()}


_MAX_REPAIRS = 20  # damaged shards that one look-up will compute again
_COUNTED = 1_000  # texts whose tokens are counted, where some were cut
_SAMPLED = 32  # texts that are read to learn a cost that nobody recorded
_MEASURING = Lock()  # threads that measure at once would slow each other down


def check_texts(texts: Column) -> list[str]:
    """The texts as a list of str, from a list, tuple, Series, numpy or Arrow array.

    Raises
    ------
    DataError
        For a single string, a table, no text at all, or a value that is not a string.
    """
    rows: list[str] = []
    for number, text in enumerate(as_list(texts, "texts")):
        if not isinstance(text, str):
            raise DataError(
                f"Text number {number} is {text!r} ({type(text).__name__}), expected a string. "
                "Drop the rows without text, or fill them with an empty string."
            )
        rows.append(text)
    if not rows:
        raise DataError("There are no texts.")
    return rows


def extract(
    texts: Column,
    encoder: FrozenEncoder,
    layers: Layers | None = None,
    pooling: str | Sequence[str] | None = None,
    store: EmbeddingStore | None = None,
    *,
    reporter: Reporter = SILENT,
) -> BlockView:
    """Compute blocks of an encoder, all layers and poolings in one forward pass.

    Equal texts are computed once. With a store, only what it does not hold is computed, shard by
    shard, and a run that was stopped goes on where it was.

    Parameters
    ----------
    texts : list, tuple, Series, numpy or Arrow array of str, (n_texts,)
        Empty strings are allowed.
    encoder : FrozenEncoder
    layers : "all", int or sequence of int, optional
        By default ``encoder.layers``; negative numbers count from the end.
    pooling : str or sequence of str, optional
        By default ``encoder.pooling``.
    store : EmbeddingStore, optional
        Where embeddings are kept (as float16 where they fit); None keeps them in memory (float32).
    reporter : Reporter

    Returns
    -------
    BlockView
        A mapping from `BlockRef` to a float32 array of shape (n_texts, dim).

    Raises
    ------
    DataError, ConfigError
        For texts that are not strings, and layers or poolings that do not exist.
    StorageError
        When the store is full, read-only or deleted meanwhile; finished shards are kept.

    Examples
    --------
    >>> encoder = FrozenEncoder.from_pretrained("minilm")  # doctest: +SKIP
    >>> blocks = extract(["a film", "the plot"], encoder, layers=[4, -1])  # doctest: +SKIP
    """
    if not isinstance(encoder, FrozenEncoder):
        raise ConfigError(
            f"encoder={encoder!r} is not a FrozenEncoder. Open one with "
            "FrozenEncoder.from_pretrained(name); of several, extract one after another."
        )
    blocks = encoder.select(layers, pooling)
    return extract_blocks(texts, [encoder], blocks, store, reporter=reporter)


def extract_all(
    texts: Column,
    encoders: Sequence[FrozenEncoder],
    store: EmbeddingStore | None,
    *,
    lexical: bool = False,
    reporter: Reporter = SILENT,
) -> BlockView:
    """All candidate blocks of several encoders: of each its own layers and poolings.

    See `extract` for the parameters; with no store, embeddings are kept in memory. ``lexical`` adds
    the lexical block, a sparse matrix of word counts.
    """
    blocks = [block for encoder in encoders for block in encoder.candidates]
    blocks += [LEXICAL_BLOCK] if lexical else []
    return extract_blocks(texts, encoders, blocks, store, reporter=reporter)


def extract_blocks(
    texts: Column,
    encoders: Sequence[FrozenEncoder],
    blocks: Sequence[BlockRef],
    store: EmbeddingStore | None,
    *,
    reporter: Reporter = SILENT,
) -> BlockView:
    """Just these blocks: encoders that have none are not read, the others up to their highest.

    That of columns is left out: it is not of the texts (`BlockView.with_table`). The view has the
    others in the order given. See `extract` for the parameters.

    Raises
    ------
    ConfigError
        For a block that none of the encoders has.
    """
    by_name = {encoder.name: encoder for encoder in encoders}
    for block in blocks:
        if block.encoder not in NOT_MODELS:
            check_choice(block.encoder, by_name, "encoder")
            windows = by_name[block.encoder].windows
            if block.windowed != (windows is not None):
                raise ConfigError(
                    f"{block} cannot be read by an encoder with windows={windows!r}: a block over "
                    "windows is written as encoder:layer:mean/max, one of truncated texts as "
                    "encoder:layer:mean."
                )
    rows = check_texts(texts)
    distinct, hashes, back = _distinct(rows)
    sources: dict[str, _Source] = {}
    if LEXICAL_BLOCK in blocks:
        sources[LEXICAL_BLOCK.encoder] = _WordCounts(distinct)
    for encoder in encoders:
        own = dict.fromkeys(block for block in blocks if block.encoder == encoder.name)
        if own:
            keys = tuple((block.layer, block.pooling) for block in own)
            section = None
            if store is not None:
                section = store.section(encoder.name, encoder.identity, reporter)
            if encoder.windows is None:
                source = _EncoderBlocks(encoder, distinct, hashes, keys, section, reporter)
                source.n_computed = source.complete()
                sources[encoder.name] = source
            else:
                sources[encoder.name] = _WindowBlocks(encoder, distinct, keys, section, reporter)
    wanted = [block for block in blocks if block != COLUMNS_BLOCK]
    return BlockView({block: sources[block.encoder] for block in wanted}, back)


def _distinct(texts: Sequence[str]) -> tuple[list[str], Hashes, npt.NDArray[np.intp]]:
    """The distinct texts in the order of their hashes, these, and for each text its number."""
    hashes, first, back = np.unique(text_hashes(texts), return_index=True, return_inverse=True)
    return [texts[index] for index in first], hashes, back


class _WordCounts:
    """The lexical block over distinct texts; it is not stored, as counting takes no longer."""

    n_computed = 0
    read_share = 1.0

    def __init__(self, texts: Sequence[str]) -> None:
        count_words(texts[:1])  # imports are not its price
        start = time.perf_counter()
        self._counts = count_words(texts)
        ms = 1e3 * (time.perf_counter() - start) / len(texts)
        self.truncated = np.zeros(len(texts), dtype=bool)
        name, columns = LEXICAL_BLOCK.encoder, self._counts.shape[1]
        self.cost = EncoderCost(name, (0,), 4.0, ms, columns, ms, n_texts=len(texts))

    def read(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Some rows of the counts, which are sparse: only what learns from words takes them."""
        return cast("npt.NDArray[np.float32]", self._counts[rows])

    def order(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """They lie as they come."""
        return np.arange(len(rows))


@dataclass
class _EncoderBlocks:
    """One encoder's blocks over distinct texts, in a section of a store or in memory.

    ``n_computed`` counts the texts that were computed for it, ``truncated`` (n_distinct,) says
    which were cut to the token limit.
    """

    encoder: FrozenEncoder
    texts: list[str]
    hashes: Hashes
    keys: tuple[Key, ...]
    section: Section | None
    reporter: Reporter
    arrays: dict[Key, npt.NDArray[np.float32]] = field(default_factory=dict)
    record: CostRecord | None = None
    unit: str = "texts"
    n_computed: int = 0

    def __post_init__(self) -> None:
        self.truncated = np.zeros(len(self.texts), dtype=bool)

    @property
    def read_share(self) -> float:
        """See `BlockView.read_share`; texts are in the order of their hashes, so a fair draw."""
        return self.encoder.read_share(self.texts[:_COUNTED]) if self.truncated.any() else 1.0

    def read(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """One block of some of the texts, (n_rows, dim)."""
        if self.section is None:
            return self.arrays[key][rows]
        for _ in range(_MAX_REPAIRS):
            try:
                return self.section.read(self.hashes[rows], key)
            except (CorruptShardError, NotStoredError) as error:
                with self.section.lock:  # the first thread computes, the others find it done
                    if isinstance(error, CorruptShardError):
                        self.section.recover(error)
                    self.complete()
        raise StorageError(
            f"{self.section.folder} gives back other bytes than were written, again and again. "
            "Check the disk, or choose another folder with --store."
        )

    def order(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Places in ``rows``, those of texts that lie together in the store together."""
        if self.section is None:
            return np.arange(len(rows))
        return self.section.order(self.hashes[rows], key)

    def complete(self) -> int:
        """Compute what is missing and return how many texts that were.

        A section is completed by one thread at a time, so that it holds what threads that come
        one after another would have written.
        """
        if self.section is None:
            everything = [(np.arange(len(self.texts)), self.keys)]
            self._compute(plan_shards(self.texts, everything, self.encoder))
            return len(self.texts)
        with self.section.lock:
            self.section.refresh()  # another thread may have been here first
            missing = self.section.missing(self.hashes, self.keys)
            n_rows, total = _n_rows(missing), len(self.hashes)
            in_part = _n_rows([part for part in missing if len(part[1]) < len(self.keys)])
            self.reporter.note(
                f"{self.encoder.name}: {total - n_rows} of {total} distinct {self.unit} are in the "
                "store"
                + (f", {n_rows} to compute" if n_rows else "")
                + (f" ({in_part} of them lack some layers or poolings alone)" if in_part else "")
            )
            if n_rows:
                check_writable(self.section.folder)
                self._check_room(self.section.folder, missing)
                self._compute(plan_shards(self.texts, missing, self.encoder))
            self.truncated = self.section.truncated(self.hashes, self.keys[0])
            return n_rows

    @property
    def cost(self) -> EncoderCost | None:
        """What the encoder costs, see `BlockView.costs`."""
        with _MEASURING:
            if self.record is None and self.section is not None:
                self.record = read_cost(self.section.folder, self.encoder.device)
            if self.record is None:
                self.record = self._sample()
        return None if self.record is None else self.record.cost(self.encoder.name)

    def _compute(self, jobs: Sequence[ShardJob]) -> None:
        """Run jobs and keep their results; when stopped, report how many texts are stored."""
        folder = remote = cluster = None
        if self.section is not None:
            folder, remote = self.section.folder, self.section.remote
            cluster = self.section.cluster
        costs = []
        try:
            if folder is not None and cluster is not None:
                found = run_shards_on(cluster, jobs, self.encoder, folder, self.reporter, remote)
            else:
                found = run_shards(jobs, self.encoder, folder, self.reporter, remote)
            with undisturbed() as alone, closing(found) as results:
                # Those of a cluster come in any order, and lie in the store.
                for job, result in zip(jobs, results, strict=True):
                    costs.append(result.cost)
                    if self.section is None:
                        self._keep(job, result)
                    elif result.path is not None:
                        self.section.add(result.path)
                is_sound = cluster is None and alone()  # a cost is that of this machine
            if cluster is not None and self.section is not None:
                self.section.refresh()
        except KeyboardInterrupt:
            if self.section is not None:
                self._report_stop(self.section)
            raise
        if self.section is not None:
            share = 1 - sum(c.n_tokens for c in costs) / sum(c.n_padded for c in costs)
            self.reporter.note(f"{self.encoder.name}: {share:.1%} of tokens were padding")
        if is_sound and (record := record_cost(costs, self.encoder)):
            self.record = record if folder is None else keep_cost(folder, record)

    def _keep(self, job: ShardJob, result: ShardResult) -> None:
        self.truncated[job.rows] = result.truncated
        if len(job.rows) == len(self.texts):  # in their order
            self.arrays = result.blocks
            return
        for key, array in result.blocks.items():
            if key not in self.arrays:
                self.arrays[key] = np.empty((len(self.texts), array.shape[1]), np.float32)
            self.arrays[key][job.rows] = array

    def _report_stop(self, section: Section) -> None:
        section.refresh()  # the last shard may have been written and not yet counted
        total = len(self.hashes)
        stored = total - _n_rows(section.missing(self.hashes, self.keys))
        self.reporter.note(
            f"{self.encoder.name}: stopped with {stored:,} of {total:,} distinct texts stored; "
            "those of the shard that was being computed are lost"
        )

    def _sample(self) -> CostRecord | None:
        """Read a few of the texts up to the highest layer, for the sake of the times alone."""
        if self.encoder.highest_layer == 0:
            return None
        texts = self.texts[:_SAMPLED]  # they are in the order of their hashes, so a fair draw
        self.reporter.note(f"{self.encoder.name}: measuring its cost on {len(texts)} texts")
        keys = ((self.encoder.highest_layer, "mean"),)
        parts = [(np.arange(1), keys), (np.arange(len(texts)), keys)]
        warm_up, *jobs = plan_shards(texts, parts, self.encoder)
        run_shard(warm_up, self.encoder)
        with undisturbed() as alone:
            costs = [run_shard(job, self.encoder).cost for job in jobs]
            is_sound = alone()
        record = record_cost(costs, self.encoder, warm=True)
        if self.section is None or record is None or not is_sound:
            return record  # better than none, but not for later runs to find
        return keep_cost(self.section.folder, record)

    def _check_room(self, folder: Path, missing: Missing) -> None:
        needed = sum(len(rows) * len(keys) for rows, keys in missing) * self.encoder.dim * 2
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise StorageError(
                f"The embeddings of {self.encoder.name} need about {human_bytes(needed)}, and "
                f"{folder} has {human_bytes(free)} free. Free some space, choose another folder "
                "with --store, or read fewer layers or poolings."
            )


class _WindowBlocks:
    """One encoder's blocks over distinct texts, pooled over the windows of each.

    Windows are read and stored like texts, equal ones once, so that another pooling over windows
    computes nothing.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        texts: list[str],
        keys: Sequence[Key],
        section: Section | None,
        reporter: Reporter,
    ) -> None:
        started = time.perf_counter()
        windows = encoder.split(texts)
        self._split_ms = 1e3 * (time.perf_counter() - started) / len(texts)
        self.truncated = np.array(windows.shares) < 1
        self._encoder, self._texts = encoder, texts
        self._counts = np.array([len(pieces) for pieces in windows.pieces])
        self._starts = np.cumsum(self._counts) - self._counts
        distinct, hashes, self._piece = _distinct(list(chain(*windows.pieces)))
        own = dict.fromkeys((layer, split_pooling(pooling)[0]) for layer, pooling in keys)
        self._pieces = _EncoderBlocks(
            encoder, distinct, hashes, tuple(own), section, reporter, unit="windows"
        )
        if section is not None:
            reporter.note(
                f"{encoder.name}: {len(self._piece):,} windows of at most {encoder.window_length} "
                f"tokens, {self._counts.mean():.1f} per text, at most {self._counts.max()}"
            )
        if cut := int(self.truncated.sum()):
            reporter.note(
                f"{encoder.name}: {cut} of {len(texts)} texts are longer than "
                f"{encoder.max_windows} windows, and are cut there. Raise max_windows "
                "(--max-windows) to read more of them."
            )
        self.n_computed = self._pieces.complete()

    @property
    def read_share(self) -> float:
        """See `BlockView.read_share`."""
        return self._encoder.read_share(self._texts[:_COUNTED]) if self.truncated.any() else 1.0

    def read(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """One block of some of the texts, (n_rows, dim)."""
        (layer, pooling), (distinct, back) = key, np.unique(rows, return_inverse=True)
        over_tokens, over_windows = split_pooling(pooling)
        counts = self._counts[distinct]
        first = np.repeat(self._starts[distinct] - np.cumsum(counts) + counts, counts)
        values = self._pieces.read(
            (layer, over_tokens), self._piece[first + np.arange(counts.sum())]
        )
        return WINDOW_POOLINGS[over_windows or "mean"](values, counts)[back]

    def order(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Places in ``rows``, those whose first windows lie together in the store together."""
        over_tokens = split_pooling(key[1])[0]
        return self._pieces.order((key[0], over_tokens), self._piece[self._starts[rows]])

    @property
    def cost(self) -> EncoderCost | None:
        """What the encoder costs for a text, all its windows counted."""
        cost, n_windows = self._pieces.cost, float(self._counts.mean())
        if cost is None:
            return None
        return replace(
            cost,
            ms_per_text=n_windows * cost.ms_per_text + self._split_ms,
            tokenize_ms_per_text=n_windows * cost.tokenize_ms_per_text + self._split_ms,
            tokens_per_text=n_windows * cost.tokens_per_text,
        )


def _n_rows(missing: Missing) -> int:
    """Texts that lack a block; each is in one part."""
    return sum(len(rows) for rows, _ in missing)


_Source: TypeAlias = "_EncoderBlocks | _WindowBlocks | _WordCounts"
