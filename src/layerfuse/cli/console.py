"""Output of commands: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, TextIO

from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from layerfuse.cli_options import OUTPUT, option
from layerfuse.progress import SILENT, Advance, Reporter

_BAR = 20  # characters, so that a line fits 80
_LINE_S = 15  # seconds between two lines of a long step where no bar can be drawn
# Controls but for the tab and the end of a line, and marks that turn the direction of writing.
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_VOLUME = Group("Volume", show=False, validator=mutually_exclusive)
_flag = partial(option, negative=(), show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command prints; options of every command."""

    as_json: Annotated[
        bool, _flag("Print one JSON object on standard output.", "--json", group=OUTPUT)
    ] = False
    quiet: Annotated[
        bool, _flag("No progress and no notes.", "--quiet", "-q", group=(OUTPUT, _VOLUME))
    ] = False
    verbose: Annotated[
        bool, _flag("Show timings and tracebacks.", "--verbose", "-v", group=(OUTPUT, _VOLUME))
    ] = False

    @property
    def reporter(self) -> Reporter:
        """Where notes and progress go."""
        return SILENT if self.quiet else TerminalReporter(verbose=self.verbose)

    def show(self, result: object) -> None:
        """Print a command's result, for people or as one JSON object."""
        if self.as_json:
            print_json(result)
        else:
            from layerfuse.report.terminal import render

            render(result, console())


def print_json(result: object) -> None:
    """One object on one line; NaN is refused, which JSON does not have."""
    from pydantic_core import to_jsonable_python

    line = json.dumps(to_jsonable_python(result), ensure_ascii=False, allow_nan=False)
    write_data(f"{line}\n")


def write_data(text: str, to: TextIO | None = None) -> None:
    """Write to standard output: as it is, but for what would steer a terminal."""
    out = to or sys.stdout
    out.write(visible(text) if out.isatty() else text)
    out.flush()


def visible(text: str) -> str:
    """The text with escapes for what moves the cursor, changes colors or turns the direction."""
    return _STEERS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def open_streams() -> None:
    """Let standard output and error hold any text: as UTF-8 in files and pipes.

    On a terminal of another encoding, what it lacks becomes a question mark.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            same = encoding.replace("-", "").lower() == "utf8"
            errors = "backslashreplace" if same else "replace"  # a file name may be no UTF-8
            stream.reconfigure(encoding=encoding, errors=errors, newline="\n")


class _Console(Console):
    """A console whose texts cannot steer the terminal."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        # A label may look like markup, and "llama:100:mean" holds the name of an emoji.
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def console() -> Console:
    """Standard output; piped output is plain and at least as wide as the tables need."""
    return _Console(width=None if sys.stdout.isatty() else 100)


def _per_second(rate: float) -> str:
    """Three digits, or a whole number."""
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


class _Notes(_Console):
    """Standard error; when nobody reads it any more, the work goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TerminalReporter:
    """Writes notes as lines, and draws a bar with rate and time left on a terminal.

    Elsewhere a long step prints its progress four times a minute. A ``total`` of 0 is unknown.
    When it is ``verbose``, the end of each step is a line too.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._console = _Notes(stderr=True)
        self._verbose = verbose

    def note(self, line: str) -> None:
        """Print a note."""
        self._console.print(f"· {line}", style="dim", soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a progress bar."""
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
            yield self._lines(name, total, unit)
            return
        from rich import progress as bars  # not for --help

        title = bars.TextColumn("{task.description}", markup=False)
        columns: tuple[bars.ProgressColumn, ...] = (
            title,
            bars.BarColumn(bar_width=_BAR),
            bars.MofNCompleteColumn(),
            bars.TextColumn(f"{unit}, {{task.fields[rate]}}"),
            bars.TimeRemainingColumn(compact=True),
        )
        if total == 1:  # one thing has no rate, and nobody knows how much of it is left
            columns = (title, bars.BarColumn(bar_width=_BAR), bars.TimeElapsedColumn())
        with bars.Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=total if total > 1 else None, rate="–")

            def advance(count: int) -> None:
                progress.advance(task, count)
                speed = progress.tasks[0].speed
                if speed:
                    progress.update(task, rate=_per_second(speed))

            yield advance

    def _lines(self, name: str, total: int, unit: str) -> Advance:
        """Print the progress now and then."""
        done, started = 0, time.perf_counter()
        last_line = started

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            if time.perf_counter() - last_line >= _LINE_S:
                last_line = time.perf_counter()
                seconds = last_line - started
                of = f" of {total:,} {unit}" if total else f" {unit}"
                left = timedelta(seconds=round(seconds * (total - done) / max(1, done)))
                rest = f", {left} left" if total else ""
                self.note(f"{name}: {done:,}{of}, {_per_second(done / seconds)}{rest}")

        return advance
