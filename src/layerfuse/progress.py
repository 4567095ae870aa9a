"""Progress reporting: a reporter is passed down, and the library prints only if ``verbose``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Advance(Protocol):
    """Called with the number of items that were just finished."""

    def __call__(self, count: int, /) -> None:
        """So many more are done."""


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


class _Lines:
    """Decisions and long steps as lines on standard error."""

    def note(self, line: str) -> None:
        print(f"[layerfuse] {line}", file=sys.stderr, flush=True)  # noqa: T201  # verbose=1 asked

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        started = time.perf_counter()
        yield lambda count: None
        self.note(f"{name}: {total:,} {unit} in {time.perf_counter() - started:.1f} s")


_REPORTER: ContextVar[Reporter | None] = ContextVar("layerfuse_reporter", default=None)


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Within the block, estimators report to ``reporter`` whatever their ``verbose`` is.

    Parameters
    ----------
    reporter : Reporter
        Receives notes and progress of estimators that this thread (or task) uses.
    """
    token = _REPORTER.set(reporter)
    try:
        yield
    finally:
        _REPORTER.reset(token)


def current_reporter(verbose: int) -> Reporter:
    """The reporter of `reporting_to`, else one on standard error if ``verbose`` is above 0."""
    return _REPORTER.get() or (_Lines() if verbose else SILENT)


def track(
    results: Iterable[T], name: str, total: int, unit: str, reporter: Reporter
) -> Iterator[T]:
    """Hand on ``total`` results, each a step of a task."""
    with reporter.task(name, total, unit) as advance:
        for result in results:
            yield result
            advance(1)


class Stopwatch:
    """Seconds of each stage, and ``total_s`` of them all."""

    def __init__(self) -> None:
        self._started = self._lap = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def __call__(self, stage: str) -> None:
        """Count the time since the last call for ``stage``."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._lap
        self._lap = now

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, ``total_s`` last."""
        stages = {name: value for name, value in self._seconds.items() if name != "total_s"}
        return {**stages, "total_s": time.perf_counter() - self._started}
