"""Where shard jobs run: an engine maps them, in this process or elsewhere."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from layerfuse.embeddings.plan import ShardJob
from layerfuse.embeddings.runner import ShardResult, read_shard, tokenize_shard, write_result
from layerfuse.encoders import FrozenEncoder
from layerfuse.parallel import prefetch, trim_heap
from layerfuse.progress import Reporter


class Engine(Protocol):
    """Runs shard jobs.

    An engine need only call `run_shard` with what it is given: jobs, encoders (without their
    weights) and results can be pickled.
    """

    def map(
        self,
        jobs: Sequence[ShardJob],
        encoder: FrozenEncoder,
        folder: Path | None,
        reporter: Reporter,
    ) -> Generator[ShardResult]:
        """Results of some jobs, in their order; see `run_shard`."""


class LocalEngine:
    """Runs jobs one after another in this process.

    Beside an accelerator the next job is tokenized and the last one's shard written while a job
    is read; a CPU is busy as it is.
    """

    def map(
        self,
        jobs: Sequence[ShardJob],
        encoder: FrozenEncoder,
        folder: Path | None,
        reporter: Reporter,
    ) -> Generator[ShardResult]:
        """Results of some jobs, in their order."""
        encoder.tokenize([])  # loads what is not loaded yet, off the clock

        def read() -> Iterator[tuple[ShardJob, ShardResult]]:
            budget: float = math.inf
            tokenized = in_turn(lambda job: tokenize_shard(job, encoder), jobs)
            for job, (tokens, seconds) in zip(jobs, tokenized, strict=True):
                # What did not fit into memory once is not tried again.
                fitting = replace(job, batch_tokens=int(min(job.batch_tokens, budget)))
                result = read_shard(fitting, tokens, seconds, encoder, advance, reporter)
                budget = result.batch_tokens
                yield job, result
                del result
                if len(jobs) > 1:
                    trim_heap()

        in_turn = map if encoder.kind == "cpu" else prefetch
        n_texts = sum(len(job.texts) for job in jobs)
        with reporter.task(f"reading {encoder.name}", n_texts, "texts") as advance:
            yield from in_turn(lambda pair: write_result(pair[0], pair[1], folder), read())
