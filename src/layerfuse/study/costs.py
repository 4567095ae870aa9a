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

from layerfuse.blocks import BlockRef
from layerfuse.bundle import Bundle, save_bundle
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.classifier.classifier import describe
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import LayerfuseError
from layerfuse.pipeline import FusedModel, Plan, train
from layerfuse.probing import ProbeResults
from layerfuse.study.combinations import Choice
from layerfuse.study.reading import EmbeddedData
from layerfuse.targets import LabelSpace, Targets

__all__ = ["Timed", "measure_cost", "timed_choices"]


@dataclass(frozen=True)
class Timed:
    """A pipeline whose cost is measured; ``cut`` says whether the layers above go unread."""

    choice: Choice
    cut: bool

    @property
    def name(self) -> str:
        return f"{self.choice.group}-{self.choice.way}-{'cut' if self.cut else 'whole'}"


def timed_choices(every: Sequence[Choice]) -> list[Timed]:
    """Pipelines whose cost is measured.

    Each encoder whole with its last layer, and cut at its best block; the greedy selection of each
    pair, cut, and that of the largest group, cut and whole.
    """
    largest = max((choice.encoders for choice in every), key=len)
    found = []
    for choice in every:
        alone = len(choice.encoders) == 1
        if alone and choice.way == "last":
            found.append(Timed(choice, cut=False))
        elif choice.way == ("best" if alone else "greedy"):
            found.append(Timed(choice, cut=True))
            if not alone and choice.encoders == largest:
                found.append(Timed(choice, cut=False))
    return found


def measure_cost(
    timed: Timed,
    embedded: EmbeddedData,
    probed: ProbeResults,
    encoders: Mapping[str, FrozenEncoder],
    texts: Sequence[str],
    rows: npt.NDArray[np.intp],
) -> dict[str, Any]:
    """Train the pipeline on some rows, save it, and let a new process load it and predict.

    Sizes are in bytes; see `layerfuse.study.process` for what is timed.

    Raises
    ------
    LayerfuseError
        When the process fails.
    """
    blocks = timed.choice.blocks
    model = _train(blocks, embedded, probed, rows)
    used = [encoders[name] for name in dict.fromkeys(block.encoder for block in blocks)]
    classes = np.array([f"c{number}" for number in range(embedded.data.n_classes)])
    bundle = Bundle(model, classes, tuple(map(describe, used)), {})
    with tempfile.TemporaryDirectory(prefix="layerfuse-study") as temporary:
        folder = Path(temporary) / "bundle"
        save_bundle(bundle, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        asked = {
            "bundle": str(folder),
            "texts": list(texts),
            "cut": timed.cut,
            "device": used[0].device,
        }
        measured = _in_a_process(asked)
    dims = sum(encoders[block.encoder].dim for block in blocks)
    return {
        "group": timed.choice.group,
        "way": timed.choice.way,
        "cut": timed.cut,
        "blocks": [str(block) for block in blocks],
        "bundle_bytes": size,
        "embedding_bytes": 4 * dims,
        "dims": dims,
        **measured,
    }


def _train(
    blocks: Sequence[BlockRef],
    embedded: EmbeddedData,
    probed: ProbeResults,
    rows: npt.NDArray[np.intp],
) -> FusedModel:
    axes = tuple(probed.axes[block] for block in blocks)
    known = {
        block: own.transform(embedded.train[block][rows])
        for block, own in zip(blocks, axes, strict=True)
    }
    space = LabelSpace(np.arange(embedded.data.n_classes))
    model = train(Plan(tuple(blocks)), known, Targets(space, embedded.data.y[rows]))
    return FusedModel(axes, model, TemperatureCalibrator(), space)


def _in_a_process(asked: Mapping[str, Any]) -> dict[str, Any]:
    # -P: a file of the working folder is never imported in place of a module of ours.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "layerfuse.study.process"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LayerfuseError(f"The process that measures a pipeline failed: {lines[-1]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
