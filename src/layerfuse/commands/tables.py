"""Rows as a csv, tsv, jsonl or parquet file, each but parquet also packed, or a LaTeX table."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from layerfuse.data import TABLE_SUFFIXES
from layerfuse.files import atomic_write

Row = Mapping[str, object]

RESULT_SUFFIXES = (*TABLE_SUFFIXES, ".tex")
"""Formats of tables that people read."""

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


class Share(float):
    """A number that csv and tsv show with four digits."""


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the format that the name says, whole or not at all."""
    kind = next(suffix for suffix in RESULT_SUFFIXES if path.name.lower().endswith(suffix))
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(rows, kind))


def encode(rows: Sequence[Row], suffix: str, *, header: bool = True) -> bytes:
    """Rows, all with the keys of the first, in the format of a suffix."""
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(map(dict, rows))), buffer)
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
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)
