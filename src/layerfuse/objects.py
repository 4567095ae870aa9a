"""Files and folders on the URLs of fsspec, such as ``s3://bucket/name``.

An object is put whole or not at all, cannot be renamed, and a listing may not have it yet.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from layerfuse.errors import (
    FormatError,
    LayerfuseError,
    MissingExtraError,
    NotFoundError,
    StorageError,
)
from layerfuse.files import (
    CHECKSUMS,
    atomic_folder,
    cache_dir,
    check_own,
    damaged_files,
    digest,
    is_url,
    write_checksums,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_CURRENT = "CURRENT"
N_TRANSFERS = 8
"""Transfers side by side."""
_RETRIES = {"mode": "standard", "total_max_attempts": 8}  # botocore's; waits double to 20 s


def is_folder(url: str) -> bool:
    """Whether objects lie below a URL, and none at it; raises as `open_url`."""
    with contextlib.suppress(NotFoundError), _url_errors(url):
        system, path = _system(url)
        return bool(system.info(path)["type"] == "directory")
    return False


def open_url(url: str) -> IO[bytes]:
    """Open an object to be read through fsspec.

    Raises
    ------
    NotFoundError
        When there is no such object.
    MissingExtraError
        When the package that reads such URLs is not installed.
    StorageError
        For what else the storage says.
    """
    with _url_errors(url):
        system, path = _system(url)
        return cast("IO[bytes]", system.open(path, "rb"))


@contextlib.contextmanager
def _url_errors(url: str) -> Iterator[None]:
    """Turn what fsspec raises into errors that say what to do."""
    try:
        yield
    except LayerfuseError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no {url}. Check the name and the bucket.") from error
    except ImportError as error:
        raise MissingExtraError(
            f"{url}: {error}. For s3:// that is: pip install 'layerfuse[s3]'"
        ) from error
    except Exception as error:  # clients' own errors of the network have no base in common
        reason = str(error).strip() or type(error).__name__
        raise StorageError(
            f"{url} cannot be reached: {reason}. Check the name, your credentials and the network, "
            "and run the same command again."
        ) from error


def _system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, which remembers no listing, and the path in it."""
    import fsspec

    own: dict[str, object] = {}
    if url.startswith("s3://"):
        given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        own = {"config_kwargs": {"retries": _RETRIES, **given}}
    elif url.startswith(("file://", "local://")):
        own = {"auto_mkdir": True}  # objects need no folder
    found = fsspec.url_to_fs(url, use_listings_cache=False, **own)
    return cast("tuple[AbstractFileSystem, str]", found)


@dataclass(frozen=True)
class ObjectFolder:
    """The objects whose names start with a URL; methods raise as `open_url`.

    Parameters
    ----------
    url : str
        Such as ``"s3://bucket/prefix"``.
    """

    url: str

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self.url.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes:
        """An object's bytes."""
        with self._at(name) as (system, path):
            return cast(bytes, system.cat_file(path))

    def write(self, name: str, data: bytes) -> None:
        """Put an object, in place of an older one."""
        with self._at(name) as (system, path):
            system.pipe_file(path, data)

    def upload(self, file: Path, name: str) -> None:
        """Put a file as an object, in place of an older one."""
        with self._at(name) as (system, path):
            system.put_file(os.fspath(file), path)

    def download(self, name: str, file: Path) -> None:
        """Write an object to a file."""
        with self._at(name) as (system, path):
            system.get_file(path, os.fspath(file))

    def sizes(self) -> dict[str, int]:
        """The bytes of each object that the listing has, by its name below the URL."""
        with self._at() as (system, path):
            found = system.find(path, detail=True)
        start = len(path.rstrip("/")) + 1
        return {name[start:]: info["size"] or 0 for name, info in found.items()}

    def delete(self, *names: str) -> None:
        """Delete objects; those that are not there are no error."""
        for name in names:
            with contextlib.suppress(NotFoundError), self._at(name) as (system, path):
                system.rm_file(path)

    def age_s(self, name: str) -> float:
        """Seconds since an object was put."""
        with self._at(name) as (system, path):
            put = cast(datetime, system.modified(path))
        return max(0.0, time.time() - put.timestamp())

    @contextlib.contextmanager
    def _at(self, name: str = "") -> Iterator[tuple[AbstractFileSystem, str]]:
        url = (self / name).url if name else self.url
        with _url_errors(url):
            yield _system(url)


@contextlib.contextmanager
def new_folder(place: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield where to create a folder: ``place``, or a temporary one that is uploaded to the URL.

    Raises
    ------
    StorageError
        As `upload_folder`; it says where the folder is kept.
    """
    if not is_url(place):
        yield Path(place)
        return
    if not overwrite:  # before the work
        check_no_folder(str(place))
    temporary = Path(tempfile.mkdtemp(prefix="layerfuse-"))
    folder = temporary / "folder"
    try:
        yield folder
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        upload_folder(folder, str(place), overwrite=overwrite)
    except LayerfuseError as error:
        raise StorageError(f"{error} What was to be uploaded is kept in {folder}.") from error
    shutil.rmtree(temporary, ignore_errors=True)


def check_no_folder(url: str) -> None:
    """Raise a StorageError where there is a folder that `upload_folder` has written."""
    if _version(ObjectFolder(url)) is not None:
        raise StorageError(f"{url} exists already. Choose another URL, or remove it first.")


def upload_folder(folder: Path, url: str, *, overwrite: bool = False) -> None:
    """Upload a folder as a new version below ``url``; one put then makes it the current one.

    ``url`` is there, whole, before, meanwhile and afterwards; an older version is deleted last.
    Writes SHA256SUMS into the folder, whose digest begins the version's name.

    Raises
    ------
    StorageError
        When there is a folder and ``overwrite`` is false, or the storage refuses.
    """
    place = ObjectFolder(url)
    if not overwrite:
        check_no_folder(url)
    older = _version(place)
    # Writers at once share no name, not even those of equal folders.
    version = f"{digest(write_checksums(folder))}-{secrets.token_hex(4)}"
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(N_TRANSFERS) as pool:
        list(pool.map(lambda name: (place / version).upload(folder / name, name), names))
    place.write(_CURRENT, version.encode())
    if older is not None:
        with contextlib.suppress(StorageError):  # left over, it is only in the way
            place.delete(*(name for name in place.sizes() if name.startswith(f"{older}/")))


def local_folder(place: str | Path) -> Path:
    """A folder on this machine with the current version of what `upload_folder` has written.

    A version is downloaded once, into the cache folder, and every file is checked; a local path is
    returned as it is.

    Raises
    ------
    NotFoundError
        When there is none.
    FormatError
        When a file is not as it was uploaded.
    StorageError
        When the storage fails, or another user may have written the copy.
    """
    if not is_url(place):
        path = Path(place).expanduser()
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise NotFoundError(
                f"{path} {what}. Give a run folder that `layerfuse fit` has written."
            )
        return path
    root = ObjectFolder(str(place))
    for last_try in (False, True):
        version = _version(root)
        if version is None:
            raise NotFoundError(f"There is no run or bundle at {place}. Check the name.")
        folder = cache_dir() / "objects" / "folders" / version
        if not folder.is_dir():
            try:
                _download(root / version, version, folder)
            except (NotFoundError, StorageError):  # replaced meanwhile, or downloaded by another
                if last_try and not folder.is_dir():
                    raise
                continue
        break
    check_own(folder)
    return folder


def _version(place: ObjectFolder) -> str | None:
    """The name of the current version; None where there is no folder."""
    try:
        version = place.read(_CURRENT).decode("ascii", "replace")
    except NotFoundError:
        return None
    if not re.fullmatch("[0-9a-f]{32}-[0-9a-f]{8}", version):
        raise FormatError(f"{place.url}/{_CURRENT} names no version of a folder. Upload it again.")
    return version


def _download(place: ObjectFolder, version: str, folder: Path) -> None:
    """Download a version, whole and checked or not at all."""
    with atomic_folder(folder, replaces=()) as temporary:
        text = place.read(CHECKSUMS).decode("utf-8", "replace")
        names = [line.partition("  ")[2] for line in text.splitlines()]
        within = temporary.resolve()
        if digest(text) != version.partition("-")[0] or not all(
            (within / name).resolve().is_relative_to(within) for name in names
        ):
            raise FormatError(f"{place.url}/{CHECKSUMS} is damaged. Upload the folder again.")
        (temporary / CHECKSUMS).write_text(text, encoding="utf-8")
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(N_TRANSFERS) as pool:
            list(pool.map(lambda name: place.download(name, temporary / name), names))
        if damaged := damaged_files(temporary):
            raise FormatError(
                f"{place.url}: {damaged[0]} is not as it was uploaded. Upload the folder again."
            )
