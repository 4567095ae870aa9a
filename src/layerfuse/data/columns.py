"""Columns of a table: which holds the texts, which the labels, and whether they are usable."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layerfuse.data.dataset import Split
from layerfuse.errors import DataError, did_you_mean

TEXT_NAMES: tuple[str, ...] = ("text", "sentence", "content", "review", "body", "document")
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment")
_SENTENCE = 3  # words; an only column with so long a name is a text without a header
_SURROGATE = re.compile("[\ud800-\udfff]")


class ColumnError(DataError):
    """A ``column`` that was named and does not exist."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True)
class Table:
    """Named columns, read lazily; ``where`` names the file in messages.

    ``first_row`` is the number of its first row where it is part of a file.
    """

    where: str
    names: tuple[str, ...]
    column: Callable[[str], Sequence[Any]]
    first_row: int = 0


def find_columns(
    table: Table, text_column: str | None, label_column: str | None, labeled: bool
) -> tuple[str, str | None]:
    """The names of the text and the label column (None when ``labeled`` is false and none given).

    A given name comes first, then a common one, then, of two columns, the obvious one.

    Raises
    ------
    ColumnError
        When a given column does not exist.
    DataError
        When none is plainly the text or the label.
    """
    for option, given in (("text", text_column), ("label", label_column)):
        if given is not None and given not in table.names:
            raise ColumnError(
                f"{table.where} has no column {given!r}.{did_you_mean(given, table.names)}\n"
                f"{_columns(table)} {_option(option)}",
                given,
            )
    if text_column is not None and text_column == label_column:
        raise DataError(f"Column {text_column!r} cannot be both the text and the label.")
    text = text_column or _common(table, TEXT_NAMES, label_column)
    label = label_column or _common(table, _LABEL_NAMES, text)
    if text is None:
        text = _longest_text(table, label)
    if text is None:
        raise DataError(
            f"{table.where} has no column that is plainly the text.\n"
            f"{_columns(table)} {_option('text')}"
        )
    if not labeled:
        if len(table.names) == 1 and text_column is None and len(text.split()) >= _SENTENCE:
            raise DataError(
                f"{table.where} seems to have no header: its only column is named {text[:60]!r}.\n"
                "Name the column, such as 'text' in the first line of a csv file, or say that "
                "this is its name with --text-column (text_column= in Python)."
            )
        return text, label_column
    if label is None:
        label = _repeating(table, text)
    if label is None:
        raise DataError(
            f"{table.where} has no column that is plainly the label.\n"
            f"{_columns(table)} {_option('label')}"
        )
    return text, label


def to_split(table: Table, text: str, label: str | None) -> Split:
    """Read and check the columns.

    Raises
    ------
    DataError
        For no rows, missing texts or labels, texts that are not strings, labels that are not
        all of one plain kind.
    """
    texts = tuple(table.column(text))
    if not texts:
        raise DataError(f"{table.where} has no rows. Give a file with at least one text.")
    _refuse_missing(table, text, texts, "Write an empty string, or remove the rows.")
    for row, value in enumerate(texts, start=table.first_row):
        if not isinstance(value, str):
            raise DataError(
                f"{table.where}: column {text!r} holds {_kind(value)} in row {row} (counted from "
                "0), where a string is expected. Convert it, or choose another --text-column "
                "(text_column= in Python)."
            )
        if _SURROGATE.search(value):
            raise DataError(
                f"{table.where}: the text in row {row} (counted from 0) contains an unpaired "
                "surrogate. Write the file again as valid UTF-8."
            )
    if label is None:
        return Split(texts)
    labels = tuple(table.column(label))
    _refuse_missing(
        table,
        label,
        [None if isinstance(value, str) and not value.strip() else value for value in labels],
        "Fill in the labels, or remove the rows.",
    )
    kinds = {type(value): row for row, value in reversed(list(enumerate(labels)))}
    if len(kinds) > 1 or not set(kinds) <= {str, int, bool, float}:
        found = ", ".join(
            f"{_kind(labels[row])} in row {table.first_row + row}" for row in sorted(kinds.values())
        )
        raise DataError(
            f"{table.where}: column {label!r} holds {found} (counted from 0). Labels must all be "
            "strings, or all be integers, booleans or numbers: one class for each text. Convert "
            "them, or choose another --label-column (label_column= in Python)."
        )
    return Split(texts, labels)


def _common(table: Table, common: tuple[str, ...], taken: str | None) -> str | None:
    """The column with the first of the common names, in upper or lower case."""
    names = {name.casefold(): name for name in table.names if name != taken}
    return next((names[name] for name in common if name in names), None)


def _longest_text(table: Table, label: str | None) -> str | None:
    """Of at most two columns, the one of strings with the greater mean length."""
    lengths = {}
    for name in table.names if len(table.names) <= 2 else ():
        values = [value for value in table.column(name) if value is not None]
        if name != label and values and all(isinstance(value, str) for value in values):
            lengths[name] = sum(map(len, values)) / len(values)
    return max(lengths, key=lambda name: lengths[name], default=None)


def _repeating(table: Table, text: str) -> str | None:
    """Of two columns, the one that is not the text, if its values repeat as labels do."""
    if len(table.names) != 2:
        return None
    (other,) = (name for name in table.names if name != text)
    values = list(map(str, table.column(other)))
    if other in values:
        raise DataError(
            f"{table.where} seems to have no header line: its first line holds {other!r}, which is "
            "also a label further down. Add a first line that names the columns, such as "
            "'text,label'."
        )
    return other if len(set(values)) < len(values) else None


def _refuse_missing(table: Table, column: str, values: Sequence[Any], hint: str) -> None:
    # a float that differs from itself is NaN, which is how pandas writes a missing value
    numbered = enumerate(values, start=table.first_row)
    rows = [row for row, value in numbered if value is None or value != value]
    if rows:
        shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        raise DataError(
            f"{table.where}: column {column!r} has no value in {len(rows)} of {len(values)} rows "
            f"(row {shown}, counted from 0). {hint}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else type(value).__name__


def _columns(table: Table) -> str:
    more = f" and {len(table.names) - 20} more" if len(table.names) > 20 else ""
    return f"Its columns are: {', '.join(table.names[:20])}{more}."


def _option(kind: str) -> str:
    return f"Name the right one with --{kind}-column ({kind}_column= in Python)."
