"""Measuring and training: ``fit`` and ``profile``."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse._version import __version__
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.commands.diagnosing import diagnose
from layerfuse.commands.paths import check_new_folder, open_store
from layerfuse.commands.predict import encode_labels
from layerfuse.commands.report import try_report
from layerfuse.config import FitConfig
from layerfuse.data import TextDataset, check_trainable, load_dataset
from layerfuse.errors import StorageError
from layerfuse.evaluation import Rows, tradeoffs
from layerfuse.files import atomic_folder, write_json
from layerfuse.metrics import evaluate_predictions
from layerfuse.probing import check_scorer, score_blocks
from layerfuse.progress import Reporter
from layerfuse.report.details import Predicted, write_details
from layerfuse.resources import Budget, pipeline_cost

__all__ = ["demo", "fit", "make_classifier", "profile", "read_data"]

Labels = npt.NDArray[np.intp]


def fit(config: FitConfig, reporter: Reporter) -> dict[str, Any]:
    """Fit a pipeline on a dataset, measure it, save the run folder; return the report."""
    started = time.perf_counter()
    run = _run_folder(config)
    dataset = read_data(config, reporter)
    texts, labels = dataset.train.texts, dataset.train.labels or ()
    test = dataset.test
    check_trainable(labels)
    if test is not None:  # before the work: labels that training does not have
        encode_labels(np.unique(np.asarray(labels)), test.labels or ())
    classifier = make_classifier(config, reporter)
    classifier.fit(texts, labels)
    result: dict[str, Any] = {
        "layerfuse_version": __version__,
        "data": {
            "name": dataset.name,
            "train_rows": len(texts),
            "learned_rows": classifier.n_rows_,
            "test_split": dataset.test_name,
        },
        "encoders": [
            {
                "name": encoder.name,
                "layers": encoder.n_layers,
                "dim": encoder.dim,
                "device": encoder.device,
                "dtype": encoder.dtype,
                "template": encoder.template,
                "chat_question": encoder.chat_question,
                "max_length": encoder.max_length,
            }
            for encoder in classifier.encoders_
        ],
        "selection": {
            "method": classifier.selection_.method,
            "blocks": [asdict(block) for block in classifier.selection_.blocks],
            "gains": list(classifier.selection_.gains_),
            "fusion": classifier.plan_.fusion,
            "head": classifier.plan_.head,
            "trials": [trial.to_dict() for trial in classifier.trials_],
        },
        "profile": _profile_rows(classifier.profile_),
        "cv": classifier.cv_.to_dict(),
        "test": None,
        "truncated_share": classifier.truncated_share_,
    }
    measuring = time.perf_counter()
    n_classes = len(classifier.classes_)
    truth, nested = classifier.out_of_fold()
    predicted = {"cv": Predicted.of(truth, nested, classifier.measured_rows())}
    embeddings, test_rows = None, None
    if test is not None:
        truth = encode_labels(classifier.classes_, test.labels or ())
        embeddings = classifier.extract(test.texts)
        proba = classifier.model_.predict_proba(embeddings)
        result["test"] = evaluate_predictions(truth, proba, seed=config.seed).to_dict()
        predicted["test"] = Predicted.of(truth, proba)
        test_rows = Rows(truth, proba.argmax(axis=1), n_classes, config.seed)
    reading_test = time.perf_counter()
    baselines = classifier.run_baselines(None if test is None else test.texts, embeddings)
    verdict = classifier.judge(baselines, test_rows)
    comparisons = verdict.comparisons
    cost = pipeline_cost(classifier.plan_.blocks, classifier.costs_)
    result["cost"] = cost.to_dict()
    result["baselines"] = [comparison.to_dict() for comparison in comparisons]
    result["verdict"] = verdict.to_dict()
    result["pareto"] = tradeoffs(comparisons, classifier.plan_, cost, classifier.cv_.accuracy)
    ended = time.perf_counter()
    result["timings"] = {
        **classifier.timings_,
        "extract_s": classifier.timings_["extract_s"] + reading_test - measuring,
        "baselines_s": ended - reading_test,
        "total_s": ended - started,
    }
    result["run"] = str(run)
    result["settings"] = asdict(config)
    details = diagnose(classifier, dataset, predicted, reporter)
    with atomic_folder(run) as folder:
        classifier.save(folder / "bundle")
        write_json(folder / "report.json", result)
        write_details(folder, details, predicted)
    if config.report:
        try_report(run, reporter)
    return result


def profile(config: FitConfig, scorer: str, reporter: Reporter) -> dict[str, Any]:
    """Score every block on the training rows; nothing is trained or saved."""
    check_scorer(scorer)
    dataset = read_data(config, reporter)
    check_trainable(dataset.train.labels)
    classifier = make_classifier(config, reporter).open()
    embeddings = classifier.extract(dataset.train.texts)
    scores = score_blocks(embeddings, np.asarray(dataset.train.labels), scorer, reporter=reporter)
    return {
        "data": {"name": dataset.name, "train_rows": len(dataset.train)},
        "scorer": scorer,
        "profile": _profile_rows(scores),
        "truncated_share": embeddings.truncated_share,
    }


def make_classifier(config: FitConfig, reporter: Reporter) -> LayerFusionClassifier:
    """The classifier of the settings, not fitted; its store is made when it is written to."""
    return LayerFusionClassifier(
        encoders=config.encoders,
        layers=config.layers,  # type: ignore[arg-type]  # checked where layers are resolved
        pooling=config.pooling,
        selection=config.selection,
        max_blocks=config.max_blocks,
        budget=Budget(
            dims=config.max_dims,
            ms_per_text=config.max_ms,
            parameters=config.max_parameters,
            memory_mb=config.max_memory_mb,
        ),
        fusion=config.fusion,
        head=config.head,
        class_weight=config.class_weight,
        calibration=config.calibration,
        templates=config.prompts,
        chat_questions=config.chat_prompts,
        max_length=config.max_length,
        device=config.device,
        dtype=config.dtype,
        cv=config.cv,
        store=open_store(config.store, new=True),
        random_state=config.seed,
        reporter=reporter,
    )


def read_data(config: FitConfig, reporter: Reporter) -> TextDataset:
    """The dataset of the settings, or the stratified part of it that they ask for."""
    dataset = load_dataset(
        config.data,
        text_column=config.text_column,
        label_column=config.label_column,
        test=config.test,
        reporter=reporter,
    )
    if config.sample is not None:
        dataset = dataset.subsample(config.sample, config.seed)
    sizes = ", ".join(f"{len(split)} {name} rows" for name, split in dataset.splits.items())
    reporter.note(f"{dataset.name}: {sizes}")
    if dataset.test is not None:
        seen = set(dataset.splits["train"].texts) if "train" in dataset.splits else set()
        if leaks := sum(text in seen for text in dataset.test.texts):
            reporter.note(
                f"{leaks} of {len(dataset.test)} test texts are training texts too, which flatters "
                "the figures; see layerfuse audit"
            )
    return dataset


def _run_folder(config: FitConfig) -> Path:
    """Where the run is saved; refused before any work when that cannot be."""
    if config.out is not None:
        run = Path(config.out)
    else:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        run = Path("runs") / f"{Path(config.data).name.partition('.')[0] or 'run'}-{stamp}"
    check_new_folder(run)
    return run


def _profile_rows(scores: Any) -> list[dict[str, Any]]:
    return [score.to_row() for score in scores]


_DATA = "r8"
_ENCODERS = ("minilm", "smollm2-135m")
_MAX_LENGTH = 128  # tokens; news stories say early what they are about


def demo(out: Path, sample: int, reporter: Reporter, *, report: bool = True) -> dict[str, Any]:
    """Fit two small encoders on a stratified part of R8; replaces the folder of an older demo."""
    if out.exists():
        if not _is_demo(out):
            raise StorageError(f"{out} exists and is not a demo's folder. Choose another --out.")
        shutil.rmtree(out)
    config = FitConfig(
        data=_DATA,
        encoders=_ENCODERS,
        sample=sample,
        max_length=_MAX_LENGTH,
        out=str(out),
        report=report,
    )
    return fit(config, reporter)


def _is_demo(folder: Path) -> bool:
    """Whether its report is a demo's, and not that of a run that somebody wants to keep."""
    try:
        settings = json.loads((folder / "report.json").read_text(encoding="utf-8"))["settings"]
        return bool(settings["data"] == _DATA and tuple(settings["encoders"]) == _ENCODERS)
    except (OSError, ValueError, KeyError, TypeError):
        return False
