"""A multilayer perceptron over fused features: torch to train it, numpy to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.heads.linear import NEVER
from layerfuse.heads.optimizer import Schedule, descend, uniform

if TYPE_CHECKING:
    import torch

__all__ = ["PUBLISHED", "MlpHead", "fit_mlp"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

_HIDDEN = (1024, 256)
_DROPOUT = 0.5
_SMALLEST_BATCH, _PATIENCE = 32, 10

PUBLISHED = Schedule(rate=1e-4, decay=0.0, batch=1024, epochs=100, patience=100)
"""As in both papers, but for the rows by which the best epoch is chosen: theirs were test rows."""


@dataclass(frozen=True)
class MlpHead:
    """Two hidden layers with ReLU (1024 and 256 units), then logits.

    The head of LLMEmbed (Liu et al., ACL 2024) and of Gwak and Jung (2025). ``weights`` are
    (dim, 1024), (1024, 256), (256, n_classes); ``biases`` (1024,), (256,), (n_classes,).
    """

    weights: tuple[Floats, Floats, Floats]
    biases: tuple[Floats, Floats, Floats]
    kind: str = "mlp"
    penalty: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(dim, n_classes)."""
        return len(self.weights[0]), self.weights[-1].shape[1]

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_classes)."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            X = np.maximum(X @ weight + bias, 0.0)
        return np.asarray(X @ self.weights[-1] + self.biases[-1])

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``weight.i`` and ``bias.i`` of the three maps."""
        groups = (("weight", self.weights), ("bias", self.biases))
        return {f"{name}.{i}": array for name, group in groups for i, array in enumerate(group)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> MlpHead:
        """The inverse of `arrays`; a FormatError when they do not fit together."""
        first = take_tensor(arrays, "weight.0", None, None)
        second = take_tensor(arrays, "weight.1", first.shape[1], None)
        third = take_tensor(arrays, "weight.2", second.shape[1], None)
        weights = (first, second, third)
        b0, b1, b2 = (take_tensor(arrays, f"bias.{i}", w.shape[1]) for i, w in enumerate(weights))
        return cls(weights, (b0, b1, b2))


def fit_mlp(
    X: Floats,
    y: Labels,
    n_classes: int,
    weights: Floats | None,
    seed: int,
    schedule: Schedule | None = None,
) -> MlpHead:
    """Train as published: dropout 0.5, Adam at 1e-4, batches of 1024, at most 100 epochs.

    Departures: the best epoch is that of the lowest log loss on a stratified part of the training
    rows, and the inputs are brought to a mean square of 1; without a ``schedule`` training also
    ends 10 epochs after the best one, and batches are smaller for fewer than 8,192 rows.
    ``weights`` (n,) are those of rows, or None.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    scale = np.float32(1.0 / max(float(np.sqrt(np.square(X).mean(dtype=np.float64))), 1e-12))
    widths = (X.shape[1], *_HIDDEN, n_classes)
    start = {}
    for index, (before, after) in enumerate(pairwise(widths)):
        start[f"weight.{index}"] = uniform(generator, before, after)
        start[f"bias.{index}"] = uniform(generator, after, fan_in=before)

    def forward(
        parameters: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor], training: bool
    ) -> torch.Tensor:
        hidden = inputs[0] * float(scale)
        for index in range(len(_HIDDEN)):
            hidden = hidden @ parameters[f"weight.{index}"] + parameters[f"bias.{index}"]
            hidden = torch.relu(hidden)
            if training:
                kept = torch.rand(hidden.shape, generator=generator) >= _DROPOUT
                hidden = hidden * kept / (1.0 - _DROPOUT)
        return hidden @ parameters["weight.2"] + parameters["bias.2"]

    if schedule is None:
        batch = min(PUBLISHED.batch, max(_SMALLEST_BATCH, len(X) // 8))
        schedule = replace(PUBLISHED, batch=batch, patience=_PATIENCE)
    found = descend(forward, start, (), [X], y, schedule, generator, weights=weights, seed=seed)
    unseen = np.bincount(y, minlength=n_classes) == 0
    found["weight.2"][:, unseen], found["bias.2"][unseen] = 0.0, NEVER
    found["weight.0"] *= scale
    return MlpHead.from_arrays(found)
