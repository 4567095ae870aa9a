"""What is exported, and what a format must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import COLUMNS_BLOCK, LEXICAL_BLOCK, BlockRef
from layerfuse.embeddings.extraction import extract_blocks
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError
from layerfuse.pipeline import FusedModel
from layerfuse.probing import PrincipalAxes
from layerfuse.progress import SILENT, Reporter

Floats: TypeAlias = npt.NDArray[np.floating]

TOLERANCE = 1e-4
"""Largest difference from the float32 pipeline that an export may have, in a probability or as a
share of the largest value of an embedding."""


@dataclass(frozen=True)
class Source:
    """A trained pipeline, or one block of its encoders, to be written in another format.

    Attributes
    ----------
    model : FusedModel
    encoders : tuple of FrozenEncoder
        Those that the model reads, in float32 on the CPU.
    block : BlockRef or None
        A block to be written alone, without the classifier.
    """

    model: FusedModel
    encoders: tuple[FrozenEncoder, ...]
    block: BlockRef | None = None

    @property
    def blocks(self) -> tuple[BlockRef, ...]:
        """What is read."""
        return self.model.blocks if self.block is None else (self.block,)

    def expected(self, texts: Sequence[str], reporter: Reporter = SILENT) -> Floats:
        """Probabilities (n, n_outputs) of the pipeline, or the block (n, dim)."""
        found = extract_blocks(texts, self.encoders, self.blocks, None, reporter=reporter)
        if self.block is not None:
            return np.asarray(found[self.block])
        return self.model.predict_proba(found)


class Exporter(Protocol):
    """A format. A new one is a new file, and its entry in `layerfuse.export`."""

    def check(self, source: Source) -> None:
        """Raise a ConfigError that names what the format cannot hold."""

    def write(self, source: Source, folder: Path) -> None:
        """Write the files into an empty folder."""

    def predict(self, source: Source, folder: Path, texts: Sequence[str]) -> Floats:
        """What `Source.expected` gives, by the files alone and the software they are for."""


def projections(model: FusedModel) -> tuple[PrincipalAxes, ...]:
    """The axes of the model's blocks; a ConfigError for words and other columns."""
    if COLUMNS_BLOCK in model.blocks:
        raise ConfigError(
            f"The pipeline reads other columns of the table ({COLUMNS_BLOCK}), which other formats "
            "cannot hold. Fit without --columns (columns=() in Python)."
        )
    axes = tuple(own for own in model.axes if isinstance(own, PrincipalAxes))
    if len(axes) < len(model.axes):
        raise ConfigError(
            f"The pipeline reads words ({LEXICAL_BLOCK}), which other formats cannot hold. Fit "
            "without --lexical (lexical=True in Python)."
        )
    return axes


def label_settings(model: FusedModel) -> dict[str, object]:
    """The labels, and the probability from which a text has each, None where it has exactly one."""
    space = model.space
    thresholds = None if np.isnan(space.limits).all() else space.limits.tolist()
    return {"classes": space.classes.tolist(), "thresholds": thresholds}


def check_padding(encoder: FrozenEncoder) -> None:
    """Raise a ConfigError where a text's values depend on what it is padded to."""
    architecture = encoder.architecture
    limit = encoder.tokenizer.max_length
    if architecture.traits.batches != "any" or architecture.rope_switch < limit:
        raise ConfigError(
            f"{encoder.name} gives a text other values in a batch of longer ones, which other "
            "tools do not know how to avoid. Fit with another encoder."
        )
