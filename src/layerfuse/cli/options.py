"""Options that several commands share, and how their text becomes settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerfuse.errors import ConfigError

if TYPE_CHECKING:
    from layerfuse.blocks import Poolings
    from layerfuse.config import FitConfig

__all__ = [
    "PLAIN",
    "AsJson",
    "Chat",
    "ConfigFile",
    "Data",
    "Device",
    "DeviceOrAuto",
    "Dtype",
    "Encoder",
    "LabelColumn",
    "Layers",
    "MaxLength",
    "Pooling",
    "Quiet",
    "Report",
    "Sample",
    "StoreFolder",
    "Template",
    "TextColumn",
    "Verbose",
    "by_encoder",
    "settings",
    "shares",
]

# rich's help pages would triple the time of --help.
PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "no_args_is_help": True,
}

_DEVICE = "auto, cpu, cuda, cuda:N, cuda:all (every GPU) or mps."

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also what each step took, and where a fault arose.")
]
Data = Annotated[
    str, typer.Argument(help="A file, a folder of splits, a dataset's name, or hub:owner/name.")
]
TextColumn = Annotated[str | None, typer.Option(help="The column that holds the text.")]
LabelColumn = Annotated[str | None, typer.Option(help="The column that holds the label.")]
Encoder = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        "-e",
        help="A name, folder, .gguf file or Hub name (minilm); NAME=PATH renames. Repeat.",
    ),
]
Template = Annotated[
    list[str] | None, typer.Option(help="NAME='… {text} …' for an encoder. Repeat.")
]
Chat = Annotated[
    list[str] | None, typer.Option(help="NAME='question' for an encoder's chat template. Repeat.")
]
Layers = Annotated[str | None, typer.Option(help="all, or numbers such as 0,6,-1.")]
Pooling = Annotated[
    list[str] | None,
    typer.Option(
        help="mean, cls, last, max, weighted_mean, mean_no_sink, with commas; or NAME=… for one "
        "encoder. Repeat."
    ),
]
MaxLength = Annotated[int | None, typer.Option(help="The most tokens read of a text (512).")]
Device = Annotated[str | None, typer.Option(help=_DEVICE)]
DeviceOrAuto = Annotated[str, typer.Option(help=_DEVICE)]
Dtype = Annotated[
    str | None, typer.Option(help="auto, float32, bfloat16, float16; on CUDA int8 or nf4.")
]
StoreFolder = Annotated[
    str | None, typer.Option("--store", help="The folder that keeps embeddings.")
]
Report = Annotated[
    bool | None,
    typer.Option("--report/--no-report", help="Write report.html into the run folder (yes)."),
]
Sample = Annotated[int | None, typer.Option(help="Use a stratified part of this many rows.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A TOML file with settings.")]

# Settings that an option calls otherwise, and those that are not plain values.
_FIELDS = {"encoder": "encoders", "template": "templates", "chat": "chat_questions"}


def settings(options: dict[str, Any], **defaults: Any) -> FitConfig:
    """Options that were given go over the settings file's, and those over the defaults.

    ``defaults`` are those of a command that has others than `FitConfig`.

    Raises
    ------
    ConfigError
        For an option's text that cannot be read.
    ConfigError, NotFoundError
        For a settings file that is not there or not usable.
    """
    from layerfuse.config import FitConfig, read_toml

    parsers: dict[str, Callable[[Any], Any]] = {
        "encoder": tuple,
        "template": lambda pairs: by_encoder("--template", pairs),
        "chat": lambda pairs: by_encoder("--chat", pairs),
        "layers": _layers,
        "pooling": _poolings,
        "scout": _scout,
    }
    file = options.get("config")
    given: dict[str, Any] = defaults | ({} if file is None else read_toml(file))
    known = set(FitConfig.__dataclass_fields__)
    for name, value in options.items():
        field = _FIELDS.get(name, name)
        if value is not None and field in known:
            given[field] = parsers.get(name, lambda value: value)(value)
    return FitConfig(**given)


def _scout(text: str) -> int:
    if text == "off":
        return 0
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"--scout {text!r} is neither a number of rows nor off.") from error


def shares(text: str) -> tuple[float, ...]:
    """Percentages with commas, such as ``1,10,100``, to shares from 0 to 1.

    Raises
    ------
    ConfigError
        For what is not a number above 0 and at most 100.
    """
    found = []
    for part in _parts(text):
        try:
            percent = float(part.removesuffix("%"))
        except ValueError as error:
            raise ConfigError(f"--shares {part!r} is not a percentage such as 10.") from error
        if not 0 < percent <= 100:
            raise ConfigError(f"--shares {part!r} should be above 0 and at most 100 percent.")
        found.append(percent / 100)
    return tuple(found)


def by_encoder(option: str, texts: list[str]) -> dict[str, str]:
    """What ``NAME=VALUE`` says, given once for each encoder.

    Raises
    ------
    ConfigError
        For a text without a name.
    """
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{option} {text!r} should be NAME=VALUE, with an encoder's name.")
        pairs[name.strip()] = value
    return pairs


def _poolings(texts: list[str]) -> Poolings:
    """``mean,last`` for all encoders, or ``NAME=mean,last`` for some of them."""
    if any("=" in text for text in texts):
        named: dict[str, tuple[str, ...]] = {}
        for text in texts:
            ((name, value),) = by_encoder("--pooling", [text]).items()
            named[name] = (*named.get(name, ()), *_parts(value))
        return named
    return tuple(part for text in texts for part in _parts(text))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _layers(text: str) -> str | tuple[int, ...]:
    if text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--layers {text!r} should be 'all' or numbers such as 0,6,-1."
        ) from error
