"""Loads a bundle, predicts, and says what that took; ``costs.py`` runs this file by its path.

Reads one JSON object from standard input (``bundle``, ``texts``, ``cut``, ``device``) and writes
one to standard output. Memory is this process's, in MB (10^6 bytes): ``peak_mb`` its highest
resident size or, on CUDA, what was allocated there, ``base_mb`` what Python and torch take before
any model. ``parameters`` are those that a forward pass runs. ``import_s`` and ``load_s`` are for
packages, and for weights and tokenizers; ``latency_ms`` is the median over single texts,
``texts_per_s`` the rate for all texts in one call.
"""

import json
import statistics
import sys
import time
from typing import Any

started = time.perf_counter()
import psutil  # noqa: E402  # imports are timed
import torch  # noqa: E402

from layerfuse import BlockRef, FrozenEncoder, extract, load  # noqa: E402
from layerfuse.encoders import pretrained  # noqa: E402, F401  # what the first load would import
from layerfuse.parallel import peak_mb  # noqa: E402

imported = time.perf_counter()

SINGLE = 20  # texts that are predicted one by one


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss / 1e6)


def main() -> None:
    asked = json.load(sys.stdin)
    texts, device = asked["texts"], asked["device"]
    torch.set_grad_enabled(False)
    base = resident_mb()
    before = time.perf_counter()
    classifier = load(asked["bundle"], device=device)
    model, encoders = classifier.model_, classifier.encoders_
    if not asked["cut"]:
        encoders = tuple(
            FrozenEncoder(own.source, max_length=own.max_length, device=own.device, dtype=own.dtype)
            for own in encoders
        )

    def predict(texts: list[str]) -> float:
        """Seconds of a prediction; each encoder runs to the highest layer that it has."""
        start = time.perf_counter()
        blocks: dict[BlockRef, Any] = {}
        for encoder in encoders:
            own = [block for block in model.blocks if block.encoder == encoder.name]
            layers = sorted({block.layer for block in own} | {encoder.highest_layer})
            poolings = list(dict.fromkeys(block.pooling for block in own))
            blocks |= extract(texts, encoder, layers, poolings)
        model.predict_proba(blocks)
        return time.perf_counter() - start

    predict(texts[:1])
    loaded = time.perf_counter()
    latency = statistics.median(predict([text]) for text in texts[:SINGLE])
    seconds = predict(texts)
    resident = resident_mb()  # before the peak, which must hold it
    on_cuda = device.startswith("cuda")
    measured = {
        "parameters": sum(own.layer_parameters[own.highest_layer] for own in encoders),
        "import_s": imported - started,
        "load_s": loaded - before,
        "latency_ms": 1e3 * latency,
        "texts_per_s": len(texts) / seconds,
        "texts": len(texts),
        "base_mb": base,
        "resident_mb": resident,
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if on_cuda else peak_mb(),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
