"""Training by gradient descent with early stopping; torch only when called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerfuse.heads.protocol import Floats
from layerfuse.targets import Targets

if TYPE_CHECKING:
    import torch


MIN_ROWS_TO_HOLD_OUT = 40
"""With fewer rows all are trained on, for a fixed number of epochs."""

_HELD_OUT_FRACTION = 8  # one row in eight
_FIXED_EPOCHS = 50


@dataclass(frozen=True)
class Schedule:
    """Step sizes and stopping rule of AdamW (Loshchilov and Hutter, ICLR 2019)."""

    rate: float  # learning rate
    decay: float  # decoupled weight decay; with 0 it is Adam
    batch: int  # rows per step
    epochs: int  # maximum number of passes over the rows
    patience: int  # passes without a lower held-out log loss that end the training


def held_out_rows(targets: Targets, seed: int) -> npt.NDArray[np.intp]:
    """Sorted rows (n_held,), about 12% of every class; each class keeps a row to train on.

    Empty below `MIN_ROWS_TO_HOLD_OUT` rows.
    """
    if len(targets) < MIN_ROWS_TO_HOLD_OUT:
        return np.empty(0, dtype=np.intp)
    if targets.groups is not None:
        rows, held = targets.folds(_HELD_OUT_FRACTION, seed)[0]
        return np.sort(held[np.isin(targets.codes[held], targets.codes[rows])])
    random = np.random.default_rng(seed)
    order = random.permutation(len(targets))
    order = order[np.argsort(targets.codes[order], kind="stable")]
    first = np.diff(targets.codes[order], prepend=-1) != 0
    return np.sort(order[~first][random.integers(_HELD_OUT_FRACTION) :: _HELD_OUT_FRACTION])


def as_tensor(array: npt.NDArray[np.floating]) -> torch.Tensor:
    """A float32 tensor on the CPU that shares memory where it can."""
    import torch

    # torch warns of arrays that cannot be written to, such as those mapped from a file.
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def uniform(generator: torch.Generator, *shape: int, fan_in: int | None = None) -> Floats:
    """Initial weights, uniform within 1/sqrt(fan_in); the fan-in is the first length if None."""
    import torch

    bound = (fan_in or shape[0]) ** -0.5
    drawn = torch.empty(*shape).uniform_(-bound, bound, generator=generator).numpy()
    return np.asarray(drawn, dtype=np.float32)


def train(
    forward: Callable[[Mapping[str, torch.Tensor], Sequence[torch.Tensor], bool], torch.Tensor],
    start: Mapping[str, Floats],
    frozen: Sequence[str],
    inputs: Sequence[Floats],
    targets: Targets,
    schedule: Schedule,
    generator: torch.Generator,
    seed: int,
) -> dict[str, Floats]:
    """Minimize the cross-entropy of logits (n_batch, n_outputs) over inputs of n rows.

    ``forward`` is called with the parameters, a batch of each input, and whether it is training;
    ``start`` are the initial parameters, of which those in ``frozen`` stay as they are. Only
    ``generator`` is drawn from, so that torch's global state stays as it was; ``seed`` is that of
    the held-out rows. Returns the parameters of the epoch with the lowest log loss on those
    (`held_out_rows`), or of the last epoch where none are held out.
    """
    import torch

    parameters = {name: as_tensor(array.copy()) for name, array in start.items()}
    learned = [value for name, value in parameters.items() if name not in frozen]
    for value in learned:
        value.requires_grad_()
    optimizer = torch.optim.AdamW(learned, lr=schedule.rate, weight_decay=schedule.decay)
    tensors = [as_tensor(array) for array in inputs]
    labels = torch.from_numpy(targets.codes.astype(np.int64))
    given = targets.unit_weights
    weights = torch.ones(len(targets)) if given is None else as_tensor(given)
    held = held_out_rows(targets, seed)
    rows = torch.from_numpy(np.setdiff1d(np.arange(len(targets)), held))
    held_batches = _batches(torch.from_numpy(held), schedule.batch)

    def loss(batch: torch.Tensor, training: bool) -> torch.Tensor:
        logits = forward(parameters, [tensor[batch] for tensor in tensors], training)
        losses = torch.nn.functional.cross_entropy(logits, labels[batch], reduction="none")
        return (losses * weights[batch]).sum()

    lowest, waited = float("inf"), 0
    best = {name: value.detach().clone() for name, value in parameters.items()}
    for _ in range(schedule.epochs if len(held) else min(_FIXED_EPOCHS, schedule.epochs)):
        order = torch.randperm(len(rows), generator=generator)
        for batch in _batches(rows[order], schedule.batch):
            optimizer.zero_grad()
            (loss(batch, True) / len(batch)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            held_loss = sum(float(loss(batch, False)) for batch in held_batches)
        if held_loss < lowest or not len(held):
            lowest, waited = held_loss, 0
            best = {name: value.detach().clone() for name, value in parameters.items()}
        else:
            waited += 1
            if waited >= schedule.patience:
                break
    return {name: value.numpy() for name, value in best.items()}


def _batches(rows: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
