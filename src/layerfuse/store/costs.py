"""The record of what computing a section's embeddings took, kept beside its manifest."""

from __future__ import annotations

import contextlib
from pathlib import Path

from layerfuse.errors import FormatError, NotFoundError
from layerfuse.files import read_json, write_json
from layerfuse.metering import CostRecord

__all__ = ["keep_cost", "read_cost"]

_KIND, _VERSION = "layerfuse-cost", 1


def read_cost(folder: Path, device: str) -> CostRecord | None:
    """The record for a kind of device (``"cuda:1"`` counts as ``"cuda"``) in a section's folder.

    None when there is none, or none that can be read: it is measured again, not mended.
    """
    try:
        return CostRecord.from_dict(read_json(_path(folder, device), kind=_KIND, version=_VERSION))
    except (FormatError, NotFoundError):
        return None


def keep_cost(folder: Path, record: CostRecord) -> CostRecord:
    """Keep the record of more texts, the one given or the one in the folder, and return it.

    Of two processes that write at once one wins, and both records are good. A folder that cannot
    be written to is left as it is.
    """
    known = read_cost(folder, record.device)
    if known is not None and known.n_texts > record.n_texts:
        return known
    value = {"format": _KIND, "format_version": _VERSION, **record.to_dict()}
    with contextlib.suppress(OSError):
        write_json(_path(folder, record.device), value)
    return record


def _path(folder: Path, device: str) -> Path:
    return folder / f"cost-{device.partition(':')[0]}.json"
