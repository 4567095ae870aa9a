"""Fusions that are learned by gradient descent with a linear classifier on top."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from layerfuse.files import take_tensor
from layerfuse.fusion.products import fit_projections, root_mean_square
from layerfuse.fusion.protocol import FittedFusion, FusionInputs, FusionKind
from layerfuse.heads import UNSEEN_CLASS_LOGIT, Floats, LinearHead
from layerfuse.heads.optimizer import Schedule, train, uniform

if TYPE_CHECKING:
    import torch


Array: TypeAlias = Any  # of numpy, or a tensor of torch: formulas serve both
Arrays: TypeAlias = Mapping[str, Array]
Shape: TypeAlias = tuple[int, ...]
Start: TypeAlias = dict[str, Floats]

_DECAY, _EPOCHS, _PATIENCE = 1e-2, 50, 5
_BATCH, _SMALLEST_BATCH, _STEPS = 256, 8, 16


@dataclass(frozen=True)
class Functions:
    """The functions that formulas need beside arithmetic, of numpy or of torch."""

    tanh: Callable[[Array], Array]
    relu: Callable[[Array], Array]
    softmax: Callable[[Array], Array]  # over the last axis


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


_NUMPY = Functions(np.tanh, lambda values: np.maximum(values, 0.0), _softmax)


def torch_functions() -> Functions:
    """Those of torch."""
    import torch

    return Functions(torch.tanh, torch.relu, lambda values: torch.softmax(values, dim=-1))


@dataclass(frozen=True)
class LearnedFusion:
    """A learned fusion: the formula of ``kind`` with ``weights``, its arrays by name."""

    kind: _LearnedKind
    weights: Mapping[str, Floats]

    @property
    def name(self) -> str:
        return self.kind.name

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        return np.asarray(self.kind.formula(self.weights, blocks, _NUMPY), dtype=np.float32)

    def arrays(self) -> dict[str, Floats]:
        return dict(self.weights)


class _LearnedKind(FusionKind):
    """A formula over k blocks, trained end to end with a linear softmax classifier.

    AdamW on the cross-entropy of logits, with early stopping on a stratified part of the training
    rows (`layerfuse.heads.optimizer.train`). The classifier comes with the fusion as its head.
    """

    links = ("softmax",)
    brings_head = True
    rate = 1e-3  # of learning

    @abstractmethod
    def formula(self, weights: Arrays, blocks: Sequence[Array], of: Functions) -> Array:
        """Blocks (n, dim) each to (n, size)."""

    @abstractmethod
    def shapes(self, dims: Sequence[int], size: int) -> Iterator[tuple[str, Shape]]:
        """Names and shapes of all weights; a two-dimensional ``name.j`` multiplies block j."""

    def start(self, blocks: Sequence[Floats], size: int, generator: torch.Generator) -> Start:
        """Initial weights for blocks with a mean square of 1: random maps, and zeros as biases."""
        return {
            key: uniform(generator, *shape) if len(shape) == 2 else np.zeros(shape, np.float32)
            for key, shape in self.shapes([block.shape[1] for block in blocks], size)
        }

    def fit(self, inputs: FusionInputs, *, residual: bool = False) -> FittedFusion:
        import torch

        blocks, targets = inputs.blocks, inputs.targets
        n_outputs = targets.space.n_outputs
        generator = torch.Generator().manual_seed(inputs.seed)
        # Blocks come with a variance of 1/dim, too small for the usual step sizes.
        spreads = [root_mean_square(block) for block in blocks]
        scales = [np.float32(1.0 / spread if spread > 0 else 1.0) for spread in spreads]
        start = self.start(blocks, inputs.size, generator)
        for key in start:
            if key.startswith("projection."):  # of blocks as they are
                start[key] /= scales[_block_of(key)]
        frozen = [key for key in start if key.startswith("projection.")]
        size = self.formula(start, [block[:1] for block in blocks], _NUMPY).shape[1]
        fan_in = size + (sum(block.shape[1] for block in blocks) if residual else 0)
        start["classifier"] = uniform(generator, size, n_outputs, fan_in=fan_in)
        start["intercept"] = np.zeros(n_outputs, dtype=np.float32)
        for j, block in enumerate(blocks if residual else ()):
            start[f"classifier.{j}"] = uniform(generator, block.shape[1], n_outputs, fan_in=fan_in)
        of = torch_functions()

        def forward(
            weights: Mapping[str, torch.Tensor], arrays: Sequence[torch.Tensor], training: bool
        ) -> torch.Tensor:
            scaled = [x * float(scale) for x, scale in zip(arrays, scales, strict=True)]
            logits: torch.Tensor = self.formula(weights, scaled, of) @ weights["classifier"]
            if residual:
                logits = logits + sum(x @ weights[f"classifier.{j}"] for j, x in enumerate(scaled))
            return logits + weights["intercept"]

        batch = min(_BATCH, max(_SMALLEST_BATCH, len(targets) // _STEPS))
        schedule = Schedule(self.rate, _DECAY, batch, _EPOCHS, _PATIENCE)
        found = train(forward, start, frozen, blocks, targets, schedule, generator, inputs.seed)
        for key, array in found.items():
            if array.ndim == 2 and "." in key:  # what a block is multiplied by takes up its scale
                array *= scales[_block_of(key)]
        beside = [found.pop(f"classifier.{j}") for j in range(len(blocks))] if residual else []
        coef = np.concatenate([found.pop("classifier"), *beside])
        intercept = found.pop("intercept")
        unseen = targets.counts == 0
        coef[:, unseen], intercept[unseen] = 0.0, UNSEEN_CLASS_LOGIT
        fusion = LearnedFusion(self, found)
        return FittedFusion(fusion, fusion.transform(blocks), LinearHead(coef, intercept))

    def load(self, arrays: Mapping[str, Floats], n_blocks: int) -> LearnedFusion:
        first: dict[int, str] = {}  # of each block, the first map, from which shapes follow
        for key, shape in self.shapes([0] * n_blocks, 0):
            if len(shape) == 2:
                first.setdefault(_block_of(key), key)
        maps = [take_tensor(arrays, first[j], None, None) for j in range(n_blocks)]
        shapes = self.shapes([len(each) for each in maps], maps[0].shape[1])
        return LearnedFusion(self, {key: take_tensor(arrays, key, *shape) for key, shape in shapes})


def _block_of(key: str) -> int:
    """The number at the end of a weight's name."""
    return int(key.rpartition(".")[2])


class ScalarMix(_LearnedKind):
    """``gamma sum_j softmax(w)_j z_j P_j`` with P_j the principal directions, which stay fixed.

    (n, dim) each to (n, size), or to the smallest rank of a block if that is less. Peters et al.,
    "Deep contextualized word representations" (NAACL 2018), equation 1. Weights: ``projection.j``
    (dim, size), ``mix`` (k,), ``gamma`` (1,).
    """

    name = "scalar_mix"
    rate = 3e-3

    def formula(self, weights: Arrays, blocks: Sequence[Array], of: Functions) -> Array:
        share = of.softmax(weights["mix"])
        parts = (share[j] * (block @ weights[f"projection.{j}"]) for j, block in enumerate(blocks))
        return weights["gamma"] * sum(parts)

    def shapes(self, dims: Sequence[int], size: int) -> Iterator[tuple[str, Shape]]:
        yield "mix", (len(dims),)
        yield "gamma", (1,)
        for j, dim in enumerate(dims):
            yield f"projection.{j}", (dim, size)

    def start(self, blocks: Sequence[Floats], size: int, generator: torch.Generator) -> Start:
        maps = fit_projections(blocks, size)
        mix, gamma = np.zeros(len(blocks), np.float32), np.ones(1, np.float32)
        return {**{f"projection.{j}": P for j, P in enumerate(maps)}, "mix": mix, "gamma": gamma}


class Gated(_LearnedKind):
    """``sum_j g_j relu(z_j E_j + b_j)``, ``g = softmax([z_1, ..., z_k] G + c)``.

    (n, dim) each to (n, size). Jacobs et al., "Adaptive Mixtures of Local Experts" (Neural
    Computation, 1991). Weights: ``expert.j`` (dim, size), ``bias.j`` (size,), ``gate.j`` (dim, k),
    which are the rows of G for block j, ``gate_bias`` (k,).
    """

    name = "gated"

    def formula(self, weights: Arrays, blocks: Sequence[Array], of: Functions) -> Array:
        gates = (block @ weights[f"gate.{j}"] for j, block in enumerate(blocks))
        share = of.softmax(sum(gates) + weights["gate_bias"])
        return sum(
            share[:, j : j + 1] * of.relu(block @ weights[f"expert.{j}"] + weights[f"bias.{j}"])
            for j, block in enumerate(blocks)
        )

    def shapes(self, dims: Sequence[int], size: int) -> Iterator[tuple[str, Shape]]:
        yield "gate_bias", (len(dims),)
        for j, dim in enumerate(dims):
            yield f"expert.{j}", (dim, size)
            yield f"bias.{j}", (size,)
            yield f"gate.{j}", (dim, len(dims))


class Bilinear(_LearnedKind):
    """``sum_{a<b} tanh(z_a U_a + u_a) * tanh(z_b V_b + v_b)``; of one block, the pair (1, 1).

    (n, dim) each to (n, size). Kim et al., "Hadamard Product for Low-rank Bilinear Pooling" (ICLR
    2017), the form with biases: without them, z and -z would be the same. Weights: ``left.a`` (dim,
    size) and ``left_bias.a`` (size,) of all blocks but the last, ``right.b`` and ``right_bias.b``
    of all but the first.
    """

    name = "bilinear"

    def formula(self, weights: Arrays, blocks: Sequence[Array], of: Functions) -> Array:
        def side(name: str, j: int) -> Array:
            return of.tanh(blocks[j] @ weights[f"{name}.{j}"] + weights[f"{name}_bias.{j}"])

        if len(blocks) == 1:
            return side("left", 0) * side("right", 0)
        fused, lefts = 0.0, side("left", 0)
        for j in range(1, len(blocks)):  # the sum over a < b is one over b of running sums over a
            fused = fused + lefts * side("right", j)
            if j < len(blocks) - 1:
                lefts = lefts + side("left", j)
        return fused

    def shapes(self, dims: Sequence[int], size: int) -> Iterator[tuple[str, Shape]]:
        k = len(dims)
        for j, dim in enumerate(dims):
            if j < k - 1 or k == 1:
                yield f"left.{j}", (dim, size)
                yield f"left_bias.{j}", (size,)
            if j > 0 or k == 1:
                yield f"right.{j}", (dim, size)
                yield f"right_bias.{j}", (size,)

    def start(self, blocks: Sequence[Floats], size: int, generator: torch.Generator) -> Start:
        # Biases of any sign and size, so that linear terms come in.
        shapes = self.shapes([block.shape[1] for block in blocks], size)
        return {
            key: uniform(generator, *shape, fan_in=None if len(shape) == 2 else 1)
            for key, shape in shapes
        }
