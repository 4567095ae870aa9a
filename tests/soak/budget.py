"""One loop for all soak tests: seeds, a budget, limits for each case, findings at the end."""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from layerfuse.errors import LayerfuseError

CASE_S = 30.0
"""What a case may take before it is called a hang, in seconds."""
CASE_BYTES = 1_000_000_000
"""What a test may take beside what it had at its start."""


class Hang(BaseException):  # noqa: N818
    """A case took longer than `CASE_S`."""


class Soak:
    """Runs cases, each from a seed of its own; ``SOAK_SEED`` alone repeats one.

    Parameters
    ----------
    name : str
        The test's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seed = int(os.environ.get("SOAK_SEED") or 0)
        self.seconds = float(os.environ.get("SOAK_SECONDS") or 0)
        self.outcomes: Counter[str] = Counter()
        self.findings: dict[str, tuple[int, str]] = {}

    def run(
        self, case: Callable[[np.random.Generator], str | None], *, count: int, limit_s: float = CASE_S
    ) -> None:
        """Run ``count`` cases, or as many as there is time for; then fail with what was found.

        A case returns what it came to (None: it counts itself); a `LayerfuseError` is a refusal.
        """
        started, seed, before = time.perf_counter(), self.seed, _peak_bytes()
        slowest = (0.0, seed)
        one = "SOAK_SEED" in os.environ and not self.seconds
        with self._alarms():
            while True:
                began = time.perf_counter()
                self._one(case, seed, limit_s)
                slowest = max(slowest, (time.perf_counter() - began, seed))
                seed += 1
                if one or (seed - self.seed >= count and not self.seconds):
                    break
                if self.seconds and time.perf_counter() - started > self.seconds:
                    break
        grown = _peak_bytes() - before
        figures = ", ".join(f"{count} {name}" for name, count in sorted(self.outcomes.items()))
        print(  # noqa: T201
            f"\n{self.name}: seeds {self.seed} to {seed - 1}, "
            f"{time.perf_counter() - started:.0f} s (slowest {slowest[0]:.1f} s, seed {slowest[1]}), "
            f"{grown / 1e6:.0f} MB more: {figures}"
        )
        shown = [f"SOAK_SEED={first}: {what}" for what, (first, _) in self.findings.items()]
        details = [trace for _, trace in self.findings.values()]
        assert not self.findings, "\n\n".join([f"{self.name}:", *details, *shown])
        assert grown < CASE_BYTES, f"{self.name}: a case took {grown / 1e6:.0f} MB"

    def _one(
        self, case: Callable[[np.random.Generator], str | None], seed: int, limit_s: float
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        faulthandler.dump_traceback_later(4 * limit_s, exit=True, file=sys.__stderr__)
        self.hung = False
        try:
            try:
                outcome = case(np.random.default_rng(seed))
            except LayerfuseError:
                outcome = "refused"
                if self.hung:  # a handler of all errors caught it
                    raise
        except (Exception, Hang, SystemExit) as error:
            outcome = "FOUND"
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "layerfuse" in frame.filename] or frames
            what = f"{type(error).__name__} at {ours[-1].filename}:{ours[-1].lineno}"
            self.findings.setdefault(what, (seed, "".join(traceback.format_exception(error))))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
        if outcome is not None:
            self.outcomes[outcome] += 1
        if not seed % 100:
            gc.collect()


    @contextmanager
    def _alarms(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self.hung = True
            raise Hang

        before = signal.signal(signal.SIGALRM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
