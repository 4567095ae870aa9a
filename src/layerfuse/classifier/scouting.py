"""Large data in two phases: a sample through all layers, then all rows up to the chosen ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Layers, resolve_layers, resolve_poolings
from layerfuse.embeddings import EmbeddingStore, text_hashes
from layerfuse.embeddings.views import BlockView
from layerfuse.encoders import FrozenEncoder
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import EncoderCost

__all__ = ["SCOUT_ABOVE", "Scouted", "most_missing", "read_training"]

SCOUT_ABOVE = 20_000
"""Distinct training texts that lack embeddings, above which a sample is read first."""


def read_training(
    texts: Sequence[str],
    rows: npt.NDArray[np.intp],
    above: int | None,
    n_missing: Callable[[], int],
    read: Callable[[Sequence[str]], BlockView],
    read_blocks: Callable[[Sequence[BlockRef]], BlockView],
    reporter: Reporter,
) -> BlockView | Scouted:
    """All candidate blocks of training texts, or a `Scouted` with those of some rows.

    Parameters
    ----------
    texts
        n training texts.
    rows
        Numbers of those that are scouted.
    above
        The texts to compute above which that is done; None never does it.
    n_missing
        Counts the texts to compute.
    read, read_blocks
        Give all blocks of some texts, and some blocks of all texts.
    """
    if above is None or len(rows) == len(texts) or (missing := n_missing()) <= above:
        return read(texts)
    reporter.note(
        f"{missing} texts are new: {len(rows)} rows are scouted through all layers, the others are "
        "read up to the layers chosen (scout=None reads all)"
    )
    return Scouted(read([texts[row] for row in rows]), read_blocks)


class Scouted(Mapping[BlockRef, npt.NDArray[np.float32]]):
    """Blocks of all rows, of which there are none before `commit`.

    Parameters
    ----------
    sample
        All candidate blocks of the scouted rows.
    read
        Gives some blocks of all rows.
    """

    def __init__(self, sample: BlockView, read: Callable[[Sequence[BlockRef]], BlockView]) -> None:
        self.sample = sample
        self._read = read
        self._all: BlockView | None = None
        self._blocks: tuple[BlockRef, ...] = ()

    def commit(self, blocks: Sequence[BlockRef], reporter: Reporter = SILENT) -> None:
        """Read these blocks of all rows, and no layer above them."""
        self._all, self._blocks = self._read(blocks), tuple(blocks)
        reporter.note(
            f"all rows were read up to {', '.join(map(str, blocks))}; baselines on other layers "
            "learn from the scouted rows alone"
        )

    @property
    def costs(self) -> dict[str, EncoderCost]:
        return self.sample.costs

    @property
    def truncated_share(self) -> float:
        """That of the rows read so far."""
        return (self._all or self.sample).truncated_share

    def __getitem__(self, block: BlockRef) -> npt.NDArray[np.float32]:
        if self._all is None or block not in self._blocks:
            raise KeyError(f"{block} was read for the scouted rows alone")
        return self._all[block]

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)


def most_missing(
    texts: Sequence[str],
    encoders: Sequence[FrozenEncoder],
    layers: Layers,
    poolings: Mapping[str, str | Sequence[str]],
    store: EmbeddingStore | None,
) -> int:
    """Distinct texts that have to be read, with the encoder that has most of them."""
    hashes = np.unique(text_hashes(texts))
    if store is None:
        return len(hashes)
    counts = []
    for encoder in encoders:
        wanted = resolve_layers(layers, encoder.n_layers, encoder.name)
        keys = [(at, way) for way in resolve_poolings(poolings[encoder.name]) for at in wanted]
        missing = store.section(encoder.name, encoder.identity).missing(hashes, keys)
        counts.append(sum(len(rows) for rows, _ in missing))
    return max(counts)
