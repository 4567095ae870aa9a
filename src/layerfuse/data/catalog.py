"""Catalog of named encoders and datasets, most of them inside packages of the package index."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, field_validator


@dataclass(frozen=True)
class Package:
    """A wheel of the package index.

    ``size`` is in bytes; ``member`` is the path of what is wanted inside of the wheel: a file, or
    the common beginning of several. ``platform`` is pip's tag of a wheel that is not for all.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str
    platform: str | None = None

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Terms:
    """Terms of use that must be accepted before a model is downloaded.

    ``package`` holds their page and the notice that must go with the model.
    """

    title: str
    url: str
    page: str
    package: Package


@dataclass(frozen=True)
class EncoderEntry:
    """A named encoder.

    ``files`` are the SHA-256 digests of the weights, first, and of other files as they are
    fetched; ``convert`` names what makes a model folder of them (see `CONVERTERS`). With ``parts``,
    the packages' members are the parts of one file, in order: the weights, or with ``archive`` a
    zip file that holds them in the folder ``archive``. ``max_tokens`` is the longest text that the
    model was made for; ``prompt`` is used unless another one is given.
    """

    name: str
    description: str
    upstream: str
    license: str
    languages: str
    n_layers: int
    dim: int
    parameters: int
    max_tokens: int
    packages: tuple[Package, ...]
    files: Mapping[str, str]
    parts: bool = False
    archive: str | None = None
    convert: Literal["e5", "nomic", "flan-t5"] | None = None
    prompt: str | None = None
    terms: Terms | None = None

    @property
    def source(self) -> str:
        """The file with the weights, as it is fetched."""
        return next(iter(self.files))

    @property
    def weights(self) -> str:
        """The file with the weights that makes the encoder's folder complete."""
        return "model.safetensors" if self.convert else self.source

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


@dataclass(frozen=True)
class HubSource:
    """A dataset of the Hugging Face Hub."""

    repo_id: str
    text_column: str
    label_column: str


@dataclass(frozen=True)
class DatasetEntry:
    """A named dataset.

    ``rows`` counts the rows of each split. ``layout`` says how a package holds it: ``"tab"`` is
    ``{member}{split}.tab`` with four header lines, ``"folders"`` is ``{member}{label}/{any}.txt``.
    """

    name: str
    description: str
    n_classes: int
    rows: Mapping[str, int]
    origin: Package | HubSource
    layout: Literal["tab", "folders"] = "tab"

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        if isinstance(self.origin, HubSource):
            return f"Hugging Face Hub, {self.origin.repo_id} (or the folder LAYERFUSE_DATA)"
        return f"package index, {self.origin.requirement}"


class _Catalog(BaseModel, extra="forbid"):
    """catalog.toml."""

    encoders: dict[str, EncoderEntry]
    datasets: dict[str, DatasetEntry]

    @field_validator("encoders", "datasets", mode="before")
    @classmethod
    def _named(cls, entries: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
        return {name: {"name": name, **entry} for name, entry in entries.items()}


_CATALOG = _Catalog.model_validate(
    tomllib.loads(resources.files("layerfuse.data").joinpath("catalog.toml").read_text("utf-8"))
)
ENCODERS: Mapping[str, EncoderEntry] = MappingProxyType(_CATALOG.encoders)
DATASETS: Mapping[str, DatasetEntry] = MappingProxyType(_CATALOG.datasets)
