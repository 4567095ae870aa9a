"""Exports of pipelines against the pipelines: values on all test rows, and the time of int8.

Runs are fitted where ``runs/export-DATASET-ENCODER`` is not there. Times are CPU seconds of one
thread, models loaded, tokenization included; they alternate, and the fastest of three counts.
"""

from __future__ import annotations

import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import texts_of
from layerfuse import load
from layerfuse.bundle import load_bundle
from layerfuse.cli_options import ExportConfig, FitConfig
from layerfuse.commands.export import export
from layerfuse.commands.fit import fit
from layerfuse.errors import LayerfuseError
from layerfuse.export.protocol import Source
from layerfuse.progress import SILENT

_DATASETS, _ENCODERS = ("mr", "r8"), ("minilm", "mpnet")
_TIMED = {"mr": 300, "r8": 60}


def run() -> list[dict[str, Any]]:
    results = []
    for encoder in _ENCODERS:
        for dataset in _DATASETS:
            texts = texts_of(dataset, _TIMED[dataset])
            if texts is not None:
                results.append(_measure(dataset, encoder, texts))
                print(results[-1], flush=True)
    return results


def _measure(dataset: str, encoder: str, texts: list[str]) -> dict[str, Any]:
    folder = Path("runs") / f"export-{dataset}-{encoder}"
    if not folder.exists():
        fit(FitConfig(dataset, encoders=(encoder,), out=str(folder), report=False), SILENT)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        graph = _export(folder, "onnx", out / "onnx", int8=True)
        found: dict[str, Any] = {"dataset": dataset, "encoder": encoder, "onnx": graph}
        try:
            found["sentence_transformers"] = _export(folder, "sentence-transformers", out / "st")
        except LayerfuseError as error:
            found["sentence_transformers"] = str(error)
        return found | {"timed_texts": len(texts), "cpu_s": _times(folder, out / "onnx", texts)}


def _export(run_folder: Path, name: str, out: Path, *, int8: bool = False) -> dict[str, Any]:
    result = export(ExportConfig(run_folder, format=name, out=out, int8=int8), SILENT)
    return result.model_dump(mode="json", exclude={"run", "out"})


def _times(run_folder: Path, graph: Path, texts: list[str]) -> dict[str, float]:
    import onnxruntime

    bundle = load_bundle(run_folder / "bundle")
    float32 = Source(
        bundle.model,
        tuple(
            spec.model_copy(update={"dtype": "float32"}).open(device="cpu")
            for spec in bundle.encoders
        ),
    )
    runner = runpy.run_path(str(graph / "run.py"))["predict_proba"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph / "model.onnx", options)
    runner.__globals__["SESSION"] = session
    ways: dict[str, Callable[[list[str]], Any]] = {
        "as_fitted": load(run_folder).predict_proba,
        "float32": float32.expected,
        "int8": runner,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for way in ways.values():
            way(texts[:8])
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(3):
            for name, way in ways.items():
                start = time.process_time()
                way(texts)
                times[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: min(seconds) for name, seconds in times.items()}
