"""How much memory this process takes, in MB (10^6 bytes), and giving back what it need not keep."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

__all__ = ["give_back", "keep_few_kernels", "peak_mb", "resident_mb"]

_KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
_KERNELS_KEPT = 16  # an encoder has about six shapes of product a batch; PyTorch keeps 1024


def resident_mb() -> float | None:
    """The resident set now; the largest so far, or None, where the system does not tell."""
    return _status("VmRSS") or peak_mb()


def peak_mb() -> float | None:
    """The largest resident set so far; None where the system does not tell.

    What the system counts for a process may begin with the memory of the one that started it, so
    Linux's own page on the process is asked first.
    """
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _status(name: str) -> float | None:
    """A figure of Linux's page on this process, or None."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
        return 1024 * int(line.split()[1]) / 1e6
    except (OSError, StopIteration):
        return None


def keep_few_kernels() -> None:
    """Limit how many kernels PyTorch and oneDNN keep on the CPU: one for each shape of product.

    A kernel holds about a megabyte, and batches of texts have hundreds of shapes. Making kernels
    anew took nothing that could be measured on texts read once, and up to a tenth of the smallest
    encoder's time where the same texts came again and again. The variables are read at the first
    product of a process; what the user has set stays as it is.
    """
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, str(_KERNELS_KEPT))


def give_back() -> None:
    """Let the C library return to the system what was freed, where it is glibc.

    Batches of ever other sizes leave holes that it keeps otherwise.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
