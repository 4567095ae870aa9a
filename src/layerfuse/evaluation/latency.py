"""Latency of pipelines, timed in turn on the same texts, so that their ratios can be trusted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.embeddings.extraction import extract
from layerfuse.encoders import FrozenEncoder
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import EncoderCost

_BUDGET_S = 3.0  # all rounds together; loading and one short round come on top
_TEXTS = (4, 32)  # least and most of a round
_ROUNDS = (3, 7)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Latency:
    """Time of encoders cut at layers, round by round.

    Attributes
    ----------
    n_texts : int
        Texts of each round.
    n_rounds : int
        Rounds; in each one everything is read once.
    ms : mapping of (str, int) to ndarray of shape (n_rounds,)
        Milliseconds per text by encoder and layer, tokenization included.
    """

    n_texts: int
    n_rounds: int
    ms: Mapping[tuple[str, int], Floats]

    def ratios(self, blocks: Sequence[BlockRef], others: Sequence[BlockRef]) -> Floats:
        """Time to read some blocks over that to read others, in each round (n_rounds,)."""
        return np.asarray(self._total(blocks) / self._total(others))

    def _total(self, blocks: Sequence[BlockRef]) -> Floats:
        return np.asarray(sum(self.ms[reading] for reading in _readings([blocks])))

    def costs(self, known: Mapping[str, EncoderCost]) -> dict[str, EncoderCost]:
        """Costs of encoders with these times (medians) in place of those of an earlier time."""
        return {name: self._cost(cost) for name, cost in known.items()}

    def _cost(self, cost: EncoderCost) -> EncoderCost:
        own = {
            layer: float(np.median(rounds))
            for (name, layer), rounds in self.ms.items()
            if name == cost.encoder
        }
        if not own:
            return cost
        # What was not timed keeps its estimate, on the scale of the highest layer that was.
        scale = own[max(own)] / cost.ms_at(max(own)) if max(own) else 1.0
        return replace(
            cost,
            ms_per_text=scale * cost.ms_per_text,
            tokenize_ms_per_text=scale * cost.tokenize_ms_per_text,
            ms_by_layer=own,
        )


def measure_latency(
    encoders: Sequence[FrozenEncoder],
    pipelines: Iterable[Sequence[BlockRef]],
    texts: Sequence[str],
    *,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Latency | None:
    """Time the reading of pipelines' blocks in turn, on the same texts, some rounds over.

    Each encoder is read up to the highest layer that a pipeline uses. Takes about 3 seconds at
    most, after loading the encoders that are not loaded.

    Parameters
    ----------
    encoders : sequence of FrozenEncoder
        All that the pipelines use.
    pipelines : iterable of sequences of BlockRef
        The blocks of each pipeline.
    texts : sequence of str
        Of which at most 32 are read.
    seed : int
        Of the draw of texts.
    reporter : Reporter
        Receives progress.

    Returns
    -------
    Latency or None
        None where one short round would take too long already.
    """
    readings = _readings(pipelines)
    by_name = {encoder.name: encoder for encoder in encoders}
    distinct = list(dict.fromkeys(texts))
    order = np.random.default_rng(seed).permutation(len(distinct))[: _TEXTS[1]]
    drawn = [distinct[row] for row in order]

    def read(reading: tuple[str, int], n_texts: int) -> float:
        name, layer = reading
        started = time.perf_counter()
        extract(drawn[:n_texts], by_name[name], layers=(layer,), pooling=("mean",))
        return time.perf_counter() - started

    for reading in readings:  # loads, and warms up
        read(reading, 1)
    few = min(_TEXTS[0], len(drawn))
    per_text = sum(read(reading, few) for reading in readings) / few
    if per_text * few * _ROUNDS[0] > _BUDGET_S:
        return None
    n_texts = min(len(drawn), max(few, int(_BUDGET_S / (_ROUNDS[0] * per_text))))
    n_rounds = int(np.clip(_BUDGET_S / (n_texts * per_text), *_ROUNDS))
    seconds: dict[tuple[str, int], list[float]] = {reading: [] for reading in readings}
    with reporter.task("timing pipelines", n_rounds, "rounds") as advance:
        for number in range(n_rounds):
            for reading in readings if number % 2 else reversed(readings):
                seconds[reading].append(read(reading, n_texts))
            advance(1)
    ms = {reading: 1e3 / n_texts * np.array(rounds) for reading, rounds in seconds.items()}
    return Latency(n_texts, n_rounds, ms)


def _readings(pipelines: Iterable[Sequence[BlockRef]]) -> list[tuple[str, int]]:
    """The encoders that pipelines read, each up to the highest layer of a pipeline."""
    found = set()
    for blocks in pipelines:
        highest: dict[str, int] = {}
        for block in blocks:
            highest[block.encoder] = max(block.layer, highest.get(block.encoder, 0))
        found |= set(highest.items())
    return sorted(found)
