"""Pipelines for other tools: ``export``, and ``push`` to the Hugging Face Hub."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from layerfuse.blocks import BlockRef
from layerfuse.bundle import Bundle, save_bundle
from layerfuse.classifier.persistence import open_bundle, read_bundle
from layerfuse.cli_options import ExportConfig
from layerfuse.commands.fit import read_data
from layerfuse.commands.output import check_new_folder
from layerfuse.commands.predict import read_rows
from layerfuse.data import Split
from layerfuse.errors import (
    ConfigError,
    DataError,
    NotFoundError,
    StorageError,
    check_choice,
)
from layerfuse.export import FORMATS, write_export
from layerfuse.export.card import make_card
from layerfuse.export.protocol import Exporter, Floats, Source, projections
from layerfuse.files import atomic_folder
from layerfuse.progress import Reporter, reporting_to
from layerfuse.report.results import ExportResult, Int8Result, PushResult
from layerfuse.report.run_report import RunReport, read_run_report
from layerfuse.targets import Targets

_TRAINING_ROWS = 1000  # to check on where there are no test rows


def export(config: ExportConfig, reporter: Reporter) -> ExportResult:
    """Write a saved classifier in another format, checked against its predictions.

    Raises
    ------
    ConfigError
        For something that the format cannot hold; the message names the best block that it can.
    LayerfuseError
        For a run, rows or a folder that cannot be used, or an export that differs.
    """
    check_choice(config.format, FORMATS, "format")
    check_new_folder(config.out)
    exporter, bundle = FORMATS[config.format], read_bundle(config.run)
    report, places = _report(config.run), config.encoders
    rows, name = _rows(config, bundle, report, reporter)
    classifier = open_bundle(bundle, places)  # refuses other files than it was fitted with
    alone = None if config.block is None else BlockRef.parse(config.block)
    if alone is not None:
        check_choice(alone.encoder, [spec.name for spec in bundle.encoders], "encoder")
    targets = None
    if alone is None and rows.labels is not None:
        targets = bundle.space.encode(rows.labels)  # before the work: whether all are known
    encoders = tuple(
        spec.model_copy(update={"dtype": "float32"}).open(places.get(spec.name), device="cpu")
        for spec in bundle.encoders
        if alone is None or spec.name == alone.encoder
    )
    if alone is None:
        projections(bundle.model)
    source = Source(bundle.model, encoders, alone)
    try:
        exporter.check(source)
    except ConfigError as error:
        raise ConfigError(f"{error}{_advice(exporter, source, report)}") from error
    written = write_export(
        source, exporter, config.out, rows.texts, int8=config.int8, reporter=reporter
    )
    fitted: Floats | None = None
    if alone is None:
        with reporting_to(reporter):
            fitted = classifier.predict_proba(rows.texts)
    return ExportResult(
        run=str(config.run),
        out=str(config.out),
        format=config.format,
        blocks=source.blocks,
        n_bytes=written.n_bytes,
        rows=name,
        n_rows=len(rows),
        difference=written.difference,
        dtype=", ".join(dict.fromkeys(spec.dtype for spec in bundle.encoders)),
        dtype_difference=None if fitted is None else float(np.abs(written.found - fitted).max()),
        labels_changed=None if fitted is None else _changed(bundle, written.found, fitted),
        accuracy=_accuracy(targets, written.found),
        int8=None if written.int8 is None else _int8(bundle, targets, written.found, written.int8),
    )


def _report(run: str | Path) -> RunReport | None:
    """The run's report, or None for a bundle alone."""
    try:
        return read_run_report(run)
    except NotFoundError:
        return None


def _rows(
    config: ExportConfig, bundle: Bundle, report: RunReport | None, reporter: Reporter
) -> tuple[Split, str]:
    """Rows to check on, with labels where there are some, and what they are called."""
    if (data := config.data) is not None:
        facts, text = bundle.facts, config.text_column
        try:
            found = read_rows(data, facts, text, config.label_column, reporter)
        except DataError:
            if config.label_column is not None:
                raise
            found = read_rows(data, facts, text, None, reporter, labeled=False)
        return found.splits[found.test_name or "train"], data
    if report is None:
        raise NotFoundError(
            "There is no report.json that names the run's data. Give texts to check on with --data."
        )
    try:
        dataset = read_data(report.settings, reporter)
    except (DataError, NotFoundError) as error:
        raise NotFoundError(
            f"The run's data cannot be read: {error} Give texts to check on with --data."
        ) from error
    if dataset.test is not None:
        return dataset.test, f"{dataset.name}, {dataset.test_name}"
    sample = dataset.train.sample(_TRAINING_ROWS, report.settings.seed, 0)
    return dataset.train.take(sample), f"{dataset.name}, train"


def _advice(exporter: Exporter, source: Source, report: RunReport | None) -> str:
    """The best block that the format can hold, and what is known of its accuracy."""
    if source.block is not None:
        return ""
    names = {encoder.name for encoder in source.encoders}
    for score in report.profile.ranking if report is not None else ():
        if score.block.encoder not in names:
            continue
        (encoder,) = (each for each in source.encoders if each.name == score.block.encoder)
        try:
            exporter.check(replace(source, encoders=(encoder,), block=score.block))
        except ConfigError:
            continue
        assert report is not None
        return (
            f" The best single block is {score.block}: accuracy {score.accuracy:.1%} on training "
            f"rows with a linear probe, where the pipeline has {report.cv.headline.value:.1%}. "
            f"Export it alone with --block {score.block}, or the pipeline with --format onnx."
        )
    return " Export the pipeline with --format onnx, or one block of it with --block."


def _changed(bundle: Bundle, found: Floats, reference: Floats) -> int:
    decide = bundle.space.decide
    return int((~bundle.space.targets(decide(reference)).correct(decide(found))).sum())


def _accuracy(targets: Targets | None, proba: Floats) -> float | None:
    if targets is None:
        return None
    return float(targets.correct(targets.space.decide(proba)).mean())


def _int8(bundle: Bundle, targets: Targets | None, found: Floats, small: Floats) -> Int8Result:
    before, after = _accuracy(targets, found), _accuracy(targets, small)
    return Int8Result(
        accuracy=after,
        accuracy_change=None if before is None or after is None else after - before,
        labels_changed=_changed(bundle, small, found),
        difference=float(np.abs(small - found).max()),
    )


def push(
    run: str | Path, repository: str, private: bool, dry_run: Path | None, reporter: Reporter
) -> PushResult:
    """Upload a run's bundle with a model card to the Hub, or write both to the folder ``dry_run``.

    Neither texts of the data nor paths of this machine are in it.

    Raises
    ------
    ConfigError
        For a repository that is not ``owner/name``.
    StorageError
        When the Hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{repository!r} is not a repository of the Hub. Give owner/name.")
    bundle = read_bundle(run)
    if bundle.examples is not None:
        reporter.note(
            "the training texts, which fit --explain kept, are left out: explain does not work on "
            "the pushed model"
        )
    bundle = _portable(bundle)
    card = make_card(repository, bundle, _report(run))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle" if dry_run is None else dry_run
        with atomic_folder(folder) as written:
            save_bundle(bundle, written, overwrite=True)
            (written / "README.md").write_text(card, encoding="utf-8")
        files = sorted(file for file in folder.iterdir() if file.is_file())
        n_bytes = sum(file.stat().st_size for file in files)
        url = None if dry_run is not None else _upload(folder, repository, private, reporter)
        return PushResult(
            repository=repository,
            url=url,
            folder=None if dry_run is None else str(dry_run),
            files=tuple(file.name for file in files),
            n_bytes=n_bytes,
        )


def _portable(bundle: Bundle) -> Bundle:
    """Without training texts, parameters of the fit and folders of this machine."""
    specs = tuple(
        spec.model_copy(update={"source": spec.name}) if Path(spec.source).is_absolute() else spec
        for spec in bundle.encoders
    )
    facts = bundle.facts.model_copy(update={"settings": None})
    return replace(bundle, encoders=specs, facts=facts, examples=None)


def _upload(folder: Path, repository: str, private: bool, reporter: Reporter) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with reporter.task("uploading", 1, "folder"):
            url = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="layerfuse push"
            )
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The Hub did not take {repository}: {str(error).strip().splitlines()[0]}\nCheck the "
            "name and the connection, and log in with: hf auth login"
        ) from error
    return str(url)
