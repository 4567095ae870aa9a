"""Atomic writes and validated reads."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.errors import (
    FULL_DISK,
    FormatError,
    NewerVersionError,
    NotFoundError,
    StorageError,
)

_UMASK = Lock()
CHECKSUMS = "SHA256SUMS"
"""The file of a folder with the digests of the others."""
LFS_POINTER = b"version https://git-lfs"
"""How a file begins that Git LFS has put in the place of a large one."""
LFS_ADVICE = "is a pointer of Git LFS, not the file. Get it with: git lfs pull"
_CLOCK_TICK_NS = 2_000_000_000  # a change within the file system's tick may keep the time


def cache_dir() -> Path:
    """The folder for models, datasets and embeddings: ``$LAYERFUSE_CACHE`` or the user's cache."""
    if chosen := os.environ.get("LAYERFUSE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "layerfuse"


def is_url(source: str | Path) -> bool:
    """Whether it names an object of fsspec, such as ``s3://bucket/name``, and not a local path."""
    return isinstance(source, str) and "://" in source


def human_bytes(count: float) -> str:
    """Format a byte count with a decimal unit, such as ``"438.0 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def is_own(path: Path, root: Path | None = None) -> bool:
    """Whether nobody but this user and root may have written a file or folder, by owner and mode.

    ``root`` is a folder around it that the user has named: its owner is trusted as well, unless
    everyone may write to it.
    """
    if not hasattr(os, "geteuid"):  # Windows
        return True
    users = {os.geteuid(), 0}
    if root is not None and not (named := root.stat()).st_mode & stat.S_IWOTH:
        users.add(named.st_uid)
    link = path.lstat()
    try:
        status = path.stat()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return link.st_uid in users  # a link to itself, by which nothing can be read
    return {link.st_uid, status.st_uid} <= users and not status.st_mode & stat.S_IWOTH


def check_own(folder: Path, root: Path | None = None) -> None:
    """Raise a StorageError for a folder in which anything is not `is_own`."""
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # another process writes here
            if not is_own(path, root):
                raise StorageError(
                    f"{path} belongs to another user or may be written by everyone, so what it "
                    "holds cannot be trusted. Remove it, or use a folder of your own "
                    "(LAYERFUSE_CACHE, --store)."
                )


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a write that the disk refused into a `StorageError` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in FULL_DISK:
            raise StorageError(
                f"The disk has no room to write {path}. What was complete before is kept; "
                "free some space (or choose another folder) and run the same command again."
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise StorageError(
                f"Writing {path} is not allowed. Choose a folder that you may write to."
            ) from error
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}. Choose another folder."
        ) from error


def check_writable(folder: Path) -> None:
    """Raise a StorageError for a folder that takes no files, before the work that would fill it.

    To ask for permission is not enough: root has it where nothing can be made.
    """
    with storage_errors(folder):
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
        os.close(handle)
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` only on success.

    Raises
    ------
    StorageError
        When the disk is full or not writable; nothing is left behind.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replaces: Collection[str] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that is renamed to ``path`` only on success.

    A folder that is there is replaced where it holds no other files than ``replaces``; where
    ``path`` is a link, the folder that it points to, and the link stays.

    Raises
    ------
    StorageError
        When ``path`` exists and may not be replaced, or the disk refuses.
    """
    if path.exists():
        if replaces is None or not path.is_dir():
            raise StorageError(f"{path} exists already. Choose another folder, or remove it first.")
        if others := sorted({entry.name for entry in path.iterdir()} - set(replaces)):
            raise StorageError(
                f"{path} holds files that would be lost: {', '.join(others[:5])}. Choose another "
                "folder, or move them first."
            )
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if replaces is not None and _exchange(temporary, path):
                return
            older = temporary.with_suffix(".old")
            if replaces is not None and path.exists():
                path.replace(older)
            try:
                temporary.replace(path)  # fails if another process made a folder here meanwhile
            except OSError:
                if older.exists():
                    older.replace(path)
                raise
            shutil.rmtree(older, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, which a kill cannot halve; False where that is not possible."""
    if sys.platform != "linux":
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    return swap is not None and not swap(here, os.fsencode(one), here, os.fsencode(other), exchange)


def _umask() -> int:
    """The process's umask: it can only be read by setting it, by one thread at a time."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, *, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON object written by layerfuse and check its ``format`` and ``format_version``.

    Raises
    ------
    NotFoundError
        When there is no such file.
    FormatError
        When it is not JSON, of another kind, or from a newer version of layerfuse.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            raise NotFoundError(f"There is no folder {path.parent}.") from error
        raise NotFoundError(f"There is no {path.name} in {path.parent}. Is it a {kind}?") from error
    except (ValueError, OSError, RecursionError) as error:
        raise FormatError(
            f"{path} cannot be read as JSON: {error}. It is damaged; save or copy it again."
        ) from error
    if not isinstance(value, dict) or value.get("format") != kind:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{path} should be a {kind}, but says {found!r}.")
    found_version = value.get("format_version")
    if not isinstance(found_version, int):
        raise FormatError(
            f"{path} has the format version {found_version!r}, which should be a whole number. It "
            "is damaged; save or copy it again."
        )
    if found_version > version:
        raise NewerVersionError(
            f"{path} has format version {found_version!r}, and this layerfuse reads up to "
            f"{version}. Upgrade with: pip install --upgrade layerfuse"
        )
    return value


def write_tensors(
    path: Path,
    tensors: Mapping[str, npt.NDArray[np.generic]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write arrays as one safetensors file, atomically."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(
    path: Path, expected: Mapping[str, tuple[tuple[int, ...], str]]
) -> tuple[dict[str, npt.NDArray[np.generic]], bytes]:
    """Read a safetensors file of finite numbers; names, shapes and dtypes are ``expected``.

    Returns its bytes as well, so that what is checked of them is of what was read.

    Raises
    ------
    NotFoundError
        When there is no such file.
    FormatError
        When the file is damaged, or a name, shape, dtype or value is wrong; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        raise NotFoundError(f"There is no {path.name} in {path.parent}.")
    try:
        data = path.read_bytes()
        tensors = load(data)
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged and cannot be read: {error}") from error
    if missing := sorted(set(expected) ^ set(tensors)):
        raise FormatError(f"{path} does not hold what it should; these names differ: {missing}.")
    for name, (shape, dtype) in expected.items():
        array = tensors[name]
        if array.shape != tuple(shape) or str(array.dtype) != dtype:
            raise FormatError(
                f"{path}: tensor {name!r} is {array.dtype}{list(array.shape)}, "
                f"expected {dtype}{list(shape)}. The file was changed after it was saved."
            )
        if not np.isfinite(array).all():
            raise FormatError(f"{path}: tensor {name!r} holds a NaN or an infinity. Save it again.")
    return tensors, data


def take_tensor(
    tensors: Mapping[str, npt.NDArray[np.generic]], name: str, *shape: int | None
) -> npt.NDArray[np.float32]:
    """Take a float32 tensor by name; None in ``shape`` stands for any length above 0.

    Raises
    ------
    FormatError
        When it is not there, or of another shape or dtype.
    """
    if name not in tensors:
        raise FormatError(f"There is no tensor {name!r}; there are {sorted(tensors)}.")
    array = tensors[name]
    fits = array.ndim == len(shape) and all(
        size > 0 if length is None else size == length
        for size, length in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != np.float32:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise FormatError(
            f"Tensor {name!r} is {array.dtype}{list(array.shape)}, expected float32[{wanted}]. "
            "The file was changed after it was saved."
        )
    return array.astype(np.float32, copy=False)


def digest(*parts: str | bytes) -> str:
    """Hex BLAKE2b digest (128 bits) of the parts, each length-prefixed so that they can't run."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()


def fingerprint_file(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered in the cache folder until the file is changed."""
    status = path.stat()
    memo = cache_dir() / "fingerprints" / f"{digest(str(path.resolve()))}.json"
    # The change time, unlike the modification time, cannot be set, by rsync -t for example.
    key = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text(encoding="utf-8"))
        if known["key"] == key and is_own(memo):
            return str(known["sha256"])
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    is_settled = time.time_ns() - status.st_ctime_ns > _CLOCK_TICK_NS
    if status.st_size > 1 << 20 and is_settled:  # small files are hashed faster than remembered
        with contextlib.suppress(StorageError):
            write_json(memo, {"key": key, "sha256": value})
    return value


def fingerprint_folder(folder: Path, names: list[str]) -> str:
    """One digest over the named files of a folder (order does not matter)."""
    return digest(*(f"{name}={fingerprint_file(folder / name)}" for name in sorted(names)))


def write_checksums(folder: Path) -> str:
    """Write SHA256SUMS into ``folder``, the digests of all its files as ``sha256sum`` does.

    Returns the text.
    """
    lines = []
    (folder / CHECKSUMS).unlink(missing_ok=True)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{value}  {path.relative_to(folder).as_posix()}\n")
    text = "".join(lines)
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")
    return text


def damaged_files(folder: Path) -> list[str]:
    """Files that are not as the SHA256SUMS of ``folder`` says; none where it has no such file."""
    try:
        text = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    damaged = []
    for line in text.splitlines():
        value, _, name = line.partition("  ")
        try:
            is_whole = fingerprint_file(folder / name) == value
        except (OSError, ValueError):  # absent, or no name of a file
            is_whole = False
        if not is_whole:
            damaged.append(name)
    return damaged
