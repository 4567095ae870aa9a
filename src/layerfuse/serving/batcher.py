"""Requests that wait become batches; the busier the server, the larger the batches are.

Two batches are computed side by side, each on half of the threads: a pass on all of them would wait
at each product for the thread that the event loop has interrupted. A batch that is alone has all.
An idle server starts at once; a worker that has computed a larger batch first lets in its clients'
next requests, while they keep coming. The queue is bounded: what does not fit is refused.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import torch

from layerfuse.serving.guard import Metrics
from layerfuse.serving.registry import N_WORKERS, PredictedText, ServedModel, Texts, predict

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
    future: asyncio.Future[list[PredictedText]]
    since: float


@dataclass
class _Worker:
    """A thread that computes one batch at a time."""

    number: int
    thread: ThreadPoolExecutor
    last: int = 1
    """Texts of its last batch."""
    last_s: float = 0.0
    """Seconds that it took."""


class Batcher:
    """Runs requests in batches of at most ``max_batch`` texts; at most ``max_queue`` texts wait.

    All methods are called from one event loop.
    """

    def __init__(self, max_queue: int, max_batch: int, metrics: Metrics) -> None:
        self._max_queue, self._max_batch, self._metrics = max_queue, max_batch, metrics
        self._jobs: deque[_Job] = deque()
        self._waiting = self._running = 0  # texts
        self._rate = 100.0  # texts per second, a moving average
        self._filled = asyncio.Event()
        self._free: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()
        self._workers = [
            _Worker(number, ThreadPoolExecutor(1, f"layerfuse-batch-{number}"))
            for number in range(N_WORKERS)
        ]
        self._n_threads = torch.get_num_threads()
        self._task: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to work."""
        for worker in self._workers:
            self._free.put_nowait(worker.number)
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Finish what is queued, then end."""
        while self._jobs or self._batches:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        for worker in self._workers:
            worker.thread.shutdown()

    @property
    def is_ready(self) -> bool:
        """Whether it works and takes more texts."""
        alive = self._task is not None and not self._task.done()
        return alive and self._waiting < self._max_queue

    async def submit(self, model: ServedModel, texts: Texts) -> list[PredictedText]:
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
        if len(jobs) == 1:
            return await jobs[0].future
        return list(chain(*await asyncio.gather(*(job.future for job in jobs))))

    def _count(self, texts: int) -> None:
        self._waiting += texts
        self._metrics.queue.set(self._waiting)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            worker = self._workers[await self._free.get()]
            await self._gather(worker)
            jobs = self._take()
            if not self._jobs:
                self._filled.clear()
            if not jobs:
                self._free.put_nowait(worker.number)
                continue
            task = asyncio.create_task(self._compute(worker, jobs))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _gather(self, worker: _Worker) -> None:
        """Wait while requests come in and fewer wait than the worker's last batch had."""
        end, before = time.perf_counter() + _SHARE * worker.last_s, 0
        while before < self._waiting < worker.last and time.perf_counter() < end:
            before = self._waiting
            await asyncio.sleep(_PAUSE_S)

    def _take(self) -> list[_Job]:
        """The next batch: a worker's share of all texts; abandoned requests are left out."""
        share = math.ceil((self._waiting + self._running) / N_WORKERS)
        most, n_texts = min(share, self._max_batch), 0
        batch: list[_Job] = []
        while self._jobs and (not batch or n_texts + len(self._jobs[0].texts) <= most):
            job = self._jobs.popleft()
            self._count(-len(job.texts))
            if not job.future.done():
                batch.append(job)
                n_texts += len(job.texts)
        return batch

    async def _compute(self, worker: _Worker, jobs: Sequence[_Job]) -> None:
        started = time.perf_counter()
        n_texts = sum(len(job.texts) for job in jobs)
        for job in jobs:
            self._metrics.queue_seconds.observe(started - job.since)
        self._metrics.batch_texts.observe(n_texts)
        # OpenMP's threads sleep between products once there are more of them than cores, so the
        # first worker never has more than what the second one leaves.
        share = max(1, self._n_threads // N_WORKERS)
        is_alone = worker.number == 0 and not self._running and not self._waiting
        n_threads = self._n_threads - share + 1 if is_alone else share
        self._running += n_texts
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(worker.thread, _run, jobs, worker.number, n_threads)
        worker.last, worker.last_s = n_texts, time.perf_counter() - started
        self._rate += 0.1 * (self._running / worker.last_s - self._rate)
        self._running -= n_texts
        self._free.put_nowait(worker.number)
        for job, answer in zip(jobs, answers, strict=True):
            if job.future.done():
                continue
            if isinstance(answer, Exception):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)


def _run(
    jobs: Sequence[_Job], worker: int, n_threads: int
) -> list[list[PredictedText] | Exception]:
    """Answers or errors; what fails together is tried alone, so that no request spoils others."""
    torch.get_num_threads()  # the first call in a thread sets its number, and would undo the next
    torch.set_num_threads(n_threads)
    try:
        return list(predict([(job.model, job.texts) for job in jobs], worker))
    except Exception as error:
        if len(jobs) == 1:
            return [error]
    return [answer for job in jobs for answer in _run([job], worker, n_threads)]
