"""A fit from nothing, and the same fit again: the second finds every embedding in the store. Both
are whole processes, as a user starts them, and so is ``layerfuse --help``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_CASES = (("r8", ("mpnet",)), ("mr", ("minilm", "mpnet")))


def run() -> list[dict[str, Any]]:
    times = [_seconds([sys.executable, "-m", "layerfuse", "--help"]) for _ in range(7)]
    print(f"--help: {statistics.median(times):.2f} s")
    results: list[dict[str, Any]] = [{"help_s": times, "help_median_s": statistics.median(times)}]
    for dataset, encoders in _CASES:
        with tempfile.TemporaryDirectory() as folder:
            seconds = [_fit(dataset, encoders, Path(folder), number) for number in range(2)]
        ratio = seconds[0] / seconds[1]
        print(f"{dataset}, {' + '.join(encoders)}: {seconds[0]:.0f} s, then {seconds[1]:.1f} s")
        print(f"the second is {ratio:.0f} times as fast")
        results.append(
            {
                "dataset": dataset,
                "encoders": encoders,
                "first_s": seconds[0],
                "second_s": seconds[1],
                "ratio": ratio,
            }
        )
    return results


def _fit(dataset: str, encoders: tuple[str, ...], folder: Path, number: int) -> float:
    command = [sys.executable, "-m", "layerfuse", "fit", dataset, "--quiet"]
    for encoder in encoders:
        command += ["--encoder", encoder]
    command += ["--store", str(folder / "store"), "--out", str(folder / f"run-{number}")]
    return _seconds(command)


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
