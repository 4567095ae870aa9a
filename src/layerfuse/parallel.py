"""Spreading numpy work over the cores."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

__all__ = ["Behind", "ahead", "n_cores", "spread"]

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
