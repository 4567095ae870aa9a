"""Trained pipelines in formats that other tools load, written whole and checked, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layerfuse.errors import ConfigError, UnsupportedModelError
from layerfuse.export.onnx import OnnxExporter, quantize
from layerfuse.export.protocol import TOLERANCE, Exporter, Floats, Source
from layerfuse.export.sentence_transformers import SentenceTransformersExporter
from layerfuse.files import atomic_folder
from layerfuse.progress import SILENT, Reporter

FORMATS: dict[str, Exporter] = {
    "sentence-transformers": SentenceTransformersExporter(),
    "onnx": OnnxExporter(),
}
"""Formats by name."""


@dataclass(frozen=True)
class Written:
    """An export on disk, and what it gives for the texts that it was checked on.

    Attributes
    ----------
    found : ndarray of shape (n, n_outputs), or (n, dim) for a block
    difference : float
        The largest from the pipeline in float32; see `TOLERANCE`.
    int8 : ndarray of shape (n, n_outputs) or None
        What is left on disk gives, where it was quantized.
    n_bytes : int
    """

    found: Floats
    difference: float
    int8: Floats | None
    n_bytes: int


def write_export(
    source: Source,
    exporter: Exporter,
    out: Path,
    texts: Sequence[str],
    *,
    int8: bool = False,
    reporter: Reporter = SILENT,
) -> Written:
    """Write a pipeline in another format, and compare what it gives with the pipeline itself.

    Parameters
    ----------
    source : Source
    exporter : Exporter
        One of `FORMATS`.
    out : Path
        The new folder.
    texts : sequence of str
        Texts to compare on.
    int8 : bool
        Whether to quantize the graph of ``onnx`` after the comparison.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError
        For something that the format cannot hold.
    UnsupportedModelError
        When the export cannot be made or differs; nothing is left of it.
    StorageError
        When ``out`` exists or cannot be written.
    """
    if int8 and not isinstance(exporter, OnnxExporter):
        raise ConfigError("--int8 is for --format onnx only. Leave it out.")
    if windowed := [str(block) for block in source.blocks if block.windowed]:
        raise ConfigError(
            f"{windowed[0]} pools over several windows of a text, which other formats cannot hold. "
            "Fit without --windows (windows= in Python)."
        )
    exporter.check(source)
    with atomic_folder(out) as folder:
        expected = source.expected(texts, reporter)
        with reporter.task("writing", 1, "model"):
            exporter.write(source, folder)
        found = exporter.predict(source, folder, texts)
        difference = _largest_difference(found, expected)
        if not difference <= TOLERANCE:
            raise UnsupportedModelError(
                f"The export differs from the pipeline in float32 by {difference:.1e} (more than "
                f"{TOLERANCE:.0e}) on {len(texts)} texts, so it was not kept. This should not "
                "happen; please report the model and the blocks."
            )
        small = None
        if int8:
            with reporter.task("quantizing", 1, "model"):
                quantize(folder)
            small = exporter.predict(source, folder, texts)
        n_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Written(found, difference, small, n_bytes)


def _largest_difference(found: Floats, expected: Floats) -> float:
    """Absolute, in units of the largest value where that is above 1; NaN counts as infinite."""
    if found.shape != expected.shape:
        return float("inf")
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    difference = float(np.abs(found - expected).max(initial=0.0)) / scale
    return difference if np.isfinite(difference) else float("inf")
