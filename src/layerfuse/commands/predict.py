"""Using a saved classifier: ``predict`` and ``evaluate``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.classifier import LayerFusionClassifier, load
from layerfuse.commands.paths import check_new_file
from layerfuse.data import TEXT_NAMES, ColumnError, TextDataset, load_dataset
from layerfuse.errors import DataError, NotFoundError, StorageError
from layerfuse.files import atomic_write
from layerfuse.metrics import evaluate_predictions
from layerfuse.progress import Reporter
from layerfuse.report.reading import read_object

__all__ = ["encode_labels", "evaluate", "predict", "write_predictions"]


def predict(
    bundle: Path,
    data: str,
    text_column: str | None,
    places: Mapping[str, str],
    device: str,
    out: Path | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Labels and probabilities for every text of a file; ``out`` is where they will be written.

    ``places`` says where encoders lie now, by their names.
    """
    if out is not None:
        check_new_file(out)
        if Path(data).exists() and out.resolve() == Path(data).resolve():
            raise StorageError(f"{out} holds the texts. Choose another file with --out.")
    classifier = _load(bundle, places, device, reporter)
    told = _told_to_fit(bundle)
    dataset = _read(data, {"text_column": text_column}, told, reporter, labeled=False)
    if text_column is None and dataset.text_column != told["text_column"]:
        _tell_column(dataset, classifier, reporter)
    texts = [text for split in dataset.splits.values() for text in split.texts]
    proba = classifier.predict_proba(texts)
    best = proba.argmax(axis=1)
    labels = classifier.classes_.tolist()
    return {
        "classes": labels,
        "predictions": [
            {"text": text, "label": labels[index], "probability": float(row[index])}
            for text, index, row in zip(texts, best, proba, strict=True)
        ],
    }


def _tell_column(
    dataset: TextDataset, classifier: LayerFusionClassifier, reporter: Reporter
) -> None:
    """Say which column was taken where its name does not; refuse a first line that is a row."""
    classes = {str(label) for label in classifier.classes_.tolist()}
    if found := sorted(classes.intersection(dataset.columns)):
        raise DataError(
            f"{dataset.name} seems to have no header: a column is named {found[0]!r}, which is a "
            "label.\nAdd a first line that names the columns, such as 'text,label', or choose one "
            "with --text-column."
        )
    if dataset.text_column not in (None, *TEXT_NAMES):
        reporter.note(
            f"{dataset.name}: the column named {dataset.text_column!r} is taken for the text "
            "(--text-column)"
        )


def _told_to_fit(bundle: Path) -> dict[str, str | None]:
    """The columns that ``fit`` was told to take; none where there is no run folder.

    Raises
    ------
    FormatError
        When the run folder's report is damaged.
    """
    run = bundle.parent if bundle.name == "bundle" else bundle
    settings = (read_object(run / "report.json") or {}).get("settings", {})
    return {name: settings.get(name) for name in ("text_column", "label_column")}


def _read(
    data: str,
    given: Mapping[str, str | None],
    told: Mapping[str, str | None],
    reporter: Reporter,
    *,
    labeled: bool = True,
) -> TextDataset:
    """A file by the columns that are given; those that are not are the ones that ``fit`` was told,
    each where the file has it."""
    known = {name: value or told[name] for name, value in given.items()}
    while True:
        try:
            return load_dataset(data, **known, labeled=labeled, reporter=reporter)
        except ColumnError as error:
            lacking = [n for n, value in known.items() if value == error.column and not given[n]]
            if not lacking:
                raise
            known |= dict.fromkeys(lacking)


def _load(
    bundle: Path, places: Mapping[str, str], device: str, reporter: Reporter
) -> LayerFusionClassifier:
    if not bundle.is_dir():
        what = "is not a folder" if bundle.exists() else "does not exist"
        raise NotFoundError(f"{bundle} {what}. Give a run folder that `layerfuse fit` has written.")
    classifier = load(bundle, encoders=places, device=device)
    classifier.set_params(reporter=reporter)
    return classifier


def write_predictions(result: dict[str, Any], out: Path | None) -> str:
    """Predictions as CSV text; written to ``out`` atomically when it is given."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["text", "label", "probability"], lineterminator="\n")
    writer.writeheader()
    for row in result["predictions"]:
        writer.writerow({**row, "probability": f"{row['probability']:.4f}"})
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
) -> dict[str, Any]:
    """Accuracy, macro-F1, log loss and calibration error of a bundle on labelled rows."""
    classifier = _load(bundle, places, device, reporter)
    given = {"text_column": text_column, "label_column": label_column}
    dataset = _read(data, given, _told_to_fit(bundle), reporter)
    name = split or dataset.test_name or "train"
    if name not in dataset.splits:
        raise DataError(f"There is no split {name!r}; {data} has {', '.join(dataset.splits)}.")
    rows = dataset.splits[name]
    truth = encode_labels(classifier.classes_, rows.labels or ())
    proba = classifier.predict_proba(rows.texts)
    # a file is not a split, though it is read as one
    shown = None if Path(data).is_file() else name
    return {"data": data, "split": shown, **evaluate_predictions(truth, proba).to_dict()}


def encode_labels(classes: npt.NDArray[Any], labels: Sequence[Any]) -> npt.NDArray[np.intp]:
    """Labels to class indices.

    Raises
    ------
    DataError
        For a label that training never saw.
    """
    places = {label: place for place, label in enumerate(classes.tolist())}
    # A CSV file knows only strings: its "1" is the 1 that another file, or Python, trained with.
    by_text = {str(label): place for label, place in places.items()}
    if len(by_text) == len(places):
        for label in set(labels) - set(places):
            if str(label) in by_text:
                places[label] = by_text[str(label)]
    if unknown := sorted({str(label) for label in labels if label not in places}):
        raise DataError(
            f"The rows to evaluate hold labels that training never saw: {', '.join(unknown[:5])}. "
            f"Known labels: {', '.join(map(str, classes.tolist()[:10]))}. Add training rows of "
            "these classes or leave them out."
        )
    return np.array([places[label] for label in labels], dtype=np.intp)
