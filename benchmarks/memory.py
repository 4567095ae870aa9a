"""Peak memory of an extraction into a store, for 2,000 and 50,000 short texts. Each runs in a
process of its own; the peak is the process's maximum resident set."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

_WORKER = """
import json, sys, time
from layerfuse.parallel import peak_mb
from layerfuse import EmbeddingStore, FrozenEncoder, extract
count, root = int(sys.argv[1]), sys.argv[2]
texts = [f"short text number {number} about topic {number % 97}" for number in range(count)]
start = time.perf_counter()
extract(texts, FrozenEncoder.from_pretrained("minilm"), store=EmbeddingStore(root))
seconds = time.perf_counter() - start
peak = round(1e6 * peak_mb())
print(json.dumps({"texts": count, "peak_bytes": peak, "seconds": seconds}))
"""


def run() -> list[dict[str, Any]]:
    results = []
    for count in (2_000, 50_000):
        with tempfile.TemporaryDirectory() as root:
            command = [sys.executable, "-c", _WORKER, str(count), root]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
        peak = results[-1]["peak_bytes"] / 1e6
        print(f"{count} texts: peak {peak:.0f} MB, {results[-1]['seconds']:.1f} s")
    difference = results[1]["peak_bytes"] - results[0]["peak_bytes"]
    print(f"difference {difference / 1e6:.0f} MB")
    return results
