"""Texts, clocks and result files that the benchmarks share."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from layerfuse import load_dataset
from layerfuse.errors import LayerfuseError

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("layerfuse", "torch", "transformers", "sentence-transformers", "scikit-learn", "numpy")


def texts_of(dataset: str, n: int, split: str = "test") -> list[str] | None:
    """Every k-th text of a split, or None where the dataset cannot be had."""
    try:
        rows = load_dataset(dataset).splits[split].texts
    except LayerfuseError as error:
        print(f"{dataset} is left out: {error}")
        return None
    return list(rows[:: max(1, len(rows) // n)][:n])


def alternate(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int = 5) -> dict[str, Any]:
    """Seconds of both in turn, after one run each to warm up; medians and the ratio's spread."""
    ours(), peer()
    times: dict[str, list[float]] = {"ours_s": [], "peer_s": []}
    for _ in range(repeats):
        for name, function in (("ours_s", ours), ("peer_s", peer)):
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["ours_s"], times["peer_s"], strict=True)]
    return {
        **times,
        "ours_median_s": statistics.median(times["ours_s"]),
        "peer_median_s": statistics.median(times["peer_s"]),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def measured(name: str) -> list[dict[str, Any]]:
    """The results that are saved already, none where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []


def save(name: str, results: list[dict[str, Any]]) -> None:
    """Write results with the machine and versions."""
    RESULTS.mkdir(exist_ok=True)
    value = {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.name}")


def cpu() -> str:
    """The CPU's own name for itself, with the bf16 units it has."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    units = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    name = capabilities.get("cpu_name") or platform.processor() or "unknown"
    return f"{name} ({', '.join(units) or 'no native bf16'})"
