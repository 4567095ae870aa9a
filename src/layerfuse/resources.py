"""What an encoder and a pipeline of blocks cost: parameters, memory, milliseconds, dimensions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from layerfuse.blocks import BlockRef, highest_layers
from layerfuse.errors import ConfigError, check_choice

_MB = 1e6


@dataclass(frozen=True)
class EncoderCost:
    """What one encoder costs, in full and cut at a layer.

    Times hold for the texts, the device and the batches they were measured with: they tell
    encoders and layers of one run apart, and are no promise for other texts.

    Attributes
    ----------
    encoder : str
    parameters : tuple of int, (n_layers + 1,)
        ``parameters[i]`` counts the embeddings and blocks 1 to i, which is what a model cut at
        layer i has to hold; shared weights count once, a final norm at ``n_layers``.
    bytes_per_parameter : float
        As loaded: 4 in float32, 2 in bfloat16 and float16, between them where dtypes are mixed.
    ms_per_text : float
        Milliseconds for one text of average length at full depth: tokenization, forward pass and
        pooling, in batches. Taken from ``measured_layer`` by depth when the run stopped below.
    dims : int
        The size of one embedding.
    tokenize_ms_per_text : float
        The part of ``ms_per_text`` that is tokenization.
    tokens_per_text : float
        Average number of tokens of the texts measured.
    n_texts : int
        How many texts were measured.
    measured_layer : int
        The highest layer that ran in the measurement.
    device, dtype : str
    threads : int
        Threads that the CPU's operators could use.
    stops_early : bool
        Whether reading a low layer spares the blocks above it.
    ms_by_layer : mapping of int to float
        Milliseconds for one text when reading stops at a layer, where that itself was timed.
    """

    encoder: str
    parameters: tuple[int, ...]
    bytes_per_parameter: float
    ms_per_text: float
    dims: int
    tokenize_ms_per_text: float = 0.0
    tokens_per_text: float = 0.0
    n_texts: int = 0
    measured_layer: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    stops_early: bool = True
    ms_by_layer: Mapping[int, float] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Layers above the embedding output."""
        return len(self.parameters) - 1

    def parameters_at(self, layer: int) -> int:
        """Parameters of a model cut at ``layer``, from 0 to ``n_layers``.

        Raises
        ------
        ConfigError
            For a layer that the encoder does not have.
        """
        if not 0 <= layer <= self.n_layers:
            raise ConfigError(
                f"{self.encoder} has no layer {layer}: its layers are 0 to {self.n_layers}."
            )
        return self.parameters[layer]

    def memory_mb_at(self, layer: int) -> float:
        """Weights of a model cut at ``layer``, in MB (10^6 bytes); activations come on top.

        A `FrozenEncoder` that was truncated in place keeps one block and the final norm more.
        """
        return self.parameters_at(layer) * self.bytes_per_parameter / _MB

    def ms_at(self, layer: int) -> float:
        """Milliseconds for one text when reading stops at ``layer``.

        An estimate by depth: blocks take equal shares of the time measured for the full depth, the
        embedding output takes none, and tokenization is paid whatever the layer.
        A time in ``ms_by_layer`` goes before it.
        """
        self.parameters_at(layer)
        if layer in self.ms_by_layer:
            return self.ms_by_layer[layer]
        share = layer / self.n_layers if self.stops_early and self.n_layers else 1.0
        return self.tokenize_ms_per_text + share * (self.ms_per_text - self.tokenize_ms_per_text)


@dataclass(frozen=True)
class PipelineCost:
    """What it takes to compute some blocks for one text.

    ``blocks`` and ``encoders`` are counts, ``dims`` the length of the blocks' concatenation,
    ``parameters`` those of the encoders cut at the highest layer used, ``memory_mb`` their weights
    in MB (10^6 bytes) and ``ms_per_text`` the sum over encoders of `EncoderCost.ms_at`.
    """

    blocks: int
    encoders: int
    dims: int
    parameters: int
    memory_mb: float
    ms_per_text: float


def pipeline_cost(blocks: Sequence[BlockRef], costs: Mapping[str, EncoderCost]) -> PipelineCost:
    """The cost of some blocks; each encoder counts once, at the highest of its layers.

    Raises
    ------
    ConfigError
        For a block of an encoder whose cost is not given, or a layer that it does not have.
    """
    for block in blocks:
        check_choice(block.encoder, costs, "encoder")
    cut = [(costs[name], layer) for name, layer in highest_layers(blocks).items()]
    return PipelineCost(
        blocks=len(blocks),
        encoders=len(cut),
        dims=sum(costs[block.encoder].dims for block in blocks),
        parameters=sum(cost.parameters_at(layer) for cost, layer in cut),
        memory_mb=math.fsum(cost.memory_mb_at(layer) for cost, layer in cut),
        ms_per_text=math.fsum(cost.ms_at(layer) for cost, layer in cut),
    )


@dataclass(frozen=True)
class Budget:
    """The most that a pipeline may cost; None sets no limit. Units are those of `PipelineCost`.

    Raises
    ------
    ConfigError
        For a limit that is not a positive number, or not a whole one where things are counted.
    """

    blocks: int | None = None
    dims: int | None = None
    ms_per_text: float | None = None
    parameters: int | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        limit: Any
        for name, limit in self.limits.items():
            option, _ = _LIMITS[name]
            is_number = isinstance(limit, numbers.Real) and not isinstance(limit, bool)
            if not is_number or not 0 < limit < math.inf:
                raise ConfigError(
                    f"The budget's {name} is {limit!r}; give a positive number with "
                    f"{option} ({name} in Python), or leave it out for no limit."
                )
            if name in ("blocks", "dims", "parameters") and limit != int(limit):
                raise ConfigError(f"The budget's {name} is {limit!r}; give a whole number.")
            if isinstance(limit, np.generic):  # JSON knows Python's numbers only
                object.__setattr__(self, name, limit.item())

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def exceeded(self, cost: PipelineCost) -> list[str]:
        """One phrase for each limit that is exceeded, such as ``"25.1 ms per text of at most 20
        (--max-ms)"``; a cost that equals its limit is allowed.
        """
        phrases = []
        for name, limit in self.limits.items():
            option, unit = _LIMITS[name]
            if (value := getattr(cost, name)) > limit:
                phrases.append(f"{_number(value)} {unit} of at most {_number(limit)} ({option})")
        return phrases


_LIMITS = {  # the option and the unit
    "blocks": ("--max-blocks", "blocks"),
    "dims": ("--max-dims", "dimensions"),
    "ms_per_text": ("--max-ms", "ms per text"),
    "parameters": ("--max-parameters", "parameters"),
    "memory_mb": ("--max-memory-mb", "MB of weights"),
}


def _number(value: float) -> str:
    """A count in full, anything else to four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def resolve_budget(budget: Budget | Mapping[str, Any] | None) -> Budget:
    """A budget from a mapping of limits by name, such as ``{"ms_per_text": 20}``; None has none.

    Raises
    ------
    ConfigError
        For an unknown limit or a value that cannot be used.
    """
    if isinstance(budget, Budget):
        return budget
    if budget is None:
        return Budget()
    if not isinstance(budget, Mapping):
        raise ConfigError(f"budget={budget!r} is not a Budget, a mapping of limits or None.")
    for name in budget:
        check_choice(name, _LIMITS, "budget limit")
    return Budget(**budget)


def pareto_front(points: Iterable[tuple[float, PipelineCost]]) -> list[bool]:
    """Whether no other point, an accuracy and a cost, dominates each.

    A point dominates another when it is nowhere worse in accuracy, milliseconds per text, memory
    and dimensions, and better in at least one of them. Points that are equal in all four don't
    dominate each other.
    """
    goods = [
        (accuracy, -cost.ms_per_text, -cost.memory_mb, -cost.dims) for accuracy, cost in points
    ]
    return [
        not any(
            other != good and all(a >= b for a, b in zip(other, good, strict=True))
            for other in goods
        )
        for good in goods
    ]
