"""Notes and progress on standard error, results on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layerfuse.events import Advance

__all__ = ["TerminalReporter", "console"]


def console() -> Console:
    """Standard output; piped output is plain and at least as wide as the tables need."""
    return Console(width=None if sys.stdout.isatty() else 100, soft_wrap=False)


class TerminalReporter:
    """Writes notes as lines, and draws a bar with rate and time left on a terminal only."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def note(self, line: str) -> None:
        self._console.print(f"· {line}", style="dim", markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        if not self._console.is_terminal:
            yield lambda count: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(f"{unit}, {{task.fields[rate]}}/s"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=total, rate="–")

            def advance(count: int) -> None:
                progress.advance(task, count)
                speed = progress.tasks[0].speed
                if speed:
                    progress.update(task, rate=f"{speed:.3g}")

            yield advance
