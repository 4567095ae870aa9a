"""A multilayer perceptron over fused features: torch to train it, numpy to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from layerfuse.files import take_tensor
from layerfuse.heads.optimizer import Schedule, train, uniform
from layerfuse.heads.protocol import UNSEEN_CLASS_LOGIT, Floats
from layerfuse.targets import Targets

if TYPE_CHECKING:
    import torch


_HIDDEN = (1024, 256)
_DROPOUT = 0.5
_SMALLEST_BATCH, _PATIENCE = 32, 10

PAPER_SCHEDULE = Schedule(rate=1e-4, decay=0.0, batch=1024, epochs=100, patience=100)
"""As in both papers, but for the rows by which the best epoch is chosen: theirs were test rows."""


@dataclass(frozen=True)
class MlpHead:
    """Two hidden layers with ReLU (1024 and 256 units), then logits.

    The head of LLMEmbed (Liu et al., ACL 2024) and of Gwak and Jung (2025). It has no penalty:
    early stopping regularizes it.
    """

    kind: ClassVar[str] = "mlp"
    links: ClassVar[tuple[str, ...]] = ("softmax",)
    weights: tuple[Floats, Floats, Floats]
    biases: tuple[Floats, Floats, Floats]
    penalty: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.weights[0]), self.weights[-1].shape[1]

    def logits(self, X: Floats) -> Floats:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            X = np.maximum(X @ weight + bias, 0.0)
        return np.asarray(X @ self.weights[-1] + self.biases[-1])

    def arrays(self) -> dict[str, Floats]:
        groups = (("weight", self.weights), ("bias", self.biases))
        return {f"{name}.{i}": array for name, group in groups for i, array in enumerate(group)}

    @classmethod
    def load(cls, arrays: Mapping[str, Floats], penalty: float) -> Self:
        first = take_tensor(arrays, "weight.0", None, None)
        second = take_tensor(arrays, "weight.1", first.shape[1], None)
        third = take_tensor(arrays, "weight.2", second.shape[1], None)
        weights = (first, second, third)
        b0, b1, b2 = (take_tensor(arrays, f"bias.{i}", w.shape[1]) for i, w in enumerate(weights))
        return cls(weights, (b0, b1, b2), penalty)

    @classmethod
    def search_penalty(cls, X: Floats, targets: Targets, *, seed: int) -> float:
        return 0.0

    @classmethod
    def fit(
        cls, X: Floats, targets: Targets, penalty: float = 0.0, *,
        seed: int = 0, schedule: Schedule | None = None,
    ) -> Self:  # fmt: skip
        """Train as published: dropout 0.5, Adam at 1e-4, batches of 1024, at most 100 epochs.

        Departures: the best epoch is that of the lowest log loss on a stratified part of the
        training rows, and the inputs are brought to a mean square of 1; without a ``schedule``
        training also ends 10 epochs after the best one, and batches are smaller for fewer than
        8,192 rows. The penalty is not used.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        scale = np.float32(1.0 / max(float(np.sqrt(np.square(X).mean(dtype=np.float64))), 1e-12))
        start = {}
        for index, (n_in, n_out) in enumerate(pairwise((len(X.T), *_HIDDEN, len(targets.counts)))):
            start[f"weight.{index}"] = uniform(generator, n_in, n_out)
            start[f"bias.{index}"] = uniform(generator, n_out, fan_in=n_in)

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
            batch = min(PAPER_SCHEDULE.batch, max(_SMALLEST_BATCH, len(X) // 8))
            schedule = replace(PAPER_SCHEDULE, batch=batch, patience=_PATIENCE)
        found = train(forward, start, (), [X], targets, schedule, generator, seed)
        unseen = targets.counts == 0
        found["weight.2"][:, unseen], found["bias.2"][unseen] = 0.0, UNSEEN_CLASS_LOGIT
        found["weight.0"] *= scale
        return cls.load(found, 0.0)
