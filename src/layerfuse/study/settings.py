"""What a study covers: presets, and the settings of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from layerfuse.blocks import resolve_poolings
from layerfuse.errors import ConfigError, did_you_mean

__all__ = ["PARTS", "PRESETS", "Preset", "StudySettings", "make_settings"]

PARTS = ("profiles", "fusions", "complementarity", "curves", "resources")
"""What is measured, in this order."""

DATASETS = ("sst2", "mr", "r8", "r52")


@dataclass(frozen=True)
class Preset:
    """Encoders that are studied together.

    ``needs_code`` names those of them whose repository brings code that has to run; they are read
    only when the user trusts them by name.
    """

    encoders: tuple[str, ...]
    poolings: tuple[str, ...]
    needs_code: frozenset[str] = frozenset()


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # What the Python package index serves: two cores are enough.
        "packaged": Preset(("minilm", "mpnet", "smollm2-135m"), ("mean", "last", "max")),
        # Those of Gwak and Jung (2025), for a machine with a GPU and the Hub.
        "paper": Preset(
            (
                "google/gemma-2-2b",
                "Qwen/Qwen2.5-7B",
                "meta-llama/Llama-2-7b-chat-hf",
                "tiiuae/Falcon3-7B-Instruct",
                "mistralai/Mistral-7B-v0.3",
                "nvidia/NV-Embed-v2",
                "intfloat/e5-large-v2",
            ),
            ("mean", "last", "max"),
            frozenset({"nvidia/NV-Embed-v2"}),
        ),
    }
)


@dataclass(frozen=True)
class StudySettings:
    """One run of the study.

    ``encoders`` are names, folders or Hub names (``NAME=PLACE`` renames), ``datasets`` anything
    that `layerfuse.load_dataset` reads. Fusions are measured once for each of ``seeds`` draws of
    ``share`` (0 to 1) of the training rows, ``most_rows`` at most. ``pairs`` counts the pairs of
    blocks by which complementarity is judged, on ``pair_rows`` training rows at most.
    ``curve_shares`` (0 to 1) and ``curve_repeats`` are those of the learning curves, ``timed``
    the number of texts that resources are measured with.
    """

    preset: str
    datasets: tuple[str, ...]
    encoders: tuple[str, ...]
    out: Path
    poolings: tuple[str, ...] = ("mean",)
    seeds: int = 1
    sample: int | None = None
    store: str | None = None
    device: str = "auto"
    trusted: frozenset[str] = frozenset()
    parts: tuple[str, ...] = PARTS
    max_blocks: int = 5
    share: float = 0.8
    most_rows: int = 5000
    pairs: int = 200
    pair_rows: int = 3000
    curve_shares: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    curve_repeats: int = 3
    timed: int = 64
    needs_code: frozenset[str] = field(default=frozenset())


def make_settings(
    out: Path,
    *,
    preset: str = "packaged",
    datasets: Sequence[str] | None = None,
    encoders: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    seeds: int = 1,
    sample: int | None = None,
    store: str | None = None,
    device: str = "auto",
    trusted: Sequence[str] = (),
    parts: Sequence[str] | None = None,
) -> StudySettings:
    """The settings of a preset, with what is given in place of its own.

    Raises
    ------
    ConfigError
        For an unknown preset, part or pooling, no dataset or encoder, or a number below 1.
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"Unknown preset {preset!r}. Choose from {', '.join(PRESETS)}."
            + did_you_mean(preset, PRESETS)
        )
    own = PRESETS[preset]
    for name, value in (("seeds", seeds), ("sample", sample)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is too few; give at least 1.")
    wanted = tuple(dict.fromkeys(parts)) if parts is not None else PARTS
    for part in wanted:
        if part not in PARTS:
            raise ConfigError(
                f"The study has no part {part!r}. Choose from {', '.join(PARTS)}."
                + did_you_mean(part, PARTS)
            )
    names = tuple(dict.fromkeys(DATASETS if datasets is None else datasets))
    models = tuple(dict.fromkeys(own.encoders if encoders is None else encoders))
    for kind, given in (("dataset", names), ("encoder", models), ("part", wanted)):
        if not given:
            raise ConfigError(f"The study has no {kind}. Name at least one.")
    return StudySettings(
        preset=preset,
        datasets=names,
        encoders=models,
        out=out,
        poolings=resolve_poolings(own.poolings if poolings is None else poolings),
        seeds=seeds,
        sample=sample,
        store=store,
        device=device,
        trusted=frozenset(trusted),
        parts=tuple(part for part in PARTS if part in wanted),
        needs_code=own.needs_code,
    )
