"""Fusions that are learned by gradient descent with a linear classifier on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from layerfuse.files import take_tensor
from layerfuse.fusion.products import fit_projections, root_mean_square
from layerfuse.heads import NEVER, LinearHead
from layerfuse.heads.optimizer import Schedule, descend, uniform

if TYPE_CHECKING:
    import torch

__all__ = ["NEURAL", "Neural", "fit_neural", "load_neural"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

_RATES = {"scalar_mix": 3e-3, "gated": 1e-3, "bilinear": 1e-3}
_DECAY, _EPOCHS, _PATIENCE = 1e-2, 50, 5
_BATCH, _SMALLEST_BATCH, _STEPS = 256, 8, 16


@dataclass(frozen=True)
class _Functions:
    """The functions that formulas need beside arithmetic, of numpy or of torch."""

    tanh: Callable[[Any], Any]
    relu: Callable[[Any], Any]
    softmax: Callable[[Any], Any]  # over the last axis


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


_NUMPY = _Functions(np.tanh, lambda values: np.maximum(values, 0.0), _softmax)


@dataclass(frozen=True)
class Neural:
    """A learned fusion: ``name`` is one of `NEURAL`, ``weights`` its arrays by name."""

    name: str
    weights: Mapping[str, Floats]

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to features (n, size); numpy only."""
        return np.asarray(NEURAL[self.name](self.weights, blocks, _NUMPY), dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: the weights."""
        return dict(self.weights)


def _scalar_mix(weights: Mapping[str, Any], blocks: Sequence[Any], of: _Functions) -> Any:
    """``gamma sum_j softmax(w)_j z_j P_j`` with P_j the principal directions, which stay fixed.

    (n, dim) each to (n, size). Peters et al., "Deep contextualized word representations"
    (NAACL 2018), equation 1. Weights: ``projection.j`` (dim, size), ``mix`` (k,), ``gamma`` (1,).
    """
    share = of.softmax(weights["mix"])
    parts = (share[j] * (block @ weights[f"projection.{j}"]) for j, block in enumerate(blocks))
    return weights["gamma"] * sum(parts)


def _gated(weights: Mapping[str, Any], blocks: Sequence[Any], of: _Functions) -> Any:
    """``sum_j g_j relu(z_j E_j + b_j)``, ``g = softmax([z_1, ..., z_k] G + c)``.

    (n, dim) each to (n, size). Jacobs et al., "Adaptive Mixtures of Local Experts" (Neural
    Computation, 1991). Weights: ``expert.j`` (dim, size), ``bias.j`` (size,), ``gate.j`` (dim, k),
    which are the rows of G for block j, ``gate_bias`` (k,).
    """
    gates = (block @ weights[f"gate.{j}"] for j, block in enumerate(blocks))
    share = of.softmax(sum(gates) + weights["gate_bias"])
    return sum(
        share[:, j : j + 1] * of.relu(block @ weights[f"expert.{j}"] + weights[f"bias.{j}"])
        for j, block in enumerate(blocks)
    )


def _bilinear(weights: Mapping[str, Any], blocks: Sequence[Any], of: _Functions) -> Any:
    """``sum_{a<b} tanh(z_a U_a + u_a) * tanh(z_b V_b + v_b)``; of one block, the pair (1, 1).

    (n, dim) each to (n, size). Kim et al., "Hadamard Product for Low-rank Bilinear Pooling" (ICLR
    2017), the form with biases: without them, z and -z would be the same. Weights: ``left.a`` (dim,
    size) and ``left_bias.a`` (size,) of all blocks but the last, ``right.b`` and ``right_bias.b``
    of all but the first.
    """

    def side(name: str, j: int) -> Any:
        return of.tanh(blocks[j] @ weights[f"{name}.{j}"] + weights[f"{name}_bias.{j}"])

    if len(blocks) == 1:
        return side("left", 0) * side("right", 0)
    fused, lefts = 0.0, side("left", 0)
    for j in range(1, len(blocks)):  # the sum over a < b is one over b of running sums over a
        fused = fused + lefts * side("right", j)
        if j < len(blocks) - 1:
            lefts = lefts + side("left", j)
    return fused


NEURAL: dict[str, Callable[[Mapping[str, Any], Sequence[Any], _Functions], Any]] = {
    "scalar_mix": _scalar_mix,
    "gated": _gated,
    "bilinear": _bilinear,
}
"""Formulas over k blocks, arrays (n, dim) each, to (n, size); the same for numpy and torch."""


def fit_neural(
    name: str,
    blocks: Sequence[Floats],
    y: Labels,
    n_classes: int,
    *,
    size: int,
    seed: int,
    residual: bool,
    row_weights: Floats | None,
) -> tuple[Neural, LinearHead]:
    """Train a fusion end to end with a linear softmax classifier, by cross-entropy on logits.

    AdamW with early stopping on a stratified part of the training rows (`descend`). The classifier
    is returned as a head over the fusion's output, with the scaled blocks beside it if
    ``residual``.

    Parameters
    ----------
    blocks, y
        Scaled, centred training rows, one (n, dim) per block, and class indices (n,).
    size
        Columns of the output; ``scalar_mix`` has at most the smallest rank of a block.
    row_weights
        A weight for each row (n,), or None.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    # Blocks come with a variance of 1/dim, too small for the usual step sizes.
    spreads = [root_mean_square(block) for block in blocks]
    scales = [1.0 / spread if spread > 0 else 1.0 for spread in spreads]
    start = _start(name, blocks, size, scales, generator)
    size = start["projection.0"].shape[1] if name == "scalar_mix" else size
    fixed = [key for key in start if key.startswith("projection.")]
    wide = size + (sum(block.shape[1] for block in blocks) if residual else 0)
    start["classifier"] = uniform(generator, size, n_classes, fan_in=wide)
    start["intercept"] = np.zeros(n_classes, dtype=np.float32)
    if residual:
        for j, block in enumerate(blocks):
            start[f"classifier.{j}"] = uniform(generator, block.shape[1], n_classes, fan_in=wide)
    of = _Functions(torch.tanh, torch.relu, lambda values: torch.softmax(values, dim=-1))

    def forward(
        weights: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor], training: bool
    ) -> torch.Tensor:
        scaled = [x * scale for x, scale in zip(inputs, scales, strict=True)]
        logits: torch.Tensor = NEURAL[name](weights, scaled, of) @ weights["classifier"]
        if residual:
            logits = logits + sum(x @ weights[f"classifier.{j}"] for j, x in enumerate(scaled))
        return logits + weights["intercept"]

    batch = min(_BATCH, max(_SMALLEST_BATCH, len(y) // _STEPS))
    schedule = Schedule(_RATES[name], _DECAY, batch, _EPOCHS, _PATIENCE)
    found = descend(
        forward, start, fixed, blocks, y, schedule, generator,
        weights=row_weights, seed=seed,
    )  # fmt: skip
    for key, array in found.items():
        if array.ndim == 2 and "." in key:  # what a block is multiplied by takes up its scale
            array *= np.float32(scales[int(key.rpartition(".")[2])])
    beside = [found.pop(f"classifier.{j}") for j in range(len(blocks))] if residual else []
    coef = np.concatenate([found.pop("classifier"), *beside])
    intercept = found.pop("intercept")
    unseen = np.bincount(y, minlength=n_classes) == 0
    coef[:, unseen], intercept[unseen] = 0.0, NEVER
    return Neural(name, found), LinearHead("softmax", coef, intercept)


def load_neural(name: str, arrays: Mapping[str, Floats], n_blocks: int) -> Neural:
    """The inverse of `Neural.arrays`; a FormatError when they do not fit together."""
    prefixes = {"scalar_mix": ["projection"] * n_blocks, "gated": ["expert"] * n_blocks}
    prefixes["bilinear"] = ["left"] * max(1, n_blocks - 1) + ["right"] * (n_blocks > 1)
    maps = [
        take_tensor(arrays, f"{prefix}.{j}", None, None) for j, prefix in enumerate(prefixes[name])
    ]
    shapes = _shapes(name, [len(each) for each in maps], maps[0].shape[1])
    return Neural(name, {key: take_tensor(arrays, key, *shape) for key, shape in shapes})


def _shapes(name: str, dims: Sequence[int], size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all weights."""
    k = len(dims)
    if name == "scalar_mix":
        yield "mix", (k,)
        yield "gamma", (1,)
    if name == "gated":
        yield "gate_bias", (k,)
    for j, dim in enumerate(dims):
        if name == "scalar_mix":
            yield f"projection.{j}", (dim, size)
        elif name == "gated":
            yield f"expert.{j}", (dim, size)
            yield f"bias.{j}", (size,)
            yield f"gate.{j}", (dim, k)
        else:
            if j < k - 1 or k == 1:
                yield f"left.{j}", (dim, size)
                yield f"left_bias.{j}", (size,)
            if j > 0 or k == 1:
                yield f"right.{j}", (dim, size)
                yield f"right_bias.{j}", (size,)


def _start(
    name: str,
    blocks: Sequence[Floats],
    size: int,
    scales: Sequence[float],
    generator: torch.Generator,
) -> dict[str, Floats]:
    """Weights before training, for blocks that were multiplied by their scales."""
    k = len(blocks)
    if name == "scalar_mix":
        maps = fit_projections(blocks, size)
        return {
            **{f"projection.{j}": maps[j] / np.float32(scales[j]) for j in range(k)},
            "mix": np.zeros(k, dtype=np.float32),
            "gamma": np.ones(1, dtype=np.float32),
        }
    start = {}
    for key, shape in _shapes(name, [block.shape[1] for block in blocks], size):
        if len(shape) == 2:
            start[key] = uniform(generator, *shape)
        elif name == "bilinear":  # biases of any sign and size, so that linear terms come in
            start[key] = uniform(generator, *shape, fan_in=1)
        else:
            start[key] = np.zeros(shape, dtype=np.float32)
    return start
