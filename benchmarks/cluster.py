"""`layerfuse predict --engine ray` on three nodes of this machine against the local engine.

Each round runs both on the same texts, with the same number of threads in all: an actor has one.
Then a node is killed in mid-run. The cluster is started before, actors are started within the time.
``python -m benchmarks.cluster 20000 1 2`` takes another number of rows, and the rounds' threads. It
needs the extra ``ray``."""

from __future__ import annotations

import csv
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import save
from benchmarks.stream import make_bundle, start, write_rows

ROWS, PART_ROWS = 100_000, 2_500
THREADS = (1, 1, 1)  # of each round; with one, output does not depend on who computes it
_NODES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
nodes = [cluster.add_node(**node) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    cluster.add_node(**node)
    print("gone", flush=True)
cluster.shutdown()
"""


class Cluster:
    """Three nodes on this machine, in a process of their own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _NODES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._told(":")

    def kill_node(self) -> None:
        """Kill a node, and start another one later."""
        assert self.process.stdin is not None
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        self._told("gone")

    def _told(self, word: str) -> str:
        assert self.process.stdout is not None
        return next(line for line in self.process.stdout if word in line).strip()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster that is shut down at the end."""
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.process.communicate("")


def run(rows: int = ROWS, rounds: Sequence[int] = THREADS) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, running_cluster() as cluster:
        folder = Path(name)
        make_bundle(folder, "minilm")
        write_rows(folder / "rows.csv", rows)
        on_ray = ("--engine", "ray", "--address", cluster.address)
        for threads in rounds:
            os.environ["OMP_NUM_THREADS"] = str(threads)
            local = _measure(folder, "local.csv", ())
            ray = _measure(folder, "ray.csv", (*on_ray, "--workers", threads), cluster)
            found = {"rows": rows, "threads": threads, "local": local, "ray": ray}
            results.append(found | _compare(folder / "local.csv", folder / "ray.csv"))
            print(json.dumps(results[-1]), flush=True)
        process = start(folder, "killed.csv", *_PARTS, *on_ray)
        while len(list((folder / ".killed.csv.parts").glob("part.*"))) < 3:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        cluster.kill_node()
        assert process.wait() == 0, (folder / "log").read_text()
        same = _compare(folder / "local.csv", folder / "killed.csv")
        results.append({"rows": rows, "killed_nodes": 1, **same})
        print(json.dumps(results[-1]), flush=True)
    return results


_PARTS = ("--part-rows", PART_ROWS)


def _compare(one: Path, other: Path) -> dict[str, object]:
    """Whether two files have the same bytes; if not, how their predictions differ."""
    if filecmp.cmp(one, other, shallow=False):
        return {"is_equal": True}
    with one.open(newline="") as first, other.open(newline="") as second:
        pairs = list(zip(csv.DictReader(first), csv.DictReader(second), strict=True))
    assert all(a["id"] == b["id"] and a["text"] == b["text"] for a, b in pairs)
    return {
        "is_equal": False,
        "other_labels": sum(a["label"] != b["label"] for a, b in pairs),
        "largest_difference": max(
            abs(float(a["probability"]) - float(b["probability"])) for a, b in pairs
        ),
    }


def _measure(
    folder: Path, out: str, options: tuple[object, ...], cluster: Cluster | None = None
) -> dict[str, float]:
    """Seconds of a command, and those of processors in it and in the cluster meanwhile."""
    (folder / out).unlink(missing_ok=True)
    before = _processor_seconds([cluster.process.pid] if cluster else [])
    load, started = os.getloadavg()[0], time.perf_counter()
    process = start(folder, out, *_PARTS, *options)
    roots = [process.pid, *([cluster.process.pid] if cluster else [])]
    spent: dict[int, float] = {}
    while process.poll() is None:
        spent |= _processor_seconds(roots)
        time.sleep(0.2)
    assert process.returncode == 0, (folder / "log").read_text()
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": sum(spent.values()) - sum(before.values()),
        "load_before": load,
    }


def _processor_seconds(roots: Iterable[int]) -> dict[int, float]:
    """Of each process among the descendants of the roots, so far."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for root in map(psutil.Process, roots):
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[1:]]
    save("cluster", run(given[0] if given else ROWS, given[1:] or THREADS))
