"""The typed record of a fit: what ``--json`` prints, and what the terminal and the page read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.calibration import Abstention, AbstentionFigures
from layerfuse.cli_options import FitConfig, ReadConfig
from layerfuse.data import SEPARATOR, Audit, TextDataset, split_names
from layerfuse.errors import FormatError, NotFoundError
from layerfuse.evaluation.verdict import (
    BaselineComparison,
    GeneralizationGap,
    Tradeoff,
    VerdictSummary,
)
from layerfuse.files import atomic_write
from layerfuse.metrics import Estimate, Evaluation, LabelSetEvaluation
from layerfuse.model_selection import Trial
from layerfuse.objects import local_folder
from layerfuse.resources import EncoderCost, PipelineCost

REPORT_FILE = "report.json"


class Model(BaseModel):
    """Frozen; unknown fields are refused; texts below fields become the schema's descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        defer_build=True,  # most commands read none of most reports: a third of a second
    )


class NearPair(Model):
    """A test text and the training text that it nearly repeats; ``similarity`` is 0 to 1.

    Rows are counted from 0 in their files.
    """

    test_row: int
    train_row: int
    similarity: float
    test_label: str
    train_label: str
    test_text: str


class NearDuplicates(Model):
    """Test rows that nearly repeat a training row, exact copies left out."""

    threshold: float
    """Jaccard similarity of words and word pairs from which two texts are near-duplicates."""
    count: int
    conflicts: int
    """Near-duplicates whose labels differ."""
    pairs: tuple[NearPair, ...]
    """Some of them, those with different labels first."""


class ColumnsReport(Model):
    """Which columns of the table were read; empty where it has no names."""

    texts: tuple[str, ...]
    separator: str
    """What stands between several columns of texts."""
    label: str | None
    id: str | None
    group: str | None
    others: tuple[str, ...]
    """Columns that were read beside the texts."""
    strip_html: bool

    @classmethod
    def of(cls, dataset: TextDataset, config: ReadConfig) -> ColumnsReport:
        """Those that were read for some settings."""
        text = dataset.text_column
        return cls(
            texts=() if text is None else split_names(dataset.columns, text),
            separator=SEPARATOR,
            label=dataset.label_column,
            id=config.id_column,
            group=config.group_column,
            others=getattr(config, "columns", ()),
            strip_html=config.strip_html,
        )

    @property
    def sentence(self) -> str:
        """What was read from where."""
        parts = [f"texts from {', '.join(self.texts)}{' (HTML stripped)' * self.strip_html}"]
        named = (("labels", self.label), ("ids", self.id), ("groups", self.group))
        parts += [f"{name} from {column}" for name, column in named if column is not None]
        parts += [f"beside them {', '.join(self.others)}"] if self.others else []
        return f"columns: {'; '.join(parts)}"


class DataReport(Model):
    """The dataset and what was noticed about it."""

    name: str
    train_rows: int
    learned_rows: int
    """Training rows that were learned from."""
    columns: ColumnsReport
    test_split: str | None
    classes: tuple[str, ...]
    """Labels as text, in the order of the columns of probabilities."""
    truncated_share: float
    """The largest share of training texts (0 to 1) that an encoder cut."""
    read_share: float
    """The share of the training texts' tokens (0 to 1) that was read, by the encoder that read the
    least; counted on up to 1,000 texts."""
    audit: Audit
    near_duplicates: NearDuplicates | None
    """None without test rows."""


class EncoderReport(Model):
    """One encoder as it was used, and what reading a text with it costs."""

    name: str
    source: str
    revision: str | None
    fingerprints: dict[str, str]
    prompt: str | None
    chat_prompt: str | None
    max_length: int
    """Maximum tokens per text, or per window."""
    windows: tuple[str, ...] | None
    """Candidate poolings over windows; None where longer texts were truncated."""
    overlap: float
    max_windows: int
    cost: EncoderCost


class SelectionReport(Model):
    """What was selected on the training rows."""

    method: str
    reason: str = ""
    """Why single layers were not chosen, where labels are few."""
    blocks: tuple[BlockRef, ...]
    gains: tuple[float, ...]
    """The drop in leave-one-out loss that each block brought when it was added."""
    fusion: str
    head: str
    trials: tuple[Trial, ...]
    """Other fusions and heads that were compared with concatenation and a ridge head."""


class AbstentionReport(Model):
    """When the classifier abstains, and what that comes to."""

    rule: Abstention
    cv: AbstentionFigures
    """On training rows, out of fold: those that the thresholds were chosen on."""
    test: AbstentionFigures | None = None

    @property
    def shown(self) -> AbstentionFigures:
        """The figures on test rows if there are any."""
        return self.cv if self.test is None else self.test


class CostReport(Model):
    """What the pipeline costs for one text, beside the last layer that it is compared with."""

    pipeline: PipelineCost
    time_ratio: Estimate | None
    """The pipeline's time over the last layer's: the median of rounds, the lowest, the highest.
    None where times were not measured side by side."""
    n_texts: int
    """Texts of each round in which all pipelines were timed in turn; 0 where they were not."""
    n_rounds: int


class ConfusionCell(Model):
    """How many rows of class ``truth`` were predicted as ``predicted`` (numbers of classes)."""

    truth: int
    predicted: int
    count: int


class LabelFigures(Model):
    """One of several labels that texts can have: how many rows have it, and are predicted to."""

    label: str
    rows: int
    predicted: int
    hits: int
    """Rows that have it and are predicted to."""
    threshold: float
    """The probability from which a text has it."""


class CalibrationBin(Model):
    """Rows whose largest probability lies in one tenth of 0 to 1.

    Where texts have any number of labels: all probabilities of all labels, and as ``accuracy`` the
    share of them whose text has the label.
    """

    low: float
    high: float
    count: int
    confidence: float
    """Mean of the largest probabilities."""
    accuracy: Estimate


Id = str | int | float | bool | None
"""What the column of ids holds, if one was named."""


class HardText(Model):
    """A training text whose label was given a low probability out of fold."""

    row: int
    """Its number in the file, counted from 0."""
    id: Id = None
    label: str
    predicted: str
    confidence: float
    """Probability of the predicted class; of several labels that of the likeliest error."""
    label_probability: float
    """Of its own label; of several the lowest probability that one is there or missing."""
    suspect: bool
    """Whether another class is predicted with typical confidence: check the label."""
    text: str


class HardestTexts(Model):
    """The training texts that models that had not seen them got most wrong."""

    n: int
    wrong: int
    suspects: int
    texts: tuple[HardText, ...]


class ClassText(Model):
    """A training text that is typical of its class, or of which models doubt that it belongs."""

    label: str
    typical: bool
    row: int
    """Its number in the file, counted from 0."""
    id: Id = None
    label_probability: float
    """Of its label, by models that had not seen it."""
    text: str


class Diagnosis(Model):
    """Where the pipeline errs; confusion and calibration are those of the verdict's rows."""

    confusion: tuple[ConfusionCell, ...]
    labels: tuple[LabelFigures, ...]
    """In place of the confusion where texts have any number of labels, else empty."""
    calibration: tuple[CalibrationBin, ...]
    hardest: HardestTexts
    class_texts: tuple[ClassText, ...]
    """Of each class the rows nearest to the mean of those that are predicted rightly, in the fused
    space, and those with the least probability of their label."""


class Timings(Model):
    """Seconds of each step, 0 where it was not needed."""

    extract_s: float = 0.0
    score_s: float = 0.0
    search_s: float = 0.0
    head_s: float = 0.0
    baselines_s: float = 0.0
    seeds_s: float = 0.0
    """Fits with other seeds."""
    latency_s: float = 0.0
    """Timing pipelines side by side, encoders loaded for it included."""
    total_s: float


class Environment(Model):
    """The machine and the versions of packages."""

    python: str
    platform: str
    cpu: str
    cores: int | None
    peak_memory_mb: float | None
    packages: dict[str, str]


class SeedRun(Model):
    """What a fit with one seed gave: accuracies (0 to 1) and the plan."""

    seed: int
    cv: float
    """By nested cross-validation on training rows."""
    test: float | None
    blocks: tuple[BlockRef, ...]
    fusion: str
    head: str


class RunReport(Model):
    """Everything that ``layerfuse fit`` measured and decided; ``report.json`` is its JSON.

    Shares, accuracies and differences of accuracy are numbers from 0 to 1 (-1 to 1), intervals
    are 95% intervals, times are in seconds unless a name says otherwise.
    """

    format: Literal["layerfuse-run-report"] = "layerfuse-run-report"
    format_version: Literal[1] = 1
    layerfuse_version: str
    created: datetime
    run: str
    """The run folder as it was given."""
    data: DataReport
    encoders: tuple[EncoderReport, ...]
    profile: BlockScores
    selection: SelectionReport
    cv: Evaluation | LabelSetEvaluation
    """The pipeline by nested cross-validation on training rows, selection included."""
    test: Evaluation | LabelSetEvaluation | None
    baselines: tuple[BaselineComparison, ...]
    verdict: VerdictSummary
    gap: GeneralizationGap | None = None
    """Test rows against training rows; None without test rows."""
    abstention: AbstentionReport | None = None
    """None where neither a target accuracy nor a coverage was asked for."""
    seeds: tuple[SeedRun, ...] = ()
    """The fit that is reported and those with other seeds; empty where none was asked for."""
    pareto: tuple[Tradeoff, ...]
    cost: CostReport
    diagnosis: Diagnosis
    timings: Timings
    settings: FitConfig
    environment: Environment
    notes: tuple[str, ...]
    """What was noted along the way: data left out, texts truncated, decisions."""

    @property
    def measured(self) -> Evaluation | LabelSetEvaluation:
        """The metrics on the verdict's rows."""
        return self.test if self.test is not None else self.cv

    @property
    def rows_in_words(self) -> str:
        """The verdict's rows: those that figures come from."""
        return "training rows, out of fold" if self.test is None else "test rows"


M = TypeVar("M", bound=BaseModel)


def read_run_report(run: str | Path) -> RunReport:
    """The report of a run folder or URL; an error where there is none, or it is damaged."""
    run = local_folder(run)
    report = read_model(run / REPORT_FILE, RunReport)
    if report is None:
        raise NotFoundError(
            f"There is no {REPORT_FILE} in {run}. Give a run folder that `layerfuse fit` has "
            "written."
        )
    return report


def write_run_report(run: Path, report: RunReport) -> None:
    """Write the report of a run folder."""
    write_model(run / REPORT_FILE, report)


def read_model(path: Path, model: type[M]) -> M | None:
    """A file that `write_model` has written, None where there is no file, else a FormatError."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_input=False)
        place = ".".join(map(str, first["loc"])) or "the file"
        more = f" ({len(others)} more faults)" if others else ""
        raise FormatError(
            f"{path} is not a {model.__name__} of this version of layerfuse, or is damaged: "
            f"{place}: {first['msg']}{more}. Write it again."
        ) from error


def write_model(path: Path, model: BaseModel) -> None:
    """Write a model as indented UTF-8 JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(model.model_dump_json(indent=2) + "\n", encoding="utf-8")
