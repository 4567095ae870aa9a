"""What reading took: samples from the shards of a run, and the record that outlives it."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerfuse.embeddings.shard import check_folder
from layerfuse.encoders import FrozenEncoder
from layerfuse.files import write_json
from layerfuse.resources import EncoderCost


@dataclass(frozen=True)
class ShardCost:
    """What reading one shard up to ``layer`` took.

    ``n_tokens`` does not count padding, ``n_padded`` does; ``tokenize_s`` are seconds; ``batches``
    are tokens without padding and seconds of the forward pass and pooling.
    """

    layer: int
    n_texts: int
    n_tokens: int
    n_padded: int
    tokenize_s: float
    batches: tuple[tuple[int, float], ...]


class CostRecord(BaseModel):
    """What one run of an encoder took, as it is kept in a section's folder.

    ``n_texts`` distinct texts with ``n_tokens`` tokens (padding not counted) were read up to
    ``layer``; ``forward_s`` are the seconds of forward passes and pooling over ``timed_tokens`` of
    them, as a first batch that warmed up is left out. For the others see `EncoderCost`.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    format: Literal["layerfuse-cost"] = "layerfuse-cost"
    format_version: int = Field(default=1, le=1)
    device: str
    dtype: str
    threads: int = Field(ge=1)
    n_texts: int = Field(ge=1)
    n_tokens: int = Field(ge=1)
    timed_tokens: int = Field(ge=1)
    forward_s: float = Field(ge=0)
    tokenize_s: float = Field(ge=0)
    layer: int = Field(ge=1)
    dim: int = Field(ge=1)
    parameters: tuple[Annotated[int, Field(ge=0)], ...]
    bytes_per_parameter: float = Field(ge=0)
    stops_early: bool

    @model_validator(mode="after")
    def _is_consistent(self) -> CostRecord:
        if self.timed_tokens > self.n_tokens:
            raise ValueError("more tokens were timed than read")
        if self.layer >= len(self.parameters) or list(self.parameters) != sorted(self.parameters):
            raise ValueError("the parameters are not cumulative by layer")
        return self

    def cost(self, encoder: str) -> EncoderCost:
        """The cost for one text of average length, extrapolated to the full depth."""
        n_layers = len(self.parameters) - 1
        tokens_per_text = self.n_tokens / self.n_texts
        # The batch that is left out has the longest texts: a rate by token is fair, by text not.
        forward_s = self.forward_s / self.timed_tokens * tokens_per_text * n_layers / self.layer
        tokenize_s = self.tokenize_s / self.n_texts
        return EncoderCost(
            encoder=encoder,
            parameters=self.parameters,
            bytes_per_parameter=self.bytes_per_parameter,
            ms_per_text=1e3 * (forward_s + tokenize_s),
            dims=self.dim,
            tokenize_ms_per_text=1e3 * tokenize_s,
            tokens_per_text=tokens_per_text,
            n_texts=self.n_texts,
            measured_layer=self.layer,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            stops_early=self.stops_early,
        )


def record_cost(
    costs: Sequence[ShardCost], encoder: FrozenEncoder, *, warm: bool = False
) -> CostRecord | None:
    """The record of a run, from its shards at the highest layer that took the most work.

    The first of several batches is left out, as it pages in the weights and allocates; not so when
    the encoder is ``warm``, because it has read before. None when no transformer block ran.
    """
    import torch

    stops_early, n_layers = encoder.stops_early, len(encoder.layer_parameters) - 1
    work: Counter[int] = Counter()
    for cost in costs:
        work[cost.layer] += cost.n_tokens * (cost.layer if stops_early else n_layers)
    layer, most = max(work.items(), key=lambda item: item[1], default=(0, 0))
    if not most:
        return None
    counted = [cost for cost in costs if cost.layer == layer]
    batches = [batch for cost in counted for batch in cost.batches]
    timed = batches if warm else batches[1:] or batches
    return CostRecord(
        device=encoder.device,
        dtype=encoder.dtype,
        threads=torch.get_num_threads(),
        n_texts=sum(cost.n_texts for cost in counted),
        n_tokens=sum(cost.n_tokens for cost in counted),
        timed_tokens=sum(tokens for tokens, _ in timed),
        forward_s=math.fsum(seconds for _, seconds in timed),
        tokenize_s=math.fsum(cost.tokenize_s for cost in counted),
        layer=layer if stops_early else n_layers,
        dim=encoder.dim,
        parameters=encoder.layer_parameters,
        bytes_per_parameter=encoder.bytes_per_parameter,
        stops_early=stops_early,
    )


_COUNTING = Lock()
_running = _begun = 0


@contextmanager
def undisturbed() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether no other thread has read texts since the block began.

    Threads slow each other down, so a time counts only where one of them read alone.
    """
    global _running, _begun
    with _COUNTING:
        alone = _running == 0
        _running += 1
        _begun += 1
        own = _begun
    try:
        yield lambda: alone and _begun == own
    finally:
        with _COUNTING:
            _running -= 1


def read_cost(folder: Path, device: str) -> CostRecord | None:
    """The record for a kind of device (``"cuda:1"`` counts as ``"cuda"``) in a section's folder.

    None when there is none, or none that can be read: then it is measured again.
    """
    with contextlib.suppress(OSError, ValidationError):
        return CostRecord.model_validate_json(_path(folder, device).read_bytes())
    return None


def keep_cost(folder: Path, record: CostRecord) -> CostRecord:
    """Keep the record of more texts, the one given or the one in the folder, and return it.

    Of two processes that write at once one wins, and both records are good. A folder that cannot
    be written to is left as it is.
    """
    known = read_cost(folder, record.device)
    if known is not None and known.n_texts > record.n_texts:
        return known
    with contextlib.suppress(OSError):
        check_folder(folder)
        write_json(_path(folder, record.device), record.model_dump(mode="json"))
    return record


def _path(folder: Path, device: str) -> Path:
    return folder / f"cost-{device.partition(':')[0]}.json"
