"""What a fit finds out beside its metrics: errors, speed, near-duplicates, machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerfuse._version import __version__
from layerfuse.blocks import COLUMNS_BLOCK, LEXICAL_BLOCK, BlockRef, highest_layers
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.data import NEAR, Split, TextDataset, near_duplicates
from layerfuse.data.dataset import plain_ids
from layerfuse.embeddings.extraction import extract
from layerfuse.encoders import FrozenEncoder, count_words
from layerfuse.evaluation.baselines import Baseline
from layerfuse.files import atomic_write
from layerfuse.labels import LabelSet, each_label
from layerfuse.metrics import share_interval
from layerfuse.parallel import peak_mb
from layerfuse.progress import Reporter, track
from layerfuse.report.run_report import (
    CalibrationBin,
    ClassText,
    ConfusionCell,
    Diagnosis,
    Environment,
    HardestTexts,
    HardText,
    LabelFigures,
    NearDuplicates,
    NearPair,
)
from layerfuse.resources import EncoderCost
from layerfuse.targets import Decisions, LabelSpace, Targets

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = 40  # of the hardest texts, and of near-duplicate pairs, that are kept
_OF_CLASS = 3  # most typical and most doubtful texts of each class
_LONGEST = 600  # characters kept of each
_SHORT = 200  # and of those of each class
_BINS = 10
_BUDGET_S = 3.0  # all rounds of timing together; loading and one short round come on top
_ROUND_TEXTS = (4, 32)  # least and most of a round
_ROUNDS = (3, 7)
_PACKAGES = ("numpy", "scikit-learn", "torch", "transformers", "safetensors", "pyarrow")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the pipeline predicted for n rows that it had not seen.

    ``confidence`` and ``label_probability`` are those of the predicted and of the true class.
    """

    space: LabelSpace
    truth: Decisions
    predicted: Decisions
    proba: Floats

    @staticmethod
    def of(targets: Targets, proba: Floats, decisions: Decisions | None = None) -> Predicted:
        """From probabilities (n, n_outputs); decisions are those of the space by default."""
        return _KINDS[targets.space.link_name](
            targets.space,
            targets.codes,
            targets.space.decide(proba) if decisions is None else decisions,
            proba,
        )

    @cached_property
    def confidence(self) -> Floats:
        """Of what was predicted, (n,)."""
        return np.asarray(self.proba[np.arange(len(self.truth)), self.predicted])

    @cached_property
    def label_probability(self) -> Floats:
        """Of what is true, (n,)."""
        return np.asarray(self.proba[np.arange(len(self.truth)), self.truth])

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each prediction is right, (n,)."""
        return np.asarray(self.truth == self.predicted)

    @cached_property
    def suspect(self) -> npt.NDArray[np.bool_]:
        """Whether another class gets at least the probability that rows of it get on average, (n,).

        Confident learning; Northcutt et al., JAIR 2021.
        """
        n_classes = self.space.n_outputs
        counts = np.bincount(self.truth, minlength=n_classes)
        sums = np.bincount(self.truth, self.label_probability, n_classes)
        typical = sums / np.maximum(counts, 1)
        return np.asarray(~self.correct & (self.confidence >= typical[self.predicted]))

    def name(self, decision: Decisions) -> str:
        """A decision as text."""
        return str(self.space.classes[decision])

    def has(self, code: int) -> npt.NDArray[np.bool_]:
        """Whether each row is of a class."""
        return np.asarray(self.truth == code)

    def gets(self, code: int) -> npt.NDArray[np.bool_]:
        """Whether each row is rightly predicted to be."""
        return self.has(code) & self.correct

    def probability(self, code: int) -> Floats:
        """Of a class, for the rows that are of it."""
        return self.label_probability

    def outcomes(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Probabilities that something is so, and whether it is."""
        return self.confidence, self.correct

    def confusion(self) -> tuple[ConfusionCell, ...]:
        """Cells of the confusion matrix, the empty ones left out."""
        n_classes = self.space.n_outputs
        cells, counts = np.unique(self.truth * n_classes + self.predicted, return_counts=True)
        return tuple(
            ConfusionCell(truth=cell // n_classes, predicted=cell % n_classes, count=count)
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)
        )

    def labels(self) -> tuple[LabelFigures, ...]:
        """None: the confusion matrix has them."""
        return ()


class PredictedSets(Predicted):
    """What was predicted for rows of any number of labels; truth and predicted are (n, n_labels).

    ``label_probability`` is the lowest probability that a label is there, or missing, as it is.
    """

    @cached_property
    def label_probability(self) -> Floats:
        """Of the label that fits least, (n,)."""
        return np.asarray(np.where(self.truth, self.proba, 1 - self.proba).min(axis=1))

    @cached_property
    def confidence(self) -> Floats:
        """Of the likeliest error, (n,)."""
        return 1 - self.label_probability

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether all labels of each row are right, (n,)."""
        return np.asarray((self.truth == self.predicted).all(axis=1))

    @cached_property
    def suspect(self) -> npt.NDArray[np.bool_]:
        """Whether a label that is missing is as probable as it is on rows that have it, or one that
        is there as improbable as on rows that lack it, (n,).
        """
        truth, proba = self.truth, self.proba
        having, lacking = (
            (proba * own).sum(axis=0) / np.maximum(own.sum(axis=0), 1) for own in (truth, ~truth)
        )
        odd = np.where(truth, proba <= lacking, proba >= np.where(having > 0, having, np.inf))
        return np.asarray(~self.correct & odd.any(axis=1))

    def name(self, decision: Decisions) -> str:
        """The labels as text."""
        return str(LabelSet(self.space.classes[decision].tolist())) or "none"

    def has(self, code: int) -> npt.NDArray[np.bool_]:
        """Whether each row has a label."""
        return np.asarray(self.truth[:, code])

    def gets(self, code: int) -> npt.NDArray[np.bool_]:
        """Whether each row has it and is predicted to."""
        return np.asarray(self.truth[:, code] & self.predicted[:, code])

    def probability(self, code: int) -> Floats:
        """Of a label, (n,)."""
        return np.asarray(self.proba[:, code])

    def outcomes(self) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Probabilities of all labels of all rows, and whether these have them."""
        return self.proba.ravel(), self.truth.ravel()

    def confusion(self) -> tuple[ConfusionCell, ...]:
        """None: labels are not mistaken for one another."""
        return ()

    def labels(self) -> tuple[LabelFigures, ...]:
        """Rows and hits of each label."""
        names, limits = self.space.classes.tolist(), self.space.limits.tolist()
        hits = (self.truth & self.predicted).sum(axis=0).tolist()
        rows, found = self.truth.sum(axis=0).tolist(), self.predicted.sum(axis=0).tolist()
        return tuple(
            LabelFigures(
                label=str(names[code]),
                rows=rows[code],
                predicted=found[code],
                hits=hits[code],
                threshold=limits[code],
            )
            for code in range(len(names))
        )


_KINDS: dict[str, type[Predicted]] = {"softmax": Predicted, "sigmoid": PredictedSets}


def diagnose(
    classifier: LayerFusionClassifier,
    cv: Predicted,
    measured: Split,
    id_column: str | None,
    test: Predicted | None,
) -> Diagnosis:
    """Where a classifier that was just fitted errs, on test rows if there are any.

    ``measured`` are the rows of ``cv``, their texts as they are to be shown.
    """
    shown = cv if test is None else test
    return Diagnosis(
        confusion=shown.confusion(),
        labels=shown.labels(),
        calibration=calibration(shown),
        hardest=_hardest(cv, measured, id_column),
        class_texts=tuple(_class_texts(cv, measured, id_column, classifier)),
    )


def calibration(rows: Predicted) -> tuple[CalibrationBin, ...]:
    """Rows by confidence in tenths, those without rows left out."""
    confidence, right = rows.outcomes()
    edges = np.linspace(0, 1, _BINS + 1)
    places = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, _BINS - 1)
    found = []
    for place in np.unique(places).tolist():
        inside = places == place
        count = int(inside.sum())
        found.append(
            CalibrationBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                count=count,
                confidence=float(confidence[inside].mean()),
                accuracy=share_interval(int(right[inside].sum()), count),
            )
        )
    return tuple(found)


def _hardest(rows: Predicted, split: Split, id_column: str | None) -> HardestTexts:
    """Rows with the lowest probability for their own label."""
    ids = split.ids(id_column)
    return HardestTexts(
        n=len(split),
        wrong=int((~rows.correct).sum()),
        suspects=int(rows.suspect.sum()),
        texts=tuple(
            HardText(
                row=split.rows[place],
                id=ids[place],
                label=rows.name(rows.truth[place]),
                predicted=rows.name(rows.predicted[place]),
                confidence=float(rows.confidence[place]),
                label_probability=float(rows.label_probability[place]),
                suspect=bool(rows.suspect[place]),
                text=_cut(split.texts[place]),
            )
            for place in np.argsort(rows.label_probability, kind="stable")[:_TEXTS]
        ),
    )


def _class_texts(
    rows: Predicted,
    split: Split,
    id_column: str | None,
    classifier: LayerFusionClassifier,
) -> Iterator[ClassText]:
    """Of each class the most typical and the most doubtful rows of the sample."""
    examples, ids = classifier.examples_, split.ids(id_column)
    for code, name in enumerate(map(str, rows.space.classes.tolist())):
        own, right = np.flatnonzero(rows.has(code)), np.flatnonzero(rows.gets(code))
        typical = examples.central(right, _OF_CLASS) if len(right) else right
        probability = rows.probability(code)
        order = own[np.argsort(probability[own], kind="stable")]
        doubtful = [row for row in order.tolist() if row not in typical][:_OF_CLASS]
        for place in (*typical.tolist(), *doubtful):
            yield ClassText(
                label=name,
                typical=place in typical,
                row=split.rows[place],
                id=ids[place],
                label_probability=float(probability[place]),
                text=_cut(split.texts[place], _SHORT),
            )


def _cut(text: str, most: int = _LONGEST) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


@dataclass(frozen=True, eq=False)
class Latency:
    """Milliseconds per text of encoders cut at layers, in each of ``n_rounds`` of ``n_texts``."""

    n_texts: int
    n_rounds: int
    ms: Mapping[tuple[str, int], Floats]

    def ratios(self, blocks: Sequence[BlockRef], others: Sequence[BlockRef]) -> Floats:
        """Time to read some blocks over that to read others, in each round (n_rounds,)."""
        return np.asarray(self._total(blocks) / self._total(others))

    def _total(self, blocks: Sequence[BlockRef]) -> Floats:
        return np.asarray(sum(self.ms[reading] for reading in _readings([blocks])))

    def costs(self, known: Mapping[str, EncoderCost]) -> dict[str, EncoderCost]:
        """Costs of encoders with these times (medians) in place of those of an earlier time."""
        return {name: self._cost(cost) for name, cost in known.items()}

    def _cost(self, cost: EncoderCost) -> EncoderCost:
        own = {
            layer: float(np.median(rounds))
            for (name, layer), rounds in self.ms.items()
            if name == cost.encoder
        }
        if not own:
            return cost
        # What was not timed keeps its estimate, on the scale of the highest layer that was.
        scale = own[max(own)] / cost.ms_at(max(own)) if max(own) else 1.0
        return replace(
            cost,
            ms_per_text=scale * cost.ms_per_text,
            tokenize_ms_per_text=scale * cost.tokenize_ms_per_text,
            ms_by_layer=own,
        )


def measure_latency(
    encoders: Sequence[FrozenEncoder],
    pipelines: Iterable[Sequence[BlockRef]],
    texts: Sequence[str],
    reporter: Reporter,
) -> Latency | None:
    """Time the reading of pipelines' blocks in turn, on the same texts, some rounds over.

    At most 32 texts are read, for about 3 seconds, so that the ratios of times can be trusted; None
    where one short round would take too long already.
    """
    readings = _readings(pipelines)
    by_name = {encoder.name: encoder for encoder in encoders}
    distinct = list(dict.fromkeys(texts))
    order = np.random.default_rng(0).permutation(len(distinct))[: _ROUND_TEXTS[1]]
    drawn = [distinct[row] for row in order]

    def read(reading: tuple[str, int], n_texts: int) -> float:
        name, layer = reading
        started = time.perf_counter()
        if name == LEXICAL_BLOCK.encoder:
            count_words(drawn[:n_texts])
        elif name != COLUMNS_BLOCK.encoder:  # which takes no time beside models
            extract(drawn[:n_texts], by_name[name], layers=(layer,), pooling=("mean",))
        return time.perf_counter() - started

    for reading in readings:  # loads, and warms up
        read(reading, 1)
    few = min(_ROUND_TEXTS[0], len(drawn))
    per_text = sum(read(reading, few) for reading in readings) / few
    if per_text * few * _ROUNDS[0] > _BUDGET_S:
        return None
    n_texts = min(len(drawn), max(few, int(_BUDGET_S / (_ROUNDS[0] * per_text))))
    n_rounds = int(np.clip(_BUDGET_S / (n_texts * per_text), *_ROUNDS))
    seconds: dict[tuple[str, int], list[float]] = {reading: [] for reading in readings}
    for number in track(range(n_rounds), "timing pipelines", n_rounds, "rounds", reporter):
        for reading in readings if number % 2 else reversed(readings):
            seconds[reading].append(read(reading, n_texts))
    ms = {reading: 1e3 / n_texts * np.array(rounds) for reading, rounds in seconds.items()}
    return Latency(n_texts, n_rounds, ms)


def _readings(pipelines: Iterable[Sequence[BlockRef]]) -> list[tuple[str, int]]:
    """The encoders that pipelines read, each up to the highest layer of a pipeline."""
    return sorted({own for blocks in pipelines for own in highest_layers(blocks).items()})


def find_near_duplicates(dataset: TextDataset, *, texts: bool = True) -> NearDuplicates | None:
    """Test rows that are nearly a training row, word for word equal ones left out.

    Without ``texts`` only their numbers are given.
    """
    test, train = dataset.test, dataset.train
    if test is None:
        return None
    pairs = [
        pair
        for pair in near_duplicates(test.texts, train.texts)
        if test.texts[pair.row].casefold().split() != train.texts[pair.other].casefold().split()
    ]
    theirs, ours = (
        [set(map(str, each_label(label))) for label in split.labels or ()]  # a CSV file's "1" is 1
        for split in (test, train)
    )
    shown = sorted(pairs, key=lambda pair: theirs[pair.row] == ours[pair.other])[:_TEXTS]
    return NearDuplicates(
        threshold=NEAR,
        count=len(pairs),
        conflicts=sum(theirs[pair.row] != ours[pair.other] for pair in pairs),
        pairs=tuple(
            NearPair(
                test_row=test.rows[pair.row],
                train_row=train.rows[pair.other],
                similarity=pair.similarity,
                test_label=str((test.labels or ())[pair.row]),
                train_label=str((train.labels or ())[pair.other]),
                test_text=_cut(test.texts[pair.row]) if texts else "",
            )
            for pair in shown
        ),
    )


def environment() -> Environment:
    """The machine and the versions of packages."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
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


def write_rows(
    path: Path,
    parts: Mapping[str, tuple[Predicted, Split]],
    id_column: str | None,
    baselines: Sequence[Baseline],
) -> None:
    """Write one line for each predicted row of ``cv`` and ``test`` as Parquet.

    Columns of baselines hold what each of them predicted for the same rows. Of several labels there
    are lists of their numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables(
        pa.table(
            {
                "measured": [name] * len(split),
                "row": split.rows,
                "truth": _numbers(own.truth),
                "predicted": _numbers(own.predicted),
                "confidence": own.confidence.astype(np.float32),
                "label_probability": own.label_probability.astype(np.float32),
                **{str(one): _numbers(np.asarray(one.on(name))) for one in baselines},
            }
        )
        for name, (own, split) in parts.items()
    )
    if id_column is not None:
        ids = [name for _, split in parts.values() for name in split.columns[id_column]]
        table = table.add_column(2, "id", pa.array(plain_ids(ids)))
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _numbers(decisions: Decisions) -> pa.Array:
    """Numbers of labels, or of several labels lists of them."""
    import pyarrow as pa

    if decisions.ndim == 1:
        return pa.array(decisions.astype(np.int32))
    return pa.array([np.flatnonzero(row) for row in decisions], pa.list_(pa.int32()))
