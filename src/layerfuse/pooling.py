"""From token states to one vector: pure tensor functions, masked, summed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Pooler", "pool"]


class Pooler:
    """Pools the states of one batch for any number of layers.

    What depends on the mask alone (positions and weights) is computed once per batch, so that a
    layer costs one small matrix product and, for ``max``, one masked maximum.

    Parameters
    ----------
    mask : (batch, tokens) bool tensor
        True for real tokens; every row holds at least one.
    poolings : sequence of str
        ``mean``: mean over real tokens.
        ``cls``: the first real token.
        ``last``: the last real token, wherever the padding is.
        ``max``: the largest value of each dimension over real tokens.
        ``weighted_mean``: weights 1, 2, 3 … over real tokens (Muennighoff, "SGPT", 2022).
        ``mean_no_sink``: mean over real tokens but the first, which causal models turn into an
        attention sink (Xiao et al., 2023); a text of one token keeps it.
    """

    def __init__(self, mask: torch.Tensor, poolings: Sequence[str]) -> None:
        import torch

        self._poolings = tuple(poolings)
        self._mask = mask
        linear = [name for name in self._poolings if name != "max"]
        self._padded = not bool(mask.all()) if "max" in self._poolings else False
        self._weights = (
            torch.stack([_weights(mask, name) for name in linear], dim=1) if linear else None
        )
        self._rows = {name: row for row, name in enumerate(linear)}

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Pool one layer's states (batch, tokens, dim) to (batch, poolings, dim) float32."""
        import torch

        states = states.float()
        linear = None if self._weights is None else torch.bmm(self._weights, states)
        if linear is not None and len(self._rows) == len(self._poolings):
            return linear
        if self._padded:
            states = states.masked_fill(~self._mask[:, :, None], -torch.inf)
        largest = states.amax(dim=1)
        if linear is None:
            return largest[:, None, :]
        return torch.stack(
            [largest if name == "max" else linear[:, self._rows[name]] for name in self._poolings],
            dim=1,
        )


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool (batch, tokens, dim) states with one pooling to (batch, dim) float32."""
    return Pooler(mask, (pooling,))(states)[:, 0]


def _weights(mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """The (batch, tokens) float32 weights whose product with the states is the pooled vector."""
    import torch

    if pooling == "mean":
        weights = mask.float()
    elif pooling == "cls":
        weights = torch.nn.functional.one_hot(_first(mask), mask.shape[1]).float()
    elif pooling == "last":
        last = mask.shape[1] - 1 - _first(mask.flip(1))
        weights = torch.nn.functional.one_hot(last, mask.shape[1]).float()
    elif pooling == "weighted_mean":
        weights = (mask.cumsum(dim=1) * mask).float()
    else:  # mean_no_sink
        weights = mask.float()
        several = mask.sum(dim=1) > 1
        weights[several, _first(mask)[several]] = 0.0
    return weights / weights.sum(dim=1, keepdim=True)


def _first(mask: torch.Tensor) -> torch.Tensor:
    """The (batch,) index of each row's first real token."""
    return mask.int().argmax(dim=1)
