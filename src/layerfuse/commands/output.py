"""Output of commands: checks of paths before any work, and rows as csv, tsv, jsonl or parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerfuse.cluster import RayCluster
from layerfuse.data import TABLE_SUFFIXES
from layerfuse.embeddings import EmbeddingStore
from layerfuse.errors import ConfigError, NotFoundError, StorageError
from layerfuse.files import atomic_write, is_url
from layerfuse.objects import check_no_folder

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, object]


RESULT_SUFFIXES = (*TABLE_SUFFIXES, ".tex")
"""Formats of tables that people read."""

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


class Share(float):
    """A number that csv and tsv show with four digits."""


def check_new_folder(place: str | Path) -> None:
    """Raise StorageError when a folder, or what a URL names, exists or cannot be made."""
    if is_url(place):
        check_no_folder(str(place))
        return
    path = Path(place)
    if path.exists():
        raise StorageError(f"{path} exists already. Choose another folder with --out.")
    _check_parents(path, "--out")


def check_new_file(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Raise StorageError when ``path`` is no file or cannot be made; a file is replaced.

    A ConfigError where its name ends in none of ``suffixes``, the formats that will be written.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise StorageError(f"{path} is {what}. Give the name of a file with {option}.")
    if not path.name.lower().endswith(suffixes):
        raise ConfigError(
            f"{path} has an unsupported extension. Give a name with {option} that ends in "
            f"{', '.join(suffixes)}."
        )
    _check_parents(path, option)


def open_store(
    root: str | None, *, new: bool = False, cluster: RayCluster | None = None
) -> EmbeddingStore:
    """The embedding cache in ``root``, which must exist unless it may be ``new``, or the user's.

    Of a URL nothing is checked before it is used.
    """
    store = EmbeddingStore(root, cluster)
    if store.remote is not None:
        return store
    if store.root.exists() and not store.root.is_dir():
        raise ConfigError(
            f"{store.root} is not a folder. Give the folder of the embedding cache with --store."
        )
    if root is not None and not new and not store.root.exists():
        raise NotFoundError(f"There is no embedding cache {root}. Give its folder with --store.")
    _check_parents(store.root, "--store")
    return store


def _check_parents(path: Path, option: str) -> None:
    """The nearest folder that exists must be one, and let itself be written to."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise StorageError(
            f"{path} cannot be created: {nearest} is not a folder. Choose another path with "
            f"{option}."
        )
    if path.exists():
        return
    try:  # to ask for permission is not enough: root has it where nothing can be made
        Path(tempfile.mkdtemp(prefix=".layerfuse", dir=nearest)).rmdir()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be created: {nearest} is not writable. Choose another path with "
            f"{option}."
        ) from error


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the format that the name says, whole or not at all."""
    kind = next(suffix for suffix in RESULT_SUFFIXES if path.name.lower().endswith(suffix))
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(rows, kind))


def encode(
    rows: Sequence[Row],
    suffix: str,
    *,
    header: bool = True,
    types: Mapping[str, pyarrow.DataType] | None = None,
) -> bytes:
    """Rows, all with the keys of the first, in the format of a suffix.

    ``types`` are those that columns of Parquet should have.
    """
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        names = rows[0] if rows else ()
        pairs = [_arrow_column([row[n] for row in rows], (types or {}).get(n)) for n in names]
        fields = [
            pyarrow.field(name, array.type, metadata=metadata)
            for name, (array, metadata) in zip(names, pairs, strict=True)
        ]
        arrays = [array for array, _ in pairs]
        buffer = io.BytesIO()
        table = pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields))
        pyarrow.parquet.write_table(table, buffer)
        return buffer.getvalue()
    if suffix == ".tex":
        return _latex(rows).encode()
    if "json" in suffix:
        lines = (json.dumps(dict(row), ensure_ascii=False, default=str) + "\n" for row in rows)
        data = "".join(lines).encode()
    else:
        delimiter = "\t" if ".tsv" in suffix else ","
        data = _delimited(rows, delimiter, header=header).encode()
    return gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data


AS_TEXT = {b"layerfuse": b"several kinds, as text"}
"""What is said of a column of Parquet that has become text."""


def _arrow_column(
    values: Sequence[object], kind: pyarrow.DataType | None
) -> tuple[pyarrow.Array, Mapping[bytes, bytes] | None]:
    """Values of the kind, else of the one that they plainly have, else as text."""
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    plain = len(kinds) <= 1 or kinds <= {int, float}  # of dates and times Arrow would cut the times
    for tried in (*((kind,) if kind is not None else ()), *((None,) if plain else ())):
        with suppress(pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            return pyarrow.array(values, tried), None
    return pyarrow.array(as_texts(values), pyarrow.string()), AS_TEXT


def as_texts(values: Iterable[object]) -> list[str | None]:
    """Each value as a cell of CSV; None where there is none."""
    return [None if value is None else _cell(value) for value in values]


def _delimited(rows: Sequence[Row], delimiter: str, *, header: bool) -> str:
    """Records of which every reader of CSV makes the same rows."""
    text = io.StringIO()
    plain, quoted = (
        csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    if header and rows:
        plain.writerow(rows[0])
    for row in rows:
        cells = list(map(_cell, row.values()))
        # Python before 3.11.9 and 3.12.3 leaves a lone carriage return, a line's end to readers.
        (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
    return text.getvalue()


def _latex(rows: Sequence[Row]) -> str:
    """A table of the package booktabs; numbers have four digits behind the point, or fewer."""
    kinds = ["r" if isinstance(value, int | float) else "l" for value in rows[0].values()]
    lines = [list(rows[0])]
    for row in rows:
        cells = (f"{own:.4f}" if isinstance(own, float) else _cell(own) for own in row.values())
        lines.append(list(cells))
    head, *body = (" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in lines)
    rules = [r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    begin = rf"\begin{{tabular}}{{{''.join(kinds)}}}"
    return "\n".join([begin, *rules, r"\end{tabular}", ""])


def _cell(value: object) -> str:
    """Lists as JSON; nothing for None."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Share):
        return f"{value:.4f}"
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)
