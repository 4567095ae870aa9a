"""What is compared: probed blocks with their labels, and blocks named by a user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.errors import ConfigError, did_you_mean
from layerfuse.events import Reporter
from layerfuse.labels import Column, find_classes
from layerfuse.scoring import one_hot, probe_blocks

__all__ = ["Labelled", "find_blocks"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Labelled:
    """Probed blocks and the labels that they were probed with.

    ``coordinates`` maps each block to its leading principal coordinates (n, columns), ``y`` holds
    class indices (n,) and ``targets`` the same as one-hot rows (n, n_classes).
    """

    scores: BlockScores
    coordinates: Mapping[BlockRef, Floats]
    y: npt.NDArray[np.intp]
    targets: Floats

    @classmethod
    def probe(
        cls, embeddings: Mapping[BlockRef, Floats], y: Column, reporter: Reporter
    ) -> Labelled:
        """Probe each block (n, dim) once; ``y`` (n,) may be labels of any kind."""
        classes, encoded = find_classes(y)
        probed = probe_blocks(embeddings, encoded, reporter=reporter)
        return cls(probed.scores, probed.coordinates, encoded, one_hot(encoded, len(classes)))

    def correct(self, residuals: Floats) -> npt.NDArray[np.bool_]:
        """Whether predictions with these residuals (n, n_classes) name the right class, (n,)."""
        return np.asarray((self.targets - residuals).argmax(axis=1) == self.y)


def find_blocks(
    named: Sequence[BlockRef | str], known: Iterable[BlockRef], what: str
) -> tuple[BlockRef, ...]:
    """The named blocks without repeats; ``what`` is what a message calls the place of the name.

    Raises
    ------
    ConfigError
        For text that is no block, a block that is not ``known``, or no block at all.
    """
    names = [named] if isinstance(named, (str, BlockRef)) else named
    refs = dict.fromkeys(BlockRef.parse(n) if isinstance(n, str) else n for n in names)
    texts = dict.fromkeys(map(str, known))
    for ref in refs:
        if str(ref) not in texts:
            encoders = ", ".join(dict.fromkeys(text.rsplit(":", 2)[0] for text in texts))
            raise ConfigError(
                f"{what} names {ref}, which is not one of the {len(texts)} blocks that are read "
                f"(encoders: {encoders}).{did_you_mean(str(ref), texts)} Give its encoder, layer "
                "and pooling to be read as well."
            )
    if not refs:
        raise ConfigError(f"{what} names no block. Write one as encoder:layer:pooling.")
    return tuple(refs)
