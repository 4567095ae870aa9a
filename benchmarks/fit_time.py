"""A fit with all embeddings stored: seconds of the whole process, as a user starts it, and of the
steps that learn (scoring, nested search, head), from its report. Embeddings are
stored first, in the user's cache, by a fit that is not measured. Also ``layerfuse --help``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from layerfuse.report.run_report import read_run_report

_CASES = {
    "MR, mpnet + smollm2-135m": ("fit", "mr", "-e", "mpnet", "-e", "smollm2-135m"),
    "R8, mpnet": ("fit", "r8", "-e", "mpnet"),
    "MR, minilm + mpnet + smollm2-135m, three poolings (153 blocks)": (
        *("fit", "mr", "-e", "minilm", "-e", "mpnet", "-e", "smollm2-135m"),
        *("--pooling", "mean,last,max"),
    ),
    "demo": ("demo",),
}
_FITS, _HELPS = 3, 7


def run() -> list[dict[str, Any]]:
    helps = [_seconds("--help") for _ in range(_HELPS)]
    print(f"--help: {statistics.median(helps):.2f} s")
    results: list[dict[str, Any]] = [{"help_s": helps, "help_median_s": statistics.median(helps)}]
    for name, command in _CASES.items():
        seconds, learning = [], []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(_FITS + 1):
                out = Path(folder) / str(number)
                taken = _seconds(*command, "--out", str(out), "--no-report", "--quiet")
                times = read_run_report(out).timings
                if number:  # the first one stores the embeddings
                    seconds.append(taken)
                    learning.append(times.score_s + times.search_s + times.head_s)
        results.append(
            {
                "fit": name,
                "command": ["layerfuse", *command],
                "total_s": seconds,
                "total_median_s": statistics.median(seconds),
                "learning_s": learning,
                "learning_median_s": statistics.median(learning),
            }
        )
        print(
            f"{name}: {statistics.median(seconds):.1f} s, of which learning "
            f"{statistics.median(learning):.1f} s",
            flush=True,
        )
    return results


def _seconds(*arguments: str) -> float:
    """Seconds of a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "layerfuse", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
