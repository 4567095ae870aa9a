"""One forward pass over a batch: padding, pooling inside the pass, and pending results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from layerfuse.errors import UnsupportedModelError
from layerfuse.pooling import send_ahead

if TYPE_CHECKING:
    import torch


class _EarlyExit(Exception):  # noqa: N818  # no error
    """Ends a forward pass once the highest layer asked for has been pooled."""


class Pending:
    """Pooled states on their way to numpy; a GPU may still be computing them.

    Copies are queued behind the forward pass into pinned memory, so that nothing waits before
    `result`, which also checks that all values are finite.
    """

    def __init__(self, pooled: Mapping[int, torch.Tensor], name: str, dtype: str) -> None:
        import torch

        self._name, self._dtype = name, dtype
        self._event: torch.cuda.Event | None = None
        if all(tensor.device.type != "cuda" for tensor in pooled.values()):
            self._pooled = {layer: tensor.cpu() for layer, tensor in pooled.items()}
            return
        self._pooled = {
            layer: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for layer, tensor in pooled.items()
        }
        with torch.cuda.device(next(iter(pooled.values())).device):
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> dict[int, npt.NDArray[np.float32]]:
        """Wait for the values.

        Returns
        -------
        dict of int to ndarray of shape (batch, n_poolings, dim), float32
            Pooled states of each layer.

        Raises
        ------
        UnsupportedModelError
            When the model yields values that are not finite.
        """
        if self._event is not None:
            self._event.synchronize()
        arrays = {layer: tensor.numpy() for layer, tensor in self._pooled.items()}
        for layer, array in arrays.items():
            if not np.isfinite(array).all():
                raise UnsupportedModelError(
                    f"{self._name} gives values that are not finite at layer {layer} in "
                    f"{self._dtype}. Use --dtype float32 (dtype='float32')."
                )
        return arrays


def pad(
    ids: Sequence[Sequence[int]], pad_id: int, device: str, accepts: frozenset[str]
) -> tuple[dict[str, Any], torch.Tensor]:
    """The forward method's arguments on the device, and the (batch, tokens) bool mask on the CPU.

    Short texts are padded on the right. A batch without padding has no mask, so that models need
    not expand and add one.
    """
    import torch

    width = max(len(row) for row in ids)
    tokens = np.full((len(ids), width), pad_id, dtype=np.int64)
    real = np.zeros((len(ids), width), dtype=bool)
    for index, row in enumerate(ids):
        tokens[index, : len(row)] = row
        real[index, : len(row)] = True
    mask = torch.from_numpy(real)
    inputs: dict[str, Any] = {"input_ids": send_ahead(torch.from_numpy(tokens), device)}
    if "use_cache" in accepts:
        inputs["use_cache"] = False
    if not real.all():
        inputs["attention_mask"] = send_ahead(mask.long(), device)
    return inputs, mask


def pool_layers(
    stack: torch.nn.Module,
    blocks: torch.nn.ModuleList | None,
    inputs: dict[str, Any],
    pool: Callable[[torch.Tensor], torch.Tensor],
    layers: Sequence[int],
) -> dict[int, torch.Tensor]:
    """Pool ascending ``layers`` during one forward pass, which ends after the highest of them.

    A layer below the last is what the block after it receives; without blocks it is the model's
    own hidden state. Hooks are on the modules meanwhile, so that no other pass of the model may
    run.
    """
    if blocks is None:
        states = stack(**inputs, output_hidden_states=True).hidden_states
        return {layer: pool(states[layer]) for layer in layers}
    pooled: dict[int, torch.Tensor] = {}

    def hook_for(layer: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pooled[layer] = pool(args[0] if args else kwargs["hidden_states"])
            if layer == layers[-1]:
                raise _EarlyExit

        return hook

    with contextlib.ExitStack() as hooks, contextlib.suppress(_EarlyExit):
        for layer in layers:
            if layer < len(blocks):
                hooks.enter_context(
                    blocks[layer].register_forward_pre_hook(hook_for(layer), with_kwargs=True)
                )
        pooled[layers[-1]] = pool(stack(**inputs)[0])
    return pooled
