"""What a study ran on, and with which versions."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from layerfuse._version import __version__

__all__ = ["machine"]

_PACKAGES = ("torch", "transformers", "scikit-learn", "numpy")


@cache
def machine() -> dict[str, Any]:
    """Hardware and versions as plain values. Imports torch."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "layerfuse": __version__,
        **{name: _version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    """The CPU's own name for itself, with the bf16 units it has."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    units = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    name = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(units) or 'no native bf16'})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
