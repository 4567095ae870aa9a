"""Files of a pretrained model: where they are, and what they hold."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerfuse.data.catalog import ENCODERS
from layerfuse.data.download import encoder_path
from layerfuse.errors import NotFoundError, UnsupportedModelError, did_you_mean
from layerfuse.files import LFS_ADVICE, LFS_POINTER, fingerprint_file, fingerprint_folder
from layerfuse.progress import Reporter

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TEXTS = {".bpe", ".codes", ".dict", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt"}
_NOT_READ = (
    *("adapter", "config", "generation", "modules", "preprocessor", "processor", "sentence_bert"),
    *("all_results", "eval", "license", "licence", "notice", "readme", "requirements", "train"),
)
_HUB_FILES = ["*.safetensors", *(f"*{suffix}" for suffix in sorted(_TEXTS))]
_SENTENCES = "sentence_bert_config.json"
_PICKLED = {".bin", ".pt", ".pth"}


@dataclass(frozen=True)
class Located:
    """Where an encoder is: a folder or a file. The rest is as in `EncoderSource`."""

    path: Path
    name: str
    origin: str
    revision: str | None

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter; some tools save the model's config.json beside it."""
        if not (self.path / ADAPTER_CONFIG).is_file():
            return False
        others = {file.name for file in self.path.iterdir()} - {ADAPTER_WEIGHTS}
        weights = (o.endswith(".safetensors") or o.startswith("pytorch_model") for o in others)
        return "config.json" not in others or not any(weights)


@dataclass(frozen=True)
class EncoderSource:
    """The files of one encoder on this machine.

    ``origin`` finds them again: a catalog name, an absolute path or a Hub name. ``gguf_file`` is a
    file's name in ``folder``, ``revision`` the Hub commit. ``trust_remote_code`` says whether code
    in the folder may run, ``allow_pickle`` whether pickled weights may be read. ``made_from`` holds
    the fingerprints of an adapter and its base model, where ``folder`` is what they were merged to.
    """

    name: str
    origin: str
    folder: Path
    gguf_file: str | None
    revision: str | None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    made_from: Mapping[str, str] | None = None

    @property
    def path(self) -> Path:
        """The folder, or the GGUF file itself."""
        return self.folder / self.gguf_file if self.gguf_file else self.folder

    @property
    def trained_length(self) -> int | None:
        """Maximum tokens that Sentence-Transformers reads with the model, where it says so."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            settings = json.loads((self.folder / _SENTENCES).read_bytes())
            length = settings.get("max_seq_length")
            return length if isinstance(length, int) and length > 1 else None
        return None

    def fingerprints(self) -> dict[str, str]:
        """Digests of the weights, the tokenizer's files and the configuration.

        Raises
        ------
        UnsupportedModelError
            When one of them is missing, or the weights are pickled and that is not allowed.
        """
        if self.made_from is not None:  # sums differ in their last bits from machine to machine
            return dict(self.made_from)
        names = [file.name for file in self.folder.iterdir() if file.is_file()]
        tokenizer = [name for name in names if is_tokenizer_file(name)]
        if self.gguf_file:
            check_pointers(self.folder, [self.gguf_file, *tokenizer])
            parts = {"weights": fingerprint_file(self.path)}  # whatever the file is called
            if tokenizer:  # transformers prefers files beside it to its own
                parts["tokenizer"] = fingerprint_folder(self.folder, tokenizer)
            return parts
        suffixes = {".safetensors", *(_PICKLED if self.allow_pickle else ())}
        weights = [name for name in names if Path(name).suffix in suffixes]
        if not weights:
            found = [name for name in names if Path(name).suffix in _PICKLED]
            raise UnsupportedModelError(
                f"{self.folder} has no .safetensors weights"
                + (
                    f", only {found[0]}, which can run code when it is loaded. Convert it to "
                    "safetensors, or, if you trust it, open it with allow_pickle=True."
                    if found
                    else ". Is it a model folder (config.json, model.safetensors, tokenizer files)?"
                )
            )
        if ADAPTER_CONFIG in names:
            raise UnsupportedModelError(
                f"{self.folder} holds an adapter beside a whole model. Move one of them to a "
                "folder of its own, and give that of the model or that of the adapter."
            )
        check_pointers(self.folder, [*weights, *tokenizer, "config.json"])
        if not tokenizer:  # transformers would invent one without a vocabulary
            raise UnsupportedModelError(
                f"{self.folder} has no tokenizer files, so it is not a text model, or they were "
                "not saved. Save them into the same folder: tokenizer.save_pretrained(folder)."
            )
        indexes = [name for name in names if name.endswith(".index.json")]
        for name in indexes:
            self._check_index(name, weights)
        code = [name for name in names if name.endswith(".py")]
        return {
            "weights": fingerprint_folder(self.folder, [*weights, *indexes]),
            "tokenizer": fingerprint_folder(self.folder, tokenizer),
            "config": fingerprint_folder(self.folder, ["config.json", *code]),
        }

    def _check_index(self, name: str, weights: list[str]) -> None:
        """Refuse an index of weights that names other files than those of the folder."""
        if not name.endswith(".safetensors.index.json") and not self.allow_pickle:
            return  # it is not read
        try:
            index = json.loads((self.folder / name).read_bytes())
            named = sorted(set(index["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModelError(
                f"{self.folder / name} is not an index of weights; get it again."
            ) from error
        if other := [file for file in named if file not in weights]:
            raise UnsupportedModelError(
                f"{self.folder / name} names {other[0]!r}, which is not among the weights that may "
                "be read: .safetensors files in the folder itself (and pickled ones with "
                "allow_pickle=True). Get the missing file, or the index again."
            )


def check_pointers(folder: Path, names: Iterable[str]) -> None:
    """Refuse files that Git LFS has not downloaded yet."""
    for path in (folder / name for name in names):
        if path.stat().st_size < 1000 and path.read_bytes().startswith(LFS_POINTER):
            raise UnsupportedModelError(f"{path} {LFS_ADVICE}")


def is_text_file(name: str) -> bool:
    """Whether a model's text files are named like this, its index of weights left out."""
    return Path(name).suffix in _TEXTS and not name.endswith(".index.json")


def is_tokenizer_file(name: str) -> bool:
    """Whether a tokenizer may read the file: any text but those that are known to be others'."""
    return is_text_file(name) and not name.lower().startswith(_NOT_READ)


def locate(name_or_path: str, revision: str | None, reporter: Reporter) -> Located:
    """Find where an encoder's files are, downloading them where that is needed.

    Raises
    ------
    NotFoundError
        When nothing of that name exists here, in the catalog or on the Hub.
    """
    try:
        path = Path(name_or_path).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long, not allowed, of a user whom nobody knows
        reason = error.strerror if isinstance(error, OSError) else "it names an unknown user"
        raise NotFoundError(f"{name_or_path[:100]!r} cannot be read: {reason}.") from error
    if name_or_path in ENCODERS and not (path / "config.json").exists():
        return Located(encoder_path(name_or_path, reporter), name_or_path, name_or_path, revision)
    if exists:
        return Located(path, _name(path), str(path.resolve()), revision)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) and not name_or_path.startswith("."):
        folder = _download(name_or_path, revision, reporter)
        return Located(folder, name_or_path.rpartition("/")[2], name_or_path, folder.name)
    if path.suffix == ".gguf" or len(path.parts) > 2:
        near = [str(other) for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise NotFoundError(
            f"There is no model folder or .gguf file {name_or_path!r}."
            f"{did_you_mean(str(path), near)}"
        )
    raise NotFoundError(
        f"Unknown encoder {name_or_path!r}.{did_you_mean(name_or_path, ENCODERS)} It is "
        f"neither a catalog name ({', '.join(ENCODERS)}), nor a model folder or .gguf file "
        "here, nor a Hub name of the form owner/name."
    )


def _name(path: Path) -> str:
    """The name as typed, links not followed; a folder of the Hub's cache is called by its model."""
    path = Path(os.path.normpath(path.absolute()))
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return path.stem if path.suffix.lower() == ".gguf" and path.is_file() else path.name


def _download(repository: str, revision: str | None, reporter: Reporter) -> Path:
    """The Hub snapshot's folder; it is named by its commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    reporter.note(f"looking for {repository} in the Hub's cache or on the Hub")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(
            f"{repository!r} is not a folder here, and it could not be downloaded from the Hub: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}.\nCheck the name and the "
            "connection, log in if the model is gated, or give a local folder."
        ) from error


def open_located(located: Located) -> EncoderSource:
    """Take the files of a folder with config.json, or a .gguf file.

    Raises
    ------
    UnsupportedModelError
        When it is neither.
    """
    path = located.path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UnsupportedModelError(
                f"{path} is a file, but not a .gguf file. Give the model's folder instead."
            )
        return EncoderSource(located.name, located.origin, path.parent, path.name, located.revision)
    if not (path / "config.json").is_file():
        if (path / ADAPTER_CONFIG).is_file():
            raise UnsupportedModelError(
                f"{path} is itself an adapter. Merge it into its model and save that."
            )
        inside = sorted(found.parent for found in path.glob("*/config.json"))
        raise UnsupportedModelError(
            f"{path} has no config.json, so it is not a Hugging Face model folder. "
            + (f"Did you mean {inside[0]}? " if inside else "")
            + "Give the folder that holds config.json, model.safetensors and the tokenizer's files."
        )
    return EncoderSource(located.name, located.origin, path, None, located.revision)
