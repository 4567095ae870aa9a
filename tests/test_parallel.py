"""Spreading work over cores: order, errors, and the libraries' threads before and after."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from layerfuse.parallel import Behind, ahead, n_cores, spread


def blas_threads() -> list[int]:
    return [entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"]


def test_results_come_in_the_order_of_the_items() -> None:
    first = threading.Event()

    def late(item: int) -> int:
        if item == 0 and n_cores() > 1:
            assert first.wait(10)
        first.set() if item == 1 else None
        return item * item

    assert list(spread(late, range(20))) == [item * item for item in range(20)]


def test_no_items() -> None:
    assert list(spread(abs, [])) == []


def test_an_error_reaches_the_caller() -> None:
    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 3"):
        list(spread(fail, [3]))


def test_libraries_have_one_thread_meanwhile_and_theirs_again_after() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    before = blas_threads(), torch.get_num_threads()
    seen = list(spread(lambda _: (blas_threads(), torch.get_num_threads()), range(4)))
    assert all(set(blas) == {1} and of_torch == 1 for blas, of_torch in seen)
    assert (blas_threads(), torch.get_num_threads()) == before


def test_it_can_be_used_within_itself() -> None:
    found = spread(lambda item: sum(spread(abs, range(item))), range(5))
    assert list(found) == [0, 0, 1, 3, 6]


class TestBehind:
    def test_calls_run_in_order_behind_the_caller(self):
        done: list[int] = []
        gate = threading.Event()
        with Behind() as behind:
            behind(gate.wait, 10)
            assert done == []  # the caller went on
            gate.set()
            for number in range(3):
                behind(done.append, number)
        assert done == [0, 1, 2]

    def test_an_error_comes_out_of_the_next_call_or_the_end(self):
        def fail() -> None:
            raise OSError("the disk is full")

        with pytest.raises(OSError, match="full"), Behind() as behind:
            behind(fail)
        with Behind() as behind:
            behind(fail)
            with pytest.raises(OSError, match="full"):
                behind(fail)

    def test_what_runs_is_finished_when_the_caller_fails(self):
        done: list[int] = []

        def slow() -> None:
            time.sleep(0.2)
            done.append(1)

        def caller() -> None:
            with Behind() as behind:
                behind(slow)
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            caller()
        assert done == [1]


def test_ahead_keeps_the_order_and_hands_on_errors():
    assert list(ahead(lambda number: number * 2, range(5))) == [0, 2, 4, 6, 8]
    assert list(ahead(str, [])) == []
    assert list(ahead(lambda number: number * 2, range(7), threads=3)) == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda number: 1 // number, [1, 0]))


def test_ahead_keeps_all_threads_busy_and_no_more_than_one_result_a_thread():
    together = threading.Barrier(3, timeout=10)
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        if number < 3:
            together.wait()  # three must run at once, or this is an error
        return number

    results = ahead(work, range(20), threads=3)
    assert next(results) == 0
    time.sleep(0.1)
    assert len(started) <= 4
    assert list(results) == list(range(1, 20))
