"""The embedding cache: a folder of sections, one for each encoder and its settings; each holds
shards.

On a URL the shards are objects, and a folder on this machine, the mirror, has copies of them. The
name of an object ends with a digest of its bytes: two writers share a name only where they would
put the same, and a copy is checked by its name. What a listing does not have yet is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from threading import RLock
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from layerfuse.cluster import RayCluster
from layerfuse.embeddings.shard import (
    SUFFIX,
    CorruptShardError,
    Hashes,
    Key,
    Shard,
    block_name,
    check_folder,
    key_of,
    open_shard,
)
from layerfuse.errors import FormatError, NewerVersionError, NotFoundError, StorageError
from layerfuse.files import (
    atomic_write,
    cache_dir,
    check_own,
    digest,
    is_url,
    read_json,
    storage_errors,
    write_json,
)
from layerfuse.objects import N_TRANSFERS, ObjectFolder
from layerfuse.progress import SILENT, Reporter

Missing: TypeAlias = Sequence[tuple[npt.NDArray[np.intp], tuple[Key, ...]]]
"""Row numbers and the blocks that all of them lack; a row is in one pair at most."""

_LOCKS: dict[Path, RLock] = {}  # of each folder, however many stores and sections are open on it


class NotStoredError(Exception):
    """Texts that a section does not hold."""


def text_hashes(texts: Iterable[str]) -> Hashes:
    """BLAKE2b digests (128 bits) of texts, shape (n_texts,), dtype S16."""
    return np.array(
        [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for text in texts
        ],
        dtype="S16",
    )


@dataclass(frozen=True)
class _Index:
    """Where each text lies in some shards: sorted hashes with shard and row numbers."""

    shards: list[Shard]
    hashes: Hashes
    truncated: npt.NDArray[np.bool_]
    shard_of: npt.NDArray[np.intp]
    row_of: npt.NDArray[np.intp]

    @classmethod
    def over(cls, shards: list[Shard]) -> _Index:
        sizes = [len(shard.hashes) for shard in shards]
        hashes = np.concatenate([np.empty(0, "S16"), *(shard.hashes for shard in shards)])
        truncated = np.concatenate([np.empty(0, bool), *(shard.truncated for shard in shards)])
        shard_of = np.repeat(np.arange(len(shards)), sizes)
        row_of = np.concatenate([np.empty(0, np.intp), *map(np.arange, sizes)])
        order = np.argsort(hashes, kind="stable")
        return cls(shards, hashes[order], truncated[order], shard_of[order], row_of[order])

    def places(self, wanted: Hashes) -> npt.NDArray[np.intp]:
        """Positions in this index, -1 where a text is not here; (n_wanted,)."""
        if not len(self.hashes):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[at] == wanted, at, -1)


@dataclass(frozen=True)
class _Contents:
    """What a folder held at one moment; a change makes a new one, so that readers need no lock."""

    shards: dict[str, Shard]
    indexes: dict[tuple[str, ...], _Index] = field(default_factory=dict)

    def holders(self, key: Key) -> tuple[str, ...]:
        """File names of the shards with a block, sorted: of a text in two the first counts."""
        name = block_name(key)
        return tuple(sorted(file for file, shard in self.shards.items() if name in shard.names))

    def index(self, holders: tuple[str, ...]) -> _Index:
        if holders not in self.indexes:
            self.indexes[holders] = _Index.over([self.shards[name] for name in holders])
        return self.indexes[holders]


class Section:
    """Embeddings of one encoder with one set of settings, in a folder of shards.

    Safe to share between threads: ``lock``, one in the process for each folder, is held while its
    contents change. Damaged shards are set aside (renamed to ``*.corrupt``) and reported, so that
    their texts count as missing and are computed again.

    ``folder`` mirrors the objects of ``remote`` where one is given; ``cluster`` computes what is
    missing, None for this process.
    """

    def __init__(
        self,
        folder: Path,
        reporter: Reporter = SILENT,
        remote: ObjectFolder | None = None,
        cluster: RayCluster | None = None,
    ) -> None:
        self.folder = folder
        self.remote = remote
        self.cluster = cluster
        self._torn: set[str] = set()
        self.lock = _LOCKS.setdefault(folder.resolve(), RLock())
        self._reporter = reporter
        self._contents = _Contents({})

    def refresh(self) -> None:
        """List the folder again: shards may have come from another process, or machine."""
        with self.lock:
            check_folder(self.folder)
            if self.remote is not None:
                self._mirror(self.remote)
            present = {path.name: path for path in sorted(self.folder.glob(f"*{SUFFIX}"))}
            known = self._contents.shards
            self._contents = _Contents({name: known[name] for name in known if name in present})
            for name, path in present.items():
                if name not in known:
                    self.add(path)

    def add(self, path: Path) -> None:
        """Take in a shard that was just written, or set it aside when it is damaged."""
        with self.lock:
            try:
                self._contents = _Contents({**self._contents.shards, path.name: open_shard(path)})
            except CorruptShardError as error:
                self._set_aside(error)

    def missing(self, hashes: Hashes, keys: Sequence[Key]) -> Missing:
        """Which of the texts lack which blocks."""
        contents = self._contents
        groups: dict[tuple[str, ...], list[Key]] = {}
        for key in keys:
            groups.setdefault(contents.holders(key), []).append(key)
        lacks = np.stack(
            [contents.index(holders).places(hashes) < 0 for holders in groups], axis=1
        )  # (n_texts, n_groups)
        missing = []
        for pattern in np.unique(lacks, axis=0):
            if pattern.any():
                rows = np.flatnonzero((lacks == pattern).all(axis=1))
                lacking = compress(groups.values(), pattern)
                missing.append((rows, tuple(sorted(key for group in lacking for key in group))))
        return missing

    def read(self, hashes: Hashes, key: Key) -> npt.NDArray[np.float32]:
        """One block of texts, (n_texts, dim); reads no other block's bytes.

        Raises
        ------
        CorruptShardError, NotStoredError
            When a shard is damaged, see `recover`, or a text is missing.
        """
        contents = self._contents
        index = contents.index(contents.holders(key))
        places = index.places(hashes)
        if (places < 0).any():
            raise NotStoredError(f"{int((places < 0).sum())} texts of {block_name(key)}")
        shard_of, row_of = index.shard_of[places], index.row_of[places]
        result = np.empty((len(hashes), 0), dtype=np.float32)
        for number in np.unique(shard_of) if len(places) else [0]:
            rows = np.flatnonzero(shard_of == number)
            values = index.shards[number].read(block_name(key))
            if not result.shape[1]:
                result = np.empty((len(hashes), values.shape[1]), dtype=np.float32)
            result[rows] = values[row_of[rows]]
        return result

    def recover(self, error: CorruptShardError) -> None:
        """Set a shard aside after a failed `read`, unless it was computed again since then."""
        with self.lock:
            others = dict(self._contents.shards)
            others.pop(error.path.name, None)
            self._contents = _Contents(others)
            try:  # another thread or process may have been here first
                shard = open_shard(error.path)
                if error.block is not None:
                    shard.read(error.block)
            except CorruptShardError as still:
                self._set_aside(still)

    def order(self, hashes: Hashes, key: Key) -> npt.NDArray[np.intp]:
        """Numbers of the texts (n_texts,), one shard's together; those not here come first."""
        contents = self._contents
        index = contents.index(contents.holders(key))
        places = index.places(hashes)
        lies = np.where(places < 0, -1, index.shard_of[places] if len(index.hashes) else -1)
        return np.argsort(lies, kind="stable")

    def truncated(self, hashes: Hashes, key: Key) -> npt.NDArray[np.bool_]:
        """Which texts were truncated, shape (n_texts,)."""
        contents = self._contents
        index = contents.index(contents.holders(key))
        return index.truncated[index.places(hashes)]

    def verify(self) -> list[Path]:
        """Read every byte; damaged shards are set aside, damaged objects deleted; both returned."""
        with self.lock:
            torn: list[str] = []
            if self.remote is not None:
                torn = self._mirror(self.remote, everything=True)
                self.remote.delete(*torn)
            before = set(self.folder.glob(f"*{SUFFIX}"))
            self.refresh()
            for shard in self._contents.shards.values():
                try:
                    for name in shard.names:
                        shard.read(name)
                except CorruptShardError as error:
                    self.recover(error)
            damaged = before - set(self.folder.glob(f"*{SUFFIX}"))
            return sorted(damaged.union(self.folder / name for name in torn))

    def _mirror(self, remote: ObjectFolder, *, everything: bool = False) -> list[str]:
        """Download the shards that are not here yet, or ``everything``; names of damaged ones."""

        def is_damaged(name: str) -> bool:
            try:
                with atomic_write(self.folder / name) as temporary:
                    remote.download(name, temporary)
                    with temporary.open("rb") as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
                    if not name.endswith(f"-{found}{SUFFIX}"):
                        raise CorruptShardError(self.folder / name, "not what its name tells")
            except CorruptShardError as error:
                note = "a damaged object counts as missing and will be computed again"
                self._reporter.note(f"{note}: {remote.url}/{error.path.name}")
                return True
            except NotFoundError:  # deleted since it was listed
                pass
            return False

        names = [name for name in sorted(remote.sizes()) if name.endswith(SUFFIX)]
        if not everything:
            names = [n for n in names if n not in self._torn and not (self.folder / n).exists()]
        with ThreadPoolExecutor(N_TRANSFERS) as pool:
            damaged = list(compress(names, list(pool.map(is_damaged, names))))
        self._torn.update(damaged)
        return damaged

    def _set_aside(self, error: CorruptShardError) -> None:
        """Rename a damaged shard; one that is no longer there was set aside by another process."""
        if os.path.lexists(error.path):  # a link to itself is damage too
            note = "a damaged shard was set aside and will be computed again"
            self._reporter.note(f"{note}: {error}")
            with storage_errors(error.path), contextlib.suppress(FileNotFoundError):
                error.path.replace(error.path.with_suffix(".corrupt"))


_KIND, _VERSION = "layerfuse-store", 1
_MANIFEST = "manifest.json"
_IN_FLIGHT_S = 3600.0


def _key(identity: Mapping[str, object]) -> str:
    return digest(str(_VERSION), json.dumps(identity, sort_keys=True))[:16]


class _Manifest(BaseModel, frozen=True):
    """manifest.json: what a section's values are the embeddings of."""

    format: str = _KIND
    format_version: int = _VERSION
    encoder: str
    identity: dict[str, object]

    @classmethod
    def read(cls, path: Path) -> _Manifest:
        """The manifest of the folder that it lies in; else a FormatError."""
        with contextlib.suppress(ValidationError):
            value = cls.model_validate(read_json(path, kind=_KIND, version=_VERSION))
            if _key(value.identity) == key_of(path.parent):
                return value
        raise FormatError(f"{path} is that of another section, or damaged.")


@dataclass(frozen=True)
class SectionInfo:
    """What one section holds: shards, bytes, and seconds since it was last used.

    ``folder`` is a URL where the store is at one.
    """

    encoder: str
    folder: str | Path
    identity: dict[str, object]
    shards: int
    n_bytes: int
    idle_s: float


class EmbeddingStore:
    """The embedding cache; safe to share between threads, processes and, on a URL, machines.

    A section's key names everything that changes a value (weights, tokenizer, prompt, token limit,
    dtype, format version). Inside it texts are found by their hash, so equal texts are computed
    once, and new texts, layers or poolings add only what is new. Several processes may write at
    once: each shard is a file of its own, renamed into place when it is complete, or an object.
    What is read of a URL is copied into the cache folder first.

    Parameters
    ----------
    root : str or Path, optional
        Its folder, or a URL of fsspec such as ``"s3://bucket/embeddings"``; by default ``store``
        in the cache folder (``LAYERFUSE_CACHE``).
    cluster : RayCluster, optional
        Where texts that are missing are read; by default in this process. The cluster's nodes must
        share the folder.

    Examples
    --------
    >>> store = EmbeddingStore("embeddings")
    >>> blocks = extract(texts, encoder, store=store)  # doctest: +SKIP
    """

    def __init__(self, root: str | Path | None = None, cluster: RayCluster | None = None) -> None:
        self.cluster = cluster
        self.remote = ObjectFolder(str(root)) if root is not None and is_url(root) else None
        self._named = root is not None and self.remote is None
        if self.remote is not None:
            self.root = cache_dir() / "objects" / "stores" / digest(self.remote.url.rstrip("/"))
        else:
            self.root = Path(root).expanduser() if root is not None else cache_dir() / "store"

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.place)!r})"

    @property
    def place(self) -> str | Path:
        """The URL, or the folder."""
        return self.root if self.remote is None else self.remote.url

    def section(
        self, encoder: str, identity: Mapping[str, object], reporter: Reporter = SILENT
    ) -> Section:
        """Open the section of an encoder's `identity`, creating it when it is new.

        Raises
        ------
        FormatError
            When it was written by a newer version.
        StorageError
            When it is new and cannot be written, or another user may have written it.
        """
        key = _key(identity)
        value = _Manifest(encoder=encoder, identity=dict(identity))
        if self.remote is not None:  # found by its name, as a listing may lag
            section = self._open(self.root / f"section-{key}", reporter)
            if section.folder.is_dir():
                check_own(section.folder)
            write_json(section.folder / _MANIFEST, value.model_dump())
            with contextlib.suppress(StorageError):  # a store may be read-only
                (self.remote / section.folder.name).upload(section.folder / _MANIFEST, _MANIFEST)
            section.refresh()
            return section
        safe = re.sub(r"[^\w.-]", "_", encoder)
        folder = next(self.root.glob(f"*-{key}"), self.root / f"{safe}-{key}")
        manifest = folder / _MANIFEST
        if manifest.exists():
            check_own(folder, self.root if self._named else None)
            try:
                _Manifest.read(manifest)
            except FormatError as error:
                raise FormatError(
                    f"{error}\nThe embeddings beside it are kept: layerfuse store verify sets the "
                    "manifest aside."
                ) from error
            with contextlib.suppress(OSError):  # a store may be read-only
                os.utime(manifest)
        else:
            write_json(manifest, value.model_dump())
        section = self._open(folder, reporter)
        section.refresh()
        return section

    def sections(self) -> list[SectionInfo]:
        """All sections, the most recently used first."""
        infos = []
        for manifest, sizes, idle_s in self._listed():
            # Not ours, from a newer version, or deleted meanwhile: not ours to delete either.
            with contextlib.suppress(FormatError, NotFoundError):
                value = _Manifest.read(manifest)
                infos.append(
                    SectionInfo(
                        encoder=value.encoder,
                        folder=(
                            manifest.parent
                            if self.remote is None
                            else (self.remote / manifest.parent.name).url
                        ),
                        identity=value.identity,
                        shards=len(sizes),
                        n_bytes=sum(sizes),
                        idle_s=idle_s,
                    )
                )
        return sorted(infos, key=lambda info: info.idle_s)

    def verify(self, reporter: Reporter = SILENT) -> list[Path]:
        """Read every manifest and shard; damaged ones are set aside and returned."""
        damaged: list[Path] = []
        for manifest, _, _ in self._listed():
            try:
                _Manifest.read(manifest)
            except (NewerVersionError, NotFoundError):  # or deleted meanwhile
                continue
            except FormatError:
                damaged.append(manifest)
                with storage_errors(manifest), contextlib.suppress(FileNotFoundError):
                    manifest.replace(manifest.with_suffix(".corrupt"))
                if self.remote is not None:
                    (self.remote / manifest.parent.name).delete(_MANIFEST)
        for info in self.sections():
            folder = self.root / Path(info.folder).name
            try:
                damaged += self._open(folder, reporter).verify()
            except (StorageError, FileNotFoundError):
                if folder.is_dir():
                    raise
        return damaged

    def _open(self, folder: Path, reporter: Reporter = SILENT) -> Section:
        remote = None if self.remote is None else self.remote / folder.name
        return Section(folder, reporter, remote, self.cluster)

    def _listed(self) -> Iterator[tuple[Path, list[int], float]]:
        """Each section's manifest, the bytes of its shards, and seconds since its last use."""
        if self.remote is None:
            for manifest in self.root.glob(f"*-*/{_MANIFEST}"):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    shards = manifest.parent.glob(f"*{SUFFIX}")
                    sizes = [path.stat().st_size if path.exists() else 0 for path in shards]
                    yield manifest, sizes, max(0.0, time.time() - manifest.stat().st_mtime)
            return
        listing = self.remote.sizes()
        for name in listing:
            folder, _, file = name.partition("/")
            if file == _MANIFEST and folder.startswith("section-"):
                with contextlib.suppress(NotFoundError):
                    idle_s = self.remote.age_s(name)
                    with atomic_write(self.root / name) as manifest:
                        self.remote.download(name, manifest)
                    sizes = [
                        size
                        for other, size in listing.items()
                        if other.startswith(f"{folder}/") and other.endswith(SUFFIX)
                    ]
                    yield self.root / name, sizes, idle_s

    def prune(self, remove: Callable[[SectionInfo], bool]) -> list[SectionInfo]:
        """Delete the sections for which ``remove`` is true and return them; of the others the
        damaged shards, and temporary files older than an hour.

        Raises
        ------
        StorageError
            When a file cannot be deleted.
        """
        removed = []
        for info in self.sections():
            folder = self.root / Path(info.folder).name
            if remove(info):
                if self.remote is not None:
                    remote = self.remote / folder.name
                    remote.delete(*(name for name in remote.sizes() if name != _MANIFEST))
                    remote.delete(_MANIFEST)  # last: what was stopped can be told again
                with storage_errors(folder):
                    with contextlib.suppress(FileNotFoundError):  # a file renamed meanwhile
                        shutil.rmtree(folder)
                    if folder.exists():
                        shutil.rmtree(folder)
                removed.append(info)
                continue
            with storage_errors(folder):
                for damaged in folder.glob("*.corrupt"):
                    damaged.unlink(missing_ok=True)
                for leftover in folder.glob(".*.tmp"):
                    # A recent one may be another process's shard in flight, or in place by now.
                    with contextlib.suppress(FileNotFoundError):
                        if time.time() - leftover.stat().st_mtime > _IN_FLIGHT_S:
                            leftover.unlink()
        return removed
