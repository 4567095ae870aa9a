"""The embedding cache on disk: a folder of sections, one for each encoder and its settings."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerfuse.embeddings.section import Section
from layerfuse.errors import FormatError
from layerfuse.files import cache_dir, digest, read_json, storage_errors, write_json
from layerfuse.progress import SILENT, Reporter

_KIND, _VERSION = "layerfuse-store", 1
_MANIFEST = "manifest.json"
_IN_FLIGHT_S = 3600.0


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
            When it is new and cannot be written.
        """
        key = digest(str(_VERSION), json.dumps(identity, sort_keys=True))[:16]
        safe = re.sub(r"[^\w.-]", "_", encoder)
        folder = next(self.root.glob(f"*-{key}"), self.root / f"{safe}-{key}")
        manifest = folder / _MANIFEST
        if manifest.exists():
            read_json(manifest, kind=_KIND, version=_VERSION)
            with contextlib.suppress(OSError):  # a store may be read-only
                os.utime(manifest)
        else:
            head = {"format": _KIND, "format_version": _VERSION, "encoder": encoder}
            write_json(manifest, {**head, "identity": dict(identity)})
        section = Section(folder, reporter)
        section.refresh()
        return section

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
        """Read every shard; damaged ones are set aside and returned."""
        damaged: list[Path] = []
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
