"""Time, peak memory and size of the page of a run with 60,000 test rows of 52 classes, two encoders
of 25 layers and three poolings. The run folder is made up; its page is made by a process of its
own, whose maximum resident set is the peak, imports included."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from layerfuse._version import __version__
from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.cli_options import FitConfig
from layerfuse.commands.diagnosis import Predicted, calibration, environment
from layerfuse.data.audit import Audit, Finding, SplitAudit
from layerfuse.evaluation.verdict import BaselineComparison, BaselineScore, Tradeoff, VerdictSummary
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.report.run_report import (
    ClassText,
    ColumnsReport,
    CostReport,
    DataReport,
    Diagnosis,
    EncoderReport,
    HardestTexts,
    HardText,
    NearDuplicates,
    NearPair,
    RunReport,
    SelectionReport,
    Timings,
    write_run_report,
)
from layerfuse.resources import EncoderCost, PipelineCost
from layerfuse.targets import LabelSpace, Targets

_ROWS, _FOLDED, _CLASSES, _LAYERS = 60_000, 10_000, 52, 24
_ENCODERS, _POOLINGS = ("one", "two"), ("mean", "last", "max")
_TEXT = "a text of a few words that says little and goes on for a while " * 9
_WORKER = """
import json, sys, time
from layerfuse.parallel import peak_mb
start = time.perf_counter()
from pathlib import Path
from layerfuse.commands.fit import write_report
from layerfuse.progress import SILENT
made = write_report(Path(sys.argv[1]), None, None, SILENT)
seconds = time.perf_counter() - start
peak = round(1e6 * peak_mb())
found = {"seconds": seconds, "cpu_seconds": time.process_time()}
print(json.dumps({**found, "peak_bytes": peak, "n_bytes": made.n_bytes}))
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


def make_run(folder: Path, rows: int = _ROWS) -> RunReport:
    """A run folder with random predictions, as `layerfuse fit` would leave it."""
    rng = np.random.default_rng(0)
    space = LabelSpace(np.array([f"class {number:02}" for number in range(_CLASSES)]))
    measured, metrics = [], []
    for count in (min(rows, _FOLDED), rows):
        targets = Targets(space, rng.integers(_CLASSES, size=count))
        proba = space.link(3 * targets.matrix + rng.normal(size=(count, _CLASSES)))
        measured.append(Predicted.of(targets, proba))
        metrics.append(targets.evaluate(proba))
    gain = PairedDifference(0.02, 0.01, 0.03, 0.001)
    cost = PipelineCost(1, 1, 768, 10**8, 400.0, 5.0)
    score = BaselineScore(accuracy=Estimate(0.9, 0.89, 0.91), macro_f1=0.9, gain=gain)
    selected = tuple(BlockRef(_ENCODERS[place % 2], place + 8, "mean") for place in range(5))
    names = ["majority", "tfidf", "last_layer", "best_block", *(f"first_{n}" for n in range(1, 5))]
    baselines = tuple(
        BaselineComparison(
            name=name,
            encoder="one" if name == "last_layer" else None,
            blocks=selected[: int(name[-1])] if name.startswith("first_") else selected[:1],
            cv=score,
            test=score,
            cost=cost,
        )
        for name in names
    )
    headline = "fusion of 5 blocks classifies 90.0% of the texts correctly."
    advice = "Simpler, and as good: one:24:mean alone."
    report = RunReport(
        layerfuse_version=__version__,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        run="runs/made-up",
        data=_data(rows, tuple(space.classes.tolist())),
        encoders=tuple(map(_encoder, _ENCODERS)),
        profile=BlockScores(tuple(_scores()), "ridge"),
        selection=SelectionReport(
            method="greedy",
            blocks=selected,
            gains=(0.3, 0.02, 0.01, 0.005, 0.002),
            fusion="concat",
            head="ridge",
            trials=(),
        ),
        cv=metrics[0],
        test=metrics[1],
        baselines=baselines,
        verdict=VerdictSummary(
            sentence=f"{headline} It is better. {advice}",
            headline=headline,
            advice=advice,
            gained=True,
            against=("one:24:mean",),
            gain=gain,
            rows="test",
            recommended="pipeline",
            time_ratio=1.5,
            metric="accuracy",
        ),
        pareto=tuple(
            Tradeoff(
                name=name,
                blocks=selected[:1],
                accuracy=score.accuracy,
                cost=PipelineCost(1, 1, 768, 10**8, 400.0, 3.0 + place),
                on_front=place == 0,
            )
            for place, name in enumerate(["pipeline", *names[2:]])
        ),
        cost=CostReport(pipeline=cost, time_ratio=Estimate(1.5, 1.4, 1.6), n_texts=32, n_rounds=5),
        diagnosis=Diagnosis(
            confusion=measured[1].confusion(),
            labels=(),
            calibration=calibration(measured[1]),
            hardest=_hardest(),
            class_texts=tuple(
                ClassText(
                    label=str(name), typical=typical, row=1, label_probability=0.5, text=_TEXT[:200]
                )
                for name in space.classes.tolist()
                for typical in (True, True, True, False, False, False)
            ),
        ),
        timings=Timings(extract_s=1.0, score_s=1.0, search_s=1.0, total_s=4.0),
        settings=FitConfig("made up"),
        environment=environment(),
        notes=("made up: nothing was read",),
    )
    write_run_report(folder, report)
    return report


def _scores() -> Iterator[BlockScore]:
    for encoder in _ENCODERS:
        for pooling in _POOLINGS:
            for layer in range(_LAYERS + 1):
                block = BlockRef(encoder, layer, pooling)
                yield BlockScore(block, 0.5 + layer / 100, 0.005, 0.5, 0.5, 0.01, 1.0)


def _encoder(name: str) -> EncoderReport:
    cost = EncoderCost(name, (10**8,) * (_LAYERS + 1), 4.0, 5.0, 768, tokens_per_text=30.0)
    return EncoderReport(
        name=name,
        source=name,
        revision=None,
        fingerprints={"weights": "none"},
        prompt=None,
        chat_prompt=None,
        max_length=512,
        windows=None,
        overlap=0.0,
        max_windows=64,
        cost=cost,
    )


def _data(rows: int, classes: tuple[str, ...]) -> DataReport:
    none = Finding(0, ())
    split = SplitAudit(rows, dict.fromkeys(classes, rows // len(classes)), none, none, none, 0, ())
    near = NearPair(
        test_row=1,
        train_row=2,
        similarity=0.9,
        test_label=classes[0],
        train_label=classes[1],
        test_text=_TEXT,
    )
    return DataReport(
        name="made up",
        train_rows=rows,
        learned_rows=rows,
        columns=ColumnsReport(
            others=(),
            texts=("text",),
            separator=" ",
            label="label",
            id=None,
            group=None,
            strip_html=False,
        ),
        test_split="test",
        classes=classes,
        truncated_share=0.01,
        read_share=0.99,
        audit=Audit("made up", {"train": split, "test": split}, "test", none, (), (), {}),
        near_duplicates=NearDuplicates(threshold=0.8, count=40, conflicts=40, pairs=(near,) * 40),
    )


def _hardest() -> HardestTexts:
    texts = tuple(
        HardText(
            row=row,
            label="class 00",
            predicted="class 01",
            confidence=0.9,
            label_probability=0.01,
            suspect=True,
            text=_TEXT,
        )
        for row in range(40)
    )
    return HardestTexts(n=_FOLDED, wrong=3000, suspects=500, texts=texts)
