"""Whether a model gives a text the same embedding whatever it is batched with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.encoders.architecture import align, own_states
from layerfuse.encoders.frozen import FrozenEncoder
from layerfuse.pooling import POOLINGS, Pooler

_TEXTS = (
    "A short text.",
    "no",
    "The ship left the harbour at dawn, and by noon the coast was a thin line behind it.",
    "Prices rose by 3.5 % in March; analysts had expected less. " * 6,
    "",
    "Ein Satz in einer anderen Sprache, mit Umlauten: schön, größer, über.",
)
_TOLERANCE = {"float32": 1e-5, "float16": 1e-2}
_BFLOAT16_TOLERANCE = 4e-2  # quantized models compute in it, too

Pooled = dict[int, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Check:
    """One comparison of embeddings that should be equal; ``name`` is what was changed.

    ``deviation`` is the largest difference, as a share of the layer's largest value (at least 1),
    ``tolerance`` the largest one that rounding explains.
    """

    name: str
    deviation: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.deviation <= self.tolerance


def check_encoder(encoder: FrozenEncoder) -> list[Check]:
    """Compare all layers and poolings of a few texts with those computed in other ways.

    The other ways are a plain loop over the model's own hidden states, other batches and
    truncation of the encoder, which is left truncated.
    """
    ids = encoder.tokenize(_TEXTS).ids
    poolings = tuple(POOLINGS)
    together = encoder.read(ids, "all", poolings)
    alone = [encoder.read([row], "all", poolings) for row in ids]
    single = {layer: np.concatenate([one[layer] for one in alone]) for layer in together}
    backwards = encoder.read(ids[::-1], "all", poolings)
    plain = _plain_loop(encoder, ids, poolings)
    middle = encoder.n_layers // 2
    below = encoder.truncate(middle).read(ids, range(middle + 1), poolings)
    others = {
        "plain loop over hidden states": plain,
        "alone or in a batch": single,
        "order in the batch": {layer: array[::-1] for layer, array in backwards.items()},
        f"truncated at layer {middle}": below,
    }
    tolerance = _TOLERANCE.get(encoder.dtype, _BFLOAT16_TOLERANCE)
    return [Check(name, _deviation(other, together), tolerance) for name, other in others.items()]


def _deviation(some: Pooled, reference: Pooled) -> float:
    return max(
        float(np.abs(array - reference[layer]).max())
        / max(1.0, float(np.abs(reference[layer]).max()))
        for layer, array in some.items()
    )


def _plain_loop(
    encoder: FrozenEncoder, ids: Sequence[Sequence[int]], poolings: Sequence[str]
) -> Pooled:
    """One text at a time, without padding, from all hidden states of the whole model."""
    import torch

    architecture = encoder.architecture
    texts = []
    for tokens in ids:
        mask = torch.ones((1, len(tokens)), dtype=torch.bool, device=encoder.device)
        with torch.inference_mode():
            own = own_states(architecture.stack, [tokens], architecture.pad_id, encoder.device)
            pooler = Pooler(mask, poolings)
            states = align(own, architecture.traits.first)
            texts.append({layer: pooler(array).cpu().numpy() for layer, array in states.items()})
    return {layer: np.concatenate([text[layer] for text in texts]) for layer in texts[0]}
