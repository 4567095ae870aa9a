"""Attention on CPUs in bfloat16: two matrix products and a softmax.

PyTorch's fused kernel for CPUs is made for float32 and for tile units (AMX). Where bfloat16 comes
from vector units alone, it takes up to twice as long as the plain products, which oneDNN runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["use_plain_attention"]

_NAME = "layerfuse_plain"


def use_plain_attention(stack: Any) -> bool:
    """Let a model on the CPU in bfloat16 use the plain products; return whether it does.

    Only for models that choose their attention by name and have chosen PyTorch's fused kernel.
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

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, additive_mask)
    stack.set_attn_implementation(_NAME)
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
    """transformers' attention function; query is (batch, heads, tokens, dim of a head)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _, heads, n_tokens, width = query.shape
    if kwargs.get("position_bias") is not None or key.shape[2] != n_tokens or n_tokens < 2:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
        return result
    shared = heads // key.shape[1]  # query heads that read one key head
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scores = torch.matmul(query * (width**-0.5 if scaling is None else scaling), key.mT)
    if attention_mask is not None:
        scores += attention_mask
    elif causal:
        scores += _causal(n_tokens, scores)
    states = torch.matmul(scores.softmax(dim=-1), value)
    return states.transpose(1, 2).contiguous(), None


def _causal(n_tokens: int, like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.full((n_tokens, n_tokens), -torch.inf, dtype=like.dtype).triu_(1)
