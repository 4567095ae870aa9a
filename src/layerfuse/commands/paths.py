"""Checks of output paths, made before any work."""

from __future__ import annotations

import tempfile
from pathlib import Path

from layerfuse.embeddings import EmbeddingStore
from layerfuse.errors import ConfigError, NotFoundError, StorageError


def check_new_folder(path: Path) -> None:
    """Raise StorageError when ``path`` exists or cannot be made."""
    if path.exists():
        raise StorageError(f"{path} exists already. Choose another folder with --out.")
    _check_parents(path, "--out")


def check_new_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raise StorageError when ``path`` is no file or cannot be made; a file is replaced.

    A ConfigError where its name ends in none of ``suffixes``, the formats that will be written.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise StorageError(f"{path} is {what}. Give the name of a file with --out.")
    if not path.name.lower().endswith(suffixes):
        raise ConfigError(
            f"{path} has an unsupported extension. Give a name with --out that ends in "
            f"{', '.join(suffixes)}."
        )
    _check_parents(path, "--out")


def open_store(root: str | None, *, new: bool = False) -> EmbeddingStore:
    """The embedding cache in ``root``, which must exist unless it may be ``new``, or the user's."""
    store = EmbeddingStore(root)
    if store.root.exists() and not store.root.is_dir():
        raise ConfigError(
            f"{store.root} is not a folder. Give the folder of the embedding cache with --store."
        )
    if root is not None and not new and not store.root.exists():
        raise NotFoundError(f"There is no embedding cache {root}. Give its folder with --store.")
    _check_parents(store.root, "--store")
    return store


def _check_parents(path: Path, option: str) -> None:
    """The nearest folder that exists must be one, and let itself be written to."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise StorageError(
            f"{path} cannot be created: {nearest} is not a folder. Choose another path with "
            f"{option}."
        )
    if path.exists():
        return
    try:  # to ask for permission is not enough: root has it where nothing can be made
        Path(tempfile.mkdtemp(prefix=".layerfuse", dir=nearest)).rmdir()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be created: {nearest} is not writable. Choose another path with "
            f"{option}."
        ) from error
