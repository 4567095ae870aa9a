"""Linear layers on the CPU by oneDNN's kernels, over weights packed once.

PyTorch sends float32 products to a library that uses half of some CPUs' vector units, and packs
bfloat16 weights anew at each call. oneDNN's own linear operator, which ``torch.compile`` puts in
their place when it freezes a model, does neither; here it is called without compiling.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["pack_linears"]

_MOST_BYTES = 2 << 30  # packed weights are copies
_TYPICAL_TOKENS = 1024


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
    if n_bytes > _MOST_BYTES or not all(_works(w.dtype) for w in weights.values()):
        return 0
    packed = {name: _pack(weight) for name, weight in weights.items()}
    for module in linears:
        module.forward = _forward(packed[id(module.weight)], module.bias)  # type: ignore[method-assign]
    return len(linears)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    import torch

    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(
        weight.detach().contiguous(), _TYPICAL_TOKENS
    )
    return packed


def _forward(packed: torch.Tensor, bias: torch.Tensor | None) -> Any:
    import torch

    linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(input: torch.Tensor) -> Any:  # noqa: A002  # nn.Linear's own name for it
        return linear(input, packed, bias, "none", [], "")

    return forward


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operator is there and agrees with PyTorch's own."""
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
