"""Does a model give a text the same embedding whatever it is batched with?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import POOLINGS
from layerfuse.encoders.frozen import FrozenEncoder

__all__ = ["Check", "check_encoder"]

_TEXTS = (
    "A short text.",
    "no",
    "The ship left the harbour at dawn, and by noon the coast was a thin line behind it.",
    "Prices rose by 3.5 % in March; analysts had expected less. " * 6,
    "",
    "Ein Satz in einer anderen Sprache, mit Umlauten: schön, größer, über.",
)
_TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 4e-2}

Pooled = dict[int, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Check:
    """The largest difference found, as a share of the layer's largest value (at least 1)."""

    name: str
    deviation: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.deviation <= self.tolerance


def check_encoder(encoder: FrozenEncoder) -> list[Check]:
    """Compare all layers and poolings of a few texts with a plain loop over the model's own hidden
    states, with other batches, with the other padding side and with truncation.

    Truncation is checked last, and leaves the encoder truncated.
    """
    ids = encoder.tokenize(_TEXTS).ids
    together = encoder.read(ids, "all", POOLINGS)
    alone = [encoder.read([row], "all", POOLINGS) for row in ids]
    single = {layer: np.concatenate([one[layer] for one in alone]) for layer in together}
    backwards = encoder.read(ids[::-1], "all", POOLINGS)
    left = encoder.read(ids, "all", POOLINGS, padding_side="left")
    plain = _plain_loop(encoder, ids)
    results = {
        "plain loop over hidden states": _deviation(plain, together),
        "alone or in a batch": _deviation(single, together),
        "order in the batch": _deviation({k: v[::-1] for k, v in backwards.items()}, together),
        "left or right padding": _deviation(left, together),
    }
    middle = encoder.n_layers // 2
    below = encoder.truncate(middle).read(ids, range(middle + 1), POOLINGS)
    results[f"truncated at layer {middle}"] = _deviation(below, together)
    tolerance = _TOLERANCE[encoder.dtype]
    return [Check(name, deviation, tolerance) for name, deviation in results.items()]


def _deviation(some: Pooled, reference: Pooled) -> float:
    return max(
        float(np.abs(array - reference[layer]).max())
        / max(1.0, float(np.abs(reference[layer]).max()))
        for layer, array in some.items()
    )


def _plain_loop(encoder: FrozenEncoder, ids: Sequence[Sequence[int]]) -> Pooled:
    """One text at a time, all hidden states, pooled in numpy."""
    import torch

    rows = []
    for tokens in ids:
        batch = torch.tensor([list(tokens)], device=encoder.device)
        with torch.inference_mode():
            states = encoder.stack(input_ids=batch, output_hidden_states=True).hidden_states
        rows.append([_pool(state[0].double().cpu().numpy()) for state in states])
    return {
        layer: np.stack([row[layer] for row in rows]).astype(np.float32)
        for layer in range(len(rows[0]))
    }


def _pool(states: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Token states (tokens, dim) to (n_poolings, dim) in the order of ``POOLINGS``."""
    pooled = {
        "mean": states.mean(axis=0),
        "cls": states[0],
        "last": states[-1],
        "max": states.max(axis=0),
        "weighted_mean": np.average(states, axis=0, weights=np.arange(1, len(states) + 1)),
        "mean_no_sink": states[min(1, len(states) - 1) :].mean(axis=0),
    }
    return np.stack([pooled[name] for name in POOLINGS])
