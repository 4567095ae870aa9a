"""Measuring and training: ``fit`` and ``profile``."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse import __version__
from layerfuse.blocks import BlockRef
from layerfuse.catalog import load_dataset
from layerfuse.commands.places import check_new_folder, open_store
from layerfuse.commands.using import encode_labels
from layerfuse.config import FitConfig
from layerfuse.corpus import TextDataset, check_trainable
from layerfuse.errors import ConfigError
from layerfuse.estimator import LayerFusionClassifier
from layerfuse.events import Reporter
from layerfuse.files import atomic_folder, write_json
from layerfuse.metrics import evaluate_predictions, paired_difference
from layerfuse.scoring import check_scorer, score_blocks

__all__ = ["fit", "profile"]

Labels = npt.NDArray[np.intp]


def fit(config: FitConfig, reporter: Reporter) -> dict[str, Any]:
    """Fit a pipeline on a dataset, measure it, save the run folder; return the report."""
    started = time.perf_counter()
    _check_numbers(config)
    run = _run_folder(config)
    dataset = _read(config, reporter)
    texts, labels = dataset.train.texts, dataset.train.labels or ()
    test = dataset.test
    check_trainable(labels)
    if test is not None:  # before the work: labels that training does not have
        encode_labels(np.unique(np.asarray(labels)), test.labels or ())
    classifier = _classifier(config, reporter)
    classifier.fit(texts, labels)
    result: dict[str, Any] = {
        "layerfuse_version": __version__,
        "data": {"name": dataset.name, "train_rows": len(texts), "test_split": dataset.test_name},
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
        },
        "profile": _profile_rows(classifier.profile_),
        "cv": classifier.cv_.to_dict(),
        "test": None,
        "truncated_share": classifier.truncated_share_,
    }
    measuring = time.perf_counter()
    embeddings = None
    if test is None:
        truth, proba = classifier.out_of_fold()
    else:
        truth = encode_labels(classifier.classes_, test.labels or ())
        embeddings = classifier.extract(test.texts)
        proba = classifier.model_.predict_proba(embeddings)
        result["test"] = evaluate_predictions(truth, proba, seed=config.seed).to_dict()
    reading_test = time.perf_counter()
    where = "cv" if test is None else "test"
    baselines = classifier.run_baselines(None if test is None else test.texts, embeddings)
    predicted = proba.argmax(axis=1)
    n_classes = len(classifier.classes_)
    result["baselines"] = [
        {
            "name": baseline.name,
            **({"encoder": baseline.encoder} if baseline.encoder else {}),
            "blocks": [str(block) for block in baseline.blocks],
            where: _accuracy(truth, baseline.predicted, n_classes, config.seed),
            "pipeline_minus_baseline": paired_difference(
                predicted == truth, baseline.predicted == truth, seed=config.seed
            ).to_dict(),
        }
        for baseline in baselines
    ]
    result["verdict"] = _verdict(result, where)
    ended = time.perf_counter()
    result["timings"] = {
        **classifier.timings_,
        "extract_s": classifier.timings_["extract_s"] + reading_test - measuring,
        "baselines_s": ended - reading_test,
        "total_s": ended - started,
    }
    result["run"] = str(run)
    result["settings"] = asdict(config)
    with atomic_folder(run) as folder:
        classifier.save(folder / "bundle")
        write_json(folder / "report.json", result)
    return result


def profile(config: FitConfig, scorer: str, reporter: Reporter) -> dict[str, Any]:
    """Score every block on the training rows; nothing is trained or saved."""
    _check_numbers(config)
    check_scorer(scorer)
    dataset = _read(config, reporter)
    check_trainable(dataset.train.labels)
    classifier = _classifier(config, reporter).open()
    embeddings = classifier.extract(dataset.train.texts)
    scores = score_blocks(embeddings, np.asarray(dataset.train.labels), scorer, reporter=reporter)
    return {
        "data": {"name": dataset.name, "train_rows": len(dataset.train)},
        "scorer": scorer,
        "profile": _profile_rows(scores),
        "truncated_share": embeddings.truncated_share,
    }


def _check_numbers(config: FitConfig) -> None:
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"The seed {config.seed} cannot be used; give 0 or more, below 2**32.")
    if config.batch_tokens is not None and config.batch_tokens < 1:
        raise ConfigError(f"batch_tokens={config.batch_tokens} is too few; give at least 1.")


def _classifier(config: FitConfig, reporter: Reporter) -> LayerFusionClassifier:
    return LayerFusionClassifier(
        encoders=config.encoders,
        layers=config.layers,  # type: ignore[arg-type]  # checked where layers are resolved
        pooling=config.pooling,
        selection=config.selection,
        max_blocks=config.max_blocks,
        fusion=config.fusion,
        head=config.head,
        class_weight=config.class_weight,
        calibration=config.calibration,
        templates=config.templates,
        chat_questions=config.chat_questions,
        max_length=config.max_length,
        device=config.device,
        dtype=config.dtype,
        cv=config.cv,
        store=open_store(config.store, new=True),
        batch_tokens=config.batch_tokens,
        random_state=config.seed,
        reporter=reporter,
    )


def _read(config: FitConfig, reporter: Reporter) -> TextDataset:
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


def _accuracy(truth: Labels, predicted: Labels, n_classes: int, seed: int) -> dict[str, Any]:
    """Accuracy and macro-F1 of class indices, with the accuracy's interval."""
    certain = np.eye(n_classes)[predicted]
    measured = evaluate_predictions(truth, certain, seed=seed)
    return {
        "accuracy": measured.accuracy.value,
        "macro_f1": measured.macro_f1.value,
        "ci95": [measured.accuracy.low, measured.accuracy.high],
    }


def _profile_rows(scores: Any) -> list[dict[str, Any]]:
    return [
        {**asdict(score.block), **{k: v for k, v in score.to_dict().items() if k != "block"}}
        for score in scores
    ]


def _verdict(result: dict[str, Any], where: str) -> dict[str, Any]:
    """The pipeline against the last layer that is the most accurate one on training rows."""
    accuracy = {
        f"{row['encoder']}:{row['layer']}:{row['pooling']}": row["accuracy"]
        for row in result["profile"]
    }
    rivals = [entry for entry in result["baselines"] if entry["name"] == "last_layer"]
    rival = max(rivals, key=lambda entry: accuracy[entry["blocks"][0]])
    gain = rival["pipeline_minus_baseline"]
    points, low, high = (100 * gain[key] for key in ("difference", "low", "high"))
    rows = "test rows" if where == "test" else "training rows, out of fold"
    n_layers = {encoder["name"]: encoder["layers"] for encoder in result["encoders"]}
    layer = BlockRef.parse(rival["blocks"][0]).layer
    is_last = layer == n_layers[rival["encoder"]]
    name = "last layer" if is_last else f"layer {layer}, the highest that was read"
    against = f"{rival['encoder']}'s {name} ({100 * rival[where]['accuracy']:.1f} %)"
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    if low > 0:
        sentence = f"fusion adds {points:.1f} points ({interval}) over {against} on {rows}."
    elif high < 0:
        sentence = f"fusion loses {-points:.1f} points ({interval}) against {against} on {rows}."
    else:
        sentence = (
            f"no clear gain over {against} on {rows}: {points:+.1f} points ({interval}); "
            "that layer alone is simpler."
        )
    return {"against": rival["blocks"], "gain": gain, "rows": where, "sentence": sentence}
