"""Blocks of several encoders over the same texts, as one mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Layers, Poolings, resolve_layers, resolve_poolings
from layerfuse.encoder import FrozenEncoder
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.events import SILENT, Reporter
from layerfuse.extraction import Embeddings, extract
from layerfuse.resources import EncoderCost
from layerfuse.store import EmbeddingStore, text_hashes

__all__ = ["Gathered", "Rows", "gather", "gather_blocks", "most_missing"]


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
