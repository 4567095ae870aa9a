"""Parallel loops: order, errors, and the libraries' threads before and after."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from layerfuse.errors import ConfigError
from layerfuse.parallel import n_cores, n_threads, parallel_map, prefetch


def blas_threads() -> list[int]:
    return [entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"]


def test_results_come_in_the_order_of_the_items() -> None:
    first = threading.Event()

    def late(item: int) -> int:
        if item == 0 and n_cores() > 1:
            assert first.wait(10)
        first.set() if item == 1 else None
        return item * item

    assert list(parallel_map(late, range(20))) == [item * item for item in range(20)]


def test_no_items() -> None:
    assert list(parallel_map(abs, [])) == []


def test_an_error_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 3"):
        list(parallel_map(fail, [3]))


def test_each_call_has_one_thread_of_the_libraries() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    with threadpool_limits(2):
        before = blas_threads(), torch.get_num_threads()
        assert set(before[0]) == {2} == {before[1]}
        seen = list(parallel_map(lambda _: (blas_threads(), torch.get_num_threads()), range(4)))
        assert all(set(blas) == {1} and of_torch == 1 for blas, of_torch in seen)
        assert (blas_threads(), torch.get_num_threads()) == before


def test_torch_keeps_its_threads_outside() -> None:
    """The caller's and those of threads that begin meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        results = parallel_map(abs, range(4), 1)
        next(results)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
        assert list(results) == [1, 2, 3]
    finally:
        torch.set_num_threads(before)


def test_overlapping_loops_leave_the_libraries_as_they_were() -> None:
    """The first to begin ends first."""
    with threadpool_limits(2):
        first, second = parallel_map(abs, range(3)), parallel_map(abs, range(3))
        next(first), next(second)
        assert list(first) == [1, 2]
        assert set(blas_threads()) == {1}
        assert list(second) == [1, 2]
        assert set(blas_threads()) == {2}


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_no_more_calls_at_once_than_jobs(n_jobs: int) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    list(parallel_map(work, range(12), n_jobs))
    assert most == n_jobs


def test_numbers_of_jobs_are_those_of_scikit_learn() -> None:
    assert [n_threads(3), n_threads(None), n_threads(-1)] == [3, n_cores(), n_cores()]
    assert n_threads(-2) == max(1, n_cores() - 1)
    assert n_threads(-1000) == 1
    with pytest.raises(ConfigError, match="n_jobs=0"):
        list(parallel_map(abs, [1], 0))


def test_it_can_be_used_within_itself() -> None:
    found = parallel_map(lambda item: sum(parallel_map(abs, range(item))), range(5))
    assert list(found) == [0, 0, 1, 3, 6]


def test_prefetch_keeps_the_order_and_hands_on_errors():
    assert list(prefetch(lambda number: number * 2, range(5))) == [0, 2, 4, 6, 8]
    assert list(prefetch(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda number: 1 // number, [1, 0]))


def test_prefetch_is_one_item_ahead_and_no_more():
    started: list[int] = []
    ahead = threading.Event()

    def work(number: int) -> int:
        started.append(number)
        if number:
            ahead.set()
        return number

    results = prefetch(work, range(20))
    assert next(results) == 0
    assert ahead.wait(10)  # the next one runs while nobody asks for it
    time.sleep(0.1)
    assert started == [0, 1]
    assert list(results) == list(range(1, 20))
