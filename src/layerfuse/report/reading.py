"""A run folder read back: everything that the page needs, and nothing that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerfuse.errors import FormatError, NotFoundError
from layerfuse.report.details import Predicted, read_details, read_rows

__all__ = ["Run", "read_object", "read_run"]


@dataclass(frozen=True)
class Run:
    """A run.

    ``result`` is ``report.json``, ``details`` the findings beside it, ``rows`` predictions by
    ``cv`` and ``test``, ``curve`` a learning curve if the folder holds ``curve.json``.
    """

    folder: Path
    result: Mapping[str, Any]
    details: Mapping[str, Any]
    rows: Mapping[str, Predicted]
    curve: Mapping[str, Any] | None

    @property
    def where(self) -> str:
        """The rows that figures come from: ``test`` if there are test rows, else ``cv``."""
        return "test" if self.result["test"] else "cv"

    @property
    def rows_in_words(self) -> str:
        return "test rows" if self.where == "test" else "training rows, out of fold"

    @property
    def chosen(self) -> list[tuple[str, int, str]]:
        """Encoder, layer and pooling of each block, in the order of choosing."""
        blocks = self.result["selection"]["blocks"]
        return [(block["encoder"], block["layer"], block["pooling"]) for block in blocks]


def read_run(folder: Path) -> Run:
    """Read a run folder of ``fit`` or ``demo``.

    Raises
    ------
    NotFoundError
        When it is not there, or not a run folder.
    FormatError
        When a file in it is damaged.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise NotFoundError(f"{folder} {what}. Give a run folder that `layerfuse fit` has written.")
    result = read_object(folder / "report.json")
    if result is None:
        raise NotFoundError(
            f"There is no report.json in {folder}. Give a run folder that `layerfuse fit` has "
            "written."
        )
    details = read_details(folder)
    return Run(
        folder=folder,
        result=result,
        details=details,
        rows=read_rows(folder, len(details["classes"])),
        curve=read_object(folder / "curve.json"),
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None where there is no file.

    Raises
    ------
    FormatError
        When the file is damaged or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} should hold one object, not a {type(value).__name__}.")
    return value
