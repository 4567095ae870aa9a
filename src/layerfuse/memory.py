"""How much memory this process takes, in MB (10^6 bytes)."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_mb", "resident_mb"]


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
