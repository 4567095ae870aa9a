"""Which device and which dtype: by what the machine does well, not by hope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerfuse.errors import ConfigError, did_you_mean, require

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "QUANTISED", "choose_device", "choose_dtype", "count_weights", "quantisation"]

QUANTISED = ("int8", "nf4")
"""Dtypes of weights that bitsandbytes packs: LLM.int8() (Dettmers et al., NeurIPS 2022) and the
4-bit NormalFloat of QLoRA (Dettmers et al., NeurIPS 2023). Activations are bfloat16."""
DTYPES = ("float32", "bfloat16", "float16", *QUANTISED)


def choose_device(device: str) -> str:
    """Resolve ``"auto"`` to cuda, mps or cpu, and check any other choice.

    Raises
    ------
    ConfigError
        For a device that this machine does not have.
    """
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in present:
        raise ConfigError(
            f"Unknown device {device!r}. Use auto, cpu, cuda, cuda:N, cuda:all or mps."
            + did_you_mean(device, present)
        )
    if not present[kind]:
        raise ConfigError(f"This machine has no {kind} device. Use --device auto or cpu.")
    return device


def choose_dtype(dtype: str, device: str) -> str:
    """Resolve ``"auto"``: bfloat16 where the device computes it natively, else float32.

    Raises
    ------
    ConfigError
        For an unknown dtype, or a quantised one without a CUDA device.
    """
    if dtype == "auto":
        return "bfloat16" if _has_fast_bfloat16(device.partition(":")[0]) else "float32"
    if dtype not in DTYPES:
        raise ConfigError(
            f"Unknown dtype {dtype!r}. Use auto, {', '.join(DTYPES)}." + did_you_mean(dtype, DTYPES)
        )
    if dtype in QUANTISED and device.partition(":")[0] != "cuda":
        raise ConfigError(
            f"dtype {dtype!r} needs a CUDA device, and this is {device}. Use auto, float32, "
            "bfloat16 or float16."
        )
    return dtype


def _has_fast_bfloat16(kind: str) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulation can be a hundred times slower.

    Asked of the hardware and not measured: a measurement on a busy machine may go either way, and
    the dtype is part of what an embedding is.
    """
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(hasattr(torch.cpu, name) and getattr(torch.cpu, name)() for name in checks)


def quantisation(dtype: str, device: str) -> dict[str, Any]:
    """What ``from_pretrained`` needs to load weights packed, straight onto the device.

    Raises
    ------
    MissingExtraError
        When bitsandbytes is not installed.
    """
    import torch

    if dtype not in QUANTISED:
        return {"dtype": getattr(torch, dtype)}
    require("bitsandbytes", "quantised", f"Loading weights in {dtype}")
    from transformers import BitsAndBytesConfig

    packing = (
        BitsAndBytesConfig(load_in_8bit=True)
        if dtype == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    return {
        "dtype": torch.bfloat16,
        "quantization_config": packing,
        "device_map": {"": device},
    }


def count_weights(weight: torch.Tensor) -> int:
    """Parameters of a tensor; a packed one holds several in one element."""
    state = getattr(weight, "quant_state", None)
    shape = weight.shape if state is None else state.shape
    return int(shape.numel())
