"""LayerFusionClassifier: measure, choose, fuse, train."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from layerfuse.blocks import BlockRef, Layers, Poolings
from layerfuse.bundle import Bundle, EncoderSpec, save_bundle
from layerfuse.calibration import fit_calibration
from layerfuse.classifier.fit_record import FittedRows, JudgedMixin
from layerfuse.classifier.validation import (
    check_labels,
    check_parameters,
    open_encoders,
    search_space_of,
    training_rows,
)
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.extraction import (
    Gathered,
    check_texts,
    gather,
    gather_blocks,
)
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError
from layerfuse.evaluation.baselines import TrainingRows, baseline_strategies
from layerfuse.evaluation.nested import FINAL_PLAN, PIPELINE, TrainingSample, nested_plan
from layerfuse.model_selection import log_selection
from layerfuse.pipeline import Blocks
from layerfuse.probing import probe_blocks
from layerfuse.progress import Reporter
from layerfuse.resources import Budget
from layerfuse.targets import Column, LabelSpace, Targets, label_array

__all__ = ["NESTED", "SAMPLE_ROWS", "LayerFusionClassifier"]

SAMPLE_ROWS = 10_000
"""Blocks are measured and chosen on at most this many training rows, stratified."""

NESTED = "nested cross-validation"  # the name of `cv_` among a bundle's facts


class LayerFusionClassifier(JudgedMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier on fused layers of frozen language models.

    ``fit`` reads every layer of every encoder in one pass, scores each block by a leave-one-out
    ridge probe, chooses blocks, fuses them and trains a light head on top. The method follows
    Gwak and Jung, "Layer-Aware Embedding Fusion for LLMs in Text Classifications" (2025).

    Parameters
    ----------
    encoders
        Catalog names, model folders, ``.gguf`` files, Hub names, or `FrozenEncoder` objects.
    layers
        Candidate layers: ``"all"``, one number or several; negative ones count from the end.
    pooling
        Candidate poolings for all encoders, or a mapping from an encoder's name to its poolings
        (``mean`` for those that it leaves out).
    selection
        ``"greedy"``, ``"top_k"``, ``"best"`` or ``"last"``; see `select_blocks`.
    max_blocks
        The most blocks to fuse.
    budget
        More limits that the pipeline keeps: a `Budget` or a mapping with any of ``dims``,
        ``ms_per_text``, ``parameters``, ``memory_mb`` (and ``blocks``).
    fusion
        ``"concat"`` (block-scaled concatenation), ``"sum"``, ``"mean"``, ``"hadamard"``,
        ``"matmul"``, ``"quaternion"``, ``"cooccurrence"``, ``"tensor"``, ``"scalar_mix"``,
        ``"gated"``, ``"bilinear"``, each but the first also with ``"+residual"``; ``"voting"`` or
        ``"stacking"``. ``"auto"`` takes what beats concatenation on training rows by more than two
        standard errors, else concatenation.
    head
        ``"ridge"``, ``"logistic"``, ``"kernel"`` or ``"mlp"``; the penalty is found by
        cross-validation. ``"auto"`` takes ``"ridge"`` unless another beats it likewise.
        ``"scalar_mix"``, ``"gated"``, ``"bilinear"`` and ``"voting"`` bring a head of their own.
    class_weight
        None, ``"balanced"``, or a mapping from label to weight.
    parts
        ``"auto"`` leaves out training rows that are parts of longer rows where most rows are, such
        as the phrases of a treebank; ``"keep"`` keeps them.
    calibration
        ``"temperature"`` (on out-of-fold logits) or ``"none"``.
    templates, chat_questions
        For an encoder's name a template with ``{text}``, or a question for its chat template.
    max_length
        The most tokens read of a text.
    device, dtype
        ``"auto"`` takes what the machine does well.
    cv
        Folds of the nested resampling that gives ``cv_`` and the calibration.
    store
        ``"auto"`` keeps training embeddings in the user's cache; None in memory; or a folder.
    batch_tokens
        The most tokens of a batch.
    random_state
        Seed of folds and subsamples.
    reporter
        Receives progress and decisions.

    Attributes
    ----------
    classes_ : (n_classes,) the labels, sorted where they can be compared
    profile_ : BlockScores, how good each block is on the training rows
    selection_ : Selection, the blocks chosen and their gains
    plan_ : Plan, the blocks, fusion and head that were trained
    trials_ : tuple of Trial, the fusions and heads that were compared
    model_ : FusedModel, from blocks to probabilities
    encoders_ : tuple of the FrozenEncoder objects
    cv_ : Evaluation of nested out-of-fold predictions, choosing included
    verdict_ : Verdict, whether it was worth it; made when first asked for
    n_rows_ : training rows that were learned from
    truncated_share_ : the largest share of training texts that an encoder cut to ``max_length``
    costs_ : EncoderCost of each encoder, by its name
    timings_ : seconds of each stage
    """

    def __init__(
        self,
        encoders: Sequence[str | Path | FrozenEncoder] = ("minilm",),
        *,
        layers: Layers = "all",
        pooling: Poolings = ("mean",),
        selection: str = "greedy",
        max_blocks: int = 5,
        budget: Budget | Mapping[str, float] | None = None,
        fusion: str = "auto",
        head: str = "auto",
        class_weight: str | Mapping[Any, float] | None = None,
        parts: str = "auto",
        calibration: str = "temperature",
        templates: Mapping[str, str] | None = None,
        chat_questions: Mapping[str, str] | None = None,
        max_length: int = 512,
        device: str = "auto",
        dtype: str = "auto",
        cv: int = 5,
        store: str | Path | EmbeddingStore | None = "auto",
        batch_tokens: int | None = None,
        random_state: int = 0,
        reporter: Reporter | None = None,
    ) -> None:
        self.encoders = encoders
        self.layers = layers
        self.pooling = pooling
        self.selection = selection
        self.max_blocks = max_blocks
        self.budget = budget
        self.fusion = fusion
        self.head = head
        self.class_weight = class_weight
        self.parts = parts
        self.calibration = calibration
        self.templates = templates
        self.chat_questions = chat_questions
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self.cv = cv
        self.store = store
        self.batch_tokens = batch_tokens
        self.random_state = random_state
        self.reporter = reporter

    def fit(self, X: Column, y: Column) -> LayerFusionClassifier:
        """Measure, choose, fuse and train on n texts and their labels.

        Both may be lists, tuples, Series, numpy or Arrow arrays; labels of any hashable kind.

        Raises
        ------
        DataError
            For texts that are not strings, missing labels, or fewer than two classes with two rows.
        ConfigError, NotFoundError, UnsupportedModelError
            For parameters and encoders that cannot be used.
        """
        started = time.perf_counter()
        check_parameters(self)
        texts = check_texts(X)
        self.classes_, encoded = check_labels(y, len(texts), self._reporter)
        whole = training_rows(texts, encoded, self.parts, self._reporter)
        texts, encoded = [texts[row] for row in whole], encoded[whole]
        self.open()
        targets = Targets(LabelSpace(self.classes_), encoded)
        weights = targets.row_weights(targets.class_weights(self.class_weight))
        rows = targets.sample(SAMPLE_ROWS, self.random_state)
        extracting = time.perf_counter()
        embeddings = self.extract([texts[row] for row in rows])
        log_candidates(embeddings, self.encoders_, self._reporter)
        self.costs_ = embeddings.costs
        space = search_space_of(self)
        if len(rows) < len(texts):
            self._reporter.note(f"blocks are measured on {len(rows)} of {len(texts)} rows")
        scoring = time.perf_counter()
        own_weights = None if weights is None else weights[rows]
        probed = probe_blocks(embeddings, targets[rows], reporter=self._reporter)
        sample = TrainingSample(embeddings, targets[rows], probed, space, own_weights)
        selecting = time.perf_counter()
        strategies = baseline_strategies(probed.scores.encoders, self.max_blocks)
        folds = sample.targets.folds(self.cv, self.random_state)
        named = {strategy.key: strategy.choose for strategy in strategies}
        result, nested = sample.analyze({**named, PIPELINE: nested_plan}, folds, self._reporter)
        self.profile_ = probed.scores
        self.selection_, self.plan_, self.trials_ = result.selection, result.plan, result.trials
        reading = time.perf_counter()
        blocks: Blocks = embeddings
        if len(rows) < len(texts):
            blocks = self._gather_blocks(texts, result.plan.blocks, self._store())
        training = time.perf_counter()
        calibrator = fit_calibration(self.calibration, nested[FINAL_PLAN].logits, sample.targets)
        with self._reporter.task("training", 1, "model"):
            model = sample.fit(result.plan, blocks, targets, weights)
            self.model_ = model.with_temperature(calibrator)
        log_selection(result, space, model.model.head.kind, self._reporter)
        measuring = time.perf_counter()
        proba = nested[PIPELINE].calibrated(self.calibration, sample.targets)
        self.cv_ = sample.targets.evaluate(proba, seed=self.random_state)
        self.n_rows_ = len(texts)
        self.truncated_share_ = embeddings.truncated_share
        ended = time.perf_counter()
        self.timings_ = {
            "extract_s": scoring - extracting + training - reading,
            "score_s": selecting - scoring,
            "select_s": reading - selecting,  # with the nested resampling
            "cv_s": 0.0,
            "head_s": measuring - training,
            "total_s": ended - started,
        }
        every = TrainingRows(texts, targets, rows, blocks, weights)
        self._fitted = FittedRows(sample, every, result, nested, folds, whole, proba)
        self._verdict = None
        return self

    def predict_proba(self, X: Column) -> npt.NDArray[np.float64]:
        """Probabilities (n_texts, n_classes), columns in the order of ``classes_``."""
        check_is_fitted(self, "model_")
        texts = check_texts(X)
        # In an order of their own: a matrix product may round a row by its place.
        place = {text: row for row, text in enumerate(sorted(set(texts)))}
        embeddings = self._gather_blocks(list(place), self.model_.blocks, None)
        return self.model_.predict_proba(embeddings)[[place[text] for text in texts]]

    def predict(self, X: Column) -> npt.NDArray[Any]:
        """Labels (n_texts,), as they were given to ``fit``."""
        proba = self.predict_proba(X)
        return np.asarray(self.classes_[proba.argmax(axis=1)])

    def open(self) -> LayerFusionClassifier:
        """Find the encoders without fitting, so that `extract` works; return self."""
        self.encoders_ = open_encoders(
            self.encoders,
            self.templates or {},
            self.chat_questions or {},
            max_length=self.max_length,
            device=self.device,
            dtype=self.dtype,
            reporter=self._reporter,
        )
        return self

    def extract(self, X: Column) -> Gathered:
        """All candidate blocks of some texts, through the store."""
        return gather(
            check_texts(X),
            self.encoders_,
            self.layers,
            self.pooling,
            self._store(),
            batch_tokens=self.batch_tokens,
            reporter=self._reporter,
        )

    def _gather_blocks(
        self, texts: Sequence[str], blocks: Sequence[BlockRef], store: EmbeddingStore | None
    ) -> Gathered:
        return gather_blocks(
            texts,
            self.encoders_,
            blocks,
            store,
            batch_tokens=self.batch_tokens,
            reporter=self._reporter,
        )

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        labels: Mapping[Any, str | int | float | bool] | None = None,
    ) -> None:
        """Write the classifier as a bundle folder (tensors, JSON, card); see `load`.

        It holds strings, finite numbers and booleans as labels, exactly; ``labels`` maps others to
        what shall be predicted instead.

        Raises
        ------
        ConfigError
            For labels of other kinds, or two that would be saved as one.
        StorageError
            When the folder exists or cannot be written.
        """
        check_is_fitted(self, "model_")
        classes = rename_labels(self.classes_, labels or {})
        used = {block.encoder for block in self.model_.blocks}
        encoders = [encoder for encoder in self.encoders_ if encoder.name in used]
        facts = {NESTED: self.cv_.to_dict()} if hasattr(self, "cv_") else {}
        bundle = Bundle(self.model_, classes, tuple(map(describe, encoders)), facts)
        save_bundle(bundle, Path(path), overwrite=overwrite)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_fitted", None)
        state["reporter"] = None
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        return tags

    def _store(self) -> EmbeddingStore | None:
        if isinstance(self.store, EmbeddingStore) or self.store is None:
            return self.store
        return EmbeddingStore() if self.store == "auto" else EmbeddingStore(self.store)


def log_candidates(
    embeddings: Gathered, encoders: Iterable[FrozenEncoder], reporter: Reporter
) -> None:
    """Report which blocks there are, what they were computed with, and truncated texts."""
    for encoder in encoders:
        own = [block for block in embeddings if block.encoder == encoder.name]
        layers = sorted({block.layer for block in own})
        poolings = ", ".join(dict.fromkeys(block.pooling for block in own))
        reporter.note(
            f"{encoder.name}: {len(own)} candidate blocks (layers {_ranges(layers)}; {poolings}), "
            f"{encoder.dtype} on {encoder.device}"
        )
    if share := embeddings.truncated_share:
        limits = ", ".join(str(n) for n in sorted({encoder.max_length for encoder in encoders}))
        reporter.note(
            f"{100 * share:.1f}% of the texts were truncated at {limits} tokens; --max-length "
            "(max_length=) reads more, up to an encoder's own limit"
        )


def _ranges(layers: list[int]) -> str:
    """Such as ``0 to 12``, or the numbers where there are gaps."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def describe(encoder: FrozenEncoder) -> EncoderSpec:
    """What it takes to open the encoder again, and to know that it is the same."""
    return EncoderSpec(
        name=encoder.name,
        source=encoder.source.origin,
        revision=encoder.source.revision,
        fingerprints=encoder.fingerprints,
        template=encoder.template,
        chat_question=encoder.chat_question,
        max_length=encoder.max_length,
        dtype=encoder.dtype,
    )


def rename_labels(classes: npt.NDArray[Any], names: Mapping[Any, Any]) -> npt.NDArray[Any]:
    """Classes (n_classes,) under other names; those that ``names`` leaves out keep theirs.

    Raises
    ------
    ConfigError
        For a name of no class, or one name for two classes.
    """
    labels = classes.tolist()
    if unknown := [label for label in names if label not in labels]:
        raise ConfigError(f"labels names {unknown[0]!r}, which is not a label: {labels[:10]}.")
    renamed = [names.get(label, label) for label in labels]
    if len(set(renamed)) < len(renamed):
        raise ConfigError(f"labels gives two classes one name: {renamed[:10]}. Give each its own.")
    return label_array(renamed)
