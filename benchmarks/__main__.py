"""``python -m benchmarks [NAME …]``: all benchmarks, or the named ones; ``study`` and ``gpu`` have
options of their own."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import torch

from benchmarks import (
    ablation,
    abstention,
    accuracy,
    backends,
    cluster,
    columns,
    complementarity,
    demo,
    export,
    extraction,
    few_labels,
    fit_time,
    fusions,
    label_errors,
    languages,
    many_rows,
    memory,
    multilabel,
    predict,
    profile,
    report,
    scaling,
    scoring,
    search,
    serving,
    stream,
    walk,
    windows,
)
from benchmarks.common import save
from benchmarks.gpu.command import main as gpu
from benchmarks.gpu.command import run as run_gpu
from benchmarks.study.command import main as study

BENCHMARKS = {
    "export": export.run,
    "extraction": extraction.run,
    "backends": backends.run,
    "profile": profile.run,
    "scoring": scoring.run,
    "predict": predict.run,
    "accuracy": accuracy.run,
    "memory": memory.run,
    "fit_time": fit_time.run,
    "stream": stream.run,
    "many_rows": many_rows.run,
    "scaling": scaling.run,
    "cluster": cluster.run,
    "complementarity": complementarity.run,
    "fusions": fusions.run,
    "ablation": ablation.run,
    "few_labels": few_labels.run,
    "abstention": abstention.run,
    "label_errors": label_errors.run,
    "languages": languages.run,
    "multilabel": multilabel.run,
    "columns": columns.run,
    "search": search.run,
    "demo": demo.run,
    "report": report.run,
    "serving": serving.run,
    "serving_soak": serving.soak,
    "walk": walk.run,
    "windows": windows.run,
    "gpu": run_gpu,
}


def main() -> int:
    if sys.argv[1:2] == ["study"]:
        return study(sys.argv[2:])
    if sys.argv[1:2] == ["gpu"]:
        return gpu(sys.argv[2:])
    names = sys.argv[1:] or list(BENCHMARKS)
    if not sys.argv[1:] and not torch.cuda.is_available():
        print("gpu is left out: this machine has no CUDA device")
        names.remove("gpu")
    if not sys.argv[1:] and find_spec("ray") is None:
        print("cluster is left out: Ray is not installed")
        names.remove("cluster")
    if not sys.argv[1:] and backends.PYTHON not in os.environ:
        print(f"backends is left out: {backends.PYTHON} names no environment with the peers")
        names.remove("backends")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"Unknown benchmark {unknown[0]!r}. Choose from study, {', '.join(BENCHMARKS)}.")
        return 2
    for name in names:
        print(f"== {name}")
        save(name, BENCHMARKS[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
