"""Reading texts: all layers by layerfuse against the last layer by sentence-transformers, against
the plain loop over all layers, and against layerfuse's own last layer. Same model files, texts and
token limit. The clock covers tokenisation, the forward passes and pooling; models are loaded
before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import alternate, texts_of
from benchmarks.peers import Reader, plain_loop, sentence_transformers
from layerfuse import FrozenEncoder, extract

_SIZES = {"mr": 300, "r8": 60}
_MAX_LENGTH = 256
_POOLINGS = ("mean", "last", "max")


@dataclass(frozen=True)
class Case:
    """An encoder and a data set, read by us in ``poolings`` and by a peer."""

    encoder: str
    dataset: str
    says: str
    peer: Callable[[FrozenEncoder], Reader]
    poolings: Sequence[str] = ("mean",)


def last_layer(encoder: FrozenEncoder) -> Reader:
    """Our own reading of the last layer alone, in the same poolings."""
    return lambda texts: extract(texts, encoder, -1, _POOLINGS)


CASES = (
    *(
        Case(encoder, dataset, "sentence-transformers encode, last layer", sentence_transformers)
        for encoder in ("minilm", "mpnet")
        for dataset in _SIZES
    ),
    *(
        Case(encoder, dataset, "plain loop, all layers, float32", plain_loop)
        for encoder, dataset in (("mpnet", "mr"), ("smollm2-135m", "mr"), ("smollm2-135m", "r8"))
    ),
    *(
        Case("smollm2-135m", dataset, "layerfuse, last layer", last_layer, _POOLINGS)
        for dataset in _SIZES
    ),
)


def run() -> list[dict[str, Any]]:
    results = []
    for case in CASES:
        texts = texts_of(case.dataset, _SIZES[case.dataset])
        if texts is None:
            continue
        encoder = FrozenEncoder.from_pretrained(case.encoder, max_length=_MAX_LENGTH)
        peer = case.peer(encoder)
        timed = alternate(
            lambda: extract(texts, encoder, pooling=case.poolings),  # noqa: B023
            lambda: peer(texts),  # noqa: B023
        )
        results.append(
            {
                "encoder": case.encoder,
                "dtype": encoder.dtype,
                "dataset": case.dataset,
                "texts": len(texts),
                "layers": encoder.n_layers + 1,
                "poolings": list(case.poolings),
                "peer": case.says,
                **timed,
            }
        )
        print(
            f"{case.encoder} on {len(texts)} texts of {case.dataset}: {encoder.n_layers + 1} "
            f"layers in {timed['ours_median_s']:.2f} s; {case.says}: "
            f"{timed['peer_median_s']:.2f} s; ratio {timed['ratio_median']:.2f} "
            f"({timed['ratio_min']:.2f} to {timed['ratio_max']:.2f})"
        )
    return results
