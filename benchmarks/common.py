"""Texts, clocks and result files that the benchmarks share."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from layerfuse import load_dataset
from layerfuse.encoders.devices import pack_linears
from layerfuse.errors import LayerfuseError

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    *("layerfuse", "torch", "transformers", "sentence-transformers", "scikit-learn", "numpy"),
    "ray",
)


def texts_of(dataset: str, n: int, split: str = "test") -> list[str] | None:
    """Every k-th text of a split, or None where the dataset is not available."""
    try:
        rows = load_dataset(dataset).splits[split].texts
    except LayerfuseError as error:
        print(f"{dataset} is left out: {error}")
        return None
    return list(rows[:: max(1, len(rows) // n)][:n])


def alternate(ways: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of each way, all in turn, after one run each to warm up."""
    for function in ways.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, function in ways.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def compared(ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """Times of one alternation, their medians, and the ratio ours / peer with its spread."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return {
        "ours_s": list(ours),
        "peer_s": list(peer),
        "ours_median_s": statistics.median(ours),
        "peer_median_s": statistics.median(peer),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def gemm_peak(dtype: torch.dtype, repeats: int = 9) -> float:
    """FLOP/s of the fastest large matrix product in a dtype, by the kernels that linear layers use,
    with the threads in use now. The median of each shape; the best of the shapes."""
    rates = []
    for m, k, n in ((1024, 768, 3072), (2048, 768, 768), (2048, 2048, 2048)):
        x, layer = torch.randn(m, k, dtype=dtype), torch.nn.Linear(k, n, dtype=dtype)
        ways = {"plain": torch.nn.Sequential(layer)}
        packed = torch.nn.Sequential(torch.nn.Linear(k, n, dtype=dtype))
        if pack_linears(packed):
            ways["packed"] = packed
        for way in ways.values():
            with torch.inference_mode():
                times = alternate({"gemm": lambda: way(x)}, repeats)["gemm"]  # noqa: B023
            rates.append(2 * m * k * n / statistics.median(times))
    return max(rates)


def measured(name: str) -> list[dict[str, Any]]:
    """The results that are saved already, none where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []


def save(name: str, results: list[dict[str, Any]]) -> None:
    """Write results with the machine and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(described(name, results), indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.name}")


def described(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Results with the machine and the versions of what is installed."""
    return {
        "benchmark": name,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {
            "machine": platform.machine(),
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[1],  # above the number of cores: it was busy
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "results": results,
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def cpu() -> str:
    """The CPU's own name for itself, with the bf16 units it has."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    units = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    name = capabilities.get("cpu_name") or platform.processor() or "unknown"
    return f"{name} ({', '.join(units) or 'no native bf16'})"
