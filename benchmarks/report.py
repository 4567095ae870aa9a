"""Time, peak memory and size of a report for 60,000 test rows of 52 classes, with two encoders of
25 layers and three poolings. The run folder is made up; the report of it is made in a process of
its own, whose maximum resident set is the peak, imports included."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from layerfuse._version import __version__
from layerfuse.config import FitConfig
from layerfuse.files import write_json
from layerfuse.metrics import evaluate_predictions
from layerfuse.report.details import Predicted, write_details

_ROWS, _FOLDED, _CLASSES, _LAYERS = 60_000, 10_000, 52, 24
_ENCODERS, _POOLINGS = ("one", "two"), ("mean", "last", "max")
_WORKER = """
import json, sys, time
from layerfuse.parallel import peak_mb
start = time.perf_counter()
from pathlib import Path
from layerfuse.commands import report
from layerfuse.progress import SILENT
made = report(Path(sys.argv[1]), None, None, SILENT)
seconds = time.perf_counter() - start
peak = round(1e6 * peak_mb())
found = {"seconds": seconds, "cpu_seconds": time.process_time()}
print(json.dumps({**found, "peak_bytes": peak, "n_bytes": made["n_bytes"]}))
"""


def run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder))
        command = [sys.executable, "-c", _WORKER, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = {"rows": _ROWS, "classes": _CLASSES, **json.loads(done.stdout)}
    print(
        f"{_ROWS} rows, {_CLASSES} classes: {result['seconds']:.1f} s "
        f"({result['cpu_seconds']:.1f} s of CPU), peak "
        f"{result['peak_bytes'] / 1e6:.0f} MB, page {result['n_bytes'] / 1e6:.2f} MB"
    )
    return [result]


def make_run(folder: Path, rows: int = _ROWS) -> None:
    """A run folder with random predictions, as `layerfuse fit` would leave it."""
    rng = np.random.default_rng(0)
    predicted, measured = {}, {}
    for name, count in (("cv", min(rows, _FOLDED)), ("test", rows)):
        truth = rng.integers(_CLASSES, size=count)
        logits = rng.normal(size=(count, _CLASSES)).astype(np.float32)
        logits[np.arange(count), truth] += 3
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        predicted[name] = Predicted.of(truth, proba)
        measured[name] = evaluate_predictions(truth, proba, n_resamples=50).to_dict()
    write_details(folder, _details(rows), predicted)
    write_json(folder / "report.json", _result(measured))


def _blocks() -> list[str]:
    return [f"{_ENCODERS[place % 2]}:{place + 8}:mean" for place in range(5)]


def _result(measured: dict[str, Any]) -> dict[str, Any]:
    gain = {"difference": 0.02, "low": 0.01, "high": 0.03, "p_value": 0.001}
    cost = {"blocks": 1, "encoders": 1, "dims": 768, "parameters": 10**8}
    cost |= {"memory_mb": 400.0, "ms_per_text": 5.0}
    names = ["majority", "tfidf", "last_layer", "best_block", *(f"first_{n}" for n in range(1, 5))]
    few = {name: measured["cv"][name] for name in ("accuracy", "macro_f1", "ci95")}
    baselines = [
        {
            "name": name,
            **({"encoder": "one"} if name == "last_layer" else {}),
            "blocks": [f"one:{place}:mean"],
            "cv": few,
            "test": few,
            "pipeline_minus_baseline": {"cv": gain, "test": gain},
            "cost": cost,
        }
        for place, name in enumerate(names)
    ]
    points = [
        {**cost, "name": item["name"], "blocks": item["blocks"], "ms_per_text": 3.0 + place}
        | {"on_front": place == 0, **{key: item["cv"][key] for key in ("accuracy", "ci95")}}
        for place, item in enumerate(baselines[2:])
    ]
    points.append({**cost, "name": "pipeline", "blocks": _blocks()} | {"on_front": True})
    points[-1] |= {name: measured["cv"][name] for name in ("accuracy", "ci95")}
    return {
        "layerfuse_version": __version__,
        "data": {
            "name": "made up",
            "train_rows": _ROWS,
            "learned_rows": _ROWS,
            "test_split": "test",
        },
        "encoders": [{"name": name, "layers": _LAYERS, "dim": 768} for name in _ENCODERS],
        "selection": {
            "method": "greedy",
            "blocks": [
                {"encoder": encoder, "layer": int(layer), "pooling": pooling}
                for encoder, layer, pooling in (block.split(":") for block in _blocks())
            ],
            "gains": [0.3, 0.02, 0.01, 0.005, 0.002],
            "fusion": "concat",
            "head": "ridge",
            "trials": [],
        },
        "profile": [
            {"encoder": encoder, "layer": layer, "pooling": pooling, "accuracy": 0.5 + layer / 100}
            | {"accuracy_se": 0.005, "macro_f1": 0.5, "loss": 0.5, "loss_se": 0.01, "penalty": 1.0}
            for encoder in _ENCODERS
            for pooling in _POOLINGS
            for layer in range(_LAYERS + 1)
        ],
        "cv": measured["cv"],
        "test": measured["test"],
        "truncated_share": 0.01,
        "cost": cost,
        "baselines": baselines,
        "verdict": {
            "sentence": "fusion adds 2.0 points. Simpler, and as good: one:24:mean alone.",
            "advice": "Simpler, and as good: one:24:mean alone.",
            "gained": True,
            "against": ["one:24:mean"],
            "gain": gain,
            "rows": "test",
            "recommended": "pipeline",
            "time_ratio": 1.5,
        },
        "pareto": points,
        "timings": dict.fromkeys(("extract_s", "score_s", "select_s", "cv_s", "total_s"), 1.0),
        "run": "runs/made-up",
        "settings": asdict(FitConfig("made up")),
    }


def _details(rows: int) -> dict[str, Any]:
    classes = [f"class {number:02}" for number in range(_CLASSES)]
    text = "a text of a few words that says little and goes on for a while " * 9
    found = {"count": 0, "rows": []}
    split = {"rows": rows, "classes": dict.fromkeys(classes, rows // _CLASSES), "conflicts": 0}
    split |= {"empty": found, "duplicates": found, "over_long": found}
    blocks = [f"one:{layer}:mean" for layer in range(12)]
    pair = {"disagreement": 0.1, "cka": 0.5, "yules_q": 0.5, "double_fault": 0.1}
    pair |= {"oracle_accuracy": 0.9, "gain": {"difference": 0.01, "low": 0.0, "high": 0.02}}
    hard = {"label": classes[0], "predicted": classes[1], "confidence": 0.9, "own": 0.01}
    near = {"test_row": 1, "train_row": 2, "similarity": 0.9, "test_label": classes[0]}
    near |= {"train_label": classes[1], "test_text": text, "train_text": text}
    cost = {"parameters": [10**8] * (_LAYERS + 1), "bytes_per_parameter": 4.0}
    cost |= {"ms_per_text": 5.0, "tokens_per_text": 30.0, "device": "cpu", "dtype": "float32"}
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "classes": classes,
        "audit": {
            "name": "made up",
            "splits": {"train": split, "test": split},
            "test_name": "test",
            "leaks": found,
            "untested_classes": [],
            "unseen_classes": [],
            "small_classes": {},
        },
        "near_duplicates": {"threshold": 0.8, "count": 40, "conflicts": 40, "pairs": [near] * 40},
        "hardest": {
            "n": _FOLDED,
            "wrong": 3000,
            "suspects": 500,
            "texts": [{"row": row, **hard, "suspect": True, "text": text} for row in range(40)],
        },
        "complementarity": {
            "n": 2000,
            "blocks": blocks,
            "pairs": [
                {"a": a, "b": b, **pair}
                for place, a in enumerate(blocks)
                for b in blocks[place + 1 :]
            ],
        },
        "encoders": [
            {"name": name, "source": name, "revision": None, "fingerprints": {}, "cost": cost}
            for name in _ENCODERS
        ],
        "environment": {
            "python": "3",
            "platform": "none",
            "machine": "none",
            "cpu": "none",
            "cores": 1,
            "peak_memory_mb": None,
            "packages": {},
        },
    }
