"""The embedding cache on disk: a folder of sections, one for each encoder and its settings; each
holds shards: content-addressed files, written once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import FormatError, NewerVersionError, StorageError
from layerfuse.files import (
    atomic_write,
    cache_dir,
    check_own,
    digest,
    read_json,
    storage_errors,
    write_json,
)
from layerfuse.progress import SILENT, Reporter

Key: TypeAlias = tuple[int, str]
"""A layer and a pooling."""

Hashes: TypeAlias = npt.NDArray[np.bytes_]
"""Digests of texts, dtype S16."""

_HASHES, _TRUNCATED = "hashes", "truncated"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class CorruptShardError(Exception):
    """A shard that is missing, or whose bytes are not what was written."""

    def __init__(self, path: Path, reason: str, block: str | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.block = block  # the block that was read; None for the index


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard's index: which texts and blocks it holds; block values stay on disk.

    ``hashes`` and ``truncated`` have shape (n_texts,); ``names`` are those of `block_name`.
    """

    path: Path
    names: frozenset[str]
    hashes: Hashes
    truncated: npt.NDArray[np.bool_]
    checksums: dict[str, int]
    old: bool

    def read(self, name: str) -> npt.NDArray[Any]:
        """One block's values, (n_texts, dim); a CorruptShardError when the bytes are damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                array: npt.NDArray[Any] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptShardError(self.path, str(error), name) from error
        if _checksum(array, old=self.old) != self.checksums[name]:
            raise CorruptShardError(self.path, f"block {name} does not match its checksum", name)
        return array


def open_shard(path: Path) -> Shard:
    """Read a shard's index, or raise a CorruptShardError when the file is not a whole shard."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            old = "crc32" in metadata  # before 0.2: its section and dtypes are not said
            value = json.loads(metadata["crc32" if old else "shard"])
            section, stored = ("", value) if old else value
            checksums = {str(name): int(value) for name, value in stored.items()}
            names = set(file.keys())
            hashes, truncated = file.get_tensor(_HASHES), file.get_tensor(_TRUNCATED)
    except (
        *(SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise CorruptShardError(path, str(error)) from error
    if not old and section != _key_of(path.parent):
        raise CorruptShardError(path, "it is from another section")
    read = {_HASHES: _checksum(hashes, old=old), _TRUNCATED: _checksum(truncated, old=old)}
    if names != set(checksums) or any(checksums[name] != read[name] for name in read):
        raise CorruptShardError(path, "its index does not match its checksum")
    return Shard(
        path,
        frozenset(names - {_HASHES, _TRUNCATED}),
        hashes.view("S16")[:, 0],
        truncated.astype(bool),
        checksums,
        old,
    )


def write_shard(
    folder: Path,
    hashes: Hashes,
    truncated: npt.NDArray[np.bool_],
    blocks: Mapping[Key, npt.NDArray[np.float32]],
) -> Path:
    """Write one shard atomically; its file name is a digest of its hashes and block names.

    Blocks (n_texts, dim) are stored as float16 unless a value would overflow; then as float32.
    """
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[Any]] = {
        _HASHES: np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 16),
        _TRUNCATED: truncated.astype(np.uint8),
    }
    names = {block_name(key): array for key, array in blocks.items()}
    for name, array in names.items():
        fits = array.size == 0 or float(np.abs(array).max()) <= _FLOAT16_MAX
        tensors[name] = array.astype(np.float16) if fits else array.astype(np.float32)
    checksums = {name: _checksum(array) for name, array in tensors.items()}
    shard = json.dumps([_key_of(folder), checksums])  # one entry: their order is not kept
    path = folder / f"{digest(hashes.tobytes(), *sorted(names))}.safetensors"
    data = save(tensors, metadata={"shard": shard})
    check_folder(folder)  # writing would make it anew, without its manifest
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


def check_folder(folder: Path) -> None:
    """Raise a StorageError for a section's folder that was deleted since it was opened."""
    if not folder.is_dir():
        raise StorageError(
            f"{folder} was deleted while it was in use. Run the same command again, and delete "
            "embeddings only while nothing reads or writes them."
        )


def block_name(key: Key) -> str:
    """The name of a block's tensor, such as ``"8:mean"``."""
    return f"{key[0]}:{key[1]}"


def _checksum(array: npt.NDArray[Any], *, old: bool = False) -> int:
    start = 0 if old else zlib.crc32(f"{array.dtype}{array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, start)


def _key_of(folder: Path) -> str:
    """The digest of the identity, which ends the name of a section's folder."""
    return folder.name.rpartition("-")[2]


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
    """

    def __init__(self, folder: Path, reporter: Reporter = SILENT) -> None:
        self.folder = folder
        self.lock = _LOCKS.setdefault(folder.resolve(), RLock())
        self._reporter = reporter
        self._contents = _Contents({})

    def refresh(self) -> None:
        """List the folder again: shards may have come from another process."""
        with self.lock:
            check_folder(self.folder)
            present = {path.name: path for path in sorted(self.folder.glob("*.safetensors"))}
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
        """Read every byte; damaged shards are set aside and returned."""
        with self.lock:
            before = set(self.folder.glob("*.safetensors"))
            self.refresh()
            for shard in self._contents.shards.values():
                try:
                    for name in shard.names:
                        shard.read(name)
                except CorruptShardError as error:
                    self.recover(error)
            return sorted(before - set(self.folder.glob("*.safetensors")))

    def _set_aside(self, error: CorruptShardError) -> None:
        """Rename a damaged shard; one that is no longer there was set aside by another process."""
        if error.path.exists():
            note = "a damaged shard was set aside and will be computed again"
            self._reporter.note(f"{note}: {error}")
            with storage_errors(error.path), contextlib.suppress(FileNotFoundError):
                error.path.replace(error.path.with_suffix(".corrupt"))


_KIND, _VERSION = "layerfuse-store", 1
_MANIFEST = "manifest.json"
_IN_FLIGHT_S = 3600.0


def _key(identity: Mapping[str, Any]) -> str:
    return digest(str(_VERSION), json.dumps(identity, sort_keys=True))[:16]


@dataclass(frozen=True)
class SectionInfo:
    """What one section holds: shards, bytes, and seconds since it was last used."""

    encoder: str
    folder: Path
    identity: dict[str, Any]
    shards: int
    n_bytes: int
    idle_s: float


class EmbeddingStore:
    """The embedding cache on disk; safe to share between threads and processes.

    A section's key names everything that changes a value (weights, tokenizer, prompt, token limit,
    dtype, format version). Inside it texts are found by their hash, so equal texts are computed
    once, and new texts, layers or poolings add only what is new. Several processes may write at
    once: each shard is a file of its own, renamed into place when it is complete.

    Parameters
    ----------
    root : str or Path, optional
        Its folder; by default ``store`` in the cache folder (``LAYERFUSE_CACHE``).

    Examples
    --------
    >>> store = EmbeddingStore("embeddings")
    >>> blocks = extract(texts, encoder, store=store)  # doctest: +SKIP
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self._named = root is not None
        self.root = Path(root).expanduser() if root is not None else cache_dir() / "store"

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.root)!r})"

    def section(
        self, encoder: str, identity: Mapping[str, Any], reporter: Reporter = SILENT
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
        safe = re.sub(r"[^\w.-]", "_", encoder)
        folder = next(self.root.glob(f"*-{key}"), self.root / f"{safe}-{key}")
        manifest = folder / _MANIFEST
        if manifest.exists():
            check_own(folder, self.root if self._named else None)
            try:
                self._read_manifest(manifest)
            except FormatError as error:
                raise FormatError(
                    f"{error}\nThe embeddings beside it are kept: layerfuse store verify sets the "
                    "manifest aside."
                ) from error
            with contextlib.suppress(OSError):  # a store may be read-only
                os.utime(manifest)
        else:
            head = {"format": _KIND, "format_version": _VERSION, "encoder": encoder}
            write_json(manifest, {**head, "identity": dict(identity)})
        section = Section(folder, reporter)
        section.refresh()
        return section

    @staticmethod
    def _read_manifest(manifest: Path) -> dict[str, Any]:
        value = read_json(manifest, kind=_KIND, version=_VERSION)
        if _key(value.get("identity", {})) != _key_of(manifest.parent):
            raise FormatError(f"{manifest} is that of another section, or damaged.")
        return value

    def sections(self) -> list[SectionInfo]:
        """All sections, the most recently used first."""
        infos = []
        for manifest in self.root.glob(f"*/{_MANIFEST}"):
            # Not ours, from a newer version, or deleted meanwhile: not ours to delete either.
            with contextlib.suppress(FormatError, OSError, LookupError):
                value = read_json(manifest, kind=_KIND, version=_VERSION)
                sizes = [path.stat().st_size for path in manifest.parent.glob("*.safetensors")]
                infos.append(
                    SectionInfo(
                        encoder=value["encoder"],
                        folder=manifest.parent,
                        identity=value["identity"],
                        shards=len(sizes),
                        n_bytes=sum(sizes),
                        idle_s=max(0.0, time.time() - manifest.stat().st_mtime),
                    )
                )
        return sorted(infos, key=lambda info: info.idle_s)

    def verify(self, reporter: Reporter = SILENT) -> list[Path]:
        """Read every manifest and shard; damaged ones are set aside and returned."""
        damaged: list[Path] = []
        for manifest in self.root.glob(f"*-*/{_MANIFEST}"):
            try:
                self._read_manifest(manifest)
            except NewerVersionError:
                continue
            except FormatError:
                damaged.append(manifest)
                with storage_errors(manifest):
                    manifest.replace(manifest.with_suffix(".corrupt"))
        for info in self.sections():
            damaged += Section(info.folder, reporter).verify()
        return damaged

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
            if remove(info):
                with storage_errors(info.folder):
                    shutil.rmtree(info.folder)
                removed.append(info)
                continue
            with storage_errors(info.folder):
                for damaged in info.folder.glob("*.corrupt"):
                    damaged.unlink(missing_ok=True)
                for leftover in info.folder.glob(".*.tmp"):
                    # A recent one may be another process's shard in flight.
                    if time.time() - leftover.stat().st_mtime > _IN_FLIGHT_S:
                        leftover.unlink(missing_ok=True)
        return removed
