"""Predicting with a saved pipeline: against its encoder's full depth, and against sentence-
transformers with a scikit-learn head on the last layer. Models are loaded before the clock starts;
it covers tokenisation, forward passes, pooling, fusion and head. Also one text in a fresh process,
by the command against a script that only loads the model with transformers and runs it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.common import alternate, compared, texts_of
from benchmarks.peers import sentence_transformers
from layerfuse import FrozenEncoder, LayerFusionClassifier, extract, load, load_dataset
from layerfuse.data import Split
from layerfuse.errors import LayerfuseError

_ENCODER = "mpnet"
_ROWS = {"mr": 400, "r8": 100}
_TRAIN = 1_000
_SINGLE = 30
_SCRIPT = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModel))
with torch.inference_mode():
    model.eval()(**tokenizer([sys.argv[2]], return_tensors="pt", truncation=True))
"""


def run() -> list[dict[str, Any]]:
    results = []
    for dataset, count in _ROWS.items():
        texts = texts_of(dataset, count)
        if texts is None:
            continue
        try:
            train = load_dataset(dataset).subsample(_TRAIN, 0).train
        except LayerfuseError as error:
            print(f"{dataset} is left out: {error}")
            continue
        encoder = FrozenEncoder.from_pretrained(_ENCODER, max_length=256)
        fitted = LayerFusionClassifier([encoder], cv=2)
        fitted.fit(train.texts, train.labels or ())
        with tempfile.TemporaryDirectory() as folder:
            fitted.save(Path(folder) / "bundle")
            pipeline = load(Path(folder) / "bundle")
            fresh = _fresh(Path(folder) / "bundle", encoder.path, texts[0])
        measured = _measure(pipeline, texts, train)
        results.append(
            {"dataset": dataset, "encoder": _ENCODER, **measured, "fresh_process": fresh}
        )
    return results


def _measure(pipeline: LayerFusionClassifier, texts: list[str], train: Split) -> dict[str, Any]:
    full = FrozenEncoder.from_pretrained(_ENCODER, max_length=256)
    encode = sentence_transformers(full)
    head = LogisticRegression(max_iter=1000).fit(encode(train.texts), train.labels)
    ways = {
        "ours": lambda: pipeline.predict(texts),
        "full": lambda: extract(texts, full, -1),
        "peer": lambda: head.predict(encode(texts)),
    }
    times = alternate(ways)
    top = max(block.layer for block in pipeline.model_.blocks)
    against_full = compared(times["ours"], times["full"])
    against_peer = compared(times["ours"], times["peer"])
    alone = [_seconds(pipeline.predict, text) for text in texts[:_SINGLE]]
    alone_peer = [_seconds(lambda one: head.predict(encode(one)), t) for t in texts[:_SINGLE]]
    ours, theirs = (1e3 * statistics.median(times) for times in (alone, alone_peer))
    print(
        f"{len(texts)} texts, blocks {', '.join(map(str, pipeline.model_.blocks))}: "
        f"{against_full['ratio_median']:.2f} of the full encoder's time (k/L "
        f"{top / full.n_layers:.2f}), {against_peer['ratio_median']:.2f} of sentence-transformers' "
        f"with a head; one text {ours:.1f} ms, theirs {theirs:.1f} ms",
        flush=True,
    )
    return {
        "texts": len(texts),
        "blocks": [str(block) for block in pipeline.model_.blocks],
        "highest_layer": top,
        "n_layers": full.n_layers,
        "against_full_encoder": against_full,
        "against_sentence_transformers": against_peer,
        "single_text_median_s": statistics.median(alone),
        "single_text_p90_s": float(np.quantile(alone, 0.9)),
        "peer_single_text_median_s": statistics.median(alone_peer),
    }


def _fresh(bundle: Path, encoder: Path, text: str) -> dict[str, Any]:
    """Seconds of whole processes that read one text."""
    command = [sys.executable, "-m", "layerfuse", "predict", str(bundle), "--text", text]
    script = [sys.executable, "-c", _SCRIPT, str(encoder), text]
    ways = {
        name: lambda own=own: subprocess.run(own, check=True, capture_output=True)
        for name, own in (("ours", command), ("peer", script))
    }
    times = alternate(ways, 7)
    found = compared(times["ours"], times["peer"])
    print(
        f"one text in a fresh process: {found['ours_median_s']:.1f} s, transformers alone "
        f"{found['peer_median_s']:.1f} s ({found['ratio_median']:.2f})"
    )
    return found


def _seconds(function: Any, text: str) -> float:
    start = time.perf_counter()
    function([text])
    return time.perf_counter() - start
