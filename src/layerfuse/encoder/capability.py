"""Which device and which dtype: by what the machine does well, not by hope."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

from layerfuse.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "choose_device", "choose_dtype"]

DTYPES = ("float32", "bfloat16", "float16")
_WORTH_IT = 1.5  # bfloat16 must be this much faster than float32 on a CPU to be used


def choose_device(device: str) -> str:
    """Resolve ``"auto"`` to cuda, mps or cpu, and check any other choice.

    Raises
    ------
    ConfigError
        For a device that this machine does not have.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in present:
        raise ConfigError(
            f"Unknown device {device!r}. Use auto, cpu, cuda, cuda:N or mps."
            + did_you_mean(device, present)
        )
    if not present[kind]:
        raise ConfigError(f"This machine has no {kind} device. Use --device auto or cpu.")
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """Resolve ``"auto"``: bfloat16 where the device computes it natively, else float32.

    Raises
    ------
    ConfigError
        For an unknown dtype.
    """
    if dtype == "auto":
        return "bfloat16" if _has_fast_bfloat16(device.partition(":")[0]) else "float32"
    if dtype not in DTYPES:
        raise ConfigError(
            f"Unknown dtype {dtype!r}. Use auto, {', '.join(DTYPES)}." + did_you_mean(dtype, DTYPES)
        )
    return dtype


@functools.cache
def _has_fast_bfloat16(kind: str) -> bool:
    """Native on CUDA from compute capability 8; on a CPU, measured by one small product."""
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    return _product_seconds(torch.float32) > _WORTH_IT * _product_seconds(torch.bfloat16)


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds for a 256 x 768 x 768 matrix product: the best of five, after one to warm up."""
    import torch

    left, right = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return best
