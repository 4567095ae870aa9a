"""What a run folder holds beside ``report.json`` for the page: findings, and one line a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.errors import FormatError, NotFoundError
from layerfuse.files import atomic_write, read_json, write_json

__all__ = ["Predicted", "read_details", "read_rows", "write_details"]

_KIND, _VERSION = "layerfuse-details", 1
_JSON, _ROWS = "details.json", "rows.parquet"

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predicted:
    """What the pipeline said of n rows that it had not seen.

    ``rows`` are their numbers in their split, ``truth`` and ``predicted`` class indices,
    ``confidence`` the probability of the predicted class and ``own`` that of the true one; all
    (n,).
    """

    rows: Ints
    truth: Ints
    predicted: Ints
    confidence: Floats
    own: Floats

    @classmethod
    def of(
        cls, truth: npt.NDArray[np.intp], proba: npt.NDArray[np.floating], rows: Any = None
    ) -> Predicted:
        """From class indices (n,) and probabilities (n, n_classes); rows are counted by default."""
        numbers = np.arange(len(truth))
        predicted = proba.argmax(axis=1)
        return cls(
            np.asarray(numbers if rows is None else rows, dtype=np.int32),
            truth.astype(np.int32),
            predicted.astype(np.int32),
            proba[numbers, predicted].astype(np.float32),
            proba[numbers, truth].astype(np.float32),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.truth == self.predicted)


def write_details(
    folder: Path, details: Mapping[str, Any], predicted: Mapping[str, Predicted]
) -> None:
    """Write ``details.json`` and ``rows.parquet``; ``predicted`` goes by ``cv`` and ``test``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_json(folder / _JSON, {"format": _KIND, "format_version": _VERSION, **details})
    columns: dict[str, Any] = {
        "measured": [name for name, rows in predicted.items() for _ in range(len(rows))]
    }
    for field in Predicted.__dataclass_fields__:
        columns[field] = np.concatenate([getattr(rows, field) for rows in predicted.values()])
    with atomic_write(folder / _ROWS) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def read_details(folder: Path) -> dict[str, Any]:
    """The findings.

    Raises
    ------
    NotFoundError, FormatError
        When they are not there or cannot be read.
    """
    return read_json(folder / _JSON, kind=_KIND, version=_VERSION)


def read_rows(folder: Path, n_classes: int) -> dict[str, Predicted]:
    """Predicted rows by ``cv`` and ``test``.

    Raises
    ------
    NotFoundError
        When there is no such file.
    FormatError
        When it is damaged or does not fit ``n_classes``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / _ROWS
    if not path.is_file():
        raise NotFoundError(f"There is no {_ROWS} in {folder}. Run `layerfuse fit` again.")
    try:
        table = pq.read_table(path, memory_map=False)
        measured = np.asarray(table["measured"].to_pylist(), dtype=object)
        arrays = {name: table[name].to_numpy() for name in Predicted.__dataclass_fields__}
        found = {
            name: Predicted(**{field: array[measured == name] for field, array in arrays.items()})
            for name in dict.fromkeys(measured)
        }
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged and cannot be read: {error}") from error
    for rows in found.values():
        for classes in (rows.truth, rows.predicted):
            if len(classes) and not 0 <= classes.min() <= classes.max() < n_classes:
                raise FormatError(f"{path} names classes that the run does not have.")
    return found
