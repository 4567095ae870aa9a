"""Columns of a table: which holds the texts, which the labels, and whether they are usable."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

from layerfuse.data.dataset import TEXT_NAMES, Split
from layerfuse.errors import DataError, did_you_mean
from layerfuse.labels import SURROGATE, LabelSet, each_label

_LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment")
COMMON_NAMES = {*TEXT_NAMES, *_LABEL_NAMES}
_SENTENCE = 3  # words; an only column with so long a name is a text without a header
SEPARATOR = "\n"
"""What stands between the columns of a text."""
_SEPARATORS = (";", "|", ",")
_UNSEEN = {"script", "style", "template", "title"}
_INLINE = {"a", "abbr", "b", "code", "em", "font", "i", "mark", "s", "small", "span", "strong", "u"}


class ColumnError(DataError):
    """A ``column`` that was named and does not exist."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True)
class ReadOptions:
    """What is read of a table; see `layerfuse.load_dataset`.

    ``columns`` are further ones to keep; ``keep`` keeps all.
    """

    text_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    labeled: bool = True
    id_column: str | None = None
    group_column: str | None = None
    columns: tuple[str, ...] = ()
    keep: bool = False
    strip_html: bool = False


@dataclass(frozen=True)
class Table:
    """Named columns, read lazily; ``where`` names the file in messages.

    ``first_row`` is the number of its first row where it is part of a split; ``keys`` are the
    columns that stand in the names of folders, such as ``year=2024``; ``types`` are those of Arrow,
    where the file has them. Of ``ragged`` rows some may lack a column, and others have more.
    """

    where: str
    names: tuple[str, ...]
    column: Callable[[str], Sequence[Any]]
    n_rows: int
    n_bytes: int = 0
    first_row: int = 0
    keys: tuple[str, ...] = ()
    types: Mapping[str, Any] = field(default_factory=dict)
    ragged: bool = False


def find_columns(table: Table, options: ReadOptions) -> tuple[str, str | None]:
    """The names of the text and the label column (None when ``labeled`` is false and none given).

    A given name comes first, then a common one, then, of two columns, the obvious one.

    Raises
    ------
    ColumnError
        When a given column does not exist.
    DataError
        When none is plainly the text or the label.
    """
    text_column, label_column = options.text_column, options.label_column
    if text_column is not None:
        for part in split_names(table.names, text_column):
            _check_column(table, "text", part, text_column)
            if label_column is not None and part in split_names(table.names, label_column):
                raise DataError(f"Column {part!r} cannot be both the text and the label.")
    if label_column is not None:
        for part in split_names(table.names, label_column):
            _check_column(table, "label", part, label_column)
    own = replace(table, names=tuple(name for name in table.names if name not in table.keys))
    text = text_column or _common(own, TEXT_NAMES, label_column)
    label = label_column or _common(table, _LABEL_NAMES, text)
    if text is None:
        text = _longest_text(own, label)
    if text is None:
        raise DataError(
            f"{table.where} has no column that is plainly the text.\n"
            f"{_columns(table)} {_option('text')}"
        )
    if not options.labeled:
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


def split_names(names: Container[str], given: str) -> tuple[str, ...]:
    """The columns that ``subject,body`` names: that one where there is one, else these two."""
    if given in names:
        return (given,)
    return tuple(part.strip() for part in given.split(","))


def _check_column(table: Table, kind: str, name: str, given: str) -> None:
    if name not in table.names:
        raise ColumnError(
            f"{table.where} has no column {name!r}.{did_you_mean(name, table.names)}\n"
            f"{_columns(table)} {_option(kind)}",
            given,
        )


def to_split(
    table: Table, text: str, label: str | None, options: ReadOptions = ReadOptions()
) -> Split:
    """Read and check the columns; rows without a label are skipped.

    Where ``text`` names several columns, their values are joined by a line break. Where ``label``
    names several they hold 0 or 1, and a row's label is the `LabelSet` of those that hold 1; so it
    is of cells that ``label_separator`` takes apart, and of lists.

    Raises
    ------
    DataError
        For no rows, missing texts, texts that are not strings, labels that are not
        all of one plain kind, and cells that look like several labels without the option.
    """
    names = split_names(table.names, text)
    parts = [_texts(table, name, missing="" if len(names) > 1 else None) for name in names]
    if options.strip_html:
        parts = [tuple(map(strip_html, part)) for part in parts]
    texts = tuple(SEPARATOR.join(filter(None, row)) for row in zip(*parts, strict=True))
    for kind, name in (("id", options.id_column), ("group", options.group_column)):
        if name is not None:
            _check_column(table, kind, name, name)
    if missing := [name for name in options.columns if name not in table.names]:
        raise ColumnError(
            f"{table.where} has no column {missing[0]!r}, which is read beside the texts."
            f"{did_you_mean(missing[0], table.names)}\n{_columns(table)}",
            missing[0],
        )
    if taken := set(options.columns).intersection((*names, label)):
        raise DataError(
            f"{table.where}: column {min(taken)!r} is the text or the label, and cannot be one of "
            "the columns beside it."
        )
    own = (options.id_column, options.group_column, *options.columns)
    kept = table.names if options.keep else own
    columns = {name: tuple(table.column(name)) for name in kept if name is not None}
    numbers = range(table.first_row, table.first_row + len(texts))
    if options.group_column is not None:
        for row, value in zip(numbers, columns[options.group_column], strict=True):
            if isinstance(value, list | dict):
                raise DataError(
                    f"{table.where}: column {options.group_column!r} holds {_kind(value)} in row "
                    f"{row} (counted from 0), where the name or number of a group is expected. "
                    "Choose another --group-column."
                )
    for name, column in columns.items():
        for row, value in zip(numbers, column, strict=True):
            if isinstance(value, str) and SURROGATE.search(value):
                raise DataError(
                    f"{table.where}: column {name!r} holds {value!r} in row {row} (counted from "
                    "0), an unpaired surrogate. Write the file again as valid UTF-8."
                )
    if label is None:
        return Split(texts, None, columns, numbers, types=table.types)
    labels = _read_labels(table, label, options.label_separator)
    rows = [row for row, value in enumerate(labels) if not _is_missing(value)]
    split = Split(texts, labels, columns, numbers)
    if len(rows) < len(labels):
        split = replace(split.take(rows), n_unlabeled=len(labels) - len(rows))
    labels = split.labels or ()
    for row, value in zip(split.rows, labels, strict=True):
        if any(map(_cannot_be_saved, each_label(value))):
            raise DataError(
                f"{table.where}: the label in row {row} (counted from 0) is {value!r}, which "
                "cannot be saved. Correct it."
            )
    kinds = {type(value): row for row, value in reversed(list(enumerate(labels)))}
    if len(kinds) > 1 or not set(kinds) <= {str, int, bool, float, LabelSet}:
        places = sorted(kinds.values())
        found = ", ".join(f"{_kind(labels[row])} in row {split.rows[row]}" for row in places)
        raise DataError(
            f"{table.where}: column {label!r} holds {found} (counted from 0). Labels must all be "
            "strings, or all be integers, booleans or numbers: one class for each text; or all be "
            "lists of labels. Convert them, or choose another --label-column (label_column= in "
            "Python)."
        )
    return split


def _read_labels(table: Table, label: str, separator: str | None) -> tuple[Any, ...]:
    """A label or a `LabelSet` for each row; None, NaN or blank where there is none."""
    names = split_names(table.names, label)
    if len(names) > 1:
        columns = [_flags(table, name) for name in names]
        return tuple(
            LabelSet(name for name, own in zip(names, row, strict=True) if own)
            for row in zip(*columns, strict=True)
        )
    values = tuple(table.column(label))
    if any(isinstance(value, list) for value in values):
        return tuple(
            _label_set(table, label, row, value)
            for row, value in enumerate(values, table.first_row)
        )
    if separator:
        return tuple(LabelSet(_parts(value, separator)) for value in values)
    if separator is None:
        _refuse_joined(table, label, values)
    return values


def _parts(value: object, separator: str) -> list[str]:
    """The labels in a cell; one that is empty holds none."""
    text = "" if value is None or value != value else str(value)
    return [part.strip() for part in text.split(separator) if part.strip()]


def _label_set(table: Table, label: str, row: int, value: object) -> object:
    """A list as a set; what else there is, as it is."""
    if not isinstance(value, list):
        return value
    kinds = {type(own) for own in value}
    if len(kinds) > 1 or not kinds <= {str, int, bool, float}:
        raise DataError(
            f"{table.where}: column {label!r} holds the list {value!r} in row {row} (counted from "
            "0). Labels in lists must all be strings, or all be integers, booleans or numbers."
        )
    return LabelSet(own for own in value if not _is_missing(own))


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def _flags(table: Table, name: str) -> list[bool]:
    """A column that says of each row whether it has the label of the column's name."""
    values = table.column(name)
    found = [_FLAGS.get(str(value).strip().casefold()) for value in values]
    if None in found:
        row = found.index(None)
        raise DataError(
            f"{table.where}: column {name!r} holds {values[row]!r} in row "
            f"{row + table.first_row} (counted from 0), where 0 or 1 is expected: each of several "
            "label columns says whether a text has that label. For one label a text, name one "
            "column."
        )
    return [bool(own) for own in found]


def _refuse_joined(table: Table, label: str, values: Sequence[Any]) -> None:
    """Refuse cells such as ``A;B`` beside ``A`` and ``B``: nobody would notice the new class."""
    first: dict[str, int] = {}
    for row, value in enumerate(values, start=table.first_row):
        if isinstance(value, str):
            first.setdefault(value.strip(), row)
    for separator in _SEPARATORS:
        for cell, row in first.items():
            parts = _parts(cell, separator)
            if len(parts) > 1 and all(part in first for part in parts):
                raise DataError(
                    f"{table.where}: the label {cell!r} in row {row} (counted from 0) looks like "
                    f"{len(parts)} labels, as others are {' and '.join(map(repr, parts[:3]))}. Say "
                    f"--label-separator '{separator}' (label_separator= in Python) to read it so, "
                    "or --label-separator '' to read each cell as one label."
                )


def _cannot_be_saved(label: object) -> bool:
    unpaired = isinstance(label, str) and SURROGATE.search(label) is not None
    return unpaired or label in (math.inf, -math.inf)


def _texts(table: Table, text: str, missing: str | None) -> tuple[str, ...]:
    """A checked column of texts; ``missing`` stands for a value that is not there."""
    texts = tuple(table.column(text))
    if not texts:
        raise DataError(f"{table.where} has no rows. Give a file with at least one text.")
    if missing is not None:
        texts = tuple(missing if _is_missing(value) else value for value in texts)
    _refuse_missing(table, text, texts, "Write an empty string, or remove the rows.")
    for row, value in enumerate(texts, start=table.first_row):
        if not isinstance(value, str):
            raise DataError(
                f"{table.where}: column {text!r} holds {_kind(value)} in row {row} (counted from "
                "0), where a string is expected. Convert it, or choose another --text-column "
                "(text_column= in Python)."
            )
        if SURROGATE.search(value):
            raise DataError(
                f"{table.where}: the text in row {row} (counted from 0) contains an unpaired "
                "surrogate. Write the file again as valid UTF-8."
            )
    return texts


def _is_missing(value: object) -> bool:
    # a float that differs from itself is NaN, which is how pandas writes a missing value
    return value is None or value != value or (isinstance(value, str) and not value.strip())


class _Reader(HTMLParser):
    """Collects the text of a page as a reader sees it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in _UNSEEN
        self.parts.append("" if tag in _INLINE else " ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _UNSEEN and self._hidden > 0
        self.parts.append("" if tag in _INLINE else " ")

    def handle_data(self, data: str) -> None:
        self.parts.append("" if self._hidden else data)


def strip_html(text: str) -> str:
    """What a reader sees of HTML: without tags, scripts and styles, entities as characters.

    Examples
    --------
    >>> strip_html("<p>Where is my <b>par</b>cel?</p>Tom &amp; Ann<style>p {}</style>")
    'Where is my parcel? Tom & Ann'
    """
    if "<" not in text and "&" not in text:
        return text
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return " ".join("".join(reader.parts).split())


def _common(table: Table, common: tuple[str, ...], taken: str | None) -> str | None:
    """The column with the first of the common names, as it is or in another case."""
    others = [name for name in table.names if name != taken]
    names = {name.casefold(): name for name in others} | {name: name for name in others}
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
