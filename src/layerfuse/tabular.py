"""Results as tables: a pandas DataFrame, or HTML for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from layerfuse.errors import require

if TYPE_CHECKING:
    import pandas as pd


Records = Sequence[Mapping[str, Any]]


def to_frame(records: Records, what: str) -> pd.DataFrame:
    """A row for each record; ``what`` says in a message what the table is of.

    Raises
    ------
    MissingExtraError
        Without the package ``pandas``.
    """
    pandas = require("pandas", "pandas", f"A table of {what}")
    frame: pd.DataFrame = pandas.DataFrame.from_records(list(records))
    return frame


def to_html(caption: str, records: Records) -> str:
    """A plain table, everything in it escaped; numbers stand to the right."""
    names = list(records[0]) if records else []
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(_cell(record[name]) for name in names)}</tr>" for record in records
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td style="text-align: right">{shown}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"
