"""Faster kernels on the CPU: oneDNN's linear layers over weights packed once, plain attention.

PyTorch sends float32 products to a library that uses half of some CPUs' vector units, and packs
bfloat16 weights anew at each call. oneDNN's own linear operator, which ``torch.compile`` puts in
their place when it freezes a model, does neither; here it is called without compiling.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_MAX_BYTES = 2 << 30  # packed weights are copies
_TYPICAL_TOKENS = 1024
_PLAIN_ATTENTION = "layerfuse_plain"


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
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.bfloat16)
    ]
    weights = {id(module.weight): module.weight for module in linears}
    n_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())
    if n_bytes > _MAX_BYTES or not all(_works(w.dtype) for w in weights.values()):
        return 0
    packed = {name: _pack(weight) for name, weight in weights.items()}
    for module in linears:
        module.forward = _forward(packed[id(module.weight)], module.bias)  # type: ignore[method-assign]
    return len(linears)


def _pack(weight: torch.Tensor) -> Any:
    import torch

    contiguous = weight.detach().contiguous()
    return torch.ops.mkldnn._reorder_linear_weight(contiguous, _TYPICAL_TOKENS)


def _forward(packed: torch.Tensor, bias: torch.Tensor | None) -> Any:
    import torch

    linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(input: torch.Tensor) -> Any:  # noqa: A002  # nn.Linear's own name for it
        return linear(input, packed, bias, "none", [], "")

    return forward


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operator exists and agrees with PyTorch's own."""
    import torch

    random = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(shape, generator=random).to(dtype) for shape in ((3, 8), (5, 8), (5,)))
    try:
        found = _forward(_pack(w), b)(x)
    except (AttributeError, RuntimeError):
        return False
    return bool(
        torch.allclose(found.float(), torch.nn.functional.linear(x, w, b).float(), atol=0.1)
    )


def use_plain_attention(stack: Any) -> bool:
    """Let a bfloat16 model on the CPU compute attention by plain products; return whether it does.

    Without tile units they are faster than PyTorch's fused kernel. Only for models that choose
    their attention by name and have chosen that kernel.
    """
    import torch

    config = stack.config
    if (
        getattr(config, "_attn_implementation", None) != "sdpa"
        or not getattr(stack, "_supports_attention_backend", False)
        or torch.cpu.get_capabilities().get("amx_bf16")
    ):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    def additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
        mask = sdpa_mask(*args, **kwargs)
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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention function; query is (batch, heads, tokens, dim of a head)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _, heads, n_tokens, width = query.shape
    if kwargs.get("position_bias") is not None or key.shape[2] != n_tokens or n_tokens < 2:
        options = {"scaling": scaling, "is_causal": is_causal, **kwargs}
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return result
    shared = heads // key.shape[1]  # query heads per key head
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scores = torch.matmul(query * (width**-0.5 if scaling is None else scaling), key.mT)
    if attention_mask is not None:
        scores += attention_mask
    elif causal:
        scores += torch.full((n_tokens, n_tokens), -torch.inf, dtype=scores.dtype).triu_(1)
    states = torch.matmul(scores.softmax(dim=-1), value)
    return states.transpose(1, 2).contiguous(), None
