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
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from layerfuse.data.columns import COMMON_NAMES, Table
from layerfuse.errors import DataError, LayerfuseError, NotFoundError, did_you_mean
from layerfuse.files import LFS_ADVICE, LFS_POINTER, human_bytes
from layerfuse.objects import open_url

T = TypeVar("T")

STANDARD_INPUT = "-"
_TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (*_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES), ".parquet")
_GZIP = b"\x1f\x8b"
_BATCH_ROWS = 10_000  # of parquet that are decoded at once
_MOST_BYTES, _MOST_ROWS = 4_000_000_000, 50_000_000
_OTHERS = {
    LFS_POINTER: LFS_ADVICE,
    b"<!doctype html": "is a web page. Download the file itself (its link is often called 'raw').",
    b"<html": "is a web page. Download the file itself (its link is often called 'raw').",
    b"pk\x03\x04": "is a zip file or a spreadsheet. Unpack it, or save it as csv.",
    b"par1": "is a parquet file. Rename it to end in .parquet.",
}
# Excel's first line, which names the delimiter; some exports fill it up to the number of columns
_SEPARATOR = re.compile(r'"? *sep *= *([^" \r\n])\1*"? *(?:\r\n|\r|\n|$)', re.IGNORECASE)
# One limit for the process, so that no thread lowers it while another reads; csv's own is 131,072
# characters, and more than fits a C long on Windows is refused.
csv.field_size_limit(2**31 - 1)


def suffix_of(name: str) -> str:
    """The suffix by which a file is read as a table, or nothing."""
    return next((suffix for suffix in TABLE_SUFFIXES if name.lower().endswith(suffix)), "")


def not_found(path: Path) -> NotFoundError:
    """An error that names what is missing, and what it may be instead."""
    parent = path.absolute().parent
    if not parent.is_dir():
        return NotFoundError(f"There is no {path}: the folder {parent} does not exist.")
    siblings = [entry.name for entry in parent.iterdir()]
    return NotFoundError(
        f"There is no file {path.name!r} in {parent}.{did_you_mean(path.name, siblings)}"
    )


def unsupported(path: Path | str) -> DataError:
    """An error that names the formats that are read."""
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
                packed = self.where.lower().endswith(".gz") or (
                    isinstance(source, Path) and _peek(file).startswith(_GZIP)
                )
            if packed:
                file = cast("IO[bytes]", opened.enter_context(gzip.GzipFile(fileobj=file)))
            yield file

    @contextlib.contextmanager
    def lines(self, ending: str = "", *, whole: bool = False) -> Iterator[Iterator[str]]:
        """Its lines with their endings: ``ending``, or any.

        A byte-order mark is left out. ``whole`` says that all are to be kept in memory.
        """
        with self._told():
            try:
                if self.source != STANDARD_INPUT:
                    with self.open() as binary:
                        if _utf16_of(binary.read(2000)):
                            raise self._not_utf8()
                        if whole and binary.seekable():
                            binary.seek(_MOST_BYTES)  # of a packed file, before any is kept
                            _refuse_long(self.where, len(binary.read(1)) * (_MOST_BYTES + 1))
                with self.open() as binary:
                    text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline=ending)
                    yield _limited(text, self.where, whole=whole)
            except UnicodeDecodeError as error:
                raise self._not_utf8() from error

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What is wrong with the file as a DataError."""
        try:
            yield
        except LayerfuseError:  # a StorageError is an OSError, too
            raise
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{self.where} cannot be unpacked as gzip ({error}). Download or compress it again."
            ) from error
        except OSError as error:
            raise DataError(f"{self.where} cannot be read: {error.strerror or error}.") from error

    def _not_utf8(self) -> DataError:
        """Where the first byte is that is not UTF-8, and what the file may be instead."""
        if self.source == STANDARD_INPUT:
            return DataError("Standard input is not UTF-8. Convert it, with iconv for example.")
        offset, zero, fault = 0, -1, (0, 0, 0)
        with self.open() as file:
            utf16 = _utf16_of(file.read(2000))
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
        if not any(fault):  # each second byte is 0x00, which UTF-8 allows
            fault = (1, zero, 0)
        guess = utf16 or "WINDOWS-1252"
        name = Path(self.source).name
        plain = name.removesuffix(".gz")
        return DataError(
            f"{self.where} is not UTF-8: line {fault[0]} holds the byte 0x{fault[2]:02x} "
            f"(offset {fault[1]}).\nIt may be {guess}. Save it as UTF-8, or convert it"
            f"{' after unpacking' if plain != name else ''} with:\n"
            f"  iconv -f {guess} -t UTF-8 {plain} > converted{Path(plain).suffix}"
        )


def _limited(text: io.TextIOWrapper, where: str, *, whole: bool) -> Iterator[str]:
    """Lines, as long as what is kept of them fits into memory."""
    size = 0
    while line := text.readline(_MOST_BYTES + 1):
        size = len(line) + whole * size
        _refuse_long(where, size)
        yield line


def _refuse_long(where: str, n_bytes: int) -> None:
    if n_bytes > _MOST_BYTES:
        raise DataError(
            f"{where} holds more than {human_bytes(_MOST_BYTES)} of text. Split it, or convert it "
            "to parquet."
        )


def _utf16_of(start: bytes) -> str:
    """The name of UTF-16 where a file begins in it: with its mark, or every second byte is 0x00."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    zeros = [start[side::2].count(0) for side in (0, 1)]
    halves = 2 * max(zeros) > len(start) // 2 > 2 * min(zeros)
    return f"UTF-16{'LE' if zeros[1] > zeros[0] else 'BE'}" * halves


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
        raise not_found(source) if not source.exists() else DataError(f"{source} is not a file.")
    kind = suffix_of(Path(source).name).removesuffix(".gz")
    if not kind:
        raise unsupported(source)
    if isinstance(source, Path):
        with source.open("rb") as file:
            begin = file.read(200).removeprefix(codecs.BOM_UTF8).lstrip().lower()
        for sign, what in _OTHERS.items():
            if begin.startswith(sign) and not (kind == ".parquet" and sign == b"par1"):
                raise DataError(f"{source} {what}")
    return _File(str(source), kind, source)


def read_file(source: Path | str, part_rows: int | None) -> Iterator[Table]:
    """The rows of a table's file in parts of so many rows, or as one; at least one part."""
    file = _file(source)
    if file.kind == ".parquet":
        yield from _parquet(file, part_rows)
    elif "json" in file.kind:
        yield from _jsonl(file, part_rows)
    else:
        yield from _delimited(file, part_rows)


def _parts(rows: Iterable[T], part_rows: int | None) -> Iterator[list[T]]:
    """Lists of so many rows."""
    remaining = iter(rows)
    while part := list(islice(remaining, part_rows)):
        yield part


def _delimited(file: _File, part_rows: int | None) -> Iterator[Table]:
    quoted = file.kind != ".tsv" or _is_quoted(file)
    with file.lines(whole=part_rows is None) as lines:
        records = _records(file, lines, quoted=quoted)
        header = [name.strip() for name in next(records, [])]
        _refuse_repeated(file.where, header)

        def table(rows: list[list[str]]) -> Table:
            def column(name: str) -> list[str]:
                index = header.index(name)
                return [row[index] for row in rows]

            return Table(file.where, tuple(header), column, len(rows))

        found = False
        for rows in _parts(records, part_rows):
            if not any(header):
                raise DataError(
                    f"{file.where}: the first line names no column: it is empty but for its "
                    "separators. Remove it; the first line names the columns, such as 'text,label'."
                )
            found = True
            yield table(rows)
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
        second = next(lines, "")
        lines = chain([top, second] if second else [top], lines)
        if file.kind == ".csv":
            _refuse_comment(file.where, top, second)
            # spreadsheets write semicolons where the comma is the decimal sign
            names = re.sub('"[^"]*"', "", top if top.strip() else second)
            delimiter = max(",;\t|", key=names.count)
        elif delimiter not in top:
            _refuse_commas(file.where, top, second)
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


def _refuse_comment(where: str, top: str, second: str) -> None:
    names = {name.strip(' "\r\n').casefold() for name in re.split("[,;\t|]", second)}
    if top.startswith("#") and (names & COMMON_NAMES or not re.search("[,;\t|]", top)):
        raise DataError(
            f"{where} begins with a comment: {top.strip()[:60]!r}. Remove it: the first line names "
            "the columns, such as 'text,label'."
        )


def _refuse_commas(where: str, top: str, second: str) -> None:
    """Refuse a tsv file whose columns are plainly separated by something else."""
    for delimiter in ",;|":
        names, values = (next(csv.reader([own], delimiter=delimiter), []) for own in (top, second))
        common = COMMON_NAMES.intersection(name.strip().casefold() for name in names)
        if len(names) > 1 and (common or len(names) == len(values)):
            raise DataError(
                f"{where} is named as a table with tabs, but its first line, {top.strip()[:60]!r}, "
                f"has none: its columns are separated by {delimiter!r}. Rename the file to end in "
                ".csv, or separate the columns by tabs."
            )


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
    names: dict[str, None] = {}  # those of any row so far
    found = False
    with file.lines("\n", whole=part_rows is None) as lines:
        for rows in _parts(_json_objects(file.where, lines), part_rows):
            found = True
            names |= dict.fromkeys(name for row in rows for name in row)
            yield Table(file.where, tuple(names), partial(_values, rows), len(rows), ragged=True)
    if not found:
        raise DataError(f"{file.where} is empty. Give a file with at least one text.")


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _json_objects(where: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
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

    with _arrow_errors(file.where, "parquet"), file.open() as binary:
        facts = pyarrow.parquet.read_metadata(binary)
        n_bytes = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
        if part_rows is None:
            refuse_large(file.where, facts.num_rows, n_bytes)
        leaves = map(facts.schema.column, range(len(facts.schema)))
        # A few bytes may stand for gigabytes of equal texts, so these are unpacked last.
        table = pyarrow.parquet.ParquetFile(
            binary,
            metadata=facts,
            read_dictionary=[leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"],
        )
        _refuse_repeated(file.where, table.schema_arrow.names)
        batches = table.iter_batches(min(part_rows or _BATCH_ROWS, _BATCH_ROWS))
        types = _types(facts.schema.to_arrow_schema())
        for part in _of_batches(file.where, table.schema_arrow, batches, part_rows):
            yield replace(part, types=types)


def read_arrow(source: Path | str, part_rows: int | None) -> Iterator[Table]:
    """A file of ``save_to_disk`` of the package datasets, as `read_file` does."""
    import pyarrow

    with _arrow_errors(str(source), "Arrow"), contextlib.ExitStack() as opened:
        file = pyarrow.memory_map(str(source)) if isinstance(source, Path) else open_url(source)
        batches = pyarrow.ipc.open_stream(opened.enter_context(file))
        yield from _of_batches(str(source), batches.schema, batches, part_rows)


def _of_batches(
    where: str, schema: Any, batches: Iterable[Any], part_rows: int | None
) -> Iterator[Table]:
    """The rows of Arrow's record batches in parts of so many, or as one."""
    import pyarrow

    waiting, n_rows, found = [schema.empty_table()], 0, False
    for batch in batches:
        waiting.append(pyarrow.Table.from_batches([batch]))
        n_rows += len(batch)
        while part_rows is not None and n_rows >= part_rows:
            joined = pyarrow.concat_tables(waiting)
            yield arrow_table(where, joined[:part_rows])
            waiting, n_rows, found = [joined[part_rows:]], n_rows - part_rows, True
    if n_rows or not found:
        yield arrow_table(where, pyarrow.concat_tables(waiting))


def read_footer(source: Path | str) -> Any:
    """The Arrow schema of a parquet file."""
    import pyarrow.parquet

    file = _file(source)
    with _arrow_errors(file.where, "parquet"), file.open() as binary:
        return pyarrow.parquet.read_schema(binary)


def read_texts(
    where: str, files: Mapping[str, Sequence[Path | str]], _: int | None
) -> Iterator[Table]:
    """One text a file, and the names of their folders, as one part."""
    labels = [label for label, own in files.items() for _ in own]
    texts = []
    for file in chain.from_iterable(files.values()):
        with _File(str(file), ".txt", file).lines(whole=True) as lines:
            texts.append("".join(lines))
    columns = {"text": texts, "label": labels}
    yield Table(where, tuple(columns), columns.__getitem__, len(texts))


def refuse_large(where: str, n_rows: int, n_bytes: int) -> None:
    """Raise a DataError for more than is kept in memory."""
    if n_bytes > _MOST_BYTES or n_rows > _MOST_ROWS:
        raise DataError(
            f"{where} has {n_rows:,} rows and {human_bytes(n_bytes)}, of at most {_MOST_ROWS:,} "
            f"and {human_bytes(_MOST_BYTES)}. Take a part of it."
        )


def _unpacked_bytes(array: Any) -> int:
    """The bytes of an Arrow array without dictionaries."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_dictionary(array.type):
        values = array.dictionary
        if not (pyarrow.types.is_string(values.type) or pyarrow.types.is_binary(values.type)):
            return int(array.nbytes)
        lengths = pyarrow.compute.binary_length(values).take(array.indices)
        return int(pyarrow.compute.sum(lengths).as_py() or 0)
    if pyarrow.types.is_struct(array.type):
        return sum(map(_unpacked_bytes, array.flatten()))
    if pyarrow.types.is_list(array.type):
        return _unpacked_bytes(array.flatten())
    return int(array.nbytes)


def arrow_table(where: str, table: Any) -> Table:
    """Columns of an Arrow table, with class names where the package datasets has kept them."""
    chunks = chain.from_iterable(column.chunks for column in table.columns)
    n_bytes = sum(map(_unpacked_bytes, chunks))
    refuse_large(where, len(table), n_bytes)

    def column(name: str) -> list[Any]:
        with _arrow_errors(where, "a table"):
            values: list[Any] = table.column(name).to_pylist()
            kept = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            feature = kept.get("info", {}).get("features", {}).get(name, {})
            feature = feature if isinstance(feature, dict) else {}
            classes = feature.get("feature")
            if isinstance(classes, dict) and (names := classes.get("names")):
                return [row and [names[value] for value in row if value >= 0] for row in values]
            if not (names := feature.get("names")):
                return values
            return [None if value is None or value < 0 else names[value] for value in values]

    names = tuple(table.column_names)
    return Table(where, names, column, len(table), n_bytes, types=_types(table.schema))


def _types(schema: Any) -> dict[str, Any]:
    """The types of columns, those of the values of dictionaries."""
    import pyarrow

    return {
        own.name: own.type.value_type if pyarrow.types.is_dictionary(own.type) else own.type
        for own in schema
    }


@contextlib.contextmanager
def _arrow_errors(where: str, kind: str) -> Iterator[None]:
    """Arrow's own errors, and those of values that Python cannot hold, as a DataError."""
    try:
        yield
    except LayerfuseError:
        raise
    except Exception as error:  # Arrow's, of time zones, dates, texts that are no UTF-8
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{where} cannot be read as {kind}: {reason}\nDownload or write it again."
        ) from error
