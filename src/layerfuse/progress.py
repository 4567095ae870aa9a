"""How long work tells what it does: a reporter is handed down, and the library never prints."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["SILENT", "Advance", "Reporter"]


class Advance(Protocol):
    """Called with the number of items that were just finished."""

    def __call__(self, count: int, /) -> None: ...


class Reporter(Protocol):
    """Receives decisions as lines and long steps as tasks."""

    def note(self, line: str) -> None:
        """One line about something that was decided or noticed."""

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """A long step over ``total`` items of ``unit``."""


class _Silent:
    def note(self, line: str) -> None:
        """Say nothing."""

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return nullcontext(lambda count: None)


SILENT: Reporter = _Silent()
