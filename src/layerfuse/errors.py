"""Exception hierarchy.

::

    LayerfuseError                    base of everything raised on purpose
    ├── DataError (ValueError)        a file, a column, a text or a label is not usable
    ├── ConfigError (ValueError)      a parameter, layer, pooling or setting is not usable
    │   └── NotAvailableError (AttributeError)  only right after fit, not on a loaded classifier
    ├── NotFoundError (LookupError)   a named encoder, dataset, file or bundle is not there
    ├── UnsupportedModelError (ValueError)  the model cannot be read layer by layer
    ├── FormatError (ValueError)      a saved thing is damaged
    │   └── NewerVersionError         … or from a newer version
    ├── StorageError (OSError)        the disk refused a write
    ├── NoMemoryError (MemoryError)   a model or its embeddings do not fit into memory
    └── MissingExtraError (ImportError)     an optional package is not installed

    LayerfuseWarning (UserWarning)    rows left out, texts truncated, settings that were not kept

Every message says what it got, what it expected and what to do. The command line exits
with 2 on any ``LayerfuseError`` and with 1 on anything else.
"""

from __future__ import annotations

import difflib
import errno
import importlib
from collections.abc import Iterable
from types import ModuleType

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a disk, or of a user's share of it, that is full."""


class LayerfuseError(Exception):
    """Base of every error that layerfuse raises on purpose."""


class DataError(LayerfuseError, ValueError):
    """Texts or labels that cannot be used as they are."""


class ConfigError(LayerfuseError, ValueError):
    """A parameter with a value that cannot be used."""


class NotAvailableError(ConfigError, AttributeError):
    """Something that ``fit`` leaves, asked of a classifier that was loaded; `hasattr` says no."""


class NotFoundError(LayerfuseError, LookupError):
    """A named encoder, dataset, file or bundle that is not there."""

    def __str__(self) -> str:  # LookupError's subclasses print reprs; ours prints the message
        return str(self.args[0]) if self.args else ""


class UnsupportedModelError(LayerfuseError, ValueError):
    """A model that is not a text encoder or whose layers cannot be read."""


class FormatError(LayerfuseError, ValueError):
    """A saved file that is damaged, of another kind, or from a newer version."""


class NewerVersionError(FormatError):
    """A file that a newer version of layerfuse has written."""


class StorageError(LayerfuseError, OSError):
    """A write that the disk refused; what was complete before is kept."""


class NoMemoryError(LayerfuseError, MemoryError):
    """A model, a batch or an array that does not fit into memory."""


class MissingExtraError(LayerfuseError, ImportError):
    """An optional package that is not installed."""


class LayerfuseWarning(UserWarning):
    """Rows that were left out, texts that were truncated, settings that were not kept."""


_NO_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "CUDA error: out of memory",  # the driver, for pinned memory or a context
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether numpy, torch or the system says that there is no memory left."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            type(error).__name__ == "OutOfMemoryError"  # torch's own, for which torch is not loaded
            or any(phrase in str(error) for phrase in _NO_MEMORY)
        )
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``known``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(name: object, known: Iterable[str], what: str) -> None:
    """Refuse a name that is not one of ``known``.

    Parameters
    ----------
    name : object
        What was given.
    known : iterable of str
        What may be given, in the order in which the message lists it.
    what : str
        What it is a name of, such as ``"pooling"``.

    Raises
    ------
    ConfigError
        When it is none of them.

    Examples
    --------
    >>> check_choice("mena", ("mean", "cls"), "pooling")
    Traceback (most recent call last):
    ...
    layerfuse.errors.ConfigError: Unknown pooling 'mena'. Choose from mean, cls. Did you mean ...
    """
    names = list(known)
    if name not in names:
        raise ConfigError(
            f"Unknown {what} {name!r}. Choose from {', '.join(names)}."
            f"{did_you_mean(str(name), names)}"
        )


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional ``module``, or say which extra brings it and what it was for.

    Raises
    ------
    MissingExtraError
        When the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'layerfuse[{extra}]'"
        ) from error
