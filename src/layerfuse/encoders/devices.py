"""Device and dtype selection, and the loading options of quantized weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from layerfuse.errors import ConfigError, check_choice, require

if TYPE_CHECKING:
    import torch


QUANTIZED = ("int8", "nf4")
"""Dtypes of weights that bitsandbytes packs: LLM.int8() (Dettmers et al., NeurIPS 2022) and the
4-bit NormalFloat of QLoRA (Dettmers et al., NeurIPS 2023). Activations are bfloat16."""
DTYPES = ("float32", "bfloat16", "float16", *QUANTIZED)
_DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")


def device_kind(device: str) -> str:
    """``"cuda"`` for ``"cuda:1"``."""
    return device.partition(":")[0]


def choose_device(device: str) -> str:
    """Resolve ``"auto"`` to cuda, mps or cpu, and check any other choice.

    Raises
    ------
    ConfigError
        For a device that this machine does not have.
    """
    import torch

    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(kind for kind, there in present.items() if there)
    check_choice(re.sub(r":\d+$", ":N", device), _DEVICES, "device")
    kind = device_kind(device)
    if not present[kind]:
        raise ConfigError(f"This machine has no {kind} device. Use --device auto or cpu.")
    if kind == "cuda" and ":" in device:
        count = torch.cuda.device_count()
        check_choice(device, [f"cuda:{number}" for number in range(count)], "device")
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """Resolve ``"auto"``: bfloat16 where the device computes it natively, else float32.

    Raises
    ------
    ConfigError
        For an unknown dtype, or a quantized one without a CUDA device.
    """
    kind = device_kind(device)
    if dtype == "auto":
        return "bfloat16" if _has_fast_bfloat16(device) else "float32"
    check_choice(dtype, ("auto", *DTYPES), "dtype")
    if dtype in QUANTIZED and kind != "cuda":
        raise ConfigError(
            f"dtype {dtype!r} needs a CUDA device, and this is {device}. Use auto, float32, "
            "bfloat16 or float16."
        )
    return dtype


def _has_fast_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulation can be a hundred times slower."""
    # Asked of the hardware, not measured: the dtype is part of an embedding, and timings vary.
    import torch

    if device_kind(device) == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(hasattr(torch.cpu, name) and getattr(torch.cpu, name)() for name in checks)


def loading_options(dtype: str, device: str) -> dict[str, Any]:
    """Options of transformers' ``from_pretrained``; quantized weights go straight to the device.

    Raises
    ------
    MissingExtraError
        When bitsandbytes is needed and not installed.
    """
    import torch

    if dtype not in QUANTIZED:
        return {"dtype": getattr(torch, dtype)}
    require("bitsandbytes", "quantized", f"Loading weights in {dtype}")
    from transformers import BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if dtype == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    return {"dtype": torch.bfloat16, "quantization_config": config, "device_map": {"": device}}


def count_parameters(weight: torch.Tensor) -> int:
    """Parameters of a tensor; a packed one holds several in one element."""
    state = getattr(weight, "quant_state", None)
    return int((weight if state is None else state).shape.numel())
