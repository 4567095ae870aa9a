"""Readers of csv, tsv, jsonl and parquet files; errors name the line of the fault."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from layerfuse.data.columns import COMMON_NAMES, Table, find_columns, to_split
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.errors import DataError, NotFoundError, did_you_mean, require
from layerfuse.files import human_bytes

_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet")
_MOST_BYTES, _MOST_ROWS = 4_000_000_000, 50_000_000
_OTHERS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file. Get it with: git lfs pull",
    b"<!doctype html": "is a web page. Download the file itself (its link is often called 'raw').",
    b"<html": "is a web page. Download the file itself (its link is often called 'raw').",
    b"pk\x03\x04": "is a zip file or a spreadsheet. Unpack it, or save it as csv.",
    b"par1": "is a parquet file. Rename it to end in .parquet.",
}
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
# Excel's first line, which names the delimiter; some exports fill it up to the number of columns
_SEPARATOR = re.compile(r'"?sep=([^"\r\n])\1*"?(?:\r\n|\r|\n|$)', re.IGNORECASE)
# One limit for the process, so that no thread lowers it while another reads; csv's own is 131,072
# characters, and more than fits a C long on Windows is refused.
csv.field_size_limit(2**31 - 1)


def read_dataset(
    source: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    test: str | Path | None = None,
    labeled: bool = True,
) -> TextDataset:
    """Read a csv, tsv, jsonl (each also .gz) or parquet file, or a folder of ``{split}`` files.

    A file becomes the split ``"train"``. Columns are found in the first split and must be the same
    in the others. Parameters are those of `layerfuse.data.load_dataset`.

    Raises
    ------
    NotFoundError
        When a file or folder does not exist.
    DataError
        When it is not readable as texts (and labels); the message says where and what to do.
    """
    for place in (source, test):
        if re.match(r"\w\w+:/", str(place)):
            raise NotFoundError(
                f"{place} is an address, and files are read from the disk. Download it first; a "
                "dataset of the Hugging Face Hub is hub:owner/name."
            )
    path = Path(source).expanduser()
    files = {"train": [path]} if path.suffix and not path.is_dir() else _split_files(path)
    if test is not None:
        files["test"] = [Path(test).expanduser()]
    splits: dict[str, Split] = {}
    text, label = text_column, label_column
    for name, parts in files.items():
        table = _join([_read_table(part) for part in parts])
        text, label = find_columns(table, text, label, labeled)
        splits[name] = to_split(table, text, label)
    name = path.resolve().name
    return TextDataset(name[: len(name) - len(_suffix(path))], splits, table.names, text, label)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in TABLE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files (or the folder) of each split in a folder, train first."""
    if not folder.exists():
        raise _not_found(folder)
    if not folder.is_dir():
        raise _unsupported(folder)
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    for places in ([folder], [folder / "data"], inner):
        found = {place: splits for place in places if (splits := _splits_in(place))}
        if len(found) > 1:
            names = ", ".join(place.name for place in found)
            raise DataError(f"{folder} holds several datasets: {names}. Give the folder of one.")
        if found:
            return next(iter(found.values()))
    if _class_folders(folder) or list(folder.glob("*.arrow")):
        return {"train": [folder]}
    there = sorted(entry.name for entry in folder.iterdir())
    raise DataError(
        f"{folder} holds no split files (it has: {', '.join(there[:10]) or 'nothing'}).\n"
        "Name them train.csv and test.csv (or .tsv, .jsonl, .jsonl.gz, .parquet), or give "
        "one file instead of the folder."
    )


def _splits_in(folder: Path) -> dict[str, list[Path]]:
    """Files such as train.csv and train-00000-of-00002.parquet, and folders that hold a split."""
    files: dict[str, list[Path]] = {}
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for split in _SPLITS:
        found = []
        for entry in entries:
            name = entry.name.removesuffix(_suffix(entry))
            shard = re.fullmatch(rf"{split}(?:-\d+-of-0*(\d+))?", name)
            if shard and (_suffix(entry) or _class_folders(entry) or list(entry.glob("*.arrow"))):
                found.append((entry, int(shard[1] or 1)))
        if len({count for _, count in found}) > 1 or any(n != len(found) for _, n in found[:1]):
            shown = ", ".join(entry.name for entry, _ in found[:5])
            expected = max(count for _, count in found)
            what = f"{len(found)} of {expected} files" if expected > 1 else "more than one file"
            raise DataError(
                f"{folder} has {what} for the split {split!r}: {shown}. Keep one, or all its parts."
            )
        if found:
            files[split] = [entry for entry, _ in found]
    return files


def _class_folders(folder: Path) -> list[Path]:
    """The folders of texts, one for each class, if there are two or more."""
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    found = [entry for entry in inner if next(entry.glob("*.txt"), None)]
    return found if len(found) > 1 else []


def _join(tables: Sequence[Table]) -> Table:
    """The rows of several files one after another."""
    first = tables[0]
    for table in tables:
        if table.names != first.names:
            raise DataError(
                f"{table.where} has the columns {', '.join(table.names)}, but {first.where} has "
                f"{', '.join(first.names)}. Parts of a split need the same columns."
            )
    if len(tables) == 1:
        return first
    return Table(
        first.where,
        first.names,
        lambda name: list(chain.from_iterable(table.column(name) for table in tables)),
    )


def _not_found(path: Path) -> NotFoundError:
    parent = path.absolute().parent
    if not parent.is_dir():
        return NotFoundError(f"There is no {path}: the folder {parent} does not exist.")
    siblings = [entry.name for entry in parent.iterdir()]
    return NotFoundError(
        f"There is no file {path.name!r} in {parent}.{did_you_mean(path.name, siblings)}"
    )


def _unsupported(path: Path) -> DataError:
    return DataError(
        f"{path} has an unsupported extension. Convert it to one of: {', '.join(TABLE_SUFFIXES)}."
    )


def _read_table(path: Path) -> Table:
    if path.is_dir():
        if classes := _class_folders(path):
            files = [(file, own.name) for own in classes for file in sorted(own.glob("*.txt"))]
            columns = {
                "text": [_decoded(file) for file, _ in files],
                "label": [name for _, name in files],
            }
            return Table(str(path), tuple(columns), columns.__getitem__)
        return _join([_arrow(file) for file in sorted(path.glob("*.arrow"))])
    if not path.is_file():
        raise _not_found(path) if not path.exists() else DataError(f"{path} is not a file.")
    kind = _suffix(path).removesuffix(".gz")
    if not kind:
        raise _unsupported(path)
    with path.open("rb") as file:
        start = file.read(200).removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for sign, what in _OTHERS.items():
        if start.startswith(sign) and not (kind == ".parquet" and sign == b"par1"):
            raise DataError(f"{path} {what}")
    if kind == ".parquet":
        return _parquet(path)
    text = _decoded(path)
    if not text.strip():
        raise DataError(f"{path} is empty. Give a file with at least one text.")
    if named := _SEPARATOR.match(text):
        return _rows_table(path, _rows(path, text[named.end() :], named[1], first_line=2))
    if kind == ".csv":
        # spreadsheets write semicolons where the comma is the decimal sign
        header, *rest = re.split("\r\n|\r|\n", text, maxsplit=2)
        names = {name.strip(' "').casefold() for name in re.split("[,;\t|]", (rest or [""])[0])}
        if header.startswith("#") and (names & COMMON_NAMES or not re.search("[,;\t|]", header)):
            raise DataError(
                f"{path} begins with a comment: {header[:60]!r}. Remove it: the first line names "
                "the columns, such as 'text,label'."
            )
        return _rows_table(path, _rows(path, text, max(",;\t|", key=header.count)))
    return _tsv(path, text) if kind == ".tsv" else _jsonl(path, text)


def _decoded(path: Path) -> str:
    """The file's text, without a byte-order mark."""
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz") or data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise DataError(
                f"{path} holds more than {human_bytes(_MOST_BYTES)} of text. Split it, or convert "
                "it to parquet."
            )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be unpacked as gzip ({error}). Download or compress it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    # Without its mark UTF-16 of Latin letters is UTF-8 as well, every second byte of it 0x00.
    zeros = [data[side:2000:2].count(0) for side in (0, 1)]
    halves = 2 * max(zeros) > len(data[:2000]) // 2 > 2 * min(zeros)
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    utf16 = "UTF-16" if marked else f"UTF-16{'LE' if zeros[1] > zeros[0] else 'BE'}" * halves
    try:
        if halves and not marked:
            raise UnicodeDecodeError("utf-8", data, data.index(0), data.index(0) + 1, utf16)
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if b"\0" in data and not utf16:  # which no text in any encoding of one byte holds
            raise DataError(
                f"{path} holds no text: it is binary (a byte 0x00 at offset {data.index(0)}). Give "
                "a csv, tsv, jsonl or parquet file."
            ) from error
        guess = utf16 or "WINDOWS-1252"
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} holds the byte 0x{data[error.start]:02x} "
            f"(offset {error.start}).\nIt may be {guess}. Save it as UTF-8, or convert it"
            f"{' after unpacking' if path.suffix == '.gz' else ''} with:\n"
            f"  iconv -f {guess} -t UTF-8 {path.name.removesuffix('.gz')} > converted"
            f"{Path(path.name.removesuffix('.gz')).suffix}"
        ) from error


def _rows(
    path: Path, text: str, delimiter: str, *, quoted: bool = True, first_line: int = 1
) -> list[list[str]]:
    """All records, header first, each with as many fields as the header."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    rows: list[list[str]] = []
    line = first_line
    try:
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                raise DataError(
                    f"{path}, line {line}: {len(row)} field{'s' * (len(row) > 1)}, where the "
                    f"header has {len(rows[0])} ({', '.join(rows[0][:10])}).\nPut a text that "
                    f"holds {delimiter!r} or a line break between double quotes."
                )
            if row:
                rows.append(row)
            line = reader.line_num + first_line
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: the quotes do not close properly ({error}).\n"
            'Write a double quote inside a quoted text twice: "".'
        ) from error
    return rows


def _tsv(path: Path, text: str) -> Table:
    """Quoted or plain: both are in use, and a plain text may well begin with a quote.

    The quoted reading stands unless it fails, or joins lines that are records by themselves.
    """
    try:
        plain = _rows(path, text, "\t", quoted=False)
    except DataError:
        return _rows_table(path, _rows(path, text, "\t"))
    try:
        quoted = _rows(path, text, "\t")
    except DataError:
        return _rows_table(path, plain)
    return _rows_table(path, quoted if len(quoted) == len(plain) else plain)


def _rows_table(path: Path, rows: list[list[str]]) -> Table:
    header = [name.strip() for name in rows[0]] if rows else []
    _refuse_repeated(path, header)
    if len(rows) < 2:
        raise DataError(f"{path} has a header line but no rows. Is the first line a text?")

    def column(name: str) -> list[str]:
        index = header.index(name)
        return [row[index] for row in rows[1:]]

    return Table(str(path), tuple(header), column)


def _refuse_repeated(path: Path, header: Sequence[str]) -> None:
    for name, count in Counter(header).items():
        if name and count > 1:
            raise DataError(f"{path} has two columns named {name!r}. Rename one of them.")


def _jsonl(path: Path, text: str) -> Table:
    rows = list(_json_objects(path, text))
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), tuple(names), lambda name: [row.get(name) for row in rows])


def _json_objects(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}.\n"
                'Write one object on each line, such as {"text": "…", "label": "…"}.'
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, line {number} holds a JSON {type(value).__name__}, not an object.\n"
                'Write one object on each line, such as {"text": "…", "label": "…"}.'
            )
        yield value


def _parquet(path: Path) -> Table:
    import pyarrow.parquet

    with _arrow_errors(path, "parquet"):
        metadata = pyarrow.parquet.read_metadata(path)
        n_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        if n_bytes > _MOST_BYTES or metadata.num_rows > _MOST_ROWS:
            raise DataError(
                f"{path} has {metadata.num_rows:,} rows and {human_bytes(n_bytes)}, of at most "
                f"{_MOST_ROWS:,} and {human_bytes(_MOST_BYTES)}. Take a part of it."
            )
        _refuse_repeated(path, metadata.schema.to_arrow_schema().names)
        return _columns_of(path, pyarrow.parquet.read_table(path))


def _arrow(path: Path) -> Table:
    """A file of ``save_to_disk`` of the package datasets."""
    import pyarrow

    with _arrow_errors(path, "Arrow"), pyarrow.memory_map(str(path)) as file:
        return _columns_of(path, pyarrow.ipc.open_stream(file).read_all())


def _columns_of(path: Path, table: Any) -> Table:
    """Columns of an Arrow table, with class names where the package datasets has kept them."""

    def column(name: str) -> list[Any]:
        with _arrow_errors(path, "a table"):
            values: list[Any] = table.column(name).to_pylist()
            kept = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            feature = kept.get("info", {}).get("features", {}).get(name, {})
            names = feature.get("names") if isinstance(feature, dict) else None
            if not names:
                return values
            return [None if value is None or value < 0 else names[value] for value in values]

    return Table(str(path), tuple(table.column_names), column)


@contextlib.contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    """Arrow's own errors, and those of values that Python cannot hold, as a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Arrow's, of time zones, dates, texts that are no UTF-8
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as {kind}: {reason}\nDownload or write it again."
        ) from error


def read_hub(
    repo_id: str,
    text_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    *,
    config: str | None = None,
    labeled: bool = True,
) -> TextDataset:
    """Read every split of a dataset of the Hub, with class names in place of class numbers.

    A split whose labels are withheld (all -1, as in GLUE's test sets) is left out. Parameters are
    those of `layerfuse.data.load_dataset`; ``revision`` and ``config`` choose among the dataset's.

    Raises
    ------
    MissingExtraError
        Without the package ``datasets``.
    NotFoundError
        When it could not be downloaded.
    DataError
        As in :func:`layerfuse.data.read_dataset`.
    """
    datasets = require("datasets", "hub", f"Reading {repo_id!r} from the Hugging Face Hub")
    try:
        loaded = datasets.load_dataset(repo_id, config, revision=revision)
    except Exception as error:  # the package raises its own, the HTTP client's and OS errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotFoundError(
            f"The dataset {repo_id!r} could not be downloaded from the Hub: {reason}\n"
            "Check its name (hub:owner/name, or hub:owner/name:config) and the connection, or "
            "give a file."
        ) from error
    splits: dict[str, Split] = {}
    text, label = text_column, label_column
    for name, part in loaded.items():
        table = _table(f"{repo_id} ({name})", part)
        text, label = find_columns(table, text, label, labeled)
        if label is None or any(value is not None for value in table.column(label)):
            splits[name] = to_split(table, text, label)
    if not splits:
        raise DataError(f"{repo_id} has no split with labels. Choose another --label-column.")
    return TextDataset(repo_id.rpartition("/")[2], splits, table.names, text, label)


def _table(where: str, part: Any) -> Table:
    def column(name: str) -> Sequence[Any]:
        values = list(part[name])
        names = getattr(part.features[name], "names", None)  # only class labels have them
        if names is None:
            return values
        return [None if value is None or value < 0 else names[value] for value in values]

    return Table(where, tuple(part.column_names), column)
