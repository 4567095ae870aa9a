"""Using a saved classifier: ``predict`` and ``evaluate``."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from layerfuse.bundle import Facts, load_bundle
from layerfuse.classifier import LayerFusionClassifier, load
from layerfuse.classifier.persistence import bundle_folder
from layerfuse.commands.paths import check_new_file
from layerfuse.data import (
    TABLE_SUFFIXES,
    TEXT_NAMES,
    ColumnError,
    ReadOptions,
    TextDataset,
    load_dataset,
)
from layerfuse.errors import DataError, NotFoundError, StorageError
from layerfuse.files import atomic_write
from layerfuse.progress import Reporter, reporting_to
from layerfuse.report.results import EvaluateResult, Prediction, PredictResult
from layerfuse.targets import LabelSpace


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
        check_new_file(out, TABLE_SUFFIXES)
        if Path(data).exists() and out.resolve() == Path(data).resolve():
            raise StorageError(f"{out} holds the texts. Choose another file with --out.")
    classifier, facts = _load(bundle, places, device)
    dataset = _read(data, facts, text_column, None, reporter, labeled=False)
    if text_column is None and facts.text_column is None:
        _note_column(dataset, classifier, reporter)
    texts = [text for split in dataset.splits.values() for text in split.texts]
    with reporting_to(reporter):
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


def _read(
    data: str,
    facts: Facts,
    text: str | None,
    label: str | None,
    reporter: Reporter,
    *,
    labeled: bool = True,
) -> TextDataset:
    """Read the columns that are named, else those that ``fit`` read, else plain ones."""
    try:
        return load_dataset(
            data,
            text_column=text or facts.text_column,
            label_column=label or (facts.label_column if labeled else None),
            labeled=labeled,
            options=ReadOptions(strip_html=facts.strip_html),
            reporter=reporter,
        )
    except ColumnError as error:
        if error.column in (text, label):
            raise
        raise DataError(
            f"{error}\nThe classifier was trained on column {error.column!r}. If the file has no "
            "header, add a first line that names the columns, such as 'text,label'."
        ) from error


def _load(
    bundle: Path, places: Mapping[str, str], device: str
) -> tuple[LayerFusionClassifier, Facts]:
    if not bundle.is_dir():
        what = "is not a folder" if bundle.exists() else "does not exist"
        raise NotFoundError(f"{bundle} {what}. Give a run folder that `layerfuse fit` has written.")
    classifier = load(bundle, encoders=places, device=device)
    return classifier, load_bundle(bundle_folder(bundle)).facts


def write_predictions(result: PredictResult, out: Path | None) -> str:
    """Predictions as CSV text; written to ``out`` atomically, in its format, when it is given."""
    if out is None:
        return _delimited(result.predictions, ",")
    kind = next(suffix for suffix in TABLE_SUFFIXES if out.name.lower().endswith(suffix))
    rows = [row.model_dump() for row in result.predictions]
    with atomic_write(out) as temporary:
        if kind == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
            return ""
        if "json" in kind:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            text = _delimited(result.predictions, "\t" if ".tsv" in kind else ",")
        data = text.encode()
        temporary.write_bytes(gzip.compress(data, mtime=0) if kind.endswith(".gz") else data)
    return ""


def _delimited(rows: Sequence[Prediction], delimiter: str) -> str:
    """Records of which every reader of CSV makes the same rows."""
    text = io.StringIO()
    plain, quoted = (
        csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writerow(Prediction.model_fields)
    for row in rows:
        # Python before 3.11.9 and 3.12.3 leaves a lone carriage return, a line's end to readers.
        alone = "\r" in f"{row.text}{row.label}"
        (quoted if alone else plain).writerow([row.text, row.label, f"{row.probability:.4f}"])
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
    classifier, facts = _load(bundle, places, device)
    dataset = _read(data, facts, text_column, label_column, reporter)
    name = split or dataset.test_name or "train"
    if name not in dataset.splits:
        raise DataError(f"There is no split {name!r}; {data} has {', '.join(dataset.splits)}.")
    rows = dataset.splits[name]
    targets = LabelSpace(classifier.classes_).encode(rows.labels or ())
    with reporting_to(reporter):
        proba = classifier.predict_proba(rows.texts)
    metrics = targets.evaluate(proba)
    # a file is not a split, though it is read as one
    return EvaluateResult(data=data, split=None if Path(data).is_file() else name, metrics=metrics)
