"""Spreading numpy work over the cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

__all__ = ["n_cores", "spread"]

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
