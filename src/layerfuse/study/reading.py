"""Reading a study's texts: one encoder in memory at a time; what cannot be had is named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layerfuse.classifier.validation import open_encoders
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.extraction import extract
from layerfuse.embeddings.views import BlockView
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError, LayerfuseError
from layerfuse.files import digest
from layerfuse.progress import Reporter
from layerfuse.study.data import StudyData
from layerfuse.study.precision import choose_precision
from layerfuse.study.settings import StudySettings

__all__ = ["EmbeddedData", "identities", "read_all"]


@dataclass(frozen=True)
class EmbeddedData:
    """A dataset with its blocks; arrays are read from the store when they are asked for."""

    data: StudyData
    train: BlockView
    test: BlockView


def read_all(
    sets: Sequence[StudyData],
    settings: StudySettings,
    store: EmbeddingStore,
    reporter: Reporter,
) -> tuple[list[EmbeddedData], dict[str, FrozenEncoder], dict[str, str]]:
    """Embed every text with every encoder that can be had, and let go of each encoder's weights.

    Returns
    -------
    The sets with their blocks, the encoders by name, and for each skipped one the reason.

    Raises
    ------
    ConfigError
        When no encoder is left, or two have one name.
    """
    opened: dict[str, FrozenEncoder] = {}
    skipped: dict[str, str] = {}
    parts: dict[str, list[tuple[BlockView, BlockView]]] = {}
    for given in settings.encoders:
        try:
            encoder = _open(given, settings, reporter)
            if encoder.name in opened:
                raise ConfigError(
                    f"Two encoders are called {encoder.name!r}. Give one another name: other=PATH."
                )
            own = [_read(data, encoder, settings, store, reporter) for data in sets]
        except ConfigError:
            raise
        except (LayerfuseError, MemoryError) as error:
            skipped[given] = str(error) or type(error).__name__
            reporter.note(f"{given} is skipped: {skipped[given]}")
            continue
        encoder.release()
        opened[encoder.name], parts[encoder.name] = encoder, own
    if not opened:
        raise ConfigError(
            "None of the encoders can be had: "
            + " ".join(f"{name}: {reason}" for name, reason in skipped.items())
        )
    embedded = []
    for number, data in enumerate(sets):
        pairs = [parts[name][number] for name in opened]
        train, test = (BlockView.join([pair[side] for pair in pairs]) for side in (0, 1))
        embedded.append(EmbeddedData(data, train, test))
    return embedded, opened, skipped


def _open(given: str, settings: StudySettings, reporter: Reporter) -> FrozenEncoder:
    place = given.rpartition("=")[2]
    trusted = place in settings.trusted
    if place in settings.needs_code and not trusted:
        raise LayerfuseError(
            f"its repository brings code that has to run; allow it with --trust {place}"
        )
    (encoder,) = open_encoders(
        [given],
        {},
        {},
        max_length=512,
        device=settings.device,
        dtype="auto",
        reporter=reporter,
    )
    encoder.trust_remote_code = trusted
    encoder.dtype = choose_precision(encoder, reporter)
    return encoder


def _read(
    data: StudyData,
    encoder: FrozenEncoder,
    settings: StudySettings,
    store: EmbeddingStore,
    reporter: Reporter,
) -> tuple[BlockView, BlockView]:
    reporter.note(f"{data.name} by {encoder.name}")
    train, test = (
        extract(texts, encoder, "all", settings.poolings, store, reporter=reporter)
        for texts in (data.train, data.test)
    )
    return train, test


def identities(encoders: Mapping[str, FrozenEncoder]) -> dict[str, str]:
    """A digest of what makes each encoder's embeddings what they are, for the keys of results."""
    return {
        name: digest(json.dumps(encoder.identity, sort_keys=True))
        for name, encoder in encoders.items()
    }
