"""The runs behind the table of the project's README: `layerfuse fit` on three of the four sets."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import save
from layerfuse.commands.fit import fit
from layerfuse.config import FitConfig
from layerfuse.errors import LayerfuseError
from layerfuse.progress import SILENT

_ASKED = (
    "<|im_start|>user\nIs this movie review positive or negative? {text}<|im_end|>\n"
    "<|im_start|>assistant\nThe review is"
)
_BOTH = ("mpnet", "smollm2-135m")
RUNS = (
    FitConfig("mr", encoders=_BOTH, pooling=("mean", "last"), report=False),
    FitConfig("r8", encoders=("mpnet",), report=False),
    FitConfig("sst2", encoders=_BOTH, report=False),
    FitConfig(
        "mr",
        encoders=_BOTH,
        pooling={"smollm2-135m": ("last",)},
        prompts={"smollm2-135m": _ASKED},
        report=False,
    ),
)

_LEFT_OUT = {"profile", "run", "encoders", "pareto"}  # large, or of this machine


def run() -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for config in RUNS:
        with TemporaryDirectory() as folder:
            own = {**config.__dict__, "out": str(Path(folder) / "run")}
            try:
                found = fit(FitConfig(**own), SILENT)
            except LayerfuseError as error:
                print(f"{config.data} is left out: {error}")
                continue
        found["settings"] = {**found["settings"], "out": None}
        results.append({key: value for key, value in found.items() if key not in _LEFT_OUT})
        save("accuracy", results)  # what is measured is kept if the rest is interrupted
        print(f"{config.data}: {found['test']['accuracy']:.4f}. {found['verdict']['sentence']}")
    return results
