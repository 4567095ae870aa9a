"""Linear layers of a model on the CPU in 8 bits.

Weights are rounded once, by output; states as they come, by token (as in LLM.int8(), Dettmers et
al., NeurIPS 2022). Products of whole numbers are exact, so that a text's values do not depend on
its batch. Before, dimensions whose states are large are evened out against the weights
(SmoothQuant, Xiao et al., ICML 2023), by the largest states of random tokens: that takes no texts,
and every process finds the same.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MOST = 127
_ZERO = 128  # x86 multiplies unsigned numbers by signed ones
_TYPICAL_TOKENS = 1024
_PART = 1 << 18  # states that are rounded at a time stay in the cache
_TINY = 1e-30


def computes_int8() -> bool:
    """Whether this CPU multiplies 8 bits itself, and this PyTorch can have it do so."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        units = torch.cpu.get_capabilities()
        fast = any(units.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    else:
        fast = torch.cpu._is_vnni_supported()
    return fast and hasattr(torch.ops.onednn, "qlinear_pointwise")


def quantize_linears(stack: torch.nn.Module, try_tokens: Callable[[], object]) -> int:
    """Let the linear layers of a model compute in 8 bits; return how many.

    ``try_tokens`` runs the model on random tokens, which shows what each layer reads. Layers that
    it does not reach stay as they are, as do the weights themselves.
    """
    import torch

    groups = _watch(stack, try_tokens)
    for linears, tops in groups:
        weights = [linear.weight.detach().float() for linear in linears]
        largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
        factor = (largest.clamp(min=_TINY) / tops.clamp(min=_TINY)).sqrt()
        factor[(tops == 0) | (largest == 0) | ~tops.isfinite()] = 1
        states = _States(factor)
        for linear, weight in zip(linears, weights, strict=True):
            linear.forward = _forward(weight / factor, linear.bias, states)  # type: ignore[method-assign, assignment]
    return sum(len(linears) for linears, _ in groups)


def _watch(
    stack: torch.nn.Module, try_tokens: Callable[[], object]
) -> list[tuple[list[torch.nn.Linear], torch.Tensor]]:
    """Linear layers by the states that they read together, and the largest size (n_in,) of each
    dimension of these.
    """
    import torch

    groups: list[list[torch.nn.Linear]] = []
    tops: list[torch.Tensor] = []
    groups_of: dict[torch.nn.Module, int] = {}
    last: list[tuple[torch.Tensor, int]] = []

    def look(linear: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        (states,) = inputs
        top = states.flatten(0, -2).abs().amax(0).float()
        number = groups_of.get(linear, -1)
        if number < 0 and isinstance(linear, torch.nn.Linear):
            if last and last[0][0] is states:
                number = last[0][1]
            else:
                number = len(groups)
                groups.append([])
                tops.append(top)
            groups[number].append(linear)
            groups_of[linear] = number
        tops[number] = torch.maximum(tops[number], top)
        last[:] = [(states, number)]

    hooks = [
        module.register_forward_pre_hook(look)
        for module in stack.modules()
        if type(module) is torch.nn.Linear
    ]
    try:
        with torch.inference_mode():
            try_tokens()
    finally:
        for hook in hooks:
            hook.remove()
    return list(zip(groups, tops, strict=True))


@dataclass(frozen=True)
class _Rounded:
    """States, whole numbers (tokens, n_in), and the step (tokens, 1) between two of each token."""

    by: _States
    states: weakref.ref[torch.Tensor]
    levels: torch.Tensor
    steps: torch.Tensor


class _States:
    """States as linear layers read them: rounded once for all layers that read the same."""

    _last = threading.local()  # of all models: what is rounded is not kept for long

    def __init__(self, factor: torch.Tensor) -> None:
        self._factor = factor

    def rounded(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Their levels and steps."""
        last: _Rounded | None = getattr(self._last, "value", None)
        if last is None or last.by is not self or last.states() is not states:
            last = _Rounded(self, weakref.ref(states), *self._round(states.flatten(0, -2)))
            self._last.value = last
        return last.levels, last.steps

    def _round(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        levels = torch.empty(states.shape, dtype=torch.int8)
        tops = []
        n_rows = max(1, _PART // states.shape[1])
        for start in range(0, len(states), n_rows):
            part, into = (own[start : start + n_rows] for own in (states, levels))
            scaled = part.float().mul_(self._factor)
            top = scaled.abs().amax(1, keepdim=True).clamp_(min=_TINY)
            into.copy_(scaled.mul_(_MOST / top).round_())
            tops.append(top)
        steps = torch.cat(tops).div_(_MOST).to(states.dtype)
        return levels.view(torch.uint8).bitwise_xor_(_ZERO), steps


def _forward(
    weight: torch.Tensor, bias: torch.Tensor | None, states: _States
) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    n_out, n_in = weight.shape
    steps = weight.abs().amax(1).clamp_(min=_TINY).div_(_MOST)
    levels = (weight / steps[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(levels, (_TYPICAL_TOKENS, n_in))
    zeros = torch.zeros(n_out, dtype=torch.int64)
    multiply: Callable[..., torch.Tensor] = torch.ops.onednn.qlinear_pointwise.default

    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # nn.Linear's own name for it
        levels, by_token = states.rounded(input)
        product = multiply(
            *(levels, 1.0, _ZERO, packed, steps, zeros, None, 1.0, 0, input.dtype, "none", [], "")
        )
        if bias is None:
            product.mul_(by_token)
        else:
            torch.addcmul(bias, product, by_token, out=product)
        return product.view(*input.shape[:-1], n_out)

    return forward
