"""``python -m benchmarks [NAME …]``: run all benchmarks, or the named ones."""

from __future__ import annotations

import sys

from benchmarks import (
    accuracy,
    complementarity,
    demo,
    extraction,
    fusions,
    memory,
    predict,
    profile,
    report,
    scoring,
    search,
    warm,
)
from benchmarks.common import save

BENCHMARKS = {
    "extraction": extraction.run,
    "profile": profile.run,
    "scoring": scoring.run,
    "predict": predict.run,
    "accuracy": accuracy.run,
    "memory": memory.run,
    "warm": warm.run,
    "complementarity": complementarity.run,
    "fusions": fusions.run,
    "search": search.run,
    "demo": demo.run,
    "report": report.run,
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"Unknown benchmark {unknown[0]!r}. Choose from {', '.join(BENCHMARKS)}.")
        return 2
    for name in names:
        print(f"== {name}")
        save(name, BENCHMARKS[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
