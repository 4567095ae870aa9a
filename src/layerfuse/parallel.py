"""Parallel loops over numpy work, and the memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from layerfuse.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int | None = None
) -> Iterator[Result]:
    """Results of ``function`` for each item, in order, from several threads.

    Meanwhile each call has one thread of the linear algebra library (a setting of the process) and
    of OpenMP, on which PyTorch runs (a setting of the calling thread alone). For matrices of a few
    thousand by a few hundred that is faster than many threads on one call.

    Parameters
    ----------
    function : callable
        Called with one item; it should spend its time in numpy, which runs beside other threads.
    items : iterable
        What it is called with.
    n_jobs : int, optional
        Threads, as in scikit-learn: -1 or None for one a core, -2 for one less.

    Yields
    ------
    object
        One result for each item.

    Examples
    --------
    >>> list(parallel_map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    workers = n_threads(n_jobs)
    with _ONE_BLAS_THREAD, ThreadPoolExecutor(workers, initializer=_one_openmp_thread) as executor:
        yield from executor.map(function, items)


def n_threads(n_jobs: int | None) -> int:
    """The threads that ``n_jobs`` means; a ConfigError for 0."""
    if n_jobs == 0:
        raise ConfigError("n_jobs=0 is no number of threads. Give 1 or more, or -1 for all cores.")
    if n_jobs is None or n_jobs < 0:
        return max(1, n_cores() + 1 + (-1 if n_jobs is None else n_jobs))
    return n_jobs


def prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of ``function`` for each item, in order, from a thread one item ahead of the caller.

    After an error, or when the caller stops early, a running call is finished and no other begins.
    """
    executor = ThreadPoolExecutor(1)
    running: deque[Future[Result]] = deque()  # what is handed on is not held here
    try:
        for item in items:
            running.append(executor.submit(function, item))
            if len(running) > 1:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


class _OneBlasThread:
    """One thread for the linear algebra libraries while any thread is inside."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                import scipy.linalg  # noqa: F401  # only a library that is loaded can be limited

                self._limit = _libraries(len(sys.modules)).limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_ONE_BLAS_THREAD = _OneBlasThread()


def _one_openmp_thread() -> None:
    """Where PyTorch is in use, one thread for its calls from the calling thread."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.get_num_threads()  # the first call in a thread sets its number of threads
    _libraries(len(sys.modules)).select(user_api="openmp").limit(limits=1)


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """Libraries with threads of their own; after imports they are looked for again."""
    return ThreadpoolController()


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_KERNEL_CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
_CACHED_KERNELS = 16  # an encoder has about six shapes of product a batch; PyTorch keeps 1024


def peak_mb() -> float | None:
    """The largest resident set so far in MB; None where the system has no such figure.

    ``getrusage`` may count the memory of the parent process, so Linux's /proc comes first.
    """
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        peak = next(line for line in status if line.startswith("VmHWM:"))
        return 1024 * int(peak.split()[1]) / 1e6
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes or KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def limit_kernel_cache() -> None:
    """Limit how many kernels PyTorch and oneDNN cache on the CPU: one for each shape of product.

    A kernel takes about a megabyte, and batches of texts have hundreds of shapes. Making kernels
    again took no measurable time for texts read once, and up to a tenth of the smallest encoder's
    time for texts read repeatedly. The variables are read at the first product of a process; values
    set by the user are kept.
    """
    for name in _KERNEL_CACHES:
        os.environ.setdefault(name, str(_CACHED_KERNELS))


def trim_heap() -> None:
    """Return freed memory to the system, where the C library is glibc.

    Batches of varying sizes fragment its heap otherwise.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
