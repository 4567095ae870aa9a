"""Shards: files of embeddings of some texts, content-addressed and written once."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import StorageError
from layerfuse.files import atomic_write, digest
from layerfuse.objects import ObjectFolder

Key: TypeAlias = tuple[int, str]
"""A layer and a pooling."""

Hashes: TypeAlias = npt.NDArray[np.bytes_]
"""Digests of texts, dtype S16."""

SUFFIX = ".safetensors"
"""That ends the name of a shard."""
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

    def read(self, name: str) -> npt.NDArray[np.floating]:
        """One block's values, (n_texts, dim); a CorruptShardError when the bytes are damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                array: npt.NDArray[np.floating] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptShardError(self.path, str(error), name) from error
        if _checksum(array) != self.checksums[name]:
            raise CorruptShardError(self.path, f"block {name} does not match its checksum", name)
        return array


def open_shard(path: Path) -> Shard:
    """Read a shard's index, or raise a CorruptShardError when the file is not a whole shard."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            section, stored = json.loads(file.metadata()["shard"])
            checksums = {str(name): int(value) for name, value in stored.items()}
            names = set(file.keys())
            hashes, truncated = file.get_tensor(_HASHES), file.get_tensor(_TRUNCATED)
    except (
        *(SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise CorruptShardError(path, str(error)) from error
    if section != key_of(path.parent):
        raise CorruptShardError(path, "it is from another section")
    read = {_HASHES: _checksum(hashes), _TRUNCATED: _checksum(truncated)}
    if names != set(checksums) or any(checksums[name] != read[name] for name in read):
        raise CorruptShardError(path, "its index does not match its checksum")
    return Shard(
        path,
        frozenset(names - {_HASHES, _TRUNCATED}),
        hashes.view("S16")[:, 0],
        truncated.astype(bool),
        checksums,
    )


def write_shard(
    folder: Path,
    hashes: Hashes,
    truncated: npt.NDArray[np.bool_],
    blocks: Mapping[Key, npt.NDArray[np.float32]],
    remote: ObjectFolder | None = None,
) -> Path:
    """Write one shard atomically; its file name is a digest of its hashes and block names.

    Blocks (n_texts, dim) are stored as float16 unless a value would overflow; then as float32.
    With ``remote`` it is put there first, so that a mirror holds only what the others can see.
    """
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[np.generic]] = {
        _HASHES: np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 16),
        _TRUNCATED: truncated.astype(np.uint8),
    }
    names = {block_name(key): array for key, array in blocks.items()}
    for name, array in names.items():
        fits = array.size == 0 or float(np.abs(array).max()) <= _FLOAT16_MAX
        tensors[name] = array.astype(np.float16) if fits else array.astype(np.float32)
    checksums = {name: _checksum(array) for name, array in tensors.items()}
    shard = json.dumps([key_of(folder), checksums])  # one entry: their order is not kept
    data = save(tensors, metadata={"shard": shard})
    stem = digest(hashes.tobytes(), *sorted(names))
    if remote is not None:
        stem = f"{stem}-{hashlib.sha256(data).hexdigest()}"
    path = folder / f"{stem}{SUFFIX}"
    check_folder(folder)  # writing would make it anew, without its manifest
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
        if remote is not None:
            remote.upload(temporary, path.name)
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


def _checksum(array: npt.NDArray[np.generic]) -> int:
    start = zlib.crc32(f"{array.dtype}{array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, start)


def key_of(folder: Path) -> str:
    """The digest of the identity, which ends the name of a section's folder."""
    return folder.name.rpartition("-")[2]
