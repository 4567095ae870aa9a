"""What the other commands return: `--json` prints it, the terminal shows it."""

from __future__ import annotations

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.calibration import AbstentionFigures
from layerfuse.complementarity import Addition, Pair
from layerfuse.embeddings.store import SectionInfo
from layerfuse.evaluation.learning_curve import LearningCurve
from layerfuse.metrics import Estimate, Evaluation, LabelSetEvaluation, PairedDifference
from layerfuse.neighbors import Neighbor
from layerfuse.report.run_report import ConfusionCell, Id, LabelFigures, Model

Label = str | bool | int | float
Labels = Label | tuple[Label, ...]
"""What a text is predicted as: its label, or all of its labels."""


class TrainingData(Model):
    """The dataset that was measured on."""

    name: str
    train_rows: int
    test_split: str | None = None


class ProfileResult(Model):
    """How well each block predicts the labels; nothing was trained."""

    data: TrainingData
    profile: BlockScores
    truncated_share: float
    """The largest share of texts (0 to 1) that an encoder truncated."""


class CompareResult(Model):
    """Which blocks are worth combining; pairs and additions come best first."""

    data: TrainingData
    pairing: str
    n: int
    """Training rows that were measured on."""
    pairs: tuple[Pair, ...]
    pipeline: tuple[BlockRef, ...]
    """The blocks in use that ``additions`` would be added to."""
    additions: tuple[Addition, ...]
    verdict: str
    truncated_share: float


class CurveResult(Model):
    """Accuracy of the last layer, the best block and fusion by the number of labels."""

    data: TrainingData
    measured_on: str
    selection: str
    fusion: str
    head: str
    curve: LearningCurve
    rows_to_match: float | None
    """Labels with which fusion reaches what the last layer reaches with all of them."""
    verdict: str
    truncated_share: float

    @property
    def rows(self) -> str:
        """What it was measured on, in words."""
        return "test rows" if self.measured_on == "test" else self.measured_on


class Prediction(Model):
    """A text, its predicted label and the probability of that label."""

    text: str
    label: Labels
    probability: float | None
    """None where texts have any number of labels: ``probabilities`` has that of each."""
    abstain: bool | None = None
    """Whether the text goes to a person; None for a classifier that never abstains."""
    labels: tuple[Label, ...] | None = None
    """The conformal set; None for a classifier without a coverage."""
    probabilities: dict[str, float] | None = None
    """Of every class, where they were asked for; of several labels always."""
    neighbors: tuple[Neighbor, ...] | None = None
    """The nearest training texts, where they were asked for."""


class PredictResult(Model):
    """Predictions in the order of the file; none where they were written to ``out``."""

    classes: tuple[Label, ...]
    rows: int
    out: str | None
    predictions: tuple[Prediction, ...]


class ExtractResult(Model):
    """What was read into an embedding cache: texts, and those that were not in it before."""

    store: str
    rows: int
    computed: int


class ChangedText(Model):
    """A text that two classifiers label differently."""

    row: int
    """Its number in the file, counted from 0."""
    label: Labels
    predicted: Labels
    other: Labels
    text: str
    """Empty where texts are left out."""


class RunComparison(Model):
    """Another classifier on the same rows."""

    against: str
    metric: str
    """Accuracy, or micro-F1 where texts have any number of labels."""
    headline: Estimate
    """The metric of the other classifier."""
    gain: PairedDifference
    """The metric of this classifier minus that of the other one."""
    changes: tuple[ChangedText, ...]


class EvaluateResult(Model):
    """A saved classifier on labeled rows; ``split`` is None for a file."""

    data: str
    split: str | None
    metrics: Evaluation | LabelSetEvaluation
    classes: tuple[str, ...]
    confusion: tuple[ConfusionCell, ...]
    labels: tuple[LabelFigures, ...]
    """In place of the confusion where texts have any number of labels, else empty."""
    abstention: AbstentionFigures | None
    """None for a classifier that never abstains."""
    comparison: RunComparison | None


class LabelDoubt(Model):
    """A training row, its label, and what models that had not seen it predict."""

    row: int
    """Its number in the file, counted from 0."""
    id: Id
    label: Labels
    suggested: Labels
    score: float
    """How well the label fits, 0 to 1: its out-of-fold probability."""
    suggested_probability: float | None
    """None where texts have any number of labels."""
    suspect: bool
    """Whether the label is likely wrong, by confident learning."""
    text: str


class LabelAudit(Model):
    """Labels that are likely wrong, the most doubtful first; nothing was changed."""

    name: str
    rows: int
    accuracy: Estimate
    """Of the pipeline on these rows, out of fold; micro-F1 where they have any number of labels."""
    suspects: int
    doubts: tuple[LabelDoubt, ...]


class ModelEntry(Model):
    """A named encoder; ``n_bytes`` are downloaded, ``max_tokens`` is its longest text."""

    name: str
    description: str
    layers: int
    dim: int
    parameters: int
    n_bytes: int
    languages: str
    max_tokens: int
    prompt: str | None
    license: str
    pulled: bool


class ModelList(Model):
    """The named encoders."""

    models: tuple[ModelEntry, ...]


class DatasetEntry(Model):
    """A named dataset; ``rows`` counts those of each split."""

    name: str
    classes: int
    rows: dict[str, int]
    pulled: bool
    source: str
    description: str


class DatasetList(Model):
    """The named datasets."""

    datasets: tuple[DatasetEntry, ...]


class PullResult(Model):
    """Where a named encoder or dataset lies in the cache."""

    name: str
    path: str


class CheckOutcome(Model):
    """The largest deviation that one check found, as a share of the layer's largest value."""

    name: str
    deviation: float
    tolerance: float
    ok: bool


class ModelCheck(Model):
    """Whether a model gives a text the same embedding whatever it is batched with."""

    name: str
    dtype: str
    device: str
    layers: int
    dim: int
    ok: bool
    checks: tuple[CheckOutcome, ...]


class StoreList(Model):
    """The sections of the embedding cache."""

    sections: tuple[SectionInfo, ...]


class PruneResult(Model):
    """The sections that were removed from the embedding cache."""

    removed: tuple[SectionInfo, ...]


class StoreCheck(Model):
    """What the store holds, and the damaged shards that were set aside."""

    root: str
    shards: int
    n_bytes: int
    damaged: tuple[str, ...]


class ReportResult(Model):
    """The page that was written, and figures beside it."""

    report: str
    n_bytes: int
    figures: tuple[str, ...]


class Int8Result(Model):
    """The quantized graph on the rows that the export was checked on."""

    accuracy: float | None
    """None without labels."""
    accuracy_change: float | None
    """From the graph in float32; negative is worse."""
    labels_changed: int
    """Rows with another predicted label than by the graph in float32."""
    difference: float
    """The largest in a probability."""


class ExportResult(Model):
    """A pipeline in another format, and how far it is from the original."""

    run: str
    out: str
    format: str
    blocks: tuple[BlockRef, ...]
    n_bytes: int
    rows: str
    """What it was checked on."""
    n_rows: int
    difference: float
    """The largest from the pipeline in float32: in a probability, or for a block as a share of its
    largest value."""
    dtype: str
    """Of the pipeline as it was fitted."""
    dtype_difference: float | None
    """The largest from the pipeline as it was fitted; None for a block."""
    labels_changed: int | None
    """Rows with another predicted label than by the pipeline as it was fitted."""
    accuracy: float | None
    """Where texts have any number of labels, the share of which all are right."""
    int8: Int8Result | None


class PushResult(Model):
    """What was uploaded, or written in its place."""

    repository: str
    url: str | None
    """None where nothing was uploaded."""
    folder: str | None
    files: tuple[str, ...]
    n_bytes: int
