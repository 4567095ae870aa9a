"""Pooling of token states to one vector per text, and of a long text's windows to one.

A pooling is one function and its entry in `POOLINGS` or `WINDOW_POOLINGS`; the command line lists
the names again, so that its help needs no model's libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.errors import check_choice

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WeightedMean:
    """A mean summed in float32; ``weights`` maps the mask (batch, tokens) to weights of its shape,
    which need not sum to 1.
    """

    weights: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TokenState:
    """The state of one token; ``position`` maps the mask (batch, tokens) to indices (batch,)."""

    position: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Reduction:
    """Any other function: ``reduce`` maps the states (batch, tokens, dim), in their own dtype, and
    the rows and columns of padding tokens to (batch, dim).
    """

    reduce: Callable[[torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


Pooling: TypeAlias = WeightedMean | TokenState | Reduction


def _uniform(mask: torch.Tensor) -> torch.Tensor:
    """Real tokens count alike."""
    return mask.float()


def _linear(mask: torch.Tensor) -> torch.Tensor:
    """Weights 1, 2, 3, … over real tokens (Muennighoff, "SGPT", 2022)."""
    return (mask.long().cumsum(dim=1) * mask).float()


def _without_sink(mask: torch.Tensor) -> torch.Tensor:
    """Real tokens but the first, the attention sink of causal models (Xiao et al., 2023); a text
    of one token keeps it.
    """
    alone = (mask.sum(dim=1, keepdim=True) == 1).float()
    return mask.float().scatter(1, _first(mask)[:, None], alone)


def _first(mask: torch.Tensor) -> torch.Tensor:
    """The first real token."""
    return mask.int().argmax(dim=1)


def _last(mask: torch.Tensor) -> torch.Tensor:
    """The last real token, wherever the padding is."""
    return mask.shape[1] - 1 - _first(mask.int().flip(1))


def _maximum(states: torch.Tensor, padding: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The largest value of each dimension over real tokens; exact in any dtype."""
    if len(padding[0]):
        states = states.index_put(padding, states.new_full((), -float("inf")))
    return states.amax(dim=1)


POOLINGS: dict[str, Pooling] = {
    "mean": WeightedMean(_uniform),
    "cls": TokenState(_first),
    "last": TokenState(_last),
    "max": Reduction(_maximum),
    "weighted_mean": WeightedMean(_linear),
    "mean_no_sink": WeightedMean(_without_sink),
}
"""All poolings by name, in the order in which they are listed."""


WindowPooling: TypeAlias = Callable[
    [npt.NDArray[np.float32], npt.NDArray[np.intp]], npt.NDArray[np.float32]
]
"""Maps windows (n_windows, dim), those of a text together, and how many each text has (n_texts,),
at least one, to (n_texts, dim)."""


def _starts(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.cumsum(counts) - counts


def _mean_window(
    values: npt.NDArray[np.float32], counts: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Windows of a text are about equally long, and so count alike."""
    sums: npt.NDArray[np.float32] = np.add.reduceat(values, _starts(counts))
    sums /= counts[:, None]
    return sums


def _largest_window(
    values: npt.NDArray[np.float32], counts: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    largest: npt.NDArray[np.float32] = np.maximum.reduceat(values, _starts(counts))
    return largest


WINDOW_POOLINGS: dict[str, WindowPooling] = {
    "mean": _mean_window,
    "max": _largest_window,
    "first": lambda values, counts: values[_starts(counts)],
    "last": lambda values, counts: values[np.cumsum(counts) - 1],
}
"""All poolings over windows by name, in the order in which they are listed."""


def send_ahead(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on the device; the copy to a GPU is queued, and nothing waits for it.

    From memory that is not pinned, a copy of more than 64 KiB waits for what is queued before it.
    """
    if device.startswith("cuda"):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Pooler:
    """Pools the states of one batch for any number of layers.

    What depends on the mask alone is computed once per batch. A layer then costs one small matrix
    product for all means, which alone need a float32 copy of the states, a look-up for each token
    state and a pass over the states for each reduction.

    Parameters
    ----------
    mask : torch.Tensor of shape (batch, tokens), bool
        True for real tokens; every row holds at least one.
    poolings : sequence of str
        Names of `POOLINGS`.
    device : str, optional
        Where the states will be; by default where the mask is. With the mask on the CPU nothing
        here waits for a GPU.

    Raises
    ------
    ConfigError
        For an unknown name.
    """

    def __init__(
        self, mask: torch.Tensor, poolings: Sequence[str], device: str | None = None
    ) -> None:
        import torch

        def send(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if device is None else send_ahead(tensor, device)

        for name in poolings:
            check_choice(name, POOLINGS, "pooling")
        self._poolings = [POOLINGS[name] for name in poolings]
        means = [each.weights(mask) for each in self._poolings if isinstance(each, WeightedMean)]
        shares = [weights / weights.sum(dim=1, keepdim=True) for weights in means]
        self._weights = send(torch.stack(shares, dim=1)) if shares else None
        self._rows = send(torch.arange(mask.shape[0], device=mask.device))
        self._positions = {
            each: send(each.position(mask))
            for each in self._poolings
            if isinstance(each, TokenState)
        }
        reduces = any(isinstance(each, Reduction) for each in self._poolings)
        padding = (~mask).nonzero(as_tuple=True) if reduces else ()
        self._padding = tuple(send(index) for index in padding)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Pool one layer's states (batch, tokens, dim) to (batch, n_poolings, dim) float32."""
        import torch

        means: list[torch.Tensor] = []
        if self._weights is not None:
            products = torch.bmm(self._weights, states.float())
            if products.shape[1] == len(self._poolings):
                return products
            means = list(products.unbind(dim=1))
        pooled = []
        for pooling in self._poolings:
            if isinstance(pooling, WeightedMean):
                pooled.append(means.pop(0))
            elif isinstance(pooling, TokenState):
                pooled.append(states[self._rows, self._positions[pooling]].float())
            else:
                pooled.append(pooling.reduce(states, self._padding).float())
        return torch.stack(pooled, dim=1)
