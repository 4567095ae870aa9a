"""Bodies of requests and answers; the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt

from layerfuse.metrics import Evaluation, LabelSetEvaluation
from layerfuse.neighbors import Neighbor
from layerfuse.report.run_report import Model
from layerfuse.resources import PipelineCost

Label = bool | int | float | str
TextOrTexts = str | Annotated[tuple[str, ...], Field(min_length=1)]

EXAMPLES = {
    "one text": {"value": {"texts": "a good film"}},
    "many texts": {"value": {"texts": ["a good film", "an awful plot"], "top_k": 1}},
    "Hugging Face": {"value": {"inputs": "a good film", "parameters": {"top_k": 2}}},
}


class PredictRequest(Model):
    """Texts to classify."""

    texts: TextOrTexts
    """One text or a list of them."""
    top_k: PositiveInt | None = None
    """How many classes come back for each text, the most probable ones; all by default."""
    explain: bool = False
    """Whether the nearest training texts come back; only for a run of ``fit --explain``."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The texts, also where it is one."""
        return (self.texts,) if isinstance(self.texts, str) else self.texts


class Parameters(Model):
    """Options of the Hugging Face form."""

    top_k: PositiveInt | None = None
    function_to_apply: Literal["softmax"] | None = None
    """Scores are calibrated probabilities; there is no other function."""


class ClassificationRequest(Model):
    """The text-classification form of Hugging Face's inference endpoints and TEI."""

    model_config = ConfigDict(extra="ignore")  # TEI's options of truncation

    inputs: TextOrTexts
    """One text or a list of them."""
    parameters: Parameters = Parameters()
    raw_scores: Literal[False] = False

    @property
    def rows(self) -> tuple[str, ...]:
        """The texts, also where it is one."""
        return (self.inputs,) if isinstance(self.inputs, str) else self.inputs


class Probability(Model):
    """A class and its calibrated probability."""

    label: Label
    probability: float


class Prediction(Model):
    """What one text was predicted as."""

    label: Label | tuple[Label, ...]
    """All of its labels where texts have any number of them."""
    probability: float | None
    """Of the label; null where texts have any number of them."""
    probabilities: tuple[Probability, ...]
    """The most probable classes, highest first."""
    truncated: bool
    """Whether the text was longer than an encoder reads."""
    abstain: bool | None = None
    """Whether the text should go to a person; null for a classifier that never abstains."""
    neighbors: tuple[Neighbor, ...] | None = None
    """The nearest training texts, where they were asked for."""


class PredictResponse(Model):
    """Predictions in the order of the texts."""

    model: str
    predictions: tuple[Prediction, ...]
    ms: float
    """Milliseconds in the server, waiting included."""


class LabelScore(Model):
    """A class as text and its calibrated probability."""

    label: str
    score: float


class ServedEncoder(Model):
    """An encoder, and the layers of it that are read."""

    name: str
    layers: tuple[int, ...]
    n_layers: int
    max_length: int
    """Maximum tokens per text, or per window."""
    max_windows: int
    """Maximum windows per text; 1 where longer texts are truncated."""
    dtype: str
    device: str


class ModelInfo(Model):
    """A classifier that is served; figures are those of its fit, None where they are not known."""

    name: str
    classes: tuple[Label, ...]
    blocks: tuple[str, ...]
    encoders: tuple[ServedEncoder, ...]
    cv: Evaluation | LabelSetEvaluation | None
    """Nested cross-validation on the training rows."""
    test: Evaluation | LabelSetEvaluation | None
    cost: PipelineCost | None
    verdict: str | None


class Models(Model):
    """What is served, and the limits of a request."""

    models: tuple[ModelInfo, ...]
    max_texts: int
    max_characters: int


class Problem(Model):
    """Why a request was refused."""

    detail: str
