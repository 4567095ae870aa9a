"""Work on a Ray cluster, which schedules it and does again what was lost: items in, results out."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

from layerfuse.errors import LayerfuseError, require

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster whose actors do the work.

    Parameters
    ----------
    address : str, optional
        By default ``RAY_ADDRESS``, or else a new cluster on this machine.
    workers : int, optional
        Maximum number of actors; by default one per CPU, or per GPU.
    """

    address: str | None = None
    workers: int | None = None

    def map(
        self,
        open_work: Callable[[], Callable[[Item], Result]],
        items: Callable[[], Iterable[Item]],
        *,
        gpu: bool,
    ) -> Generator[Result]:
        """Results of all items, in any order.

        One task calls ``items``; each actor, which has one CPU or one GPU, calls ``open_work`` once
        and what it returns for each of its items. What is named there must be readable on all
        nodes: files on storage that they share, or URLs.

        Raises
        ------
        MissingExtraError
            Without Ray.
        LayerfuseError
            When a result comes twice.
        """
        ray = require("ray", "ray", "The engine ray")
        data = require("ray.data", "ray", "The engine ray")

        is_ours = not ray.is_initialized()
        if is_ours:
            ray.init(self.address, log_to_driver=False, logging_level="warning")
        done: set[int] = set()
        with _settings(), redirect_stdout(sys.stderr):  # Ray tells there of nodes that die
            try:
                total = ray.cluster_resources().get("GPU" if gpu else "CPU", 1)
                source = data.read_datasource(  # what reads takes little beside what they do
                    _source(items), override_num_blocks=1, num_cpus=0
                )
                results = source.map_batches(
                    _Actor,
                    fn_constructor_args=(open_work,),
                    batch_size=1,
                    compute=data.ActorPoolStrategy(
                        min_size=1, max_size=self.workers or max(1, int(total))
                    ),
                    num_cpus=0 if gpu else 1,
                    num_gpus=1 if gpu else 0,
                )
                for row in results.iter_rows():
                    number, result = pickle.loads(row["result"])  # noqa: S301  # of our actors
                    if number in done:
                        raise LayerfuseError(
                            f"Ray gave the result of part {number} twice. Run the same command "
                            "again (predict with --resume)."
                        )
                    done.add(number)
                    yield result
            finally:
                if is_ours:
                    ray.shutdown()  # nothing is told from here on


@contextmanager
def _settings() -> Iterator[None]:
    """Ray Data makes a block of each item and says little; afterwards it is as it was."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    own = {"enable_progress_bars": False, "target_max_block_size": 1}  # in bytes
    before, level = {name: getattr(context, name) for name in own}, log.level
    try:
        log.setLevel(logging.WARNING)
        for name, value in own.items():
            setattr(context, name, value)
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


class _Actor:
    """The work opened once, items handed to it one by one."""

    def __init__(self, open_work: Callable[[], Callable[[Any], object]]) -> None:
        self._run = open_work()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for packed in batch["item"]:
            number, item = pickle.loads(packed)  # noqa: S301  # of our own task
            results.append(pickle.dumps((number, self._run(item))))
        return {"result": results}


def _source(items: Callable[[], Iterable[object]]) -> Any:
    """A source of Ray Data with one task, which yields a block of one row for each item."""
    import pyarrow
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[Any]:
        for numbered in enumerate(items()):
            yield pyarrow.table({"item": [pickle.dumps(numbered)]})

    class Items(Datasource):  # type: ignore[misc,unused-ignore]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *more: Any, **named: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return Items()
