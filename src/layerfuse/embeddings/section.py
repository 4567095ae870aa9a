"""The part of a store that belongs to one encoder with one set of settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.embeddings.shard import CorruptShardError, Shard, open_shard, write_shard
from layerfuse.progress import SILENT, Reporter

__all__ = ["Key", "Section", "text_hashes"]

Key: TypeAlias = tuple[int, str]
"""A layer and a pooling."""

Hashes: TypeAlias = npt.NDArray[np.bytes_]


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
    """Where each row lies in some shards: sorted hashes with shard and row numbers."""

    shards: tuple[Shard, ...]
    hashes: Hashes
    shard_of: npt.NDArray[np.intp]
    row_of: npt.NDArray[np.intp]

    @classmethod
    def over(cls, shards: tuple[Shard, ...]) -> _Index:
        sizes = [len(shard.hashes) for shard in shards]
        hashes = np.concatenate([np.empty(0, "S16"), *(shard.hashes for shard in shards)])
        order = np.argsort(hashes, kind="stable")
        shard_of = np.repeat(np.arange(len(shards)), sizes)[order]
        row_of = np.concatenate([np.empty(0, np.intp), *(np.arange(size) for size in sizes)])[order]
        return cls(shards, hashes[order], shard_of, row_of)

    def places(self, wanted: Hashes) -> npt.NDArray[np.intp]:
        """Positions in this index, -1 where a row is not here; (n_wanted,)."""
        if not len(self.hashes):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[at] == wanted, at, -1)


@dataclass
class Section:
    """Embeddings of one encoder with one set of settings, in a folder of shards.

    Damaged shards are set aside (renamed to ``*.corrupt``) and told of, so that their rows count as
    missing and are computed again.
    """

    folder: Path
    reporter: Reporter = SILENT
    _shards: dict[str, Shard] = field(default_factory=dict)
    _indexes: dict[tuple[str, ...], _Index] = field(default_factory=dict)

    def refresh(self) -> None:
        """Look at the folder again: shards may have come from another process."""
        present = {path.name: path for path in sorted(self.folder.glob("*.safetensors"))}
        self._shards = {name: shard for name, shard in self._shards.items() if name in present}
        for name, path in present.items():
            if name not in self._shards:
                self._add(path)

    def missing(
        self, hashes: Hashes, keys: Sequence[Key]
    ) -> list[tuple[npt.NDArray[np.intp], tuple[Key, ...]]]:
        """Which rows lack which blocks: pairs of row numbers and the keys that all of them lack."""
        groups: dict[tuple[str, ...], list[Key]] = {}
        for key in keys:
            groups.setdefault(self._holders(key), []).append(key)
        lacks = np.stack(
            [self._index(holders).places(hashes) < 0 for holders in groups], axis=1
        )  # (rows, groups)
        plan = []
        for pattern in np.unique(lacks, axis=0):
            if pattern.any():
                rows = np.flatnonzero((lacks == pattern).all(axis=1))
                wanted = [
                    key
                    for lacking, group in zip(pattern, groups.values(), strict=True)
                    if lacking
                    for key in group
                ]
                plan.append((rows, tuple(sorted(wanted))))
        return plan

    def write(
        self,
        hashes: Hashes,
        truncated: npt.NDArray[np.bool_],
        blocks: Mapping[Key, npt.NDArray[np.float32]],
    ) -> None:
        """Add a shard; blocks have shape (rows, dim)."""
        named = {_name(key): array for key, array in blocks.items()}
        self._add(write_shard(self.folder, hashes, truncated, named))

    def read(self, hashes: Hashes, key: Key) -> npt.NDArray[np.float32]:
        """One block of rows that are all here, shape (rows, dim); touches no other block's bytes.

        Raises
        ------
        CorruptShardError
            When a shard turns out to be damaged; it has been set aside then.
        KeyError
            When a row is missing.
        """
        index = self._index(self._holders(key))
        places = index.places(hashes)
        if (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} rows of {_name(key)} are not stored")
        result: npt.NDArray[np.float32] | None = None
        for number in np.unique(index.shard_of[places]):
            rows = np.flatnonzero(index.shard_of[places] == number)
            try:
                values = index.shards[number].read(_name(key))
            except CorruptShardError as error:
                self._set_aside(error)
                raise
            if result is None:
                result = np.empty((len(hashes), values.shape[1]), dtype=np.float32)
            result[rows] = values[index.row_of[places[rows]]]
        assert result is not None
        return result

    def truncated(self, hashes: Hashes, key: Key) -> npt.NDArray[np.bool_]:
        """Which rows' texts were cut to fit, shape (rows,)."""
        index = self._index(self._holders(key))
        places = index.places(hashes)
        flags = np.concatenate([shard.truncated for shard in index.shards])
        starts = np.cumsum([0, *(len(shard.hashes) for shard in index.shards)])
        return np.asarray(flags[starts[index.shard_of[places]] + index.row_of[places]])

    def verify(self) -> list[Path]:
        """Read every byte; damaged shards are set aside and returned."""
        before = {path.name for path in self.folder.glob("*.safetensors")}
        self.refresh()
        for shard in list(self._shards.values()):
            try:
                for name in shard.names:
                    shard.read(name)
            except CorruptShardError as error:
                self._set_aside(error)
        after = {path.name for path in self.folder.glob("*.safetensors")}
        return [self.folder / name for name in sorted(before - after)]

    def _add(self, path: Path) -> None:
        self._indexes.clear()  # a shard that was computed again keeps its name
        try:
            self._shards[path.name] = open_shard(path)
        except CorruptShardError as error:
            self._set_aside(error)

    def _set_aside(self, error: CorruptShardError) -> None:
        self.reporter.note(f"a damaged shard was set aside and will be computed again: {error}")
        self._shards.pop(error.path.name, None)
        if error.path.exists():
            error.path.replace(error.path.with_suffix(".corrupt"))

    def _holders(self, key: Key) -> tuple[str, ...]:
        name = _name(key)
        return tuple(shard for shard, held in self._shards.items() if name in held.names)

    def _index(self, holders: tuple[str, ...]) -> _Index:
        if holders not in self._indexes:
            self._indexes[holders] = _Index.over(tuple(self._shards[name] for name in holders))
        return self._indexes[holders]


def _name(key: Key) -> str:
    return f"{key[0]}:{key[1]}"
