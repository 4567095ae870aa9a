"""``python -m layerfuse.study.process``: load a bundle, predict, and say what that took.

Reads one JSON object from standard input (``bundle``, ``texts``, ``cut``, ``device``) and writes
one to standard output. Memory is that of this process, in MB (10^6 bytes): ``peak_mb`` its highest
resident size or, on CUDA, what was allocated there, ``base_mb`` what Python and torch take before
any model. ``parameters`` are those that a forward pass runs. Seconds: ``import_s`` for torch and
layerfuse, ``load_s`` for weights and tokenizers. ``latency_ms`` is the median over single texts,
``texts_per_s`` the rate for all texts in one call, full batches.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from layerfuse.parallel import peak_mb, resident_mb

if TYPE_CHECKING:
    from layerfuse.classifier import LayerFusionClassifier

__all__ = ["main"]

_SINGLE = 20  # texts that are predicted one by one


def main() -> None:
    """Measure what standard input asks for."""
    asked = json.load(sys.stdin)
    started = time.perf_counter()
    import torch

    from layerfuse.classifier import load
    from layerfuse.encoders import pretrained as loading  # noqa: F401

    torch.set_grad_enabled(False)
    imported = time.perf_counter()
    on_cuda = str(asked["device"]).startswith("cuda")
    base = resident_mb() or 0.0
    classifier = load(asked["bundle"], device=asked["device"])
    reading = _Reading(classifier, cut=asked["cut"])
    reading.predict(asked["texts"][:1])
    loaded = time.perf_counter()
    singles = []
    for text in asked["texts"][:_SINGLE]:
        before = time.perf_counter()
        reading.predict([text])
        singles.append(time.perf_counter() - before)
    before = time.perf_counter()
    reading.predict(asked["texts"])
    seconds = time.perf_counter() - before
    resident = resident_mb() or 0.0  # before the peak, which must hold it
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_cuda else peak_mb() or 0.0
    print(  # noqa: T201  # this is the process's answer
        json.dumps(
            {
                "parameters": reading.parameters,
                "import_s": imported - started,
                "load_s": loaded - imported,
                "latency_ms": 1e3 * statistics.median(singles),
                "texts_per_s": len(asked["texts"]) / seconds,
                "texts": len(asked["texts"]),
                "base_mb": base,
                "resident_mb": resident,
                "peak_mb": peak,
                "device": asked["device"],
                "threads": torch.get_num_threads(),
            }
        )
    )


class _Reading:
    """A classifier, cut as it ships, or reading its encoders to their ends."""

    def __init__(self, classifier: LayerFusionClassifier, *, cut: bool) -> None:
        from layerfuse.encoders import FrozenEncoder

        self._model = classifier.model_
        self._encoders = classifier.encoders_
        if not cut:
            self._encoders = tuple(
                FrozenEncoder(
                    encoder.source,
                    prompt=encoder.prompt,
                    chat_prompt=encoder.chat_prompt,
                    max_length=encoder.max_length,
                    device=encoder.device,
                    dtype=encoder.dtype,
                )
                for encoder in classifier.encoders_
            )

    def predict(self, texts: list[str]) -> Any:
        """Probabilities (n_texts, n_classes); each encoder runs to the highest layer it has."""
        from layerfuse.embeddings.extraction import extract

        found: dict[Any, Any] = {}
        for encoder in self._encoders:
            own = [block for block in self._model.blocks if block.encoder == encoder.name]
            layers = sorted({block.layer for block in own} | {encoder.highest_layer})
            poolings = list(dict.fromkeys(block.pooling for block in own))
            found |= extract(texts, encoder, layers, poolings, None)
        return self._model.predict_proba(found)

    @property
    def parameters(self) -> int:
        return sum(own.layer_parameters[own.highest_layer] for own in self._encoders)


if __name__ == "__main__":
    main()
