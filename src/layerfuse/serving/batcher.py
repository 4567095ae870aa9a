"""Texts of requests that wait become batches; the busier the server, the larger they are.

An idle server starts at once, so a single text waits for nothing. After a larger batch its clients'
next requests are let in first, while they keep coming: one pass over many texts costs less than two
over half of them. The queue is bounded: what does not fit is refused, never kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from layerfuse.serving.metrics import Metrics
from layerfuse.serving.registry import Predicted, ServedModel, Texts, predict

_PAUSE_S = 0.002  # without a new request in it, a batch starts
_SHARE = 0.25  # of the last batch's time, which gathering the next one may take


class QueueFullError(Exception):
    """The texts do not fit into the queue; ``retry_after`` seconds may help."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The queue is full. Try again in {retry_after} s.")
        self.retry_after = retry_after


@dataclass(frozen=True, eq=False)
class _Job:
    model: ServedModel
    texts: Texts
    future: asyncio.Future[Predicted]
    since: float


class Batcher:
    """Runs requests in batches of at most ``max_batch`` texts; at most ``max_queue`` texts wait.

    All methods are called from one event loop.
    """

    def __init__(self, max_queue: int, max_batch: int, metrics: Metrics) -> None:
        self._max_queue, self._max_batch, self._metrics = max_queue, max_batch, metrics
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._rate = 100.0  # texts per second, a moving average
        self._filled = asyncio.Event()
        self._last, self._last_s = 1, 0.0  # texts of the last batch, and the seconds that it took
        self._thread = ThreadPoolExecutor(1, "layerfuse-batch")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what is queued, then end."""
        while self._jobs:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown()

    @property
    def is_ready(self) -> bool:
        """Whether it works and takes more texts."""
        alive = self._task is not None and not self._task.done()
        return alive and self._waiting < self._max_queue

    async def submit(self, model: ServedModel, texts: Texts) -> Predicted:
        """Classify texts, in batches together with what else waits.

        Raises
        ------
        QueueFullError
            When they do not fit into the queue.
        """
        if self._waiting + len(texts) > self._max_queue:
            raise QueueFullError(max(1, math.ceil(self._waiting / self._rate)))
        now, loop = time.perf_counter(), asyncio.get_running_loop()
        parts = [texts[at : at + self._max_batch] for at in range(0, len(texts), self._max_batch)]
        jobs = [_Job(model, part, loop.create_future(), now) for part in parts]
        self._jobs.extend(jobs)
        self._count(len(texts))
        self._filled.set()
        found = await asyncio.gather(*(job.future for job in jobs))
        return Predicted(
            np.concatenate([one.features for one in found]),
            np.concatenate([one.proba for one in found]),
            np.concatenate([one.truncated for one in found]),
        )

    def _count(self, texts: int) -> None:
        self._waiting += texts
        self._metrics.queue.set(self._waiting)

    async def _take(self) -> list[_Job]:
        """The next batch; requests that have been given up meanwhile are left out."""
        while True:
            await self._filled.wait()
            await self._gather()
            batch: list[_Job] = []
            n_texts = 0
            while self._jobs and n_texts + len(self._jobs[0].texts) <= self._max_batch:
                job = self._jobs.popleft()
                self._count(-len(job.texts))
                if not job.future.done():
                    batch.append(job)
                    n_texts += len(job.texts)
            if not self._jobs:
                self._filled.clear()
            if batch:
                return batch

    async def _gather(self) -> None:
        """Wait while requests come in and fewer wait than the last batch had."""
        end, before = time.perf_counter() + _SHARE * self._last_s, 0
        while before < self._waiting < self._last and time.perf_counter() < end:
            before = self._waiting
            await asyncio.sleep(_PAUSE_S)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = await self._take()
            started = time.perf_counter()
            n_texts = sum(len(job.texts) for job in jobs)
            for job in jobs:
                self._metrics.queue_seconds.observe(started - job.since)
            self._metrics.batch_texts.observe(n_texts)
            answers = await loop.run_in_executor(self._thread, _run, jobs)
            self._last, self._last_s = n_texts, time.perf_counter() - started
            self._rate += 0.1 * (n_texts / self._last_s - self._rate)
            for job, answer in zip(jobs, answers, strict=True):
                if job.future.done():
                    continue
                if isinstance(answer, Exception):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)


def _run(jobs: Sequence[_Job]) -> list[Predicted | Exception]:
    """Answers or errors; what fails together is tried alone, so that no request spoils others."""
    if len(jobs) > 1:
        with contextlib.suppress(Exception):
            return list(predict([(job.model, job.texts) for job in jobs]))
        return [answer for job in jobs for answer in _run([job])]
    try:
        return list(predict([(job.model, job.texts) for job in jobs]))
    except Exception as error:
        return [error]
