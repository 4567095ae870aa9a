"""From token states to one vector: pure tensor functions, masked, summed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["Pooler", "pool"]

_TOKENS = ("cls", "last")  # one token's state, no sum


class Pooler:
    """Pools the states of one batch for any number of layers.

    What depends on the mask alone (positions and weights) is computed once per batch, so that a
    layer costs one small matrix product for all means, a look-up for ``cls`` and ``last``, and a
    maximum for ``max``; only the means need a float32 copy of the states.

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
    device : str, optional
        Where the states will be; by default where the mask is. With the mask on the CPU nothing
        here waits for a GPU.
    """

    def __init__(
        self, mask: torch.Tensor, poolings: Sequence[str], device: str | None = None
    ) -> None:
        import torch

        def send(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if device is None else tensor.to(device, non_blocking=True)

        self._poolings = tuple(poolings)
        means = [name for name in self._poolings if name not in (*_TOKENS, "max")]
        self._rows = {name: row for row, name in enumerate(means)}
        self._weights = (
            send(torch.stack([_weights(mask, name) for name in means], dim=1)) if means else None
        )
        self._every = send(torch.arange(len(mask), device=mask.device))
        self._tokens = {
            name: send(_first(mask) if name == "cls" else mask.shape[1] - 1 - _first(mask.flip(1)))
            for name in self._poolings
            if name in _TOKENS
        }
        padding = (~mask).nonzero(as_tuple=True) if "max" in self._poolings else ()
        self._padding = tuple(send(index) for index in padding)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Pool one layer's states (batch, tokens, dim) to (batch, poolings, dim) float32."""
        import torch

        means = None
        if self._weights is not None:
            means = torch.bmm(self._weights, states.float())
            if len(self._rows) == len(self._poolings):
                return means
        pooled = []
        for name in self._poolings:
            if name == "max":
                pooled.append(self._largest(states).float())
            elif name in _TOKENS:
                pooled.append(states[self._every, self._tokens[name]].float())
            else:
                assert means is not None
                pooled.append(means[:, self._rows[name]])
        return torch.stack(pooled, dim=1)

    def _largest(self, states: torch.Tensor) -> torch.Tensor:
        """In the states' own dtype, where a maximum is exact."""
        if self._padding and len(self._padding[0]):
            lowest = states.new_full((), -float("inf"))
            states = states.index_put(self._padding, lowest)
        return states.amax(dim=1)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool (batch, tokens, dim) states with one pooling to (batch, dim) float32."""
    return Pooler(mask, (pooling,))(states)[:, 0]


def _weights(mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """The (batch, tokens) float32 weights whose product with the states is the pooled vector."""

    if pooling == "mean":
        weights = mask.float()
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
