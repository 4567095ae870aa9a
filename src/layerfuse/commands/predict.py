"""Using a saved classifier: ``predict`` and ``evaluate``."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from layerfuse.bundle import Facts, load_bundle
from layerfuse.classifier import LayerFusionClassifier, load
from layerfuse.classifier.persistence import bundle_folder
from layerfuse.commands.parts import Part, PartFiles, PartSource, in_order, run_parts
from layerfuse.commands.paths import check_new_file
from layerfuse.config import StreamConfig
from layerfuse.data import (
    STANDARD_INPUT,
    TABLE_SUFFIXES,
    TEXT_NAMES,
    ColumnError,
    TextDataset,
    TextStream,
    load_dataset,
    test_name,
)
from layerfuse.errors import ConfigError, DataError, NotFoundError, StorageError
from layerfuse.files import fingerprint_folder, is_url
from layerfuse.progress import Reporter, reporting_to
from layerfuse.report.results import EvaluateResult, Label, Prediction, PredictResult
from layerfuse.targets import LabelSpace


@dataclass(frozen=True)
class _Label:
    """Predictions of a part as the bytes of a table; without ``suffix`` lines of JSON."""

    bundle: Path
    places: Mapping[str, str]
    device: str
    suffix: str

    def open(self, reporter: Reporter) -> Callable[[Part], bytes]:
        classifier = load(self.bundle, encoders=self.places, device=self.device)

        def label(part: Part) -> bytes:
            texts = part.rows.texts
            with reporting_to(reporter):
                proba = classifier.predict_proba(texts)
            space = classifier.label_space_
            best = space.decide(proba)
            rows = [
                Prediction(text=text, label=label, probability=float(row[index]))
                for text, label, index, row in zip(
                    texts, space.decode(best).tolist(), best, proba, strict=True
                )
            ]
            return encode(rows, self.suffix, header=part.number == 0)

        return label


def predict(
    bundle: Path,
    data: str,
    text_column: str | None,
    places: Mapping[str, str],
    device: str,
    out: str | None,
    reporter: Reporter,
    *,
    stream: StreamConfig = StreamConfig(),  # noqa: B008  # frozen
    resume: bool = False,
    show: Callable[[bytes], None] | None = None,
) -> PredictResult:
    """Labels and probabilities for every text of a file, part by part.

    They are written to ``out``, or handed to ``show`` as CSV; without both they are in the result.
    ``places`` says where encoders lie now, by their names.
    """
    if out is not None:
        _check_out(out, data)
    if data == STANDARD_INPUT and (resume or stream.engine != "local"):
        raise ConfigError("Standard input can be read only once, here. Give the name of a file.")
    classifier, facts = _load(bundle, places, device)
    source = PartSource(data, stream.part_rows, text_column or facts.text_column)
    opened = _open(source, text_column, None, reporter)
    if text_column is None and facts.text_column is None:
        _note_column(opened, classifier, reporter)
    files = None
    if out is not None:
        source = replace(source, text_column=opened.text_column)
        files = PartFiles(out, _facts_of(bundle, source, device), resume=resume)
        source = replace(source, skip=files.finished)
    # All faults of the rows are found before the work, where they can be read twice.
    every = () if data == STANDARD_INPUT else replace(source, skip=frozenset()).parts()
    sizes = {part.number: len(part.rows) for part in every}
    suffix = ".csv" if show is not None else ".jsonl"
    if out is not None:
        suffix = next(known for known in TABLE_SUFFIXES if out.lower().endswith(known))
    work = _Label(bundle, places, device, suffix)
    kept: list[bytes] = []
    with reporter.task("predicting", sum(sizes.values()), "rows") as advance:
        if source.skip:
            reporter.note(f"{len(source.skip)} of {len(sizes)} parts are finished")
            advance(sum(sizes.get(number, 0) for number in source.skip))
        results = run_parts(work, source, opened, stream, device, advance, reporter)
        for done in results if files is not None else in_order(results):
            sizes[done.number] = done.rows
            if files is not None:
                files.write(done.number, done.result)
            else:
                (show or kept.append)(done.result)
    if files is not None:
        files.join(len(sizes))
    lines = b"".join(() if show else kept).decode().split("\n")[:-1]
    return PredictResult(
        classes=tuple(classifier.classes_.tolist()),
        rows=sum(sizes.values()),
        out=out,
        predictions=tuple(map(Prediction.model_validate_json, lines)),
    )


def _check_out(out: str, data: str) -> None:
    if is_url(out):
        if not out.lower().endswith(TABLE_SUFFIXES):
            raise ConfigError(
                f"{out} has an unsupported extension. Give a name with --out that ends in "
                f"{', '.join(TABLE_SUFFIXES)}."
            )
        return
    check_new_file(Path(out), TABLE_SUFFIXES)
    if Path(data).exists() and Path(out).resolve() == Path(data).resolve():
        raise StorageError(f"{out} holds the texts. Choose another file with --out.")


def _facts_of(bundle: Path, source: PartSource, device: str) -> dict[str, object]:
    """What predictions depend on, for a run that goes on with the parts of another."""
    folder = bundle_folder(bundle)
    data = Path(source.data)
    status = data.stat() if data.is_file() else None
    return {
        "bundle": fingerprint_folder(folder, [path.name for path in folder.glob("*.*")]),
        "data": source.data if is_url(source.data) else str(data.resolve()),
        "size and time of the data": [status.st_size, status.st_mtime_ns] if status else None,
        "text column": source.text_column,
        "number of rows per part": source.part_rows,
        "device": device,
    }


def _note_column(
    dataset: TextStream, classifier: LayerFusionClassifier, reporter: Reporter
) -> None:
    """Note which column was read where its name does not tell; refuse a first line that is data."""
    classes = {str(label) for label in classifier.classes_.tolist()}
    if found := sorted(classes.intersection(dataset.columns)):
        raise DataError(
            f"{dataset.name} seems to have no header: a column is named {found[0]!r}, which is a "
            "label.\nAdd a first line that names the columns, such as 'text,label', or choose one "
            "with --text-column."
        )
    if dataset.text_column not in TEXT_NAMES:
        reporter.note(
            f"{dataset.name}: texts are read from column {dataset.text_column!r} (--text-column)"
        )


def _open(
    source: PartSource, text: str | None, label: str | None, reporter: Reporter
) -> TextStream:
    """Open the columns that were named (``text``, ``label``), else those that ``fit`` read."""
    with _trained_columns(text, label):
        return source.stream(reporter)


def read_rows(
    data: str,
    facts: Facts,
    text: str | None,
    label: str | None,
    reporter: Reporter,
    *,
    labeled: bool = True,
) -> TextDataset:
    """Read the columns that are named, else those that ``fit`` read, else plain ones."""
    with _trained_columns(text, label):
        return load_dataset(
            data,
            text_column=text or facts.text_column,
            label_column=label or (facts.label_column if labeled else None),
            labeled=labeled,
            reporter=reporter,
        )


@contextmanager
def _trained_columns(text: str | None, label: str | None) -> Iterator[None]:
    """Say of a missing column that nobody named that training had it."""
    try:
        yield
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


def encode(rows: Sequence[Prediction], suffix: str, *, header: bool) -> bytes:
    """Predictions as the bytes of a table, or of its next part, in the format of a suffix."""
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        buffer = io.BytesIO()
        table = pyarrow.Table.from_pylist([row.model_dump() for row in rows])
        pyarrow.parquet.write_table(table, buffer)
        return buffer.getvalue()
    if "json" in suffix:
        lines = (json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for row in rows)
        data = "".join(lines).encode()
    else:
        data = _delimited(rows, "\t" if ".tsv" in suffix else ",", header=header).encode()
    # Members of gzip in a row are one file too.
    return gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data


def _delimited(rows: Sequence[Prediction], delimiter: str, *, header: bool) -> str:
    """Records of which every reader of CSV makes the same rows."""
    text = io.StringIO()
    plain, quoted = (
        csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    if header:
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
    *,
    part_rows: int = StreamConfig.part_rows,
) -> EvaluateResult:
    """Accuracy, macro-F1, log loss and calibration error of a bundle on labelled rows.

    They are read part by part; only their probabilities are kept.
    """
    classifier, facts = _load(bundle, places, device)
    source = PartSource(
        data,
        part_rows,
        text_column or facts.text_column,
        label_column or facts.label_column,
        labeled=True,
    )
    stream = _open(source, text_column, label_column, reporter)
    name = split or test_name(stream.splits) or "train"
    if name not in stream.splits:
        raise DataError(f"There is no split {name!r}; {data} has {', '.join(stream.splits)}.")
    labels: list[Label] = []
    proba = []
    with reporting_to(reporter):
        for part in stream.splits[name]:
            labels += part.labels or ()
            proba.append(classifier.predict_proba(part.texts))
    metrics = LabelSpace(classifier.classes_).encode(labels).evaluate(np.concatenate(proba))
    # a file is not a split, though it is read as one
    is_file = is_url(data) or data == STANDARD_INPUT or Path(data).is_file()
    return EvaluateResult(data=data, split=None if is_file else name, metrics=metrics)
