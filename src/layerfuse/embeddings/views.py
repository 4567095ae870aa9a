"""Blocks over texts, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.embeddings.store import Key
from layerfuse.errors import ConfigError
from layerfuse.resources import EncoderCost


class BlockSource(Protocol):
    """Blocks of one encoder over distinct texts.

    ``n_computed`` counts the texts that were computed for it, ``truncated`` (n_distinct,) says
    which were cut to the token limit.
    """

    n_computed: int
    truncated: npt.NDArray[np.bool_]

    @property
    def cost(self) -> EncoderCost | None:
        """What the encoder costs."""

    def read(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Some rows of one block (n_rows, dim)."""

    def order(self, key: Key, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Places in ``rows``, those of texts that lie together together."""


class BlockView(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Blocks over some texts: a mapping from block to array (n_rows, dim) float32.

    An array that lies in a store is read each time it is asked for. Safe to share between threads.

    Parameters
    ----------
    sources : mapping from BlockRef to BlockSource
        Where each block comes from; all over the same distinct texts.
    rows : ndarray of int, (n_rows,)
        For each row the number of its distinct text.

    Examples
    --------
    >>> blocks = extract(texts, encoder, pooling=("mean", "max"))  # doctest: +SKIP
    >>> blocks[BlockRef("minilm", 6, "mean")].shape  # doctest: +SKIP
    (1000, 384)
    """

    def __init__(self, sources: Mapping[BlockRef, BlockSource], rows: npt.NDArray[np.intp]) -> None:
        self._sources = dict(sources)
        self._rows = rows

    @classmethod
    def join(cls, views: Sequence[BlockView]) -> BlockView:
        """The blocks of one or more views over the same texts, such as those of two encoders."""
        if not views or any(not np.array_equal(view._rows, views[0]._rows) for view in views):
            raise ConfigError("Only views over the same texts can be joined, at least one of them.")
        sources = {ref: source for view in views for ref, source in view._sources.items()}
        return cls(sources, views[0]._rows)

    def __getitem__(self, ref: BlockRef | str) -> npt.NDArray[np.float32]:
        ref = BlockRef.parse(ref) if isinstance(ref, str) else ref
        return self._source(ref).read((ref.layer, ref.pooling), self._rows)

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, rows: npt.NDArray[Any]) -> BlockView:
        """The same blocks of some rows: ``rows`` are numbers (n,) or a mask (n_rows,)."""
        return BlockView(self._sources, self._rows[rows])

    def parts(self, size: int) -> Iterator[tuple[npt.NDArray[np.intp], BlockView]]:
        """Views of all rows in parts of ``size``, each with its row numbers.

        Rows that lie together in the store come together, so that it is read about once.
        """
        ref, source = next(iter(self._sources.items()))
        order = source.order((ref.layer, ref.pooling), self._rows)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.take(rows)

    def select(self, blocks: Iterable[BlockRef]) -> BlockView:
        """Some of the blocks, in the order given; a KeyError for one that is not here."""
        return BlockView({ref: self._source(ref) for ref in blocks}, self._rows)

    @property
    def n_computed(self) -> int:
        """Distinct texts that were not in the store, summed over encoders."""
        return sum(source.n_computed for source in self._by_encoder().values())

    @property
    def truncated_share(self) -> float:
        """The share of rows whose text was cut to the token limit, of the encoder with the most."""
        shares = [source.truncated[self._rows].mean() for source in self._by_encoder().values()]
        return float(max(shares, default=0.0))

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

    def _source(self, ref: BlockRef) -> BlockSource:
        if ref not in self._sources:
            known = ", ".join(map(str, list(self)[:10]))
            raise KeyError(f"{ref} is not one of the {len(self)} blocks: {known}, ...")
        return self._sources[ref]

    def _by_encoder(self) -> dict[str, BlockSource]:
        return {ref.encoder: source for ref, source in self._sources.items()}
