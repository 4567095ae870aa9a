"""LayerFusionClassifier: probe every layer, select, fuse, train a light head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from layerfuse.blocks import COLUMNS_BLOCK, LEXICAL_BLOCK, BlockScores, Selection
from layerfuse.bundle import Bundle, EncoderSpec, Facts, rename_labels, save_bundle
from layerfuse.calibration import Abstention, fit_abstention, fit_calibration
from layerfuse.classifier.fit_record import FitRecord
from layerfuse.classifier.validation import (
    Encoders,
    check_parameters,
    check_supported,
    check_training,
    check_weights,
    cost_of_columns,
    log_candidates,
    open_encoders,
    search_space,
    seed_of,
    settings_of,
    warn_labels,
    warn_languages,
    warn_truncated,
    whole_number,
)
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.extraction import BlockView, check_texts, extract_all, extract_blocks
from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.tabular import ColumnEncoder, TableColumns, is_table, take_columns
from layerfuse.errors import ConfigError, NotAvailableError
from layerfuse.evaluation.baselines import TrainingRows
from layerfuse.evaluation.nested import TrainingSample, nested_plan
from layerfuse.evaluation.verdict import Verdict
from layerfuse.folds import Rows, Splitter
from layerfuse.labels import Column, label_array
from layerfuse.metrics import Evaluation, LabelSetEvaluation
from layerfuse.model_selection import Trial, log_selection
from layerfuse.neighbors import Explanation, TrainingExamples
from layerfuse.objects import new_folder
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import FusedModel, Plan
from layerfuse.probing import probe_blocks
from layerfuse.progress import Reporter, Stopwatch, current_reporter
from layerfuse.resources import Budget, EncoderCost
from layerfuse.targets import MultilabelSpace


class LayerFusionClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Text classifier on fused layers of frozen language models.

    ``fit`` reads every layer of every encoder in one pass, scores each block (encoder, layer,
    pooling) with a leave-one-out ridge probe, selects blocks, fuses them and trains a light head.
    What belongs to an encoder (prompt, candidate layers and poolings, maximum length, dtype,
    device) is set on the `FrozenEncoder`.

    Parameters
    ----------
    encoders : str, Path, FrozenEncoder or sequence of them, default=("minilm",)
        Catalog names, model folders, ``.gguf`` files, Hub names or encoders.
    lexical : bool, default=False
        Whether words are a candidate beside the encoders' layers: one block that says how near a
        text's words (TF-IDF) are to those of each class. It helps small encoders and few rows most.
    columns : sequence of str, default=()
        Columns of numbers, dates (ISO 8601) or categories that are read beside the texts, as one
        more candidate block. ``X`` is then a table (a DataFrame, an Arrow table or a mapping of
        columns) with these and the texts, which are in the column "text" or the only other one.
    selection : {"auto", "greedy", "upper", "top_k", "best", "last"}, default="auto"
        How blocks are selected; see `select_blocks`. ``"auto"``: ``"greedy"``, or ``"upper"`` with
        fewer than 1,000 rows and 100 of the median class.
    max_blocks : int, default=5
        Maximum number of blocks to fuse.
    budget : Budget or mapping, optional
        Further limits of the pipeline: ``dims``, ``ms_per_text``, ``parameters``, ``memory_mb``
        (and ``blocks``).
    fusion : str, default="auto"
        A fusion by name (``"concat"``, ``"tensor+residual"``, ...), or ``"auto"``: concatenation,
        unless only products of two blocks tell the classes apart.
    head : str, default="auto"
        ``"ridge"``, ``"balanced_ridge"``, ``"logistic"``, ``"kernel"`` or ``"mlp"``, its penalty
        found by cross-validation; ``"auto"``: ridge, unless another one significantly beats it.
    class_weight : {"balanced"} or mapping from label to float, optional
        ``"balanced"`` weights a class by one over the square root of its frequency (scikit-learn:
        by one over the frequency). With the head ``"balanced_ridge"`` both weights are multiplied.
    fragments : {"drop", "keep"}, default="drop"
        What happens to training texts that are part of a longer training text where most are, such
        as the phrases of a treebank. Dropping them is a `LayerfuseWarning`.
    calibration : {"temperature"}, optional, default="temperature"
        Calibration of probabilities on out-of-fold logits; None for none.
    target_accuracy : float, optional
        Abstain where the predicted class is not probable enough for the other texts to reach this
        accuracy (0 to 1), with 95% confidence; see ``predict(X, abstain=...)``.
    coverage : float, optional
        Share of texts (0 to 1) whose set of labels, see `predict_set`, should hold the right one;
        abstain where the set is not one label.
    cv : int, cross-validation splitter or iterable, default=5
        Folds of the nested resampling that gives ``cv_`` and the calibration.
    sample_size : int, default=10_000
        Blocks are scored and selected on a stratified sample of about this many rows. The other
        rows are read only at the selected blocks, and the head is trained on all rows.
    store : {"auto"}, path, EmbeddingStore or None, default="auto"
        Embedding cache for training texts: the user's, a folder or URL, or None for memory only.
    n_jobs : int, optional
        Threads for probing and model selection; None and -1 use all cores.
    random_state : int, RandomState instance or None, default=0
        Seed of folds and samples. None draws a new one at each ``fit``.
    verbose : int, default=0
        1 prints progress and decisions to standard error.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted where they can be compared.
    profile_ : BlockScores
        How well each block predicts the labels. Like all that follows but ``model_``,
        ``encoders_``, ``abstention_``, ``column_encoder_`` and ``cv_``, it is absent from a loaded
        classifier.
    selection_ : Selection
        Selected blocks and their gains.
    plan_ : Plan
        Blocks, fusion and head of the trained pipeline.
    trials_ : tuple of Trial
        Heads that were compared.
    model_ : FusedModel
        From blocks to probabilities.
    encoders_ : tuple of FrozenEncoder
        The encoders, opened.
    abstention_ : Abstention or None
        When to abstain, chosen on nested out-of-fold probabilities; None without
        ``target_accuracy`` and ``coverage``.
    column_encoder_ : ColumnEncoder or None
        From ``columns`` to features.
    cv_ : Evaluation or LabelSetEvaluation
        Nested cross-validation of the whole procedure, selection included.
    costs_ : dict of str to EncoderCost
        Cost of each encoder, by name.
    timings_ : dict of str to float
        Seconds of each stage.
    truncated_share_ : float
        Largest share of training texts that an encoder cut, 0 to 1.
    read_share_ : float
        Share of the training texts' tokens that was read, 0 to 1, by the encoder that read the
        least; counted on up to 1,000 texts.
    n_rows_ : int
        Rows that were learned from.
    kept_examples_ : TrainingExamples or None
        Of a loaded classifier, the training texts that its bundle keeps for `explain`.
    fit_record_ : FitRecord
        Training rows and out-of-fold predictions: baselines, verdict. Not kept in pickles.

    References
    ----------
    Gwak and Jung, "Layer-Aware Embedding Fusion for LLMs in Text Classifications", 2025,
    arXiv:2504.05764.

    Examples
    --------
    >>> from layerfuse import FrozenEncoder, LayerFusionClassifier
    >>> encoder = FrozenEncoder.from_pretrained("minilm", pooling=("mean", "cls"))
    >>> classifier = LayerFusionClassifier([encoder, "mpnet"])  # doctest: +SKIP
    >>> classifier.fit(texts, labels).predict(["oil prices rose"])  # doctest: +SKIP
    """

    classes_: npt.NDArray[np.generic]
    profile_: BlockScores
    selection_: Selection
    plan_: Plan
    trials_: tuple[Trial, ...]
    model_: FusedModel
    encoders_: tuple[FrozenEncoder, ...]
    abstention_: Abstention | None
    column_encoder_: ColumnEncoder | None
    kept_examples_: TrainingExamples | None
    cv_: Evaluation | LabelSetEvaluation
    costs_: Mapping[str, EncoderCost]
    timings_: dict[str, float]
    truncated_share_: float
    read_share_: float
    n_rows_: int

    def __init__(
        self,
        encoders: Encoders = ("minilm",),
        *,
        lexical: bool = False,
        columns: Sequence[str] = (),
        selection: str = "auto",
        max_blocks: int = 5,
        budget: Budget | Mapping[str, float] | None = None,
        fusion: str = "auto",
        head: str = "auto",
        class_weight: str | Mapping[object, float] | None = None,
        fragments: str = "drop",
        calibration: str | None = "temperature",
        target_accuracy: float | None = None,
        coverage: float | None = None,
        cv: int | Splitter | Iterable[tuple[Rows, Rows]] = 5,
        sample_size: int = 10_000,
        store: str | Path | EmbeddingStore | None = "auto",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: int = 0,
    ) -> None:
        self.encoders = encoders
        self.lexical = lexical
        self.columns = columns
        self.selection = selection
        self.max_blocks = max_blocks
        self.budget = budget
        self.fusion = fusion
        self.head = head
        self.class_weight = class_weight
        self.fragments = fragments
        self.calibration = calibration
        self.target_accuracy = target_accuracy
        self.coverage = coverage
        self.cv = cv
        self.sample_size = sample_size
        self.store = store
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Column,
        y: Column,
        sample_weight: npt.ArrayLike | None = None,
        groups: Column | None = None,
    ) -> Self:
        """Probe, select, fuse and train.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts: a list, tuple, Series, numpy or Arrow array.
        y : array-like of shape (n,), or of shape (n, n_labels)
            Labels of any hashable kind. Where texts have any number of labels: lists, sets or
            frozensets of them, or an indicator matrix of 0 and 1 (an array, a sparse matrix or a
            DataFrame, whose columns are the labels).
        sample_weight : array-like of float of shape (n,), optional
            Weight of each row in scores of blocks, heads and their penalties. In calibration and
            in what is measured each row counts once, even with a weight of 0.
        groups : array-like of shape (n,), optional
            Rows of one group are held out together, in folds and in leave-one-out. So are texts
            that are equal but for case and white space.

        Returns
        -------
        LayerFusionClassifier
            Itself.

        Raises
        ------
        DataError
            For texts that are not strings, missing labels, or fewer than two classes with two rows.
        ConfigError, NotFoundError, UnsupportedModelError
            For parameters and encoders that cannot be used.
        """
        clock = Stopwatch()
        check_parameters(self)
        reporter = self._reporter
        seed = seed_of(self.random_state)
        texts, table = take_columns(X, self.columns) if self.columns else (X, None)
        data = check_training(
            texts, y, sample_weight, groups, self.class_weight, self.fragments, reporter
        )
        check_supported(self, data.targets.space)
        warn_labels(data.targets.space.classes.tolist(), reporter)
        column_encoder, features = None, None
        if table is not None:
            column_encoder = ColumnEncoder.fit(table)
            features = column_encoder.transform(table)[data.rows]
        encoders = open_encoders(self.encoders, reporter)
        warn_languages(data.texts, encoders, reporter)
        sample = data.targets.sample(self.sample_size, seed)
        whole = len(sample) == len(data.texts)
        if not whole:
            reporter.note(f"blocks are scored on {len(sample)} of {len(data.texts)} rows")
        clock("total_s")
        embeddings = extract_all(
            [data.texts[row] for row in sample],
            encoders,
            self._store(),
            lexical=self.lexical,
            reporter=reporter,
        )
        costs = embeddings.costs
        if features is not None:
            embeddings = embeddings.with_table(features[sample])
            costs = {**costs, COLUMNS_BLOCK.encoder: cost_of_columns(features)}
        log_candidates(embeddings, encoders, reporter)
        clock("extract_s")
        measured = data.targets[sample]
        probed = probe_blocks(embeddings, measured, n_jobs=self.n_jobs, reporter=reporter)
        if self.lexical:  # what it takes was unknown before it had learned the classes
            name, axes = LEXICAL_BLOCK.encoder, probed.axes[LEXICAL_BLOCK]
            size = sum(array.size for array in axes.arrays().values())
            costs = {**costs, name: replace(costs[name], dims=axes.rank, parameters=(size,))}
        clock("score_s")
        space = search_space(self, measured, costs, seed)
        training = TrainingSample(embeddings, measured, probed, space, self.n_jobs)
        search = training.search_nested(measured.folds(self.cv, seed), reporter)
        result = search.result
        nested, final = training.out_of_fold(
            [nested_plan, lambda *_: result.plan], search, reporter
        )
        proba = nested.calibrated(self.calibration, measured)
        decisions = nested.decide(measured, proba)
        if isinstance(measured.space, MultilabelSpace):  # two numbers a label: enough to overfit
            proba = nested.calibrated(self.calibration, measured, unseen=True)
        cv_ = measured.evaluate(proba, decisions, seed=seed)
        abstention = fit_abstention(proba, measured, self.target_accuracy, self.coverage)
        clock("search_s")
        rows = embeddings
        if not whole:
            rows = extract_blocks(
                data.texts, encoders, result.plan.blocks, self._store(), reporter=reporter
            )
            if features is not None and COLUMNS_BLOCK in result.plan.blocks:
                rows = rows.with_table(features)
            clock("extract_s")
        calibrator = fit_calibration(self.calibration, final.logits, measured)
        label_space = measured.space.tuned(
            calibrator.predict_proba(final.logits, measured.space), measured
        )
        with reporter.task("training", 1, "model"):
            # Like the fits of the search: one BLAS thread is many times faster on a busy machine.
            (model,) = parallel_map(
                lambda plan: training.fit(plan, rows, data.targets), [result.plan]
            )
            model = replace(model, calibrator=calibrator, space=label_space)
        log_selection(result, space, model.model.head.kind, reporter)
        clock("head_s")

        self.label_space_ = label_space
        self.classes_ = data.targets.space.classes
        self.profile_ = probed.scores
        self.selection_, self.plan_, self.trials_ = result.selection, result.plan, result.trials
        self.model_, self.encoders_, self.cv_, self.costs_ = model, encoders, cv_, costs
        self.abstention_, self.kept_examples_ = abstention, None
        self.column_encoder_ = column_encoder
        self.n_rows_ = len(data.texts)
        self.truncated_share_ = max(embeddings.truncated_share, rows.truncated_share)
        self.read_share_ = min(embeddings.read_share, rows.read_share)
        warn_truncated(self.truncated_share_, self.read_share_, encoders, reporter)
        self.timings_ = clock.seconds()
        self.fit_record_ = FitRecord(
            training=TrainingRows(data.texts, data.targets, sample, rows),
            rows=data.rows,
            sample=training,
            search=search,
            proba=proba,
            decisions=decisions,
            costs=costs,
            seed=seed,
            reporter=reporter,
        )
        return self

    @property
    def verdict_(self) -> Verdict:
        """What the pipeline gains over the baselines, on nested out-of-fold predictions.

        The baselines run when it is first asked for after ``fit``.

        Raises
        ------
        NotAvailableError
            For a classifier that was loaded or unpickled.
        """
        return self._record().verdict

    def predict_proba(self, X: Column) -> npt.NDArray[np.float64]:
        """Predict class probabilities.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.

        Returns
        -------
        ndarray of shape (n, n_classes)
            Probabilities, columns in the order of ``classes_``. Where texts have any number of
            labels each is by itself, and they do not add up to 1.
        """
        logits = self._logits(X)
        return self.model_.calibrator.predict_proba(logits, self.label_space_)

    def decision_function(self, X: Column) -> npt.NDArray[np.float64]:
        """Confidence of each class, before calibration.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.

        Returns
        -------
        ndarray of shape (n,) for two classes, else (n, n_classes)
            Logits. For two classes that of ``classes_[1]`` minus that of ``classes_[0]``.
        """
        logits = self._logits(X).astype(np.float64)
        return self.label_space_.confidence(logits)

    def predict(self, X: Column, *, abstain: object = None) -> npt.NDArray[np.generic]:
        """Predict labels.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.
        abstain : object, optional
            What stands in place of a label where a text should go to a person, such as
            ``"person"``; None predicts a label for each text.

        Returns
        -------
        ndarray of shape (n,)
            Labels, as they were given to ``fit``. Where texts have any number of them an indicator
            matrix (n, n_labels) of 0 and 1, columns in the order of ``classes_``.

        Raises
        ------
        ConfigError
            For ``abstain`` without a ``target_accuracy`` or ``coverage`` at ``fit``, or where it is
            a label.
        """
        check_is_fitted(self)
        if abstain is not None and abstain in self.classes_.tolist():
            raise ConfigError(f"abstain={abstain!r} is a label. Give another word.")
        proba = self.predict_proba(X)
        labels = self.label_space_.decode(self.label_space_.decide(proba))
        if abstain is None:
            return labels
        unsure = self._abstention().abstains(proba)
        return label_array(
            [abstain if own else label for own, label in zip(unsure, labels.tolist(), strict=True)]
        )

    def score(self, X: Column, y: Column, sample_weight: npt.ArrayLike | None = None) -> float:
        """Accuracy; where texts have any number of labels the share of which all are right.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.
        y : array-like of shape (n,)
            Labels, in a form that ``fit`` takes; one that was not learned is never right.
        sample_weight : array-like of shape (n,), optional
            Weight of each text.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        DataError
            When there are not as many labels or weights as texts, or no weight is above 0.
        """
        check_is_fitted(self)
        space = self.label_space_
        decisions = space.decide(self.predict_proba(X))
        right = space.right(decisions, y).astype(np.float64)
        return float(np.average(right, weights=check_weights(sample_weight, len(right))))

    def predict_set(self, X: Column) -> npt.NDArray[np.bool_]:
        """Predict conformal sets of labels: ``coverage`` of the texts have theirs in the set.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.

        Returns
        -------
        ndarray of bool of shape (n, n_classes)
            Columns in the order of ``classes_``. A set may be empty: no label is likely enough.

        Raises
        ------
        ConfigError
            Without a ``coverage`` at ``fit``.
        """
        abstention = self._abstention()
        if abstention.coverage is None:
            raise ConfigError(
                "There are no sets of labels. Fit with coverage=0.95, or another share."
            )
        return abstention.sets(self.predict_proba(X))

    def explain(self, X: Column, n_neighbors: int = 3) -> Explanation:
        """Predict, and name the training texts that are nearest in the fused space.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.
        n_neighbors : int, default=3
            How many training texts for each; of at most ``sample_size`` of them.

        Returns
        -------
        Explanation
            Probabilities and neighbors.

        Raises
        ------
        NotAvailableError
            For a loaded classifier that was saved without ``explain=True``.
        """
        blocks, places = self._read(X)
        features = self.model_.features(blocks)
        near = self.examples_.nearest(
            features, self.label_space_, whole_number("n_neighbors", n_neighbors, at_least=1)
        )
        return Explanation(self.model_.proba_of(features)[places], [near[at] for at in places])

    def features(self, X: Column) -> npt.NDArray[np.float32]:
        """Fused features, which the head reads.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.

        Returns
        -------
        ndarray of shape (n, n_features)
        """
        blocks, places = self._read(X)
        return self.model_.features(blocks)[places]

    @property
    def examples_(self) -> TrainingExamples:
        """Training texts in the fused space, at most ``sample_size``; see `explain`."""
        check_is_fitted(self, "model_")
        if self.kept_examples_ is None:
            if not hasattr(self, "fit_record_"):
                raise NotAvailableError(
                    "The training texts are not in this bundle. Save with explain=True (layerfuse "
                    "fit --explain), which keeps them there."
                )
            self.kept_examples_ = self.fit_record_.examples(self.model_)
        return self.kept_examples_

    def extract(self, X: Column) -> BlockView:
        """All candidate blocks of some texts, through the embedding cache.

        Needs no ``fit``, and leaves the classifier as it is.

        Parameters
        ----------
        X : array-like of str of shape (n,)
            Texts.

        Returns
        -------
        BlockView
            A mapping from `BlockRef` to float32 array of shape (n, dim); of words, where they are
            a candidate, to a sparse matrix of counts.
        """
        encoders = getattr(self, "encoders_", None) or open_encoders(self.encoders, self._reporter)
        texts, table = self._split(X)
        view = extract_all(
            check_texts(texts),
            encoders,
            self._store(),
            lexical=self.lexical,
            reporter=self._reporter,
        )
        if table is None:
            return view
        encoder = getattr(self, "column_encoder_", None) or ColumnEncoder.fit(table)
        return view.with_table(encoder.transform(table))

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        labels: Mapping[Any, str | int | float | bool] | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        label_separator: str | None = None,
        strip_html: bool = False,
        explain: bool = False,
    ) -> None:
        """Write the classifier as a bundle folder (tensors, JSON, model card); see `load`.

        Parameters
        ----------
        path : str or Path
            The folder, or a URL of fsspec such as ``"s3://bucket/tickets"``.
        overwrite : bool, default=False
            Replace a bundle that is there.
        labels : mapping, optional
            Names to save labels by. A bundle holds strings, finite numbers and booleans.
        text_column, label_column : str, optional
            Columns of the training table, for which ``layerfuse predict`` and ``evaluate`` look.
        label_separator : str, optional
            What stands between the labels of its cells.
        strip_html : bool, default=False
            Whether they strip HTML.
        explain : bool, default=False
            Keep training texts (at most ``sample_size``) and their fused features, two bytes a
            number, so that a loaded classifier can `explain`.

        Raises
        ------
        ConfigError
            For labels of other kinds, or two that would be saved as one.
        StorageError
            When the folder exists or cannot be written.
        """
        check_is_fitted(self, "model_")
        names = dict(labels or {})
        space = replace(self.label_space_, classes=rename_labels(self.classes_, names))
        used = {block.encoder for block in self.model_.blocks}
        encoders = [EncoderSpec.of(encoder) for encoder in self.encoders_ if encoder.name in used]
        facts = Facts(
            cv=getattr(self, "cv_", None),
            text_column=text_column,
            label_column=label_column,
            label_separator=label_separator,
            strip_html=strip_html,
            columns=self.column_encoder_,
            settings=settings_of(self, names),
        )
        bundle = Bundle(
            self.model_,
            space,
            tuple(encoders),
            facts,
            self.abstention_,
            self.examples_ if explain else None,
        )
        with new_folder(path, overwrite=overwrite) as folder:
            save_bundle(bundle, folder, overwrite=overwrite)

    def __getstate__(self) -> dict[str, object]:
        state: dict[str, object] = dict(super().__getstate__())
        state.pop("fit_record_", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return "model_" in self.__dict__

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        return tags

    def _logits(self, X: Column) -> npt.NDArray[np.float32]:
        blocks, places = self._read(X)
        return self.model_.logits(blocks)[places]

    def _read(self, X: Column) -> tuple[BlockView, list[int]]:
        """Blocks of the distinct texts, and each text's row in them."""
        check_is_fitted(self, "model_")
        column, table = self._split(X)
        texts = check_texts(column)
        blocks, encoder = self.model_.blocks, self.column_encoder_
        if table is None or encoder is None or COLUMNS_BLOCK not in blocks:
            features, keys = None, [(text, b"") for text in texts]
        else:
            features = encoder.transform(table)
            keys = [(text, own.tobytes()) for text, own in zip(texts, features, strict=True)]
        # In an order of their own: a matrix product may round a row by its place.
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        place = {key: row for row, key in enumerate(sorted(first))}
        view = extract_blocks(
            [text for text, _ in place], self.encoders_, blocks, None, reporter=self._reporter
        )
        if features is not None:
            view = view.with_table(features[[first[key] for key in place]])
        return view, [place[key] for key in keys]

    def _split(self, X: Column) -> tuple[Column, TableColumns | None]:
        """The texts, and the columns that are read beside them.

        A fitted pipeline that does not read them takes texts alone, too.
        """
        model = getattr(self, "model_", None)
        unread = model is not None and COLUMNS_BLOCK not in model.blocks and not is_table(X)
        return (X, None) if unread or not self.columns else take_columns(X, self.columns)

    def _record(self) -> FitRecord:
        if not hasattr(self, "fit_record_"):
            check_is_fitted(self, "model_")
            raise NotAvailableError(
                "The training rows are not available on a loaded or unpickled classifier. Call "
                "fit, or read report.json in the run folder of layerfuse fit."
            )
        return self.fit_record_

    def _abstention(self) -> Abstention:
        check_is_fitted(self, "model_")
        if self.abstention_ is None:
            raise ConfigError(
                "This classifier does not abstain. Fit with target_accuracy=0.98 or coverage=0.95, "
                "or other shares."
            )
        return self.abstention_

    @property
    def _reporter(self) -> Reporter:
        return current_reporter(self.verbose)

    def _store(self) -> EmbeddingStore | None:
        if isinstance(self.store, EmbeddingStore) or self.store is None:
            return self.store
        return EmbeddingStore() if self.store == "auto" else EmbeddingStore(self.store)
