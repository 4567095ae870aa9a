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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MOST = 127
_ZERO = 128  # x86 multiplies unsigned numbers by signed ones
_TYPICAL_TOKENS = 1024
_PART = 1 << 18  # states that are rounded at a time stay in the cache
_TINY = 1e-30


@cache
def computes_int8() -> bool:
    """Whether this CPU multiplies 8 bits itself, and this PyTorch has it do so without loss."""
    import torch

    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        units = torch.cpu.get_capabilities()
        fast = any(units.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    else:
        fast = torch.cpu._is_vnni_supported()
    if not fast:
        return False
    levels = torch.full((2, 64), 255, dtype=torch.uint8)
    weight = torch.full((4, 64), float(_MOST))
    try:
        found = _product(weight)(levels, torch.float32)
    except (AttributeError, RuntimeError):
        return False
    return bool((found == (255 - _ZERO) * _MOST * 64).all())


def quantize_linears(
    stack: torch.nn.Module, dtype: torch.dtype, try_tokens: Callable[[], object]
) -> int:
    """Let the linear layers whose weights have this dtype compute in 8 bits; return how many.

    ``try_tokens`` runs the model on random tokens, which shows what each layer reads. Layers that
    it does not reach stay as they are, as do the weights themselves.
    """
    import torch

    linears = [
        module
        for module in stack.modules()
        if type(module) is torch.nn.Linear and module.weight.dtype is dtype
    ]
    groups = _watch(linears, try_tokens)
    for group, tops in groups:
        weights = [linear.weight.detach().float() for linear in group]
        largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
        factor = (largest.clamp(min=_TINY) / tops.clamp(min=_TINY)).sqrt()
        factor[(tops == 0) | (largest == 0) | ~tops.isfinite()] = 1
        states = _States(factor, len(group))
        for linear, weight in zip(group, weights, strict=True):
            forward = _forward(linear, weight / factor, states)
            linear.forward = forward  # type: ignore[method-assign, assignment]
    return sum(len(group) for group, _ in groups)


def _watch(
    linears: Sequence[torch.nn.Linear], try_tokens: Callable[[], object]
) -> list[tuple[list[torch.nn.Linear], torch.Tensor]]:
    """Linear layers by the states that they read together, and the largest size (n_in,) of each
    dimension of these.
    """
    import torch

    groups: list[list[torch.nn.Linear]] = []
    tops: list[torch.Tensor] = []
    numbers: dict[torch.nn.Module, int] = {}
    last: list[tuple[torch.Tensor, torch.Tensor, int]] = []

    def look(
        linear: torch.nn.Linear, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
    ) -> None:
        states: torch.Tensor = (*args, *kwargs.values())[0]
        if not states.numel():
            return
        top = states.reshape(-1, states.shape[-1]).abs().amax(0).float()
        number = numbers.get(linear, -1)
        if number < 0:
            # Not those that were changed in place in between.
            if last and last[0][0] is states and torch.equal(last[0][1], states):
                number = last[0][2]
            else:
                number = len(groups)
                groups.append([])
                tops.append(top)
            groups[number].append(linear)
            numbers[linear] = number
        tops[number] = torch.maximum(tops[number], top)
        last[:] = [(states, states.clone(), number)]

    hooks = [linear.register_forward_pre_hook(look, with_kwargs=True) for linear in linears]
    try:
        with torch.inference_mode():
            try_tokens()
    finally:
        for hook in hooks:
            hook.remove()
    return list(zip(groups, tops, strict=True))


@dataclass(frozen=True)
class _Rounded:
    """States, whole numbers (tokens, n_in), and the step (tokens, 1) between two of each token.

    ``readers`` are the linear layers that have read them.
    """

    by: _States
    states: weakref.ref[torch.Tensor]
    levels: torch.Tensor
    steps: torch.Tensor
    readers: set[torch.nn.Module] = field(default_factory=set)


class _States:
    """States as linear layers read them: rounded once for all layers that read the same."""

    _last = threading.local()  # of all models: what is rounded is not kept for long

    def __init__(self, factor: torch.Tensor, n_readers: int) -> None:
        self._factor = factor
        self._n_readers = n_readers

    def rounded(
        self, states: torch.Tensor, reader: torch.nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Their levels and steps. Who reads the same tensor again finds other states there."""
        last: _Rounded | None = getattr(self._last, "value", None)
        if (
            last is None
            or last.by is not self
            or last.states() is not states
            or reader in last.readers
        ):
            rows = states.reshape(-1, states.shape[-1])
            last = _Rounded(self, weakref.ref(states), *self._round(rows))
        last.readers.add(reader)
        self._last.value = last if len(last.readers) < self._n_readers else None
        return last.levels, last.steps

    def _round(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        levels = torch.empty(states.shape, dtype=torch.int8)
        tops = []
        n_rows = max(1, _PART // states.shape[1])
        for start in range(0, len(states), n_rows):
            part, into = (own[start : start + n_rows] for own in (states, levels))
            scaled = part * self._factor  # in float32, a tensor of its own
            top = scaled.abs().amax(1, keepdim=True).clamp_(min=_TINY)
            into.copy_(scaled.mul_(_MOST / top).round_())
            tops.append(top)
        steps = torch.cat(tops).div_(_MOST).to(states.dtype)
        return levels.view(torch.uint8).bitwise_xor_(_ZERO), steps


def _product(weight: torch.Tensor) -> Callable[[torch.Tensor, torch.dtype], torch.Tensor]:
    """What multiplies levels (tokens, n_in) by a weight (n_out, n_in) that is rounded."""
    import torch

    steps = weight.abs().amax(1).clamp_(min=_TINY).div_(_MOST)
    levels = (weight / steps[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(levels, (_TYPICAL_TOKENS, weight.shape[1]))
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    multiply: Callable[..., torch.Tensor] = torch.ops.onednn.qlinear_pointwise.default
    weights = packed, steps, zeros

    def product(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return multiply(levels, 1.0, _ZERO, *weights, None, 1.0, 0, dtype, "none", [], "")

    return product


def _forward(
    linear: torch.nn.Linear, weight: torch.Tensor, states: _States
) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    own, product = linear.weight, _product(weight)
    bias: torch.Tensor | None = linear.bias

    def forward(input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # nn.Linear's own name for it
        if input.dtype is not own.dtype or not input.numel():
            return torch.nn.functional.linear(input, own, bias)
        levels, steps = states.rounded(input, linear)
        found = product(levels, input.dtype)
        if bias is None:
            found.mul_(steps)
        else:
            torch.addcmul(bias, found, steps, out=found)
        return found.view(*input.shape[:-1], len(own))

    return forward
