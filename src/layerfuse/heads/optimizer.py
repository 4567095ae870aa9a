"""Gradient descent with early stopping on part of the training rows; torch only when called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = ["FEW_ROWS", "Schedule", "as_tensor", "descend", "held_out", "uniform"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

FEW_ROWS = 40
"""Below this many rows all are trained on, for a fixed number of epochs."""

_PART = 8  # one row in eight is held out
_FEW_EPOCHS = 50


@dataclass(frozen=True)
class Schedule:
    """How long and in what steps to train.

    ``rate`` is the learning rate, ``decay`` the decoupled weight decay of AdamW (Loshchilov and
    Hutter, ICLR 2019; with 0 it is Adam), ``batch`` the rows of a step, ``epochs`` the most
    passes over the rows, ``patience`` the passes without a lower held-out log loss that end it.
    """

    rate: float
    decay: float
    batch: int
    epochs: int
    patience: int


def held_out(y: Labels, seed: int) -> Labels:
    """Rows (n_held,) of every class in its share, about 12 %; each class keeps a row to train on.

    Empty below `FEW_ROWS` rows.
    """
    if len(y) < FEW_ROWS:
        return np.empty(0, dtype=np.intp)
    random = np.random.default_rng(seed)
    order = random.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    first = np.diff(y[order], prepend=-1) != 0
    return np.sort(order[~first][random.integers(_PART) :: _PART])


def as_tensor(array: npt.NDArray[np.floating]) -> torch.Tensor:
    """A float32 tensor on the CPU that shares memory where it can."""
    import torch

    # torch warns of arrays that cannot be written to, such as those mapped from a file.
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def uniform(
    generator: torch.Generator, *shape: int, fan_in: int | None = None
) -> npt.NDArray[np.float32]:
    """Starting weights, uniform within 1/sqrt(fan_in); the fan-in is the first length if None."""
    import torch

    bound = (fan_in or shape[0]) ** -0.5
    drawn = torch.empty(*shape).uniform_(-bound, bound, generator=generator).numpy()
    return np.asarray(drawn, dtype=np.float32)


def descend(
    forward: Callable[[Mapping[str, torch.Tensor], Sequence[torch.Tensor], bool], torch.Tensor],
    start: Mapping[str, Floats],
    fixed: Sequence[str],
    inputs: Sequence[Floats],
    y: Labels,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    weights: Floats | None = None,
    seed: int = 0,
) -> dict[str, Floats]:
    """Minimise the cross-entropy of ``forward``'s logits; return the parameters found.

    The parameters are those of the epoch with the lowest log loss on the held-out rows
    (`held_out`), or of the last epoch where none are held out. Only ``generator`` is drawn from,
    so that torch's global state stays as it was.

    Parameters
    ----------
    forward
        Called with the parameters, the inputs' rows of a batch, and whether it is training;
        returns logits (n_batch, n_classes).
    start, fixed
        Parameters at the start, and the names of those that stay as they are.
    inputs, y
        Arrays of n rows, and class indices (n,).
    weights
        A weight for each row (n,), or None.
    """
    import torch

    parameters = {name: as_tensor(array.copy()) for name, array in start.items()}
    learned = [value for name, value in parameters.items() if name not in fixed]
    for value in learned:
        value.requires_grad_()
    optimiser = torch.optim.AdamW(learned, lr=schedule.rate, weight_decay=schedule.decay)
    tensors, labels = [as_tensor(array) for array in inputs], torch.from_numpy(y.astype(np.int64))
    share = torch.ones(len(y)) if weights is None else as_tensor(weights / weights.mean())
    held = held_out(y, seed)
    rows = torch.from_numpy(np.setdiff1d(np.arange(len(y)), held))
    parts = _batches(torch.from_numpy(held), schedule.batch)

    def loss(batch: torch.Tensor, training: bool) -> torch.Tensor:
        logits = forward(parameters, [tensor[batch] for tensor in tensors], training)
        losses = torch.nn.functional.cross_entropy(logits, labels[batch], reduction="none")
        return (losses * share[batch]).sum()

    lowest, waited = float("inf"), 0
    best = {name: value.detach().clone() for name, value in parameters.items()}
    for _ in range(schedule.epochs if len(held) else min(_FEW_EPOCHS, schedule.epochs)):
        order = torch.randperm(len(rows), generator=generator)
        for batch in _batches(rows[order], schedule.batch):
            optimiser.zero_grad()
            (loss(batch, True) / len(batch)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            now = sum(float(loss(part, False)) for part in parts) if len(held) else -float("inf")
        if now < lowest or not len(held):
            lowest, waited = now, 0
            best = {name: value.detach().clone() for name, value in parameters.items()}
        else:
            waited += 1
            if waited >= schedule.patience:
                break
    return {name: value.numpy() for name, value in best.items()}


def _batches(rows: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
