"""Using a saved classifier: ``predict`` and ``evaluate``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from layerfuse.classifier import LayerFusionClassifier, load
from layerfuse.commands.paths import check_new_file
from layerfuse.data import TEXT_NAMES, ColumnError, TextDataset, load_dataset
from layerfuse.errors import DataError, NotFoundError, StorageError
from layerfuse.files import atomic_write
from layerfuse.progress import Reporter
from layerfuse.report.results import EvaluateResult, Prediction, PredictResult
from layerfuse.report.run_report import RunReport, read_model
from layerfuse.targets import LabelSpace

__all__ = ["evaluate", "predict", "write_predictions"]


@dataclass(frozen=True)
class _Columns:
    """Names of columns; None where none is given."""

    text: str | None
    label: str | None = None


def predict(
    bundle: Path,
    data: str,
    text_column: str | None,
    places: Mapping[str, str],
    device: str,
    out: Path | None,
    reporter: Reporter,
) -> PredictResult:
    """Labels and probabilities for every text of a file; ``out`` is where they will be written.

    ``places`` says where encoders lie now, by their names.
    """
    if out is not None:
        check_new_file(out)
        if Path(data).exists() and out.resolve() == Path(data).resolve():
            raise StorageError(f"{out} holds the texts. Choose another file with --out.")
    classifier = _load(bundle, places, device, reporter)
    known = _columns_of_fit(bundle)
    dataset = _read(data, _Columns(text_column), known, reporter, labeled=False)
    if text_column is None and dataset.text_column != known.text:
        _note_column(dataset, classifier, reporter)
    texts = [text for split in dataset.splits.values() for text in split.texts]
    proba = classifier.predict_proba(texts)
    space = LabelSpace(classifier.classes_)
    best = space.decide(proba)
    return PredictResult(
        classes=tuple(space.classes.tolist()),
        predictions=tuple(
            Prediction(text=text, label=label, probability=float(row[index]))
            for text, label, index, row in zip(
                texts, space.decode(best).tolist(), best, proba, strict=True
            )
        ),
    )


def _note_column(
    dataset: TextDataset, classifier: LayerFusionClassifier, reporter: Reporter
) -> None:
    """Note which column was read where its name does not tell; refuse a first line that is data."""
    classes = {str(label) for label in classifier.classes_.tolist()}
    if found := sorted(classes.intersection(dataset.columns)):
        raise DataError(
            f"{dataset.name} seems to have no header: a column is named {found[0]!r}, which is a "
            "label.\nAdd a first line that names the columns, such as 'text,label', or choose one "
            "with --text-column."
        )
    if dataset.text_column not in (None, *TEXT_NAMES):
        reporter.note(
            f"{dataset.name}: texts are read from column {dataset.text_column!r} (--text-column)"
        )


def _columns_of_fit(bundle: Path) -> _Columns:
    """The columns that ``fit`` was given; none where there is no run folder.

    Raises
    ------
    FormatError
        When the run folder's report is damaged.
    """
    run = bundle.parent if bundle.name == "bundle" else bundle
    report = read_model(run / "report.json", RunReport)
    if report is None:
        return _Columns(None)
    return _Columns(report.settings.text_column, report.settings.label_column)


def _read(
    data: str, given: _Columns, known: _Columns, reporter: Reporter, *, labeled: bool = True
) -> TextDataset:
    """Read a file by the given columns; others are those of ``fit``, each where the file has it."""
    text, label = given.text or known.text, given.label or (known.label if labeled else None)
    while True:
        try:
            return load_dataset(
                data, text_column=text, label_column=label, labeled=labeled, reporter=reporter
            )
        except ColumnError as error:
            if text is not None and error.column == text and given.text is None:
                text = None
            elif label is not None and error.column == label and given.label is None:
                label = None
            else:
                raise


def _load(
    bundle: Path, places: Mapping[str, str], device: str, reporter: Reporter
) -> LayerFusionClassifier:
    if not bundle.is_dir():
        what = "is not a folder" if bundle.exists() else "does not exist"
        raise NotFoundError(f"{bundle} {what}. Give a run folder that `layerfuse fit` has written.")
    classifier = load(bundle, encoders=places, device=device)
    classifier.set_params(reporter=reporter)
    return classifier


def write_predictions(result: PredictResult, out: Path | None) -> str:
    """Predictions as CSV text; written to ``out`` atomically when it is given."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["text", "label", "probability"])
    for row in result.predictions:
        writer.writerow([row.text, row.label, f"{row.probability:.4f}"])
    if out is not None:
        with atomic_write(out) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    return text.getvalue()


def evaluate(
    bundle: Path,
    data: str,
    split: str | None,
    text_column: str | None,
    label_column: str | None,
    places: Mapping[str, str],
    device: str,
    reporter: Reporter,
) -> EvaluateResult:
    """Accuracy, macro-F1, log loss and calibration error of a bundle on labelled rows."""
    classifier = _load(bundle, places, device, reporter)
    given = _Columns(text_column, label_column)
    dataset = _read(data, given, _columns_of_fit(bundle), reporter)
    name = split or dataset.test_name or "train"
    if name not in dataset.splits:
        raise DataError(f"There is no split {name!r}; {data} has {', '.join(dataset.splits)}.")
    rows = dataset.splits[name]
    targets = LabelSpace(classifier.classes_).encode(rows.labels or ())
    metrics = targets.evaluate(classifier.predict_proba(rows.texts))
    # a file is not a split, though it is read as one
    return EvaluateResult(data=data, split=None if Path(data).is_file() else name, metrics=metrics)
