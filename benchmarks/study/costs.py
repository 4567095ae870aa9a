"""What pipelines cost, each measured in a process of its own: whole and cut at the layer in use."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.study.fusions import Choice
from benchmarks.study.inputs import EmbeddedData
from layerfuse import FrozenEncoder
from layerfuse.bundle import Bundle, EncoderSpec, Facts, save_bundle
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.errors import LayerfuseError
from layerfuse.pipeline import FusedModel, Plan, train
from layerfuse.probing import ProbeResults

_PROCESS = Path(__file__).with_name("process.py")


@dataclass(frozen=True)
class Timed:
    """A pipeline whose cost is measured; ``cut`` says whether layers above those in use are run."""

    choice: Choice
    cut: bool

    @property
    def name(self) -> str:
        return f"{self.choice.group}-{self.choice.way}-{'cut' if self.cut else 'whole'}"


def timed_choices(every: Sequence[Choice]) -> list[Timed]:
    """Each encoder whole with its last layer, and cut at its best block; the greedy selection of
    each pair, cut, and that of the largest group, cut and whole."""
    largest = max((choice.encoders for choice in every), key=len)
    timed = []
    for choice in every:
        alone = len(choice.encoders) == 1
        if alone and choice.way == "last":
            timed.append(Timed(choice, cut=False))
        elif choice.way == ("best" if alone else "greedy"):
            timed.append(Timed(choice, cut=True))
            if not alone and choice.encoders == largest:
                timed.append(Timed(choice, cut=False))
    return timed


def measure_cost(
    timed: Timed,
    embedded: EmbeddedData,
    probed: ProbeResults,
    encoders: Mapping[str, FrozenEncoder],
    texts: Sequence[str],
    rows: npt.NDArray[np.intp],
) -> dict[str, Any]:
    """Train the pipeline on some rows, save it, and let ``process.py`` load it and predict."""
    blocks, data = timed.choice.blocks, embedded.data
    axes = tuple(probed.axes[block] for block in blocks)
    coordinates = {
        block: own.transform(embedded.train[block][rows])
        for block, own in zip(blocks, axes, strict=True)
    }
    model = train(Plan(blocks), coordinates, data.targets[rows])
    used = [encoders[name] for name in dict.fromkeys(block.encoder for block in blocks)]
    bundle = Bundle(
        FusedModel(axes, model, TemperatureCalibrator(), data.targets.space),
        data.targets.space,
        tuple(map(EncoderSpec.of, used)),
        Facts(),
    )
    with tempfile.TemporaryDirectory(prefix="layerfuse-study") as temporary:
        folder = Path(temporary) / "bundle"
        save_bundle(bundle, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        measured = run_process(folder, texts, cut=timed.cut, device=used[0].device)
    dims = sum(encoders[block.encoder].dim for block in blocks)
    return {
        "group": timed.choice.group,
        "way": timed.choice.way,
        "cut": timed.cut,
        "blocks": list(map(str, blocks)),
        "bundle_bytes": size,
        "embedding_bytes": 4 * dims,
        "dims": dims,
        **measured,
    }


def run_process(bundle: Path, texts: Sequence[str], *, cut: bool, device: str) -> dict[str, Any]:
    """Load a bundle and predict texts in a new process; what it says that this took."""
    asked = {"bundle": str(bundle), "texts": list(texts), "cut": cut, "device": device}
    # Run by its path and with -P, so that no file of the working folder is imported as a module.
    done = subprocess.run(
        [sys.executable, "-P", str(_PROCESS)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise LayerfuseError(f"The process that measures a pipeline failed: {lines[-1]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
