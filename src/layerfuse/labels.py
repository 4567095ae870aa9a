"""Labels as users hold them: columns of one label a row, lists of labels, indicator matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError

Column: TypeAlias = Iterable[object]
"""A list, tuple, numpy array, pandas or polars Series, or Arrow array of n values."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character, which JSON can hold and no UTF-8."""

_TO_LIST = ("to_pylist", "to_list", "tolist")  # Arrow; polars and pandas; numpy and torch


def as_list(values: Column | None, what: str) -> list[object]:
    """The values of a column as plain Python values; ``what`` names them in messages.

    Raises
    ------
    DataError
        For a single value, a table, or what has no order.
    """
    if values is None or isinstance(values, (str, bytes)):
        got = "nothing" if values is None else "one string"
        raise DataError(f"Got {got} where {what} are expected. Give a list of them, even of one.")
    names = getattr(values, "column_names", getattr(values, "columns", None))
    if names is not None or isinstance(values, (Mapping, Set)):
        columns = ", ".join(map(str, list(values if names is None else names)[:10]))
        raise DataError(
            f"Got a {type(values).__name__} where a column of {what} is expected. Give one column "
            f"of it, such as data['text'], or a list; it holds: {columns}."
        )
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DataError(
            f"Got an array of shape {tuple(shape)} where {what} of shape (n,) are expected. Give "
            "one column of it, such as values[:, 0]."
        )
    for name in _TO_LIST:
        if hasattr(values, name) and getattr(values, "dtype", None) not in _TIMES:
            return [_plain(value) for value in getattr(values, name)()]
    try:
        if hasattr(values, "__array__") and not hasattr(values, "__iter__"):
            return as_list(np.asarray(values), what)
        return [_plain(value) for value in values]
    except TypeError as error:
        raise DataError(
            f"Got {values!r} ({type(values).__name__}) where {what} are expected. Give a list."
        ) from error


_TIMES = tuple(np.dtype(f"{kind}8[{unit}]") for kind in "Mm" for unit in ("ns", "ps", "fs", "as"))
"""Times too fine for Python's own, which ``tolist`` turns into bare integers."""


def find_classes(
    y: Column | None, rows: Sequence[int] | None = None
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.intp]]:
    """The distinct labels, and for each row the number of its label.

    Labels may be of any hashable kind. They are sorted where Python can compare them, else they
    stand in the order of their first rows.

    Parameters
    ----------
    y
        Labels (n,).
    rows
        Their rows in messages, if not 0 to n - 1.

    Returns
    -------
    classes, codes
        Labels (n_classes,), of dtype object where no plain dtype holds them as they are, and
        class indices (n,).

    Raises
    ------
    DataError
        For a missing label, one that cannot be hashed, or two that are equal but of two types.
    """
    if type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "biu":
        classes, codes = np.unique(y, return_inverse=True)
        return classes, codes
    labels = as_list(y, "labels")
    first: dict[Hashable, object] = {}
    for row, label in zip(rows or range(len(labels)), labels, strict=True):
        try:
            same = first.setdefault(label, label)
        except TypeError as error:
            raise DataError(
                f"The label of row {row} is {label!r} ({type(label).__name__}), which cannot be "
                "hashed. Give one label for each text, such as a string, a number or a tuple."
            ) from error
        if is_missing(label):
            raise DataError(f"Row {row} has no label ({label!r}). Drop such rows, or label them.")
        if type(same) is not type(label):
            raise DataError(
                f"The labels {same!r} ({type(same).__name__}) and {label!r} "
                f"({type(label).__name__}, row {row}) are equal to Python. Give labels of one kind."
            )
    try:
        ordered = sorted(first)  # type: ignore[type-var]
    except TypeError:
        ordered = list(first)
    numbers = {label: number for number, label in enumerate(ordered)}
    codes = np.fromiter((numbers[label] for label in labels), dtype=np.intp, count=len(labels))
    return label_array(ordered), codes


class LabelSet(frozenset[Hashable]):
    """The labels of a text in a table; its text is that of a cell that holds them.

    Examples
    --------
    >>> str(LabelSet(["law", "art"]))
    'art; law'
    """

    def __str__(self) -> str:
        return "; ".join(sorted(map(str, self)))


def each_label(label: object) -> Iterable[object]:
    """The labels of a `LabelSet`, or the one that it is."""
    return label if isinstance(label, LabelSet) else (label,)


_SETS = (list, set, frozenset)

Members: TypeAlias = npt.NDArray[np.bool_]


def find_label_sets(y: Column | None) -> tuple[npt.NDArray[np.generic], Members] | None:
    """The distinct labels (n_labels,), and which of them each row has (n, n_labels).

    None for a column of one label a row. Several labels a row come as lists, sets or frozensets
    (tuples are single labels), or as an indicator matrix of 0 and 1: an array, a sparse matrix or
    a DataFrame, whose columns are the labels.

    Raises
    ------
    DataError
        For rows of both kinds, and labels that `find_classes` refuses.

    Examples
    --------
    >>> classes, members = find_label_sets([["art"], ["art", "law"], []])
    >>> classes.tolist(), members.astype(int).tolist()
    (['art', 'law'], [[1, 0], [1, 1], [0, 0]])
    """
    found = _indicator(y)
    if found is None and getattr(y, "dtype", None) in (None, object):  # no other holds lists
        return _label_sets(y)
    return found


def _indicator(y: object) -> tuple[npt.NDArray[np.generic], Members] | None:
    """An indicator matrix with at least two columns, else None."""
    shape: tuple[int, ...] = getattr(y, "shape", ())
    if len(shape) != 2 or shape[1] < 2:
        return None
    table = np.asarray(y.toarray() if hasattr(y, "toarray") else y)  # scipy's are sparse
    names = getattr(y, "column_names", getattr(y, "columns", None))
    if names is not None and table.dtype == object:  # pandas' dtypes with NA
        with suppress(TypeError, ValueError):
            table = table.astype(np.float64)
    if table.dtype.kind not in "biuf" or not np.isin(table, (0, 1)).all():
        return None
    if names is None:
        return np.arange(shape[1]), table.astype(bool)
    labels = as_list(list(names), "labels")
    if len(set(labels)) < len(labels) or any(map(is_missing, labels)):
        raise DataError(
            f"Each column of the table is a label, but one of {labels[:10]} has no name or that of "
            "another. Give each its own name."
        )
    return label_array(labels), table.astype(bool)


def _label_sets(y: Column | None) -> tuple[npt.NDArray[np.generic], Members] | None:
    """Lists or sets of labels, else None."""
    own = as_list(y, "labels")
    if not any(isinstance(value, _SETS) for value in own):
        return None
    for row, value in enumerate(own):
        if not isinstance(value, _SETS):
            raise DataError(
                f"The label of row {row} is {value!r} ({type(value).__name__}), while others are "
                "lists of labels. Give a list for each row: an empty one where it has no label."
            )
    if _is_matrix(own):
        raise DataError(
            "The labels are lists of 0 and 1, all of one length: rows of an indicator matrix, not "
            "lists of labels. Give the matrix as an array: numpy.array(y)."
        )
    pairs = [(row, label) for row, value in enumerate(own) for label in value]  # type: ignore[attr-defined]
    rows = [row for row, _ in pairs]
    classes, codes = find_classes([_plain(label) for _, label in pairs], rows)
    members = np.zeros((len(own), len(classes)), dtype=bool)
    members[rows, codes] = True
    return classes, members


def _is_matrix(rows: Sequence[object]) -> bool:
    """Whether lists are rows of an indicator matrix: 0 and 1, one of them twice in some row."""
    lists = [row for row in rows if isinstance(row, list)]
    return (
        len(lists) == len(rows)
        and len({len(row) for row in lists}) == 1
        and all(isinstance(value, int | float) and value in (0, 1) for r in lists for value in r)
        and any(len(set(row)) < len(row) for row in lists)
    )


def is_missing(value: object) -> bool:
    """Whether it is None, NaN, NaT or pandas' NA."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # NA is not even true or false
        return True
    except ArithmeticError:  # a signaling NaN of decimal: what reads the value refuses it
        return False


def _plain(value: object) -> object:
    """The Python value inside of numpy's or Arrow's wrapping."""
    if isinstance(value, np.ndarray) and value.ndim:
        return value.tolist()
    if isinstance(value, np.generic) and value.dtype.kind not in "Mm":
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def label_array(labels: Sequence[object]) -> npt.NDArray[np.generic]:
    """Labels (n,) in a plain dtype where it gives back the very same values, else as objects."""
    if len({type(label) for label in labels}) == 1 and type(labels[0]) in (str, bool, int, float):
        array = np.array(labels)
        # a str that ends in NUL and an int above 64 bits come back as something else
        if array.tolist() == list(labels) and array.dtype != object:
            return array
    array = np.empty(len(labels), dtype=object)
    for number, label in enumerate(labels):  # numpy would take tuples apart
        array[number] = label
    return array


def unsaved_kinds(labels: Iterable[object]) -> list[str]:
    """The kinds among the labels that a bundle cannot hold, a number or text as it is; it holds str
    that UTF-8 can encode, int, finite float and bool.
    """
    odd = [label for label in labels if not _is_saved(label)]
    return sorted(
        {repr(label) if type(label) in (float, str) else type(label).__name__ for label in odd}
    )


def _is_saved(label: object) -> bool:
    if isinstance(label, str):
        return type(label) is str and not SURROGATE.search(label)
    return type(label) in (int, bool) or (type(label) is float and math.isfinite(label))
