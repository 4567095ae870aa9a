"""Weights in eight or four bits, for encoders that do not fit a GPU otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerfuse.errors import require

if TYPE_CHECKING:
    import torch

__all__ = ["QUANTISED", "count_weights", "quantisation"]

QUANTISED = ("int8", "nf4")
"""Dtypes of weights that bitsandbytes packs: LLM.int8() (Dettmers et al., NeurIPS 2022) and the
4-bit NormalFloat of QLoRA (Dettmers et al., NeurIPS 2023). Activations are bfloat16."""


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
