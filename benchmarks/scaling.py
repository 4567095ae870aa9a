"""Time and peak memory of each stage, from 1,000 to 10,000,000 rows.

Texts are read by minilm up to 100,000 rows; above, and for all other stages, reading is simulated:
`many_rows` writes random embeddings of 384 dimensions into a store, and works on those.
``python -m benchmarks.scaling 1000 10000`` takes other numbers of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import many_rows
from benchmarks.common import save
from benchmarks.stream import write_rows

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
STAGES = ("read", "index", "choose", "head", "evaluate", "predict")
_DIM, _MOST_READ = 384, 100_000
_READ = """
import json, sys, time
from layerfuse import EmbeddingStore, FrozenEncoder, load_dataset
from layerfuse.embeddings.extraction import extract
from layerfuse.parallel import peak_mb
encoder = FrozenEncoder.from_pretrained("minilm", device="cpu", layers=-1)
store = EmbeddingStore(sys.argv[1] + "/store")
extract(["once, to load the weights"], encoder, store=store)
texts = load_dataset(sys.argv[1] + "/rows.csv", text_column="text", labeled=False).train.texts
before, started = peak_mb(), time.perf_counter()
extract(texts, encoder, store=store)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak_mb_before": before, "peak_mb": peak_mb()}))
"""


def run(sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    results = []
    for rows in sizes:
        load = os.getloadavg()[0]
        stages = {"read": _read(rows)} if rows <= _MOST_READ else {}
        (found,) = many_rows.run(((rows, _DIM),))
        stages |= found["stages"]
        results.append({"rows": rows, "dim": _DIM, "load_before": load, "stages": stages})
    return [*results, {"slopes": {name: _slope(results, name) for name in STAGES}}]


def _read(rows: int) -> dict[str, float]:
    """What it takes to read so many short texts."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder, "rows.csv"), rows)
        command = [sys.executable, "-c", _READ, folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    print(done.stdout.strip(), flush=True)
    return found


def _slope(results: Sequence[dict[str, Any]], stage: str) -> dict[str, float] | None:
    """Least-squares slopes of the logarithms of seconds and of peak memory over those of rows, from
    10,000 rows on: what is less is start-up."""
    own = [case for case in results if stage in case["stages"] and case["rows"] >= 10_000]
    if len(own) < 2:
        return None
    rows = np.log([case["rows"] for case in own])
    seconds = np.log([case["stages"][stage]["seconds"] for case in own])
    peaks = np.log([case["stages"][stage]["peak_mb"] for case in own])
    return {
        "seconds": float(np.polyfit(rows, seconds, 1)[0]),
        "peak_mb": float(np.polyfit(rows, peaks, 1)[0]),
        "from_rows": own[0]["rows"],
        "to_rows": own[-1]["rows"],
    }


if __name__ == "__main__":
    save("scaling", run([int(size) for size in sys.argv[1:]] or SIZES))
