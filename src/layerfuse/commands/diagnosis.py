"""What a fit finds out beside its metrics: where it errs, what the data hold, on what machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse._version import __version__
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.complementarity import ProbeData, measure_pairs
from layerfuse.data import NEAR, TextDataset, near_duplicates
from layerfuse.files import atomic_write
from layerfuse.metrics import share_interval
from layerfuse.parallel import peak_mb
from layerfuse.progress import SILENT, Reporter
from layerfuse.report.run_report import (
    BlockPair,
    CalibrationBin,
    Complementarity,
    ConfusionCell,
    Diagnosis,
    Environment,
    HardestTexts,
    HardText,
    NearDuplicates,
    NearPair,
)
from layerfuse.targets import Targets

_TEXTS = 40  # of the hardest texts, and of near-duplicate pairs, that are kept
_LONGEST = 600  # characters kept of each
_PAIR_ROWS = 2000  # on which pairs of blocks are measured
_MOST_BLOCKS = 12
_BINS = 10
_PACKAGES = ("numpy", "scikit-learn", "torch", "transformers", "safetensors", "pyarrow")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the pipeline predicted for n rows that it had not seen.

    Attributes
    ----------
    rows : ndarray of int of shape (n,)
        Their numbers in their split.
    truth, predicted : ndarray of int of shape (n,)
        Class indices.
    confidence, label_probability : ndarray of float of shape (n,)
        Probability of the predicted class, and of the true one.
    """

    rows: npt.NDArray[np.intp]
    truth: npt.NDArray[np.intp]
    predicted: npt.NDArray[np.intp]
    confidence: Floats
    label_probability: Floats

    @classmethod
    def of(
        cls, targets: Targets, proba: Floats, rows: npt.NDArray[np.intp] | None = None
    ) -> Predicted:
        """From probabilities (n, n_classes); rows are counted from 0 by default."""
        numbers = np.arange(len(targets))
        predicted = targets.space.decide(proba)
        return cls(
            numbers if rows is None else rows,
            targets.codes,
            predicted,
            proba[numbers, predicted],
            proba[numbers, targets.codes],
        )

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.truth == self.predicted)


def diagnose(
    classifier: LayerFusionClassifier,
    texts: Sequence[str],
    cv: Predicted,
    test: Predicted | None,
    reporter: Reporter,
) -> Diagnosis:
    """Where the pipeline errs.

    Parameters
    ----------
    classifier : LayerFusionClassifier
        Right after ``fit``.
    texts : sequence of str
        Training texts.
    cv, test : Predicted
        Nested out-of-fold predictions of training rows, and predictions of test rows if any.
    reporter : Reporter
        Receives progress.
    """
    classes = [str(label) for label in classifier.classes_.tolist()]
    shown = cv if test is None else test
    return Diagnosis(
        confusion=confusion(shown, len(classes)),
        calibration=calibration(shown),
        hardest=_hardest(cv, texts, classes),
        complementarity=_complementarity(classifier, reporter),
    )


def confusion(rows: Predicted, n_classes: int) -> tuple[ConfusionCell, ...]:
    """Cells of the confusion matrix, the empty ones left out."""
    cells, counts = np.unique(rows.truth * n_classes + rows.predicted, return_counts=True)
    return tuple(
        ConfusionCell(truth=cell // n_classes, predicted=cell % n_classes, count=count)
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)
    )


def calibration(rows: Predicted) -> tuple[CalibrationBin, ...]:
    """Rows by confidence in tenths, those without rows left out."""
    edges = np.linspace(0, 1, _BINS + 1)
    places = np.clip(np.digitize(rows.confidence, edges[1:-1], right=True), 0, _BINS - 1)
    found = []
    for place in np.unique(places).tolist():
        inside = places == place
        count = int(inside.sum())
        found.append(
            CalibrationBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                count=count,
                confidence=float(rows.confidence[inside].mean()),
                accuracy=share_interval(int(rows.correct[inside].sum()), count),
            )
        )
    return tuple(found)


def _hardest(rows: Predicted, texts: Sequence[str], classes: Sequence[str]) -> HardestTexts:
    """Rows with the lowest probability for their own label.

    A label is suspect where another class gets at least the probability that rows of that class
    get on average (confident learning; Northcutt et al., JAIR 2021).
    """
    counts = np.bincount(rows.truth, minlength=len(classes))
    sums = np.bincount(rows.truth, rows.label_probability, len(classes))
    typical = sums / np.maximum(counts, 1)
    suspect = ~rows.correct & (rows.confidence >= typical[rows.predicted])
    return HardestTexts(
        n=len(rows.rows),
        wrong=int((~rows.correct).sum()),
        suspects=int(suspect.sum()),
        texts=tuple(
            HardText(
                row=int(rows.rows[place]),
                label=classes[rows.truth[place]],
                predicted=classes[rows.predicted[place]],
                confidence=float(rows.confidence[place]),
                label_probability=float(rows.label_probability[place]),
                suspect=bool(suspect[place]),
                text=_cut(texts[rows.rows[place]]),
            )
            for place in np.argsort(rows.label_probability, kind="stable")[:_TEXTS]
        ),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _complementarity(classifier: LayerFusionClassifier, reporter: Reporter) -> Complementarity:
    """The selected blocks and each encoder's best and last one, in pairs, on a part of the rows."""
    scores = classifier.profile_
    blocks = list(classifier.selection_.blocks)
    for encoder in scores.encoders:
        blocks += [scores.of(encoder).best.block, scores.last(encoder).block]
    blocks = list(dict.fromkeys(blocks))[:_MOST_BLOCKS]
    record = classifier.fit_record_
    rows = record.sample.targets.sample(_PAIR_ROWS, record.seed)
    part = {block: record.sample.blocks[block][rows] for block in blocks}
    data = ProbeData.probe(part, record.sample.targets[rows], SILENT)
    wanted = [(a, b) for place, a in enumerate(blocks) for b in blocks[place + 1 :]]
    found = []
    with reporter.task("comparing blocks", len(wanted), "pairs") as advance:
        for pair in measure_pairs(data, wanted, record.seed):
            found.append(BlockPair.of(pair))
            advance(1)
    return Complementarity(n=len(rows), blocks=tuple(blocks), pairs=tuple(found))


def find_near_duplicates(dataset: TextDataset) -> NearDuplicates | None:
    """Test rows that are nearly a training row, word for word equal ones left out."""
    test, train = dataset.test, dataset.train
    if test is None:
        return None
    pairs = [
        pair
        for pair in near_duplicates(test.texts, train.texts)
        if test.texts[pair.row].casefold().split() != train.texts[pair.other].casefold().split()
    ]
    theirs, ours = test.labels or (), train.labels or ()
    shown = sorted(pairs, key=lambda pair: theirs[pair.row] == ours[pair.other])[:_TEXTS]
    return NearDuplicates(
        threshold=NEAR,
        count=len(pairs),
        conflicts=sum(theirs[pair.row] != ours[pair.other] for pair in pairs),
        pairs=tuple(
            NearPair(
                test_row=pair.row,
                train_row=pair.other,
                similarity=pair.similarity,
                test_label=str(theirs[pair.row]),
                train_label=str(ours[pair.other]),
                test_text=_cut(test.texts[pair.row]),
                train_text=_cut(train.texts[pair.other]),
            )
            for pair in shown
        ),
    )


def environment() -> Environment:
    """The machine and the versions of packages."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        machine=platform.machine(),
        cpu=_cpu(),
        cores=os.cpu_count(),
        peak_memory_mb=peak_mb(),
        packages={"layerfuse": __version__, **{name: version(name) for name in _PACKAGES}},
    )


def _cpu() -> str:
    """The processor's own name where the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  # not a real file
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def write_rows(path: Path, cv: Predicted, test: Predicted | None) -> None:
    """Write one line for each predicted row as Parquet, ``cv`` rows before ``test`` rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = {"cv": cv} if test is None else {"cv": cv, "test": test}
    table = pa.concat_tables(
        pa.table(
            {
                "measured": [name] * len(own.rows),
                "row": own.rows.astype(np.int32),
                "truth": own.truth.astype(np.int32),
                "predicted": own.predicted.astype(np.int32),
                "confidence": own.confidence.astype(np.float32),
                "label_probability": own.label_probability.astype(np.float32),
            }
        )
        for name, own in parts.items()
    )
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
