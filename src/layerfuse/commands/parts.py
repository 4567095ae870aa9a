"""A table's rows in parts: what is done with each, here or on a Ray cluster, and output in parts.

A part is the unit of all that can go wrong: it is complete or absent, and nothing is kept between
two parts.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from filelock import FileLock, Timeout

from layerfuse.cli_options import StreamConfig
from layerfuse.cluster import RayCluster
from layerfuse.commands.output import AS_TEXT, as_texts
from layerfuse.data import (
    STANDARD_INPUT,
    TABLE_SUFFIXES,
    ReadOptions,
    Split,
    TextStream,
    stream_texts,
)
from layerfuse.errors import (
    FormatError,
    NotFoundError,
    StorageError,
)
from layerfuse.files import (
    atomic_write,
    cache_dir,
    digest,
    is_url,
    read_json,
    storage_errors,
    write_json,
)
from layerfuse.objects import ObjectFolder
from layerfuse.progress import SILENT, Advance, Reporter

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")

_KIND, _VERSION = "layerfuse-parts", 1
_MANIFEST = "parts.json"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a file system


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a table, of which this is the ``number``-th part."""

    number: int
    rows: Split


@dataclass(frozen=True)
class Done(Generic[R]):
    """What came of the part ``number``, which has so many ``rows``."""

    number: int
    rows: int
    result: R


class Work(Protocol[R_co]):
    """What is to be done with parts. It can be pickled, and is opened where it runs."""

    def open(self, reporter: Reporter) -> Callable[[Part], R_co]:
        """Load what it needs, once in a process."""


@dataclass(frozen=True)
class PartSource:
    """Where parts come from; can be pickled and opened anywhere the file can be read.

    ``split`` is one of its splits, None takes all, one after the other.
    """

    data: str
    part_rows: int
    text_column: str | None
    label_column: str | None = None
    labeled: bool = False
    split: str | None = None
    skip: frozenset[int] = frozenset()
    options: ReadOptions = field(default_factory=ReadOptions)

    def stream(self, reporter: Reporter = SILENT) -> TextStream:
        """The data, opened; its columns are known then."""
        options = replace(
            self.options,
            text_column=self.text_column,
            label_column=self.label_column,
            labeled=self.labeled,
        )
        return stream_texts(self.data, self.part_rows, options, reporter=reporter)

    def parts(self, stream: TextStream | None = None) -> Iterator[Part]:
        """The parts that are not skipped, of the ``stream`` where it is open already."""
        splits = (stream or self.stream()).splits
        chosen = splits.values() if self.split is None else [splits[self.split]]
        numbered = enumerate(rows for split in chosen for rows in split)
        return (Part(number, rows) for number, rows in numbered if number not in self.skip)


def run_parts(
    work: Work[R],
    source: PartSource,
    opened: TextStream,
    config: StreamConfig,
    device: str,
    advance: Advance,
    reporter: Reporter,
) -> Iterator[Done[R]]:
    """Do the work for every part by the engine of the settings, in any order.

    ``opened`` is the source's stream.
    """
    if config.cluster is None:
        return _run_here(work, source.parts(opened), advance, reporter)
    return _run_on_cluster(config.cluster, work, source, device.startswith("cuda"), advance)


def in_order(results: Iterable[Done[R]]) -> Iterator[Done[R]]:
    """The results of all parts by their numbers; those that come early wait."""
    waiting: dict[int, Done[R]] = {}
    following = 0
    for result in results:
        waiting[result.number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _run_here(
    work: Work[R], parts: Iterable[Part], advance: Advance, reporter: Reporter
) -> Iterator[Done[R]]:
    """Do the work in this process, part after part."""
    inner = _Within(reporter, advance)
    run = work.open(inner)
    for part in parts:
        inner.start(len(part.rows))
        result = run(part)
        yield Done(part.number, len(part.rows), result)
        inner.finish()


class _Within:
    """Reports the steps of a part as progress of the whole: the first step stands for the part."""

    def __init__(self, reporter: Reporter, advance: Advance) -> None:
        self._reporter, self._advance = reporter, advance
        self._size = self._done = 0

    def start(self, size: int) -> None:
        self._size, self._done = size, 0

    def finish(self) -> None:
        self._advance(self._size - self._done)

    def note(self, line: str) -> None:
        self._reporter.note(line)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        whole, done = 0 if self._done else self._size, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            reached = min(whole, whole * done // max(1, total))
            self._advance(max(0, reached - self._done))
            self._done = max(self._done, reached)

        yield advance


def _run_on_cluster(
    cluster: RayCluster, work: Work[R], source: PartSource, gpu: bool, advance: Advance
) -> Iterator[Done[R]]:
    """Do the work on a Ray cluster, in any order of the parts."""

    def open_work() -> Callable[[Part], Done[R]]:
        run = work.open(SILENT)
        return lambda part: Done(part.number, len(part.rows), run(part))

    for done in cluster.map(open_work, source.parts, gpu=gpu):
        yield done
        advance(done.rows)


class PartFiles:
    """An output file in the making: its finished parts, in a folder beside it.

    Each part is written atomically, and so is the file, once all parts are there. The parts of a
    URL lie in the cache folder, and the file is uploaded as a whole. With ``resume`` the parts of a
    stopped run are used; without, they are a StorageError, unless they came from standard input.
    Only one process at a time can be inside of this context manager for a file.
    """

    def __init__(self, out: str, *, resume: bool) -> None:
        self.out = out
        self._resume = resume
        self._kind = next(suffix for suffix in TABLE_SUFFIXES if out.lower().endswith(suffix))
        if is_url(out):
            self.folder = cache_dir() / "parts" / digest(out)
        else:
            self.folder = Path(out).parent / f".{Path(out).name}.parts"
        self._facts: dict[str, object] = {}
        self._known: Mapping[str, object] | None = None
        self._lock = FileLock(self.folder.with_name(f"{self.folder.name}.lock"), timeout=0)

    def __enter__(self) -> Self:
        with storage_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise StorageError(
                    f"Another run is writing {self.out}. Wait for it, or choose another --out."
                ) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        try:
            self._take_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # Windows deletes no open file
            Path(self._lock.lock_file).unlink()
        self._lock.release()

    def _take_up(self) -> None:
        """Find the parts of a stopped run."""
        with suppress(NotFoundError, FormatError):  # no parts
            found = read_json(self.folder / _MANIFEST, kind=_KIND, version=_VERSION)
            self._known = found["facts"]
        if self._known is None or self._known.get("data") == STANDARD_INPUT:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._known = None
        elif not self._resume:
            raise StorageError(
                f"{self.out}: an interrupted run left {len(self.finished)} finished parts. "
                f"Continue it with --resume, or delete {self.folder} to start over."
            )

    def check(self, facts: Mapping[str, object]) -> None:
        """Take note of what parts depend on; a StorageError where finished ones depend on other."""
        self._facts |= facts
        known = facts if self._known is None else self._known
        if changed := sorted(name for name in facts if known.get(name) != facts[name]):
            raise StorageError(
                f"{self.out}: the parts in {self.folder} were written with a different "
                f"{' and '.join(changed)}. Repeat that run, or delete the folder to start over."
            )

    @property
    def finished(self) -> frozenset[int]:
        """Numbers of the parts that are there."""
        return frozenset(int(path.suffix[1:]) for path in self.folder.glob("part.[0-9]*"))

    def write(self, number: int, data: bytes) -> None:
        """Write a part; there, it stays."""
        if not (self.folder / _MANIFEST).exists():
            head = {"format": _KIND, "format_version": _VERSION}
            write_json(self.folder / _MANIFEST, {**head, "facts": self._facts})
        with atomic_write(self._path(number)) as temporary:
            temporary.write_bytes(data)

    def join(self, n_parts: int) -> tuple[str, ...]:
        """Write the file from its parts, and delete them.

        Returns the columns of Parquet that are text since their values are of several kinds.
        """
        if missing := sorted(set(range(n_parts)) - self.finished):
            raise StorageError(
                f"{self.out}: part {missing[0]} of {n_parts} is missing. Run the same command "
                "again with --resume."
            )
        joined, mixed = self.folder / "joined", tuple[str, ...]()
        with atomic_write(joined) as temporary:
            if self._kind == ".parquet":
                mixed = self._join_tables(temporary, n_parts)
            else:
                with temporary.open("wb") as file:
                    for number in range(n_parts):
                        with self._path(number).open("rb") as part:
                            shutil.copyfileobj(part, file)
        if is_url(self.out):
            folder, _, name = self.out.rpartition("/")
            ObjectFolder(folder).upload(joined, name)
        else:
            with storage_errors(Path(self.out)):
                joined.replace(self.out)
        with storage_errors(self.folder):
            shutil.rmtree(self.folder)
        return mixed

    def _join_tables(self, path: Path, n_parts: int) -> tuple[str, ...]:
        import pyarrow
        from pyarrow import parquet

        # A column without any value in a part has no type there.
        schemas = [parquet.read_schema(self._path(number)) for number in range(n_parts)]
        mixed = {own.name for schema in schemas for own in schema if own.metadata == AS_TEXT}
        fields = []
        for name in schemas[0].names:
            alike = [pyarrow.schema([schema.field(name)]) for schema in schemas]
            try:
                joint = pyarrow.unify_schemas(alike, promote_options="permissive")
            except pyarrow.ArrowException:
                mixed.add(name)
            text = pyarrow.field(name, pyarrow.string(), metadata=AS_TEXT)
            fields.append(text if name in mixed else joint.field(0))
        with parquet.ParquetWriter(path, schema := pyarrow.schema(fields)) as writer:
            for number in range(n_parts):
                part = parquet.read_table(self._path(number))
                for name in mixed:
                    values = pyarrow.array(as_texts(part[name].to_pylist()), pyarrow.string())
                    part = part.set_column(part.schema.get_field_index(name), name, values)
                try:
                    writer.write_table(part.cast(schema))
                except pyarrow.ArrowException as error:
                    raise StorageError(
                        f"{self.out}: no type of Parquet holds a column's values of all rows: "
                        f"{error}. Choose another format with --out."
                    ) from error
        return tuple(sorted(mixed))

    def _path(self, number: int) -> Path:
        return self.folder / f"part.{number:08d}"
