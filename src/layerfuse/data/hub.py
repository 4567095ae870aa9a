"""Datasets of the Hugging Face Hub, read with the optional package ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layerfuse.data.columns import Table, find_columns, to_split
from layerfuse.data.dataset import Split, TextDataset
from layerfuse.errors import DataError, NotFoundError, require


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
