"""Reading texts: all layers by layerfuse against the last layer by sentence-transformers and by
embetter, against the plain loop over all layers, and against layerfuse's own last layer. Same model
files, texts and token limit. The clock covers tokenisation, the forward passes and pooling; models
are loaded before. A run goes on where an interrupted one was; without results/extraction.json it
starts anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import alternate, compared, measured, save, texts_of
from benchmarks.peers import Reader, embetter, plain_loop, sentence_transformers
from layerfuse import FrozenEncoder, extract
from layerfuse.encoders.devices import choose_dtype
from layerfuse.encoders.frozen import DEFAULT_MAX_LENGTH
from layerfuse.encoders.int8 import computes_int8

_SIZES = {"mr": 300, "r8": 60}
_INT8 = ("int8",) if computes_int8() else ()
_KEYS = ("encoder", "dataset", "peer", "max_length")
_POOLINGS = ("mean", "last", "max")


@dataclass(frozen=True)
class Case:
    """An encoder and a data set, read by us in ``poolings`` and ``dtypes``, and by a peer."""

    encoder: str
    dataset: str
    says: str
    peer: Callable[[FrozenEncoder], Reader | None]
    poolings: Sequence[str] = ("mean",)
    dtypes: Sequence[str] = ("auto",)
    max_length: int = 256


def last_layer(encoder: FrozenEncoder) -> Reader:
    """Our own reading of the last layer alone, in the same poolings."""
    return lambda texts: extract(texts, encoder, -1, _POOLINGS)


def own_dtype(encoder: FrozenEncoder) -> Reader:
    """Our own reading of all layers in the dtype that is taken where none is named."""
    automatic = FrozenEncoder.from_pretrained(encoder.name, max_length=encoder.max_length)
    return lambda texts: extract(texts, automatic)


CASES = (
    *(
        Case(encoder, dataset, "sentence-transformers encode, last layer", sentence_transformers)
        for encoder in ("minilm", "mpnet")
        for dataset in _SIZES
    ),
    Case("minilm", "mr", "embetter, last layer", embetter),
    *(
        Case(
            *(encoder, dataset, "plain loop, all layers, float32", plain_loop),
            dtypes=("auto", "float32"),
        )
        for encoder, dataset in (("mpnet", "mr"), ("smollm2-135m", "mr"), ("smollm2-135m", "r8"))
    ),
    Case(
        *("smollm2-135m", "r8", "plain loop, all layers, float32", plain_loop),
        max_length=DEFAULT_MAX_LENGTH,
    ),
    *(
        Case("smollm2-135m", dataset, "layerfuse, last layer", last_layer, _POOLINGS)
        for dataset in _SIZES
    ),
    *(
        Case(encoder, dataset, f"layerfuse, {choose_dtype('auto', 'cpu')}", own_dtype, dtypes=_INT8)
        for encoder in ("minilm", "mpnet", "smollm2-135m")
        for dataset in _SIZES
        if _INT8
    ),
)


def run() -> list[dict[str, Any]]:
    results = measured("extraction")
    done = {tuple(result[key] for key in _KEYS) for result in results}
    for case in CASES:
        if (case.encoder, case.dataset, case.says, case.max_length) in done:
            continue
        texts = texts_of(case.dataset, _SIZES[case.dataset])
        if texts is not None:
            results += _run(case, texts)
            save("extraction", results)  # what is measured is kept if the rest is interrupted
    return results


def _run(case: Case, texts: Sequence[str]) -> list[dict[str, Any]]:
    encoders = {
        dtype: FrozenEncoder.from_pretrained(case.encoder, max_length=case.max_length, dtype=dtype)
        for dtype in case.dtypes
    }
    peer = case.peer(encoders[case.dtypes[0]])
    if peer is None:
        print(f"{case.says}: left out, it is not installed")
        return []

    def reading(encoder: FrozenEncoder) -> Callable[[], Any]:
        return lambda: extract(texts, encoder, pooling=case.poolings)

    ways = {dtype: reading(encoder) for dtype, encoder in encoders.items()}
    times = alternate({**ways, "peer": lambda: peer(texts)})
    results = []
    for dtype, encoder in encoders.items():
        timed = compared(times[dtype], times["peer"])
        results.append(
            {
                "encoder": case.encoder,
                "dtype": encoder.dtype,
                "dataset": case.dataset,
                "texts": len(texts),
                "max_length": case.max_length,
                "layers": encoder.n_layers + 1,
                "poolings": list(case.poolings),
                "peer": case.says,
                **timed,
            }
        )
        print(
            f"{case.encoder} ({encoder.dtype}) on {len(texts)} texts of {case.dataset}, at most "
            f"{case.max_length} tokens: "
            f"{encoder.n_layers + 1} layers in {timed['ours_median_s']:.2f} s; {case.says}: "
            f"{timed['peer_median_s']:.2f} s; ratio {timed['ratio_median']:.2f} "
            f"({timed['ratio_min']:.2f} to {timed['ratio_max']:.2f})",
            flush=True,
        )
    return results
