"""One shard: a safetensors file with some blocks of some rows, checksummed and never changed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.files import atomic_write, digest

__all__ = ["CorruptShardError", "Shard", "open_shard", "write_shard"]

_HASHES, _TRUNCATED = "hashes", "truncated"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class CorruptShardError(Exception):
    """A shard whose bytes are not what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard's index: which rows and blocks it holds; block values stay on disk.

    ``hashes`` has shape (rows,) and dtype S16, ``truncated`` (rows,) bool.
    """

    path: Path
    names: frozenset[str]
    hashes: npt.NDArray[np.bytes_]
    truncated: npt.NDArray[np.bool_]
    checksums: dict[str, int]

    def read(self, name: str) -> npt.NDArray[Any]:
        """One block's values, (rows, dim), after its checksum was verified.

        Raises
        ------
        CorruptShardError
            When the bytes are damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                array: npt.NDArray[Any] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CorruptShardError(self.path, str(error)) from error
        if _checksum(array) != self.checksums[name]:
            raise CorruptShardError(self.path, f"block {name} does not match its checksum")
        return array


def open_shard(path: Path) -> Shard:
    """Read a shard's index.

    Raises
    ------
    CorruptShardError
        When the file is not a whole shard.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            checksums = {
                str(name): int(value)
                for name, value in json.loads(file.metadata()["crc32"]).items()
            }
            names = set(file.keys())
            hashes, truncated = file.get_tensor(_HASHES), file.get_tensor(_TRUNCATED)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptShardError(path, str(error)) from error
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
    hashes: npt.NDArray[np.bytes_],
    truncated: npt.NDArray[np.bool_],
    blocks: Mapping[str, npt.NDArray[np.float32]],
) -> Path:
    """Write one shard atomically; its name follows from its content's keys.

    Blocks are stored as float16 unless a value would overflow; then as float32.
    """
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[Any]] = {
        _HASHES: np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 16),
        _TRUNCATED: truncated.astype(np.uint8),
    }
    for name, array in blocks.items():
        fits = array.size == 0 or float(np.abs(array).max()) <= _FLOAT16_MAX
        tensors[name] = array.astype(np.float16) if fits else array.astype(np.float32)
    checksums = json.dumps({name: _checksum(array) for name, array in tensors.items()})
    key = digest(hashes.tobytes(), *sorted(blocks))
    path = folder / f"{key}.safetensors"
    data = save(tensors, metadata={"crc32": checksums})
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return path


def _checksum(array: npt.NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
