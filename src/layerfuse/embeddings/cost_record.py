"""Timing an encoder while it reads, and the record of it that outlives the run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from layerfuse.errors import FormatError, NotFoundError
from layerfuse.files import read_json, write_json
from layerfuse.resources import EncoderCost

__all__ = ["CostRecord", "Meter", "keep_cost", "read_cost"]

_POSITIVE = ("threads", "n_texts", "n_tokens", "timed_tokens", "layer", "dim")
_MEASURED = ("forward_s", "tokenize_s", "bytes_per_parameter")


@dataclass(frozen=True)
class CostRecord:
    """What one run of an encoder took.

    Attributes
    ----------
    device, dtype : str
    threads : int
        Threads that the CPU's operators could use.
    n_texts, n_tokens : int
        Distinct texts computed, and their tokens, padding not counted.
    timed_tokens : int
        Those of the batches in ``forward_s``.
    forward_s : float
        Seconds of forward passes and pooling, a first batch that warmed up left out.
    tokenize_s : float
        Seconds of tokenisation, all texts.
    layer : int
        The highest layer that ran, at least 1.
    dim : int
    parameters : tuple of int, (n_layers + 1,)
        Cumulative by layer, see `EncoderCost`.
    bytes_per_parameter : float
    stops_early : bool
        Whether reading a low layer spares the blocks above it.
    """

    device: str
    dtype: str
    threads: int
    n_texts: int
    n_tokens: int
    timed_tokens: int
    forward_s: float
    tokenize_s: float
    layer: int
    dim: int
    parameters: tuple[int, ...]
    bytes_per_parameter: float
    stops_early: bool

    def cost(self, encoder: str) -> EncoderCost:
        """The cost for one text of average length, extrapolated to the full depth."""
        n_layers = len(self.parameters) - 1
        tokens_per_text = self.n_tokens / self.n_texts
        # Batches go by falling length, so the first one, which is left out, has the longest texts:
        # a rate by token is fair where one by text would be too low.
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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "parameters": list(self.parameters)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CostRecord:
        """Read what `to_dict` gave; names that are not known are ignored.

        Raises
        ------
        FormatError
            When a value is missing, of another type, or cannot be.
        """
        try:
            values = {each.name: value[each.name] for each in fields(cls)}
            parameters = values["parameters"] = tuple(values["parameters"])
            positive = [values[name] for name in _POSITIVE]
            seconds = [values[name] for name in _MEASURED]
            sound = (
                all(type(number) is int for number in (*positive, *parameters))
                and all(type(values[name]) is str for name in ("device", "dtype"))
                and type(values["stops_early"]) is bool
                and min(positive) >= 1
                and values["timed_tokens"] <= values["n_tokens"]
                and values["layer"] < len(parameters)
                and list(parameters) == sorted(parameters)
                and parameters[0] >= 0
                and all(math.isfinite(number) and number >= 0 for number in seconds)
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"The record of a cost cannot be read: {error!r}") from error
        if not sound:
            raise FormatError("The record of a cost holds values that cannot be.")
        return cls(**values)


@dataclass
class _Tally:
    """What was read up to one layer; batches as (tokens, seconds)."""

    n_texts: int = 0
    n_tokens: int = 0
    tokenize_s: float = 0.0
    batches: list[tuple[int, float]] = field(default_factory=list)


class Meter:
    """Adds up what a run takes, for each highest layer by itself.

    The first of several batches is left out, as it pages in the weights and allocates; not so when
    the encoder is ``warm``, because it has read before.
    """

    def __init__(self, *, warm: bool = False) -> None:
        self._first = 0 if warm else 1
        self._tallies: dict[int, _Tally] = {}

    def tokenized(self, layer: int, n_texts: int, n_tokens: int, seconds: float) -> None:
        """Some texts were tokenised, to be read up to ``layer``."""
        tally = self._tallies.setdefault(layer, _Tally())
        tally.n_texts += n_texts
        tally.n_tokens += n_tokens
        tally.tokenize_s += seconds

    def ran(self, layer: int, n_tokens: int, seconds: float) -> None:
        """One batch was read up to ``layer``; ``n_tokens`` does not count padding."""
        self._tallies.setdefault(layer, _Tally()).batches.append((n_tokens, seconds))

    def record(
        self,
        *,
        parameters: tuple[int, ...],
        bytes_per_parameter: float,
        dim: int,
        stops_early: bool,
        device: str,
        dtype: str,
        threads: int,
    ) -> CostRecord | None:
        """The record of the layer that took the most work; None when no block ran."""
        work = {
            layer: tally.n_tokens * (layer if stops_early else len(parameters) - 1)
            for layer, tally in self._tallies.items()
            if tally.batches
        }
        layer = max(work, key=lambda layer: work[layer], default=0)
        if not work.get(layer):
            return None
        tally = self._tallies[layer]
        timed = tally.batches[self._first :] or tally.batches
        return CostRecord(
            device=device,
            dtype=dtype,
            threads=threads,
            n_texts=tally.n_texts,
            n_tokens=tally.n_tokens,
            timed_tokens=sum(tokens for tokens, _ in timed),
            forward_s=math.fsum(seconds for _, seconds in timed),
            tokenize_s=tally.tokenize_s,
            layer=layer if stops_early else len(parameters) - 1,
            dim=dim,
            parameters=parameters,
            bytes_per_parameter=bytes_per_parameter,
            stops_early=stops_early,
        )


_KIND, _VERSION = "layerfuse-cost", 1


def read_cost(folder: Path, device: str) -> CostRecord | None:
    """The record for a kind of device (``"cuda:1"`` counts as ``"cuda"``) in a section's folder.

    None when there is none, or none that can be read: it is measured again, not mended.
    """
    try:
        return CostRecord.from_dict(read_json(_path(folder, device), kind=_KIND, version=_VERSION))
    except (FormatError, NotFoundError):
        return None


def keep_cost(folder: Path, record: CostRecord) -> CostRecord:
    """Keep the record of more texts, the one given or the one in the folder, and return it.

    Of two processes that write at once one wins, and both records are good. A folder that cannot
    be written to is left as it is.
    """
    known = read_cost(folder, record.device)
    if known is not None and known.n_texts > record.n_texts:
        return known
    value = {"format": _KIND, "format_version": _VERSION, **record.to_dict()}
    with contextlib.suppress(OSError):
        write_json(_path(folder, record.device), value)
    return record


def _path(folder: Path, device: str) -> Path:
    return folder / f"cost-{device.partition(':')[0]}.json"
