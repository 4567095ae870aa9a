"""The four datasets as the packaged encoders read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.study.inputs import PRESETS, StudyData, prepare
from layerfuse import EmbeddingStore, FrozenEncoder
from layerfuse.errors import LayerfuseError
from layerfuse.estimator import gather
from layerfuse.estimator.gathering import Gathered
from layerfuse.events import SILENT

DATASETS = ("mr", "sst2", "r8", "r52")
ENCODERS: Sequence[str | Path] = PRESETS["packaged"]
POOLINGS = ("mean", "last", "max")
MOST_ROWS = 5_000


def read_sets(names: Sequence[str]) -> list[StudyData]:
    """The datasets that are available; the others are named and left out."""
    found = []
    for name in names:
        try:
            found.append(prepare(name, None, SILENT))
        except LayerfuseError as error:
            print(f"{name} is left out: {error}")
    return found


def embed(
    texts: Sequence[str],
    encoders: Sequence[str | Path] = ENCODERS,
    poolings: Sequence[str] = POOLINGS,
) -> Gathered:
    """Every layer in every pooling, from the user's store or computed into it."""
    models = [FrozenEncoder.from_pretrained(encoder) for encoder in encoders]
    return gather(texts, models, "all", poolings, EmbeddingStore())
