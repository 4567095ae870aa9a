"""Shard jobs: planned from what is missing, and run in batches within a token budget."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from layerfuse.cluster import RayCluster
from layerfuse.embeddings.cost_record import ShardCost
from layerfuse.embeddings.shard import Key, write_shard
from layerfuse.embeddings.store import Missing, text_hashes
from layerfuse.encoders import FrozenEncoder, Pending, Tokens
from layerfuse.errors import NoMemoryError, StorageError, is_out_of_memory
from layerfuse.objects import ObjectFolder
from layerfuse.parallel import prefetch, trim_heap
from layerfuse.progress import SILENT, Advance, Reporter

_BATCH_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
# What a batch costs beside its tokens, in tokens; on a GPU in FLOP, some milliseconds' work.
_BATCH_OVERHEAD = {"cpu": 64, "mps": 512}
_GPU_OVERHEAD = 4e12
SHARD_ROWS = {"cpu": 2048, "mps": 1024, "cuda": 8192}
# Texts times parameters: some ten seconds on two cores or on one GPU, which a kill may cost.
SHARD_WORK = {"cpu": 7e10, "mps": 7e11, "cuda": 2e13}
_SHARD_BYTES = {"cpu": 192 << 20, "mps": 192 << 20, "cuda": 1 << 30}  # three are in memory at once
_MIN_ROWS = 64


@dataclass(frozen=True, eq=False)
class ShardJob:
    """One shard to compute: plain data that can be pickled and run in another process.

    ``rows`` (n_texts,) are the numbers of ``texts`` among those planned, ``keys`` the layer and
    pooling of each block, ``batch_tokens`` the most tokens of one batch, padding counted.
    """

    rows: npt.NDArray[np.intp]
    texts: tuple[str, ...]
    keys: tuple[Key, ...]
    batch_tokens: int


@dataclass(frozen=True, eq=False)
class ShardResult:
    """What came of one `ShardJob`.

    ``truncated`` (n_texts,) says which texts were cut; ``blocks`` are arrays (n_texts, dim), none
    where the shard was written to ``path``; ``batch_tokens`` is the token budget in the end, less
    than the job's where memory ran out.
    """

    truncated: npt.NDArray[np.bool_]
    blocks: dict[Key, npt.NDArray[np.float32]]
    cost: ShardCost
    batch_tokens: int
    path: Path | None = None


def plan_shards(texts: Sequence[str], missing: Missing, encoder: FrozenEncoder) -> list[ShardJob]:
    """Divide what is missing into jobs; the encoder's weights are not needed.

    The jobs and the batches inside them follow from the order of the texts alone, so that a run
    that was stopped and goes on yields the same bytes as one that was not.

    ``texts`` are distinct and in the order of their hashes; ``missing`` is that of
    `Section.missing`.
    """
    budget = encoder.batch_tokens or _BATCH_TOKENS[encoder.kind]
    jobs = []
    for rows, keys in missing:
        fitting = _SHARD_BYTES[encoder.kind] // (4 * encoder.dim * len(keys))
        size = max(1, min(_max_rows(encoder, max(layer for layer, _ in keys)), fitting))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            jobs.append(ShardJob(part, tuple(texts[row] for row in part), keys, budget))
    return jobs


def _max_rows(encoder: FrozenEncoder, highest: int) -> int:
    """Texts of a shard: fewer for a large encoder, as a kill loses what is unwritten."""
    rows = SHARD_ROWS[encoder.kind]
    while rows > _MIN_ROWS and rows * encoder.layer_parameters[highest] > SHARD_WORK[encoder.kind]:
        rows //= 2
    return rows


def batch_overhead(encoder: FrozenEncoder) -> int:
    """What a batch costs beside its tokens, in tokens."""
    if encoder.kind in _BATCH_OVERHEAD:
        return _BATCH_OVERHEAD[encoder.kind]
    return int(_GPU_OVERHEAD / (2 * encoder.layer_parameters[-1]))


def plan_batches(lengths: Sequence[int], budget: int, overhead: int) -> list[list[int]]:
    """Group texts into batches by falling length so that reading them costs least.

    A batch costs its tokens, padding counted, and a fixed ``overhead`` in tokens; of all ways to
    cut the sorted texts into batches within the ``budget`` (a longer text is one by itself) the
    cheapest is found by dynamic programming. Texts of equal lengths keep their order.

    Examples
    --------
    >>> plan_batches([3, 9, 3, 9, 3], budget=100, overhead=1)
    [[1, 3], [0, 2, 4]]
    """
    widths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-widths, kind="stable")
    widths = widths[order]
    n = len(widths)
    least = np.full(n + 1, np.iinfo(np.int64).max)
    least[0] = 0
    starts = np.zeros(n + 1, dtype=np.intp)  # of the batch that ends before a row
    for start, width in enumerate(widths):
        size = min(max(1, budget // int(width)), n - start)
        ends = slice(start + 1, start + size + 1)
        costs = least[start] + overhead + width * np.arange(1, size + 1)
        better = costs < least[ends]
        least[ends][better] = costs[better]
        starts[ends][better] = start
    batches: list[list[int]] = []
    end = n
    while end:
        batches.append(order[starts[end] : end].tolist())
        end = int(starts[end])
    return batches[::-1]


def run_shard(
    job: ShardJob,
    encoder: FrozenEncoder,
    folder: Path | None = None,
    remote: ObjectFolder | None = None,
) -> ShardResult:
    """Run one job from end to end, in any process.

    With a section's ``folder`` the shard is written to it, and put into ``remote``, which it
    mirrors; otherwise the result holds the blocks.

    Raises
    ------
    NoMemoryError
        When one text alone does not fit into memory.
    StorageError
        When the shard cannot be written.
    """
    tokens, seconds = tokenize_shard(job, encoder)
    result = read_shard(job, tokens, seconds, encoder, lambda count: None, SILENT)
    return write_result(job, result, folder, remote)


def tokenize_shard(job: ShardJob, encoder: FrozenEncoder) -> tuple[Tokens, float]:
    """The tokens of a job's texts, and the seconds that they took."""
    encoder.tokenize([])  # loads what is not loaded yet, off the clock
    started = time.perf_counter()
    return encoder.tokenize(job.texts), time.perf_counter() - started


def read_shard(
    job: ShardJob,
    tokens: Tokens,
    tokenize_s: float,
    encoder: FrozenEncoder,
    advance: Advance,
    reporter: Reporter,
) -> ShardResult:
    """Read a job's texts in batches, halving the token budget when the device is out of memory.

    An accelerator gets the next batch before the results of this one are fetched.
    """
    import torch

    torch.get_num_threads()  # gives this thread the process's number: another one may round else
    ids = tokens.ids
    lengths = [len(row) for row in ids]
    layers = sorted({layer for layer, _ in job.keys})
    poolings = list(dict.fromkeys(pooling for _, pooling in job.keys))
    overhead = batch_overhead(encoder)
    budget = job.batch_tokens
    queue = deque(plan_batches(lengths, budget, overhead))
    n_padded = sum(len(batch) * lengths[batch[0]] for batch in queue)
    depth = 0 if encoder.kind == "cpu" else 1  # batches launched before the first is fetched
    pending: deque[tuple[list[int], float, Pending]] = deque()
    blocks: dict[Key, npt.NDArray[np.float32]] = {}
    batches = []
    done = 0.0
    while queue or pending:
        if queue and len(pending) <= depth:
            batch = queue.popleft()
            started = time.perf_counter()
            launched: Pending | None = None
            try:
                launched = encoder.launch([ids[row] for row in batch], layers, poolings)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise NoMemoryError(
                        f"{encoder.name} has no memory left to read one text of "
                        f"{lengths[batch[0]]:,} tokens. Cut texts earlier with --max-length "
                        "(max_length=), or use a smaller model, --device cpu or --dtype "
                        "bfloat16. Finished embeddings are kept."
                    ) from error
            if launched is None:  # past the error, whose frames hold what the pass had computed
                torch.cuda.empty_cache()
                budget = max(1, budget // 2)
                reporter.note(f"{encoder.name}: out of memory; batches are cut to {budget} tokens")
                left = [row for rows in (batch, *queue) for row in rows]
                queue = deque(
                    [left[index] for index in rows]
                    for rows in plan_batches([lengths[row] for row in left], budget, overhead)
                )
                continue
            pending.append((batch, started, launched))
            if queue and len(pending) <= depth:
                continue
        batch, started, oldest = pending.popleft()
        pooled = oldest.result()
        started, done = max(started, done), time.perf_counter()
        batches.append((sum(lengths[row] for row in batch), done - started))
        for layer, pooling in job.keys:
            values = pooled[layer][:, poolings.index(pooling)]
            if (layer, pooling) not in blocks:
                blocks[layer, pooling] = np.empty((len(ids), values.shape[1]), np.float32)
            blocks[layer, pooling][batch] = values
        advance(len(batch))
    cost = ShardCost(
        layer=layers[-1],
        n_texts=len(ids),
        n_tokens=sum(lengths),
        n_padded=n_padded,
        tokenize_s=tokenize_s,
        batches=tuple(batches),
    )
    return ShardResult(np.array(tokens.truncated, dtype=bool), blocks, cost, budget)


def write_result(
    job: ShardJob, result: ShardResult, folder: Path | None, remote: ObjectFolder | None = None
) -> ShardResult:
    """Write the result as a shard, and return it without its blocks; without a folder as it is."""
    if folder is None:
        return result
    path = write_shard(folder, text_hashes(job.texts), result.truncated, result.blocks, remote)
    return replace(result, blocks={}, path=path)


def run_shards(
    jobs: Sequence[ShardJob],
    encoder: FrozenEncoder,
    folder: Path | None,
    reporter: Reporter,
    remote: ObjectFolder | None = None,
) -> Generator[ShardResult]:
    """`run_shard` for jobs one after another; results in their order.

    With ``remote``, which ``folder`` mirrors, shards are put there, too.

    Beside an accelerator the next job is tokenized and the last one's shard written while a job
    is read; a CPU is busy as it is.
    """
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
        yield from in_turn(lambda pair: write_result(pair[0], pair[1], folder, remote), read())


def run_shards_on(
    cluster: RayCluster,
    jobs: Sequence[ShardJob],
    encoder: FrozenEncoder,
    folder: Path,
    reporter: Reporter,
    remote: ObjectFolder | None = None,
) -> Generator[ShardResult]:
    """`run_shard` for jobs on a cluster, whose nodes share ``folder``; results in any order.

    With ``remote`` shards are put there alone.

    Raises
    ------
    StorageError
        When this machine does not see a shard that was written.
    """
    folder = folder.resolve()

    def open_work() -> Callable[[ShardJob], ShardResult]:
        def run(job: ShardJob) -> ShardResult:
            if remote is None:
                return run_shard(job, encoder, folder)
            with TemporaryDirectory() as name:
                mirror = Path(name, folder.name)
                mirror.mkdir()
                return replace(run_shard(job, encoder, mirror, remote), path=None)

        return run

    n_texts = sum(len(job.texts) for job in jobs)
    with reporter.task(f"reading {encoder.name}", n_texts, "texts") as advance:
        for result in cluster.map(open_work, lambda: jobs, gpu=encoder.kind == "cuda"):
            if result.path is not None and not result.path.exists():
                raise StorageError(
                    f"A node of the cluster has written to {folder}, and it is not here. Give a "
                    "folder that all nodes share with --store, or a URL."
                )
            yield result
            advance(len(result.truncated))
