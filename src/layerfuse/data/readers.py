"""Readers of csv, tsv, jsonl and parquet files; errors name the line of the fault."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from layerfuse.data.columns import Table, find_columns, to_split
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.errors import DataError, NotFoundError, did_you_mean, require
from layerfuse.files import is_url, open_url

T = TypeVar("T")

STANDARD_INPUT = "-"
_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet")
_GZIP = b"\x1f\x8b"
_BATCH_ROWS = 10_000  # of parquet that are decoded at once
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
    data = stream_dataset(
        source, text_column=text_column, label_column=label_column, test=test, labeled=labeled
    )
    splits = {name: split for name, parts in data.splits.items() for split in parts}
    return TextDataset(data.name, splits, data.columns, data.text_column, data.label_column)


@dataclass(frozen=True)
class TextStream:
    """A dataset that is read part by part, once; see `TextDataset` for the other attributes.

    Attributes
    ----------
    splits : dict of str to iterator of Split
        The parts of each split, in the order of its rows.
    """

    name: str
    splits: dict[str, Iterator[Split]]
    columns: tuple[str, ...]
    text_column: str
    label_column: str | None


def stream_dataset(
    source: str | Path,
    *,
    part_rows: int | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    test: str | Path | None = None,
    labeled: bool = True,
) -> TextStream:
    """Open files to be read in parts of ``part_rows`` rows, each as one by default.

    Columns are found in the first part. See `read_dataset` for the rest; beside files, URLs that
    fsspec opens (``s3://bucket/texts.parquet``) and ``"-"``, standard input, are read.
    """
    if is_url(source) or str(source) == STANDARD_INPUT:
        files: dict[str, Path | str] = {"train": str(source)}
    else:
        path = Path(source).expanduser()
        files = {"train": path} if path.suffix and not path.is_dir() else _split_files(path)
    if test is not None:
        files["test"] = Path(test).expanduser()
    splits: dict[str, Iterator[Split]] = {}
    text, label = text_column, label_column
    columns: tuple[str, ...] = ()
    for name, file in files.items():
        tables = _read_tables(file, part_rows)
        first = next(tables)
        text, label = find_columns(first, text, label, labeled)
        splits[name] = map(partial(to_split, text=text, label=label), chain([first], tables))
        columns = first.names
    assert text is not None
    name = Path(source).expanduser().resolve().name
    return TextStream(name[: len(name) - len(_suffix(name))], splits, columns, text, label)


def _suffix(name: str) -> str:
    return next((suffix for suffix in TABLE_SUFFIXES if name.lower().endswith(suffix)), "")


def _split_files(folder: Path) -> dict[str, Path | str]:
    """The file of each split in a folder, train first."""
    if not folder.exists():
        raise _not_found(folder)
    if not folder.is_dir():
        raise _unsupported(folder)
    files: dict[str, Path | str] = {}
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


def _unsupported(path: Path | str) -> DataError:
    return DataError(
        f"{path} has an unsupported extension. Convert it to one of: {', '.join(TABLE_SUFFIXES)}."
    )


@dataclass(frozen=True)
class _File:
    """A table's file, a URL or standard input."""

    where: str
    kind: str  # its suffix, without .gz
    source: Path | str

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes, unpacked."""
        with contextlib.ExitStack() as opened:
            if self.source == STANDARD_INPUT:
                file: IO[bytes] = sys.stdin.buffer
                packed = _peek(file).startswith(_GZIP)
            else:
                source = self.source
                file = source.open("rb") if isinstance(source, Path) else open_url(source)
                opened.enter_context(file)
                packed = self.where.lower().endswith(".gz")
            if packed:
                file = cast("IO[bytes]", opened.enter_context(gzip.GzipFile(fileobj=file)))
            yield file

    @contextlib.contextmanager
    def lines(self, ending: str = "") -> Iterator[Iterator[str]]:
        """Its lines with their endings: ``ending``, or any.

        A byte-order mark is left out.
        """
        try:
            with self.open() as binary:
                yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline=ending)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{self.where} cannot be unpacked as gzip ({error}). Download or compress it again."
            ) from error
        except OSError as error:
            raise DataError(f"{self.where} cannot be read: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise self._not_utf8() from error

    def _not_utf8(self) -> DataError:
        """Where the first byte is that is not UTF-8, and what the file may be instead."""
        if self.source == STANDARD_INPUT:
            return DataError("Standard input is not UTF-8. Convert it, with iconv for example.")
        offset, zero, fault = 0, -1, (0, 0, 0)
        with self.open() as file:
            utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        with self.open() as file:
            for number, line in enumerate(file, start=1):
                if zero < 0 <= line.find(b"\0"):
                    zero = offset + line.index(b"\0")
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    fault = (
                        fault if any(fault) else (number, offset + error.start, line[error.start])
                    )
                offset += len(line)
        if zero >= 0 and not utf16:  # which no text in any encoding of one byte holds
            return DataError(
                f"{self.where} holds no text: it is binary (a byte 0x00 at offset {zero}). Give "
                "a csv, tsv, jsonl or parquet file."
            )
        guess = "UTF-16" if utf16 else "WINDOWS-1252"
        name = Path(self.source).name
        plain = name.removesuffix(".gz")
        return DataError(
            f"{self.where} is not UTF-8: line {fault[0]} holds the byte 0x{fault[2]:02x} "
            f"(offset {fault[1]}).\nIt may be {guess}. Save it as UTF-8, or convert it"
            f"{' after unpacking' if plain != name else ''} with:\n"
            f"  iconv -f {guess} -t UTF-8 {plain} > converted{Path(plain).suffix}"
        )


def _peek(file: IO[bytes]) -> bytes:
    """The first bytes, which stay to be read."""
    return cast("io.BufferedReader", file).peek(2)


def _file(source: Path | str) -> _File:
    """The source, its format told by its name, or of standard input by its first bytes."""
    if source == STANDARD_INPUT:
        start = _peek(sys.stdin.buffer).lstrip()
        if start.startswith(b"PAR1"):
            raise DataError(
                "Parquet cannot be read from standard input. Give the file's name, or pipe csv or "
                "jsonl."
            )
        return _File("standard input", ".jsonl" if start.startswith(b"{") else ".csv", source)
    if isinstance(source, Path) and not source.is_file():
        raise _not_found(source) if not source.exists() else DataError(f"{source} is not a file.")
    kind = _suffix(Path(source).name).removesuffix(".gz")
    if not kind:
        raise _unsupported(source)
    return _File(str(source), kind, source)


def _read_tables(source: Path | str, part_rows: int | None) -> Iterator[Table]:
    """The rows in parts of so many rows, or as one; at least one part."""
    file = _file(source)
    if file.kind == ".parquet":
        yield from _parquet(file, part_rows)
    elif "json" in file.kind:
        yield from _jsonl(file, part_rows)
    else:
        yield from _delimited(file, part_rows)


def _parts(rows: Iterable[T], part_rows: int | None) -> Iterator[tuple[int, list[T]]]:
    """Lists of so many rows, each with the number of its first."""
    remaining, first = iter(rows), 0
    while part := list(islice(remaining, part_rows)):
        yield first, part
        first += len(part)


def _delimited(file: _File, part_rows: int | None) -> Iterator[Table]:
    quoted = file.kind != ".tsv" or _is_quoted(file)
    with file.lines() as lines:
        records = _records(file, lines, quoted=quoted)
        header = [name.strip() for name in next(records, [])]
        _refuse_repeated(file.where, header)

        def table(first: int, rows: list[list[str]]) -> Table:
            def column(name: str) -> list[str]:
                index = header.index(name)
                return [row[index] for row in rows]

            return Table(file.where, tuple(header), column, first)

        found = False
        for first, rows in _parts(records, part_rows):
            found = True
            yield table(first, rows)
    if not found:
        raise DataError(
            f"{file.where} has a header line but no rows. Is the first line a text?"
            if any(header)
            else f"{file.where} is empty: it has no rows. Give a file with at least one text."
        )


def _records(file: _File, lines: Iterator[str], *, quoted: bool) -> Iterator[list[str]]:
    """All records, header first, each with as many fields as the header."""
    top = next(lines, "")
    first_line, delimiter = 1, "\t"
    if named := _SEPARATOR.fullmatch(top):
        first_line, delimiter = 2, named[1]
    else:
        lines = chain([top], lines)
        if file.kind == ".csv":
            # spreadsheets write semicolons where the comma is the decimal sign
            delimiter = max(",;\t|", key=top.count)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted or named else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] = []
    line = first_line
    try:
        for row in reader:
            if row and header and len(row) != len(header):
                raise DataError(
                    f"{file.where}, line {line}: {len(row)} field{'s' * (len(row) > 1)}, where the "
                    f"header has {len(header)} ({', '.join(header[:10])}).\nPut a text that "
                    f"holds {delimiter!r} or a line break between double quotes."
                )
            if row:
                header = header or row
                yield row
            line = reader.line_num + first_line
    except csv.Error as error:
        raise DataError(
            f"{file.where}, line {line}: the quotes do not close properly ({error}).\n"
            'Write a double quote inside a quoted text twice: "".'
        ) from error


def _is_quoted(file: _File) -> bool:
    """Whether a tsv file has quotes: both are in use, and a plain text may begin with a quote.

    The quoted reading stands unless it fails, or joins lines that are records by themselves.
    """

    def count(*, quoted: bool) -> int | None:
        try:
            with file.lines() as lines:
                return sum(1 for _ in _records(file, lines, quoted=quoted))
        except DataError:
            return None

    plain = count(quoted=False)
    return plain is None or count(quoted=True) == plain


def _refuse_repeated(where: str, header: Sequence[str]) -> None:
    for name, count in Counter(header).items():
        if name and count > 1:
            raise DataError(f"{where} has two columns named {name!r}. Rename one of them.")


def _jsonl(file: _File, part_rows: int | None) -> Iterator[Table]:
    names: tuple[str, ...] | None = None
    with file.lines("\n") as lines:
        for first, rows in _parts(_json_objects(file.where, lines), part_rows):
            if names is None:
                names = tuple(dict.fromkeys(name for row in rows for name in row))
            yield Table(file.where, names, partial(_values, rows), first)
    if names is None:
        raise DataError(f"{file.where} is empty. Give a file with at least one text.")


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _json_objects(where: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{where}, line {number} is not JSON: {error}.\n"
                'Write one object on each line, such as {"text": "…", "label": "…"}.'
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{where}, line {number} holds a JSON {type(value).__name__}, not an object.\n"
                'Write one object on each line, such as {"text": "…", "label": "…"}.'
            )
        yield value


def _parquet(file: _File, part_rows: int | None) -> Iterator[Table]:
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open() as binary, pyarrow.parquet.ParquetFile(binary) as table:
            _refuse_repeated(file.where, table.schema_arrow.names)
            size = part_rows or max(1, table.metadata.num_rows)
            first, waiting = 0, table.schema_arrow.empty_table()
            for batch in table.iter_batches(min(size, _BATCH_ROWS)):
                waiting = pyarrow.concat_tables([waiting, pyarrow.Table.from_batches([batch])])
                if len(waiting) >= size:  # which a batch alone may not reach
                    yield _arrow_table(file.where, waiting[:size], first)
                    first, waiting = first + size, waiting[size:]
            if len(waiting) or not first:
                yield _arrow_table(file.where, waiting, first)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{file.where} cannot be read as parquet: {reason}\nDownload or write it again."
        ) from error


def _arrow_table(where: str, table: Any, first: int) -> Table:
    names = tuple(table.column_names)
    return Table(where, names, lambda name: table.column(name).to_pylist(), first)


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
