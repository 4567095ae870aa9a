"""Devices and dtypes, the loading options of quantized weights, and faster kernels."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from layerfuse.encoders.int8 import computes_int8
from layerfuse.errors import ConfigError, check_choice, require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
    if dtype == "int8" and not has_int8(device):
        raise ConfigError(
            f"dtype 'int8' needs a CUDA device or a CPU that multiplies 8 bits (VNNI, AMX), and "
            f"this is {device} without. Use --dtype auto (dtype='auto')."
        )
    if dtype == "nf4" and kind != "cuda":
        raise ConfigError(
            f"dtype 'nf4' needs a CUDA device, and this is {device}. Use auto, float32, "
            "bfloat16 or float16."
        )
    return dtype


def has_int8(device: str) -> bool:
    """Whether a device computes in 8 bits; ``"auto"`` is the one that would be chosen."""
    kind = device_kind(choose_device(device))
    return kind == "cuda" or (kind == "cpu" and computes_int8())


def dtype_of_weights(dtype: str, device: str) -> str:
    """The dtype to load weights in: on the CPU they are rounded to 8 bits later."""
    return choose_dtype("auto", device) if rounds_states(dtype, device) else dtype


def rounds_states(dtype: str, device: str) -> bool:
    """Whether linear layers are given 8 bits by us (`quantize_linears`), not by bitsandbytes."""
    return dtype == "int8" and device_kind(device) == "cpu"


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


def loading_options(dtype: str, device: str) -> dict[str, object]:
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
    # It says at each product that it casts to float16, as it always does.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
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


_MAX_BYTES = 2 << 30  # packed weights are copies
_TYPICAL_TOKENS = 1024
_PLAIN_ATTENTION = "layerfuse_plain"
# Tokens of a text for which float32 is faster: what is left of a row behind each 32 values of
# bfloat16 is computed one by one. The values are the same but for rare rounding.
_SLOW_SOFTMAX = range(16, 64)


def pack_linears(stack: torch.nn.Module) -> int:
    """Give the linear layers of a CPU model packed copies of their weights; return how many.

    None are packed where this PyTorch lacks the operator, for float16, or where the copies would
    take more than 2 GiB. The weights themselves stay in place.
    """
    import torch

    linears = [
        module
        for module in stack.modules()
        if type(module) is torch.nn.Linear
        and "forward" not in vars(module)  # of those in 8 bits
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.bfloat16)
    ]
    weights = {id(module.weight): module.weight for module in linears}
    n_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if n_bytes > _MAX_BYTES or not all(_works(w.dtype) for w in weights.values()):
        return 0
    packed = {name: _pack(weight) for name, weight in weights.items()}
    for module in linears:
        forward = _forward(packed[id(module.weight)], module.weight, module.bias)
        module.forward = forward  # type: ignore[method-assign, assignment]
    return len(linears)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    import torch

    reorder: Callable[..., torch.Tensor] = torch.ops.mkldnn._reorder_linear_weight
    return reorder(weight.detach().contiguous(), _TYPICAL_TOKENS)


def _forward(
    packed: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    linear: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default

    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # nn.Linear's own name for it
        if input.dtype is not packed.dtype:  # of routers that cast themselves to float32
            return torch.nn.functional.linear(input, weight, bias)
        return linear(input, packed, bias, "none", [], "")

    return forward


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operator exists and agrees with PyTorch's own."""
    import torch

    random = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=random).to(dtype) for shape in ((3, 8), (5, 8), (5,)))
    try:
        found = _forward(_pack(w), w, b)(x)
    except (AttributeError, RuntimeError):
        return False
    return bool(
        torch.allclose(found.float(), torch.nn.functional.linear(x, w, b).float(), atol=0.1)
    )


def use_plain_attention(stack: PreTrainedModel) -> bool:
    """Let a bfloat16 model on the CPU compute attention by plain products; return whether it does.

    Without tile units they are faster than PyTorch's fused kernel. Only for models that choose
    their attention by name and have chosen that kernel.
    """
    import torch

    config = stack.config
    if (
        getattr(config, "_attn_implementation", None) != "sdpa"
        or not getattr(stack, "_supports_attention_backend", False)
        or (hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities()["amx_bf16"])
    ):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    bool_mask: Callable[..., torch.Tensor | None] = sdpa_mask

    def additive_mask(*args: object, dtype: object = None, **kwargs: object) -> torch.Tensor | None:
        mask = bool_mask(*args, **kwargs)
        if mask is None:
            return None
        lowest = torch.finfo(torch.bfloat16).min
        return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, lowest)

    AttentionInterface.register(_PLAIN_ATTENTION, _attend)
    AttentionMaskInterface.register(_PLAIN_ATTENTION, additive_mask)
    stack.set_attn_implementation(_PLAIN_ATTENTION)
    return True


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention function; query is (batch, heads, tokens, dim of a head)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _, heads, n_tokens, width = query.shape
    if kwargs.get("position_bias") is not None or key.shape[2] != n_tokens or n_tokens < 2:
        fused: Callable[..., tuple[torch.Tensor, None]] = sdpa_attention_forward
        options = {"scaling": scaling, "is_causal": is_causal, **kwargs}
        return fused(module, query, key, value, attention_mask, **options)
    shared = heads // key.shape[1]  # query heads per key head
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scores = torch.matmul(query * (width**-0.5 if scaling is None else scaling), key.mT)
    if attention_mask is not None:
        scores += attention_mask
    elif causal:
        scores += torch.full((n_tokens, n_tokens), -torch.inf, dtype=scores.dtype).triu_(1)
    if n_tokens in _SLOW_SOFTMAX:
        shares = scores.float().softmax(dim=-1).to(value.dtype)
    else:
        shares = scores.softmax(dim=-1)
    states = torch.matmul(shares, value)
    return states.transpose(1, 2).contiguous(), None


def fuse_norms(stack: torch.nn.Module) -> int:
    """Give RMS norms PyTorch's fused kernel where it computes the same; return how many.

    Written out, a norm reads and writes the states nine times; this one does it once, and rounds
    once.
    """
    import torch

    n_fused = 0
    for module in stack.modules():
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not isinstance(eps, float) or not isinstance(weight, torch.Tensor) or weight.ndim != 1:
            continue
        if len(inspect.signature(module.forward).parameters) != 1:  # gated norms take a second
            continue
        fused = partial(_rms_norm, own=module.forward, weight=weight, eps=eps)
        generator = torch.Generator().manual_seed(0)
        # Off their mean, and in part as small as eps: what else a norm may do shows.
        states = torch.randn((2, 2, 2, len(weight)), generator=generator) + 1
        states[0] *= eps**0.5
        states = states.to(weight)
        # Other shapes or dtypes raise, as do states that the module does not take.
        with torch.inference_mode(), contextlib.suppress(Exception):
            found, expected = fused(states), module(states)
            size = float(expected.abs().mean())  # weights may be small
            if torch.allclose(found, expected, rtol=0.02, atol=1e-3 * size):
                module.forward = fused
                n_fused += 1
    return n_fused


def _rms_norm(
    hidden_states: torch.Tensor,
    own: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    import torch

    if hidden_states.dtype is not weight.dtype:  # T5 computes in part in float32
        return own(hidden_states)
    return torch.nn.functional.rms_norm(hidden_states, (len(weight),), weight, eps)
