"""The runs behind the table of the project's README: `layerfuse fit` on the four sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.common import save
from layerfuse.cli_options import FitConfig
from layerfuse.commands.fit import fit
from layerfuse.errors import LayerfuseError
from layerfuse.evaluation.verdict import BaselineComparison, VerdictSummary
from layerfuse.metrics import Evaluation
from layerfuse.progress import SILENT
from layerfuse.report.run_report import CostReport, RunReport, SelectionReport, Timings

_SENTIMENT = (
    "<|im_start|>user\nIs this movie review positive or negative? {text}<|im_end|>\n"
    "<|im_start|>assistant\nThe review is"
)
_TOPIC = (
    "<|im_start|>user\nWhat is the topic of this news story? {text}<|im_end|>\n"
    "<|im_start|>assistant\nThe topic is"
)
_PROMPTS = {"mr": _SENTIMENT, "r8": _TOPIC, "r52": _TOPIC, "sst2": _SENTIMENT}
_BOTH = ("mpnet", "smollm2-135m")
_THREE = (*_BOTH, "nomic")
RUNS = (
    FitConfig("mr", encoders=_BOTH, pooling=("mean", "last"), report=False),
    FitConfig("r8", encoders=("mpnet",), report=False),
    FitConfig("r52", encoders=_BOTH, report=False),
    FitConfig("sst2", encoders=_BOTH, report=False),
    FitConfig("mr", encoders=_THREE, pooling=("mean", "last"), report=False),
    FitConfig("r8", encoders=_THREE, report=False),
    FitConfig("r52", encoders=_THREE, report=False),
    FitConfig("sst2", encoders=_THREE, report=False),
    *(
        FitConfig(
            data,
            encoders=_BOTH,
            pooling={"smollm2-135m": ("last",)},
            prompts={"smollm2-135m": prompt},
            report=False,
        )
        for data, prompt in _PROMPTS.items()
    ),
)


class AccuracyRun(BaseModel):
    """What is kept of a run's report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    train_rows: int
    learned_rows: int
    truncated_share: float
    settings: FitConfig
    selection: SelectionReport
    cv: Evaluation
    test: Evaluation
    baselines: tuple[BaselineComparison, ...]
    cost: CostReport
    verdict: VerdictSummary
    timings: Timings

    @classmethod
    def of(cls, report: RunReport) -> AccuracyRun:
        assert report.test is not None, "the four sets have test rows"
        return cls(
            data=report.data.name,
            train_rows=report.data.train_rows,
            learned_rows=report.data.learned_rows,
            truncated_share=report.data.truncated_share,
            settings=replace(report.settings, out=None),
            selection=report.selection,
            cv=report.cv,
            test=report.test,
            baselines=report.baselines,
            cost=report.cost,
            verdict=report.verdict,
            timings=report.timings,
        )


def run() -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for config in RUNS:
        with TemporaryDirectory() as folder:
            try:
                report = fit(replace(config, out=str(Path(folder) / "run")), SILENT)
            except LayerfuseError as error:
                print(f"{config.data} is left out: {error}")
                continue
        own = AccuracyRun.of(report)
        results.append(own.model_dump(mode="json"))
        save("accuracy", results)  # what is measured is kept if the rest is interrupted
        print(f"{own.data}: {own.test.accuracy.value:.4f}. {own.verdict.sentence}")
    return results
