"""In which precision an encoder fits the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.devices import QUANTIZED
from layerfuse.errors import LayerfuseError
from layerfuse.files import human_bytes
from layerfuse.progress import Reporter

__all__ = ["choose_precision", "fit_precision", "free_memory"]

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.1, "nf4": 0.65}
_ROOM = 1.15  # weights and a batch's activations, over the weights alone


def choose_precision(encoder: FrozenEncoder, reporter: Reporter) -> str:
    """The encoder's own dtype where its weights fit, else the least quantised one that fits.

    Decided by the free memory of the device and the size of the weight files. Models that are
    already loaded, and GGUF files, stay as they are.

    Raises
    ------
    LayerfuseError
        When not even four bits a parameter fit, or quantised weights cannot run here.
    """
    stored = _weight_bytes(encoder.path)
    if encoder.is_loaded or stored is None:
        return encoder.dtype
    kind = encoder.device.partition(":")[0]
    free = free_memory(encoder.device)
    # Weight files hold two bytes a parameter, four where they are in float32: the smaller guess of
    # how many parameters there are could leave no room, so the larger one is taken.
    parameters = stored / 2
    chosen = fit_precision(parameters, free, encoder.dtype, quantised=kind == "cuda")
    if chosen is None:
        needed = human_bytes(parameters * _BYTES[encoder.dtype] * _ROOM)
        raise LayerfuseError(
            f"it needs about {needed} in {encoder.dtype}, and {human_bytes(free or 0)} are free"
            + (" (not enough for four bits a parameter either)" if kind == "cuda" else "")
        )
    if chosen != encoder.dtype:
        reporter.note(
            f"{encoder.name}: {human_bytes(stored)} of weights and {human_bytes(free or 0)} free "
            f"on {encoder.device}, so it is loaded in {chosen}"
        )
    return chosen


def fit_precision(
    parameters: float, free: float | None, dtype: str, *, quantised: bool
) -> str | None:
    """``dtype``, else ``int8`` or ``nf4`` if ``quantised`` weights can run; None where none fits.

    ``free`` are bytes, None where nobody knows.
    """
    candidates = (dtype, *QUANTIZED) if quantised else (dtype,)
    return next(
        (name for name in candidates if free is None or parameters * _BYTES[name] * _ROOM <= free),
        None,
    )


def free_memory(device: str) -> int | None:
    """Free bytes of a device; None where they cannot be told."""
    import torch

    if device.partition(":")[0] == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return 1024 * int(available.split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _weight_bytes(path: Path) -> int | None:
    """Bytes of the safetensors files of a model folder; None for a GGUF file."""
    if not path.is_dir():
        return None
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
