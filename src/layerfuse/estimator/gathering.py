"""Blocks of several encoders over the same texts, as one mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Layers, Poolings
from layerfuse.encoder import FrozenEncoder
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.events import SILENT, Reporter
from layerfuse.extraction import Embeddings, extract
from layerfuse.resources import EncoderCost
from layerfuse.store import EmbeddingStore

__all__ = ["Gathered", "Rows", "gather", "gather_blocks"]


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
    names = [encoder.name for encoder in encoders]
    by_name = dict(pooling) if isinstance(pooling, Mapping) else dict.fromkeys(names, pooling)
    if unknown := [name for name in by_name if name not in names]:
        raise ConfigError(
            f"A pooling names {unknown[0]!r}, which is not one of the encoders "
            f"({', '.join(names)}).{did_you_mean(unknown[0], names)}"
        )
    return Gathered(
        [
            extract(
                texts,
                encoder,
                layers,
                by_name.get(encoder.name, "mean"),
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
    *,
    batch_tokens: int | None,
    reporter: Reporter,
) -> dict[BlockRef, npt.NDArray[np.float32]]:
    """The given blocks and little else, in memory; an encoder of none is not run."""
    embeddings: dict[BlockRef, npt.NDArray[np.float32]] = {}
    for encoder in encoders:
        own = [block for block in blocks if block.encoder == encoder.name]
        if own:
            layers = sorted({block.layer for block in own})
            poolings = tuple(dict.fromkeys(block.pooling for block in own))
            embeddings |= extract(
                texts, encoder, layers, poolings, batch_tokens=batch_tokens, reporter=reporter
            )
    return embeddings
