"""Whether a model gives a text the same embedding whatever it is batched with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    """One comparison of embeddings that should be equal.

    Attributes
    ----------
    name : str
        What was changed.
    deviation : float
        The largest difference, as a share of the layer's largest value (at least 1).
    tolerance : float
        The largest deviation that rounding explains.
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

    The other ways are a plain loop over the model's own hidden states, other batches, the other
    padding side and truncation of the encoder.

    Parameters
    ----------
    encoder : FrozenEncoder
        It is left truncated.

    Returns
    -------
    list of Check
    """
    ids = encoder.tokenize(_TEXTS).ids
    poolings = tuple(POOLINGS)
    together = encoder.read(ids, "all", poolings)
    alone = [encoder.read([row], "all", poolings) for row in ids]
    single = {layer: np.concatenate([one[layer] for one in alone]) for layer in together}
    backwards = encoder.read(ids[::-1], "all", poolings)
    left = encoder.read(ids, "all", poolings, padding_side="left")
    plain = _plain_loop(encoder, ids, poolings)
    middle = encoder.n_layers // 2
    below = encoder.truncate(middle).read(ids, range(middle + 1), poolings)
    others = {
        "plain loop over hidden states": plain,
        "alone or in a batch": single,
        "order in the batch": {layer: array[::-1] for layer, array in backwards.items()},
        "left or right padding": left,
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

    texts = []
    for tokens in ids:
        batch = torch.tensor([list(tokens)], device=encoder.device)
        with torch.inference_mode():
            states = encoder.stack(input_ids=batch, output_hidden_states=True).hidden_states
            pooler = Pooler(torch.ones_like(batch, dtype=torch.bool), poolings)
            texts.append([pooler(state).cpu().numpy() for state in states])
    return {layer: np.concatenate(rows) for layer, rows in enumerate(zip(*texts, strict=True))}
