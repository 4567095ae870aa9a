"""All layers by layerfuse against the last layer by sentence-transformers: same encoder, texts,
dtype and token limit. The clock covers tokenisation, the forward passes and pooling; models are
loaded before."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.common import alternate, texts_of
from layerfuse import FrozenEncoder, extract

_SIZES = {"mr": 300, "r8": 60}
_MAX_LENGTH = 256


def run() -> list[dict[str, Any]]:
    results = []
    for name in ("minilm", "mpnet"):
        encoder = FrozenEncoder.from_pretrained(name, max_length=_MAX_LENGTH)
        peer = SentenceTransformer(
            str(encoder.path),
            device=encoder.device,
            model_kwargs={"dtype": getattr(torch, encoder.dtype)},
        )
        peer.max_seq_length = _MAX_LENGTH
        for dataset, size in _SIZES.items():
            texts = texts_of(dataset, size)
            if texts is None:
                continue
            timed = alternate(
                lambda texts=texts, encoder=encoder: extract(texts, encoder),
                lambda texts=texts, peer=peer: peer.encode(texts, batch_size=32),
            )
            results.append(
                {
                    "encoder": name,
                    "dtype": encoder.dtype,
                    "dataset": dataset,
                    "texts": len(texts),
                    "layers": encoder.n_layers + 1,
                    "peer": "sentence-transformers encode, last layer, batch 32",
                    **timed,
                }
            )
            print(
                f"{name} on {len(texts)} texts of {dataset}: {encoder.n_layers + 1} layers in "
                f"{timed['ours_median_s']:.2f} s, the peer's last layer in "
                f"{timed['peer_median_s']:.2f} s, ratio {timed['ratio_median']:.2f} "
                f"({timed['ratio_min']:.2f} to {timed['ratio_max']:.2f})"
            )
    return results
