"""Texts and labels as people hold them: lists, Series, arrays, Arrow columns; and their classes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import DataError

__all__ = ["Column", "as_list", "find_classes", "is_missing", "label_array"]

Column: TypeAlias = Iterable[Any]
"""A list, tuple, numpy array, pandas or polars Series, or Arrow array of n values."""

_TO_LIST = ("to_pylist", "to_list", "tolist")  # Arrow; polars and pandas; numpy and torch


def as_list(values: Column | None, what: str) -> list[Any]:
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


def find_classes(y: Column | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """The distinct labels, and for each row the number of its label.

    Labels may be of any hashable kind. They are sorted where Python can compare them, else they
    stand in the order of their first rows.

    Parameters
    ----------
    y
        Labels (n,).

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
    first: dict[Hashable, Any] = {}
    for row, label in enumerate(labels):
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


def is_missing(value: Any) -> bool:
    """Whether it is None, NaN, NaT or pandas' NA."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # NA is not even true or false
        return True


def _plain(value: Any) -> Any:
    """The Python value inside of numpy's or Arrow's wrapping."""
    if isinstance(value, np.generic) and value.dtype.kind not in "Mm":
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def label_array(labels: Sequence[Any]) -> npt.NDArray[Any]:
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
