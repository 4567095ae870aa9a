"""Spreading numpy work over the cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "Behind",
    "ahead",
    "give_back",
    "keep_few_kernels",
    "n_cores",
    "peak_mb",
    "resident_mb",
    "spread",
]

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of ``function`` for each item, in order, one thread a core.

    Each call gets one thread of the linear algebra library. For matrices of a few thousand by a
    few hundred that is faster than many threads on one call, and on a machine that is busy with
    other work it is many times faster: threads of one call wait for each other.
    """
    with (
        _one_torch_thread(),
        _controller().limit(limits=1, user_api="blas"),
        ThreadPoolExecutor(n_cores()) as executor,
    ):
        yield from executor.map(function, items)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1
) -> Iterator[Result]:
    """Results of ``function`` for each item, in order; one a thread is worked out ahead.

    After an error, or when the caller has enough, what runs is finished and the rest is not begun.
    """
    executor = ThreadPoolExecutor(threads)
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(executor.submit(function, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Where torch is in use, its calls take one thread as well."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _controller() -> Any:
    """Finding the libraries takes longer than many a call."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Behind:
    """Runs calls one after another in a thread behind the caller, at most one at a time.

    A call waits for the one before it, so that no more than one call's data is kept. An error
    comes out of the next call, or at the end of the ``with`` block, whichever is first.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._running: Future[Any] | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.wait()
        self._running = self._executor.submit(function, *arguments)

    def wait(self) -> None:
        """Until nothing runs; raises what the last call raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._executor.shutdown()  # what runs is finished: it may be a shard


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
