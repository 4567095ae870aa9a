"""Frozen settings of a command-line run; the same names in TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from layerfuse.blocks import Poolings
from layerfuse.errors import ConfigError, NotFoundError, did_you_mean

__all__ = ["FitConfig", "read_toml"]

_WHOLE_NUMBERS = (
    "sample",
    "max_blocks",
    "max_dims",
    "max_parameters",
    "max_length",
    "cv",
    "seed",
    "scout",
    "batch_tokens",
)
_SWITCHES = ("report",)
_NUMBERS = ("max_ms", "max_memory_mb")
_TABLES = ("templates", "chat_questions")


@dataclass(frozen=True)
class FitConfig:
    """What ``layerfuse fit`` and ``profile`` need; see `LayerFusionClassifier` for most fields."""

    data: str
    test: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    sample: int | None = None
    encoders: tuple[str, ...] = ("minilm",)
    templates: Mapping[str, str] = field(default_factory=dict)
    chat_questions: Mapping[str, str] = field(default_factory=dict)
    layers: str | tuple[int, ...] = "all"
    pooling: Poolings = ("mean",)
    selection: str = "greedy"
    max_blocks: int = 5
    max_dims: int | None = None
    max_ms: float | None = None
    max_parameters: int | None = None
    max_memory_mb: float | None = None
    fusion: str = "auto"
    head: str = "auto"
    class_weight: str | None = None
    parts: str = "auto"
    calibration: str = "temperature"
    max_length: int = 512
    device: str = "auto"
    dtype: str = "auto"
    cv: int = 5
    seed: int = 0
    store: str | None = None
    scout: int = 20_000  # 0 never scouts
    batch_tokens: int | None = None
    out: str | None = None
    report: bool = True


def read_toml(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file; keys are those of `FitConfig`.

    Raises
    ------
    NotFoundError
        When there is no such file.
    ConfigError
        When it is not TOML, or names a setting that does not exist.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no settings file {path}. Correct --config.") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read as a settings file: {error.strerror}. Give a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error
    known = [setting.name for setting in fields(FitConfig)]
    for key, entry in value.items():
        if key not in known:
            raise ConfigError(
                f"{path}: unknown setting {key!r}.{did_you_mean(key, known)} "
                f"Known settings: {', '.join(known)}."
            )
        if (expected := _unlike(key, entry)) is not None:
            raise ConfigError(f"{path}: {key} is {entry!r}, and should be {expected}.")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


def _unlike(key: str, value: Any) -> str | None:
    """What the setting's value should be, when it is of another type; else None."""
    if key in _WHOLE_NUMBERS:
        return None if type(value) is int else "a whole number"
    if key in _SWITCHES:
        return None if type(value) is bool else "true or false"
    if key in _NUMBERS:
        return None if type(value) in (int, float) else "a number"
    if key == "layers":
        one = type(value) is int or value == "all"
        return None if one or _all(int, value) else '"all", or numbers such as [0, 6, -1]'
    if isinstance(value, str):
        return None if key not in _TABLES else "a table from encoder to text"
    if key in _TABLES and isinstance(value, dict):
        return None if _all(str, list(value.values())) else "a table from encoder to text"
    if key == "pooling" and isinstance(value, dict):
        fits = all(isinstance(entry, str) or _all(str, entry) for entry in value.values())
        return None if fits else "a table from encoder to poolings"
    if key in ("encoders", "pooling"):
        return None if _all(str, value) else "a text or a list of texts"
    return "a text"


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
