"""Notes and progress on standard error, results on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from layerfuse.progress import Advance

__all__ = ["TerminalReporter", "console", "percent", "plain_table"]

_BAR = 20  # characters, so that a line fits 80
_LINE_S = 15  # seconds between two lines of a long step where no bar can be drawn
# A label may look like markup, and "llama:100:mean" holds the name of an emoji.
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


def console() -> Console:
    """Standard output; piped output is plain and at least as wide as the tables need."""
    return Console(width=None if sys.stdout.isatty() else 100, **_AS_IT_IS)


def plain_table(title: str) -> Table:
    """A table without vertical lines: with them, five columns do not fit 80 characters."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def percent(share: float) -> str:
    """A share from 0 to 1 in percent, with one decimal."""
    return f"{100 * share:.1f}"


def _per_second(rate: float) -> str:
    """Three digits, or a whole number."""
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


class _Notes(Console):
    """Standard error; when nobody reads it any more, the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TerminalReporter:
    """Writes notes as lines, and draws a bar with rate and time left on a terminal.

    Elsewhere a long step says how far it is four times a minute. When it is ``verbose``, the end of
    each step is a line too.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._console = _Notes(stderr=True, **_AS_IT_IS)
        self._verbose = verbose

    def note(self, line: str) -> None:
        self._console.print(f"· {line}", style="dim", soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        started, done = time.perf_counter(), 0
        with self._bar(name, total, unit) as draw:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                draw(count)

            yield advance
        if self._verbose:
            seconds = time.perf_counter() - started
            counted = total > 1 and seconds > 0
            count, rate = f"{done:,} {unit} in ", f", {_per_second(done / max(seconds, 1e-9))}"
            self.note(f"{name}: {count * counted}{seconds:.1f} s{rate * counted}")

    @contextmanager
    def _bar(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        if not self._console.file.isatty():  # is_terminal is true of a pipe under FORCE_COLOR
            yield self._tell(name, total, unit)
            return
        title = TextColumn("{task.description}", markup=False)
        columns: tuple[ProgressColumn, ...] = (
            title,
            BarColumn(bar_width=_BAR),
            MofNCompleteColumn(),
            TextColumn(f"{unit}, {{task.fields[rate]}}"),
            TimeRemainingColumn(compact=True),
        )
        if total == 1:  # one thing has no rate, and nobody knows how much of it is left
            columns = (title, BarColumn(bar_width=_BAR), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=None if total == 1 else total, rate="–")

            def advance(count: int) -> None:
                progress.advance(task, count)
                speed = progress.tasks[0].speed
                if speed:
                    progress.update(task, rate=_per_second(speed))

            yield advance

    def _tell(self, name: str, total: int, unit: str) -> Advance:
        """Says how far it is, now and then."""
        done, told = 0, time.perf_counter()

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            if time.perf_counter() - told >= _LINE_S:
                told = time.perf_counter()
                self.note(f"{name}: {done:,} of {total:,} {unit}")

        return advance
