"""Columns of a table beside the text, as numbers: amounts, categories, dates.

Frozen like the other encoders, in that no label takes part; what the values of a column look like
(its quantiles, its categories) is learned from the training rows.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from layerfuse.data import TEXT_NAMES
from layerfuse.errors import DataError
from layerfuse.folds import normalize
from layerfuse.labels import SURROGATE, Column, as_list, is_missing

Floats = npt.NDArray[np.float32]

TableColumns: TypeAlias = Mapping[str, Sequence[object]]
"""Columns by name, n values each."""

_MOST_CATEGORIES = 100
_FEWEST_ROWS = 2  # of a category
_EMPTY = {"", "n/a", "na", "nan", "none", "null", "-", "?"}
_MOSTLY = 0.5  # share of values that tells what a column is meant to hold
_BINS = 10
_LARGEST = 1e150  # whose square can be averaged
_FAR = 5.0  # standard deviations at which a number is clipped
_SECONDS = 86_400  # of a day
_EPOCH, _SECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(seconds=1)


class _Column(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str


class NumberColumn(_Column):
    """Its standardized value, clipped, and the tenth of the training values that it is in."""

    kind: Literal["number"] = "number"
    mean: float
    scale: float
    edges: tuple[float, ...]

    @classmethod
    def fit(cls, name: str, values: npt.NDArray[np.float64]) -> NumberColumn:
        """Learn from values (n,), NaN where one is missing."""
        known = values[~np.isnan(values)]
        edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
        scale = float(known.std())
        return cls(
            name=name,
            mean=float(known.mean()),
            scale=1 / scale if scale > 0 else 0.0,
            edges=tuple(edges.tolist()),
        )

    def transform(self, values: Sequence[object], rows: Sequence[int] | None = None) -> Floats:
        """Features (n, 3 + number of edges); of a missing value only the last one is set."""
        return self.spread(_parse(values, _number, self.name, "a number", rows))

    def spread(self, numbers: npt.NDArray[np.float64]) -> Floats:
        """`transform` of numbers (n,), NaN where one is missing."""
        missing = np.isnan(numbers)
        far = np.clip((numbers - self.mean) * self.scale, -_FAR, _FAR)
        places = np.searchsorted(
            np.array(self.edges), np.where(missing, 0.0, numbers), side="right"
        )
        tenth = np.eye(len(self.edges) + 1)[places]
        tenth[missing] = 0.0
        return np.column_stack([np.where(missing, 0.0, far), tenth, missing]).astype(np.float32)


class DateColumn(_Column):
    """Its day, standardized, and its month, weekday and hour."""

    kind: Literal["date"] = "date"
    days: NumberColumn

    @classmethod
    def fit(cls, name: str, values: npt.NDArray[np.float64]) -> DateColumn:
        """Learn from seconds (n,), NaN where one is missing."""
        return cls(name=name, days=NumberColumn.fit(name, values / _SECONDS))

    def transform(self, values: Sequence[object], rows: Sequence[int] | None = None) -> Floats:
        """Features (n, n_features); of a missing value only the last one is set."""
        seconds = _parse(values, _seconds, self.name, "a date", rows)
        parts = np.zeros((len(values), 12 + 7 + 8), dtype=np.float32)
        for row, second in enumerate(seconds.tolist()):
            if not math.isnan(second):
                moment = _EPOCH + timedelta(seconds=second)
                parts[row, [moment.month - 1, 12 + moment.weekday(), 19 + moment.hour // 3]] = 1.0
        return np.hstack([parts, self.days.spread(seconds / _SECONDS)])


class CategoryColumn(_Column):
    """Which of the frequent values it is, or another one."""

    kind: Literal["category"] = "category"
    values: tuple[str, ...]

    @classmethod
    def fit(
        cls, name: str, values: Sequence[object], rows: Sequence[int] | None = None
    ) -> CategoryColumn:
        """Learn from values (n,) of any kind; ``rows`` are their numbers, if not 0 to n - 1.

        Raises
        ------
        DataError
            For a value that cannot be saved, and where hardly a value repeats, as in a column of
            ids or texts.
        """
        found = list(map(_category, values))
        for row, value in enumerate(values):
            signaling = isinstance(value, Decimal) and value.is_snan()
            if signaling or SURROGATE.search(found[row]):
                at = row if rows is None else rows[row]
                raise DataError(
                    f"Column {name!r} holds {value!r} in row {at} (counted from 0), which cannot "
                    "be saved. Correct it, or leave it empty."
                )
        counts = Counter(found)
        if len(counts) > max(_MOST_CATEGORIES, 2) and len(counts) > len(values) / 2:
            raise DataError(
                f"Column {name!r} has {len(counts):,} different values in {len(values):,} rows, "
                "like ids or free text. Write numbers like 1748.20 and dates like 2026-08-31; "
                "otherwise leave it out of the columns, or add it to the texts."
            )
        frequent = counts.most_common(_MOST_CATEGORIES)
        kept = [value for value, count in frequent if count >= _FEWEST_ROWS]
        return cls(name=name, values=tuple(sorted(kept)))

    def transform(self, values: Sequence[object], rows: Sequence[int] | None = None) -> Floats:
        """Features (n, 1 + number of values); the last is that of all other values."""
        numbers = {value: number for number, value in enumerate(self.values)}
        codes = [numbers.get(_category(value), len(numbers)) for value in values]
        return np.eye(len(numbers) + 1, dtype=np.float32)[codes]


class ColumnEncoder(BaseModel):
    """From some columns of a table to features.

    Attributes
    ----------
    columns : tuple of NumberColumn, DateColumn or CategoryColumn

    Examples
    --------
    >>> encoder = ColumnEncoder.fit({"amount": [1.5, 20, None], "plan": ["free", "free", "pro"]})
    >>> [column.kind for column in encoder.columns]
    ['number', 'category']
    >>> encoder.transform({"amount": ["7"], "plan": ["gold"]}).shape
    (1, 14)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[
        Annotated[NumberColumn | DateColumn | CategoryColumn, Field(discriminator="kind")], ...
    ]

    @classmethod
    def fit(cls, table: TableColumns, rows: Sequence[int] | None = None) -> ColumnEncoder:
        """Learn what is in each column: numbers, dates (ISO 8601), else categories.

        Raises
        ------
        DataError
            For a column without a value, or one of ids or texts.
        """
        return cls(columns=tuple(_fit(name, values, rows) for name, values in table.items()))

    def transform(self, table: TableColumns, rows: Sequence[int] | None = None) -> Floats:
        """Features (n, n_features) of n rows; ``rows`` are their numbers, if not 0 to n - 1.

        Raises
        ------
        DataError
            For values that are not of their column's kind.
        """
        return np.hstack([own.transform(table[own.name], rows) for own in self.columns])


def is_table(X: object) -> bool:
    """Whether it is a DataFrame, an Arrow table or a mapping of columns."""
    return isinstance(X, Mapping) or hasattr(X, "column_names") or hasattr(X, "columns")


def take_columns(X: Any, names: Sequence[str]) -> tuple[Column, TableColumns]:
    """The texts and the columns ``names`` of a table: a DataFrame, an Arrow table or a mapping.

    The texts are in the column with a common name, such as "text", or in the only other one.

    Raises
    ------
    DataError
        For what is not a table, lacks a column, or has no column that is plainly the text.
    """
    if not is_table(X):
        raise DataError(
            f"Got a {type(X).__name__}, but the classifier reads columns beside the texts: "
            f"{', '.join(names)}. Give a table with these, such as a DataFrame."
        )
    found = {str(name): name for name in getattr(X, "column_names", getattr(X, "columns", X))}
    others = [name for name in found if name not in names]
    texts = next((name for name in TEXT_NAMES if name in others), None)
    if texts is None and len(others) == 1:
        texts = others[0]
    if texts is None:
        raise DataError(
            f"The table has no column that is plainly the text, beside {', '.join(names)}. Name "
            f"it 'text'. Its columns are: {', '.join(found)}."
        )
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"The table has no column {missing[0]!r}, which the classifier reads beside the "
            f"texts. Its columns are: {', '.join(found)}."
        )
    column = as_list(X[found[texts]], "texts")
    table = {name: as_list(X[found[name]], f"values of {name}") for name in names}
    for name, values in table.items():
        if len(values) != len(column):
            raise DataError(
                f"There are {len(column)} texts but {len(values)} values of {name!r}. Give one for "
                "each text."
            )
    return column, table


def _fit(
    name: str, values: Sequence[object], rows: Sequence[int] | None
) -> NumberColumn | DateColumn | CategoryColumn:
    if all(map(_is_empty, values)):
        raise DataError(f"Column {name!r} has no value in any row. Leave it out of the columns.")
    for kind, parse, what in (
        (NumberColumn, _number, "a number"),
        (DateColumn, _seconds, "a date"),
    ):
        try:
            return kind.fit(name, _parse(values, parse, name, what, rows))
        except DataError:
            if _share(values, parse) > _MOSTLY:
                raise
    return CategoryColumn.fit(name, values, rows)


def _share(values: Sequence[object], parse: Callable[[object], float]) -> float:
    """The share of values, of those that are not missing, that can be parsed."""
    known = [value for value in values if not _is_empty(value)]
    parsed = 0
    for value in known:
        with contextlib.suppress(ValueError, OverflowError):
            parse(value)
            parsed += 1
    return parsed / len(known)


def _parse(
    values: Sequence[object],
    parse: Callable[[object], float],
    name: str,
    what: str,
    rows: Sequence[int] | None = None,
) -> npt.NDArray[np.float64]:
    """Values (n,) as numbers, NaN where one is missing."""
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if not _is_empty(value):
            try:
                numbers[row] = parse(value)
            except (ValueError, OverflowError) as error:
                at = row if rows is None else rows[row]
                raise DataError(
                    f"Column {name!r} holds {value!r} in row {at} (counted from 0), where {what} "
                    "is expected, as in other rows. Correct it, or leave it empty."
                ) from error
    return numbers


def _is_empty(value: object) -> bool:
    return is_missing(value) or (isinstance(value, str) and normalize(value) in _EMPTY)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError
    number = float(value)
    if abs(number) > _LARGEST:
        raise ValueError
    return number


def _seconds(value: object) -> float:
    """Seconds since 1970 of a date or time, in UTC where it has no zone."""
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001
    moment = datetime.fromisoformat(value.strip()) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise ValueError
    zoned = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    zoned = zoned.astimezone(UTC)  # or OverflowError: UTC may be beyond year 9999
    return (zoned - _EPOCH) // _SECOND  # a float of the very last moment is in year 10000


def _category(value: object) -> str:
    """One spelling of what CSV, parquet and pandas hold as "7", 7 and 7.0, "true" and True."""
    if _is_empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return text.lower() if text.lower() in ("true", "false") else text
