"""Readers of csv, tsv, jsonl and parquet files; errors name the line of the fault."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from layerfuse.data.columns import ReadOptions, Table, find_columns, to_split
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.errors import DataError, NotFoundError, did_you_mean, require

_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet")
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
    options: ReadOptions = ReadOptions(),  # noqa: B008  # frozen
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
    path = Path(source).expanduser()
    files = {"train": path} if path.suffix and not path.is_dir() else _split_files(path)
    if test is not None:
        files["test"] = Path(test).expanduser()
    splits: dict[str, Split] = {}
    text, label = text_column, label_column
    for name, file in files.items():
        table = _read_table(file)
        text, label = find_columns(table, text, label, labeled)
        splits[name] = to_split(table, text, label, options)
    name = path.resolve().name
    return TextDataset(name[: len(name) - len(_suffix(path))], splits, table.names, text, label)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in TABLE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split in a folder, train first."""
    if not folder.exists():
        raise _not_found(folder)
    if not folder.is_dir():
        raise _unsupported(folder)
    files: dict[str, Path] = {}
    names = sorted(entry.name for entry in folder.iterdir())
    for split in _SPLITS:
        found = [name for name in names if name in {split + suffix for suffix in TABLE_SUFFIXES}]
        if len(found) > 1:
            raise DataError(
                f"{folder} has more than one file for the split {split!r}: {', '.join(found)}. "
                "Keep one of them."
            )
        if found:
            files[split] = folder / found[0]
    if not files:
        raise DataError(
            f"{folder} holds no split files (it has: {', '.join(names[:10]) or 'nothing'}).\n"
            "Name them train.csv and test.csv (or .tsv, .jsonl, .jsonl.gz, .parquet), or give "
            "one file instead of the folder."
        )
    return files


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
    if not path.is_file():
        raise _not_found(path) if not path.exists() else DataError(f"{path} is not a file.")
    kind = _suffix(path).removesuffix(".gz")
    if not kind:
        raise _unsupported(path)
    if kind == ".parquet":
        return _parquet(path)
    text = _decoded(path)
    if not text.strip():
        raise DataError(f"{path} is empty. Give a file with at least one text.")
    if named := _SEPARATOR.match(text):
        return _rows_table(path, _rows(path, text[named.end() :], named[1], first_line=2))
    if kind == ".csv":
        # spreadsheets write semicolons where the comma is the decimal sign
        header = re.split("[\r\n]", text, maxsplit=1)[0]
        return _rows_table(path, _rows(path, text, max(",;\t|", key=header.count)))
    return _tsv(path, text) if kind == ".tsv" else _jsonl(path, text)


def _decoded(path: Path) -> str:
    """The file's text, without a byte-order mark."""
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be unpacked as gzip ({error}). Download or compress it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if b"\0" in data and not utf16:  # which no text in any encoding of one byte holds
            raise DataError(
                f"{path} holds no text: it is binary (a byte 0x00 at offset {data.index(0)}). Give "
                "a csv, tsv, jsonl or parquet file."
            ) from error
        guess = "UTF-16" if utf16 else "WINDOWS-1252"
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
        except ValueError as error:
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
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        _refuse_repeated(path, names)
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} cannot be read as parquet: {reason}\nDownload or write it again."
        ) from error
    return Table(str(path), tuple(table.column_names), lambda name: table.column(name).to_pylist())


def read_hub(
    repo_id: str,
    text_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    *,
    config: str | None = None,
    labeled: bool = True,
    options: ReadOptions = ReadOptions(),  # noqa: B008  # frozen
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
            splits[name] = to_split(table, text, label, options)
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
