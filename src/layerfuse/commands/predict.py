"""Using a saved classifier: ``predict`` and ``evaluate``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from layerfuse.blocks import COLUMNS_BLOCK
from layerfuse.bundle import Bundle, Facts
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.classifier.persistence import open_bundle, read_bundle
from layerfuse.cli_options import EvaluateConfig, PredictConfig, StreamConfig
from layerfuse.commands.diagnosis import Predicted
from layerfuse.commands.output import Share, check_new_file, encode
from layerfuse.commands.parts import Part, PartFiles, PartSource, in_order, run_parts
from layerfuse.data import (
    STANDARD_INPUT,
    TABLE_SUFFIXES,
    TEXT_NAMES,
    ColumnError,
    ReadOptions,
    Split,
    TextDataset,
    TextStream,
    load_dataset,
    strip_html,
    test_name,
)
from layerfuse.errors import ConfigError, DataError, StorageError
from layerfuse.files import digest, is_url
from layerfuse.labels import Column
from layerfuse.progress import Reporter, reporting_to
from layerfuse.report.results import (
    ChangedText,
    EvaluateResult,
    Label,
    Labels,
    Prediction,
    PredictResult,
    RunComparison,
)
from layerfuse.targets import Decisions, LabelSpace, MultilabelSpace, Targets

_SEPARATORS = (";", "|", "\n")  # of several labels, where the training table had none


@dataclass(frozen=True)
class _Label:
    """Predictions of a part as the bytes of a table; without ``suffix`` lines of JSON.

    ``columns`` are those of any part of the table. The bundle is opened where the work is done,
    unless a ``classifier`` is given, and must be the one with the ``sha256``.
    """

    config: PredictConfig
    suffix: str
    separator: str
    sha256: str = ""
    columns: tuple[str, ...] = ()
    classifier: LayerFusionClassifier | None = None

    def open(self, reporter: Reporter) -> Callable[[Part], bytes]:
        config, classifier = self.config, self.classifier
        if classifier is None:
            classifier, bundle = _load(config.run, config.encoders, config.device)
            if bundle.sha256 != self.sha256:
                raise StorageError(
                    f"{config.run} was saved again after this run had begun. Start over."
                )

        def label(part: Part) -> bytes:
            with reporting_to(reporter):
                found = label_texts(
                    classifier,
                    part.rows,
                    all_classes=config.probabilities,
                    explain=config.explain,
                )
            if not self.suffix:
                return encode([row.model_dump() for row in found], ".jsonl")
            if new := sorted(set(part.rows.columns).difference(self.columns)):
                raise DataError(
                    f"Column {new[0]!r} does not occur before row {part.rows.rows[0]} (counted "
                    "from 0), too late for what is read only once. Give a file's name in place of "
                    "standard input, or raise --part-rows."
                )
            return self._encode(part, found)

        return label

    def _encode(self, part: Part, found: Sequence[Prediction]) -> bytes:
        """The columns of the table (of none the texts), then those of the predictions.

        Several labels are a list, or joined in CSV. A column with the name of a prediction's is
        called ``given_...``, or ``given_given_...`` where that is another's.
        """
        rows = part.rows
        joined = self.separator if self.suffix.startswith((".csv", ".tsv")) else None
        labeled = [_cells(prediction, joined) for prediction in found]
        nothing = (None,) * len(rows)
        given = {name: rows.columns.get(name, nothing) for name in self.columns}
        given = given or {"text": rows.texts}
        names = _free_names(given, labeled[0] if labeled else ())
        return encode(
            [
                {names[name]: column[row] for name, column in given.items()} | own
                for row, own in enumerate(labeled)
            ],
            self.suffix,
            header=part.number == 0,
            types={names[name]: kind for name, kind in rows.types.items() if name in names},
        )


def label_texts(
    classifier: LayerFusionClassifier,
    rows: Split,
    *,
    all_classes: bool = False,
    explain: bool = False,
) -> list[Prediction]:
    """Predictions of rows; with ``explain`` beside the nearest training texts."""
    X = _read_of(classifier, rows)
    explained = classifier.explain(X) if explain else None
    proba = classifier.predict_proba(X) if explained is None else explained.proba
    space, rule = classifier.label_space_, classifier.abstention_
    best = space.decide(proba)
    labels, classes = space.names(best), space.classes.tolist()
    certainty = space.certainty(proba, best)
    abstains = None if rule is None else rule.abstains(proba).tolist()
    sets = None if rule is None or rule.coverage is None else rule.sets(proba)
    return [
        Prediction(
            text=text,
            label=labels[row],
            probability=certainty[row],
            abstain=None if abstains is None else abstains[row],
            labels=None if sets is None else tuple(space.classes[sets[row]].tolist()),
            probabilities=(
                dict(zip(map(str, classes), proba[row].tolist(), strict=True))
                if all_classes or certainty[row] is None
                else None
            ),
            neighbors=None if explained is None else explained.neighbors[row],
        )
        for row, text in enumerate(rows.texts)
    ]


def _columns_of(classifier: LayerFusionClassifier) -> tuple[str, ...]:
    """The columns that a classifier reads beside the texts."""
    return tuple(classifier.columns) if COLUMNS_BLOCK in classifier.model_.blocks else ()


def _separator(facts: Facts, labels: Iterable[object]) -> str:
    """What stands between several labels in a cell: that of training, else one in no label."""
    names = "".join(map(str, labels))
    free = (own for own in _SEPARATORS if own not in names)
    return facts.label_separator or next(free, _SEPARATORS[-1])


def _read_of(classifier: LayerFusionClassifier, rows: Split) -> Column:
    """What a classifier reads of some rows, checked: errors name rows of the file."""
    columns, encoder = _columns_of(classifier), classifier.column_encoder_
    if not columns or encoder is None:
        return rows.texts
    table = rows.table(columns)
    encoder.transform(table, rows.rows)
    return table


def _cells(prediction: Prediction, separator: str | None) -> dict[str, object]:
    """The columns of a prediction; several labels are a list, or joined by the ``separator``."""
    own = prediction.model_dump(exclude={"text", "probabilities"}, exclude_none=True)
    if prediction.labels is not None:
        own |= {"labels": list(prediction.labels)}
    if prediction.neighbors is not None:
        own |= {"neighbors": [vars(neighbor) for neighbor in prediction.neighbors]}
    shares = prediction.probabilities or {}
    own |= {f"probability_{name}": Share(share) for name, share in shares.items()}
    if prediction.probability is not None:
        own |= {"probability": Share(prediction.probability)}
    if isinstance(prediction.label, tuple):
        names = list(map(str, prediction.label))
        own |= {"label": names if separator is None else separator.join(names)}
    return own


def _free_names(given: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """A name for each of the given columns that is neither taken nor another one's."""
    used = {*given, *taken}
    names = {}
    for name in given:
        names[name] = name
        if name in taken:
            while names[name] in used:
                names[name] = f"given_{names[name]}"
            used.add(names[name])
    return names


def predict(
    config: PredictConfig, reporter: Reporter, show: Callable[[str], object] | None = None
) -> PredictResult:
    """Labels and probabilities for every text of a file, part by part, beside its columns.

    They are written to ``config.out``, or handed to ``show`` as CSV; without both they are in the
    result.
    """
    if (config.data is None) != bool(config.text):
        raise ConfigError("Give either a file with texts or texts with --text.")
    kept: list[str] = []
    emit = show or kept.append
    suffix = "" if show is None else ".csv"
    if config.data is not None:
        rows, classes = _predict_file(config, config.data, suffix, emit, reporter)
    elif config.out is not None:
        raise ConfigError("--text prints what it predicts. Leave --out, or give a file.")
    else:
        classifier, bundle = _load(config.run, config.encoders, config.device)
        facts = bundle.facts
        if columns := _columns_of(classifier):
            raise ConfigError(
                f"The classifier reads columns beside the texts: {', '.join(columns)}. Give a file "
                "that has them, in place of --text."
            )
        classes = classifier.classes_.tolist()
        texts = map(strip_html, config.text) if facts.strip_html else config.text
        label = _Label(config, suffix, _separator(facts, classes), classifier=classifier).open(
            reporter
        )
        emit(label(Part(0, Split(tuple(texts)))).decode())
        rows = len(config.text)
    lines = "".join(kept).split("\n")[:-1]
    return PredictResult(
        classes=tuple(classes),
        rows=rows,
        out=None if config.out == "-" else config.out,
        predictions=tuple(map(Prediction.model_validate_json, lines)),
    )


def _predict_file(
    config: PredictConfig,
    data: str,
    suffix: str,
    emit: Callable[[str], object],
    reporter: Reporter,
) -> tuple[int, list[Label]]:
    """Predict a file's rows; count them, and name the classes."""
    out = None if config.out == "-" else config.out
    if out is not None:
        _check_out(out, data)
        if not is_url(out) and Path(out).exists():
            reporter.note(f"{out} is there already, and will be replaced")
        suffix = next(known for known in TABLE_SUFFIXES if out.lower().endswith(known))
    if data == STANDARD_INPUT and (config.resume or config.stream.engine != "local"):
        raise ConfigError("Standard input can be read only once, here. Give the name of a file.")
    classifier, bundle = _load(config.run, config.encoders, config.device)
    facts = bundle.facts
    if config.explain:
        _ = classifier.examples_  # before the work: whether the bundle has them
    source = PartSource(
        data,
        config.stream.part_rows,
        config.text_column or facts.text_column,
        options=ReadOptions(
            columns=_columns_of(classifier), keep=True, strip_html=facts.strip_html
        ),
    )
    opened = _open(source, config.text_column, None, reporter)
    if config.text_column is None and facts.text_column is None:
        _note_column(opened, classifier, reporter)
    source = replace(source, text_column=opened.text_column)
    sizes: dict[int, int] = {}
    columns = dict.fromkeys(opened.columns if data == STANDARD_INPUT else ())
    empty, content = 0, ""

    def counted(rows: Split) -> Split:
        nonlocal empty
        empty += sum(not text.strip() for text in rows.texts)
        return rows

    def note_empty() -> None:
        if empty:
            n_rows = sum(sizes.values())
            are = "is" if empty == 1 else "are"
            reporter.note(f"{empty} of {n_rows} texts {are} empty, and labeled anyway")

    with ExitStack() as opened_files:
        files = None
        if out is not None:
            files = opened_files.enter_context(PartFiles(out, resume=config.resume))
            files.check(_facts_of(config, source, bundle))
        if data == STANDARD_INPUT:
            splits = {name: map(counted, parts) for name, parts in opened.splits.items()}
            opened = replace(opened, splits=splits)
        else:  # all columns and faults are found before the work, where rows can be read twice
            for part in source.parts():
                columns |= dict.fromkeys(part.rows.columns)
                _read_of(classifier, counted(part.rows))
                sizes[part.number] = len(part.rows)
                if files is not None:
                    content = digest(content, repr(part.rows.columns))
            note_empty()
        if files is not None:
            files.check({"content of the data": content})
            source = replace(source, skip=files.finished)
        with reporter.task("predicting", sum(sizes.values()), "rows") as advance:
            if source.skip:
                reporter.note(f"{len(source.skip)} of {len(sizes)} parts are finished")
                advance(sum(sizes.get(number, 0) for number in source.skip))
            work = _Label(
                config,
                suffix,
                _separator(facts, classifier.classes_.tolist()),
                bundle.sha256,
                tuple(columns),
                classifier if config.stream.cluster is None else None,
            )
            results = run_parts(
                work, source, opened, config.stream, config.device, advance, reporter
            )
            for done in results if files is not None else in_order(results):
                sizes[done.number] = done.rows
                if files is not None:
                    files.write(done.number, done.result)
                else:
                    emit(done.result.decode())
        if files is not None and (mixed := files.join(len(sizes))):
            reporter.note(f"values of several kinds are written as text: column {', '.join(mixed)}")
    if data == STANDARD_INPUT:
        note_empty()
    return sum(sizes.values()), classifier.classes_.tolist()


def _check_out(out: str, data: str) -> None:
    if not is_url(out):
        check_new_file(Path(out), TABLE_SUFFIXES)
    elif not out.lower().endswith(TABLE_SUFFIXES):
        raise ConfigError(
            f"{out} has an unsupported extension. Give a name with --out that ends in "
            f"{', '.join(TABLE_SUFFIXES)}."
        )
    if data != STANDARD_INPUT and _place(out).is_relative_to(
        texts := _place(os.path.expanduser(data))  # noqa: PTH111  # as it is read
    ):
        what = "holds" if _place(out) == texts else "is in the folder of"
        raise StorageError(f"{out} {what} the texts. Choose another file with --out.")


def _place(name: str) -> Path:
    """A file or folder by its one name; what a URL names is a path below the URL's scheme."""
    scheme, sign, path = name.partition("://")
    if sign and scheme != "file":
        return Path(scheme, path.lstrip("/"))
    return Path(path if sign else name).resolve()


def _facts_of(config: PredictConfig, source: PartSource, bundle: Bundle) -> dict[str, object]:
    """What predictions depend on, for a run that goes on with the parts of another."""
    data = source.data
    named = is_url(data) or data == STANDARD_INPUT
    return {
        "bundle": bundle.sha256,
        "data": data if named else str(Path(data).resolve()),
        "text column": source.text_column,
        "number of rows per part": source.part_rows,
        "device": config.device,
        "probabilities of all classes": config.probabilities,
        "explanations": config.explain,
    }


def _note_column(
    dataset: TextStream, classifier: LayerFusionClassifier, reporter: Reporter
) -> None:
    """Note which column was read unless its name is a common one; refuse a first line of data."""
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
    with _explained(text, label):
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
    with _explained(text, label):
        return load_dataset(
            data,
            text_column=text or facts.text_column,
            label_column=label or (facts.label_column if labeled else None),
            label_separator=facts.label_separator,
            labeled=labeled,
            strip_html=facts.strip_html,
            reporter=reporter,
        )


@contextmanager
def _explained(text: str | None, label: str | None) -> Iterator[None]:
    """Say of a column that is missing, and was not named, where its name comes from."""
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
    place: str | Path, places: Mapping[str, str], device: str
) -> tuple[LayerFusionClassifier, Bundle]:
    bundle = read_bundle(place)
    return open_bundle(bundle, places, device), bundle


def evaluate(
    config: EvaluateConfig, reporter: Reporter, *, part_rows: int = StreamConfig.part_rows
) -> EvaluateResult:
    """Metrics and errors of a bundle on labeled rows, beside another bundle if one is given.

    Rows are read part by part; probabilities are kept, and texts where the two bundles differ.
    """
    data, against = config.data, config.against
    classifier, bundle = _load(config.run, config.encoders, config.device)
    facts = bundle.facts
    space, rule, other = classifier.label_space_, classifier.abstention_, None
    if against is not None:
        other, compared = _load(against, config.encoders, config.device)
        others = compared.facts
        if other.label_space_.link_name != space.link_name:
            raise ConfigError(
                f"One of {config.run} and {against} gives a text exactly one label, the other any "
                "number of labels. Give --against a run of the same kind."
            )
        learned = {facts.text_column, others.text_column} - {None}
        if config.text_column is None and len(learned) > 1:
            raise ConfigError(
                f"{config.run} learned from column {facts.text_column!r} and {against} from "
                f"{others.text_column!r}. Say with --text-column which one both are to read."
            )
        if others.strip_html != facts.strip_html:
            raise ConfigError(
                f"Only one of {config.run} and {against} was fitted with --strip-html: they cannot "
                "read the same texts. Evaluate each by itself."
            )
    columns = tuple(
        dict.fromkeys(name for own in (classifier, other) if own for name in _columns_of(own))
    )
    source = PartSource(
        data,
        part_rows,
        config.text_column or facts.text_column,
        config.label_column or facts.label_column,
        labeled=True,
        options=ReadOptions(
            label_separator=(
                _separator(facts, classifier.classes_.tolist())
                if isinstance(space, MultilabelSpace)
                else facts.label_separator
            ),
            columns=columns,
            strip_html=facts.strip_html,
        ),
    )
    stream = _open(source, config.text_column, config.label_column, reporter)
    name = config.split or test_name(stream.splits) or "train"
    if name not in stream.splits:
        raise DataError(f"There is no split {name!r}; {data} has {', '.join(stream.splits)}.")
    truth, proba, ours, theirs = [], [], [], []
    changes: list[ChangedText] = []
    unlabeled = 0
    with reporting_to(reporter):
        for part in stream.splits[name]:
            unlabeled += part.n_unlabeled
            if not len(part):
                continue
            truth.append(space.encode(part.labels or ()).codes)
            proba.append(classifier.predict_proba(_read_of(classifier, part)))
            if other is not None:
                decisions = other.label_space_.decide(other.predict_proba(_read_of(other, part)))
                ours.append(space.decide(proba[-1]))
                theirs.append(decisions)
                changes += _changes(
                    part,
                    space.names(truth[-1]),
                    space.names(ours[-1]),
                    other.label_space_.names(decisions),
                    texts=config.texts,
                )
    if unlabeled:
        reporter.note(f"{unlabeled} rows have no label and are skipped")
    targets, found = space.targets(np.concatenate(truth)), np.concatenate(proba)
    proba.clear()
    shown = Predicted.of(targets, found)
    comparison = None
    if other is not None:
        pair = np.concatenate(ours), np.concatenate(theirs)
        comparison = _compare(str(against), targets, *pair, other.label_space_, changes)
    # a file is not a split, though it is read as one
    is_file = name == "train" and len(stream.splits) == 1
    return EvaluateResult(
        data=data,
        split=None if is_file else name,
        metrics=targets.evaluate(found),
        classes=tuple(map(str, space.classes.tolist())),
        confusion=shown.confusion(),
        labels=shown.labels(),
        abstention=None if rule is None else rule.measure(found, targets),
        comparison=comparison,
    )


def _compare(
    against: str,
    targets: Targets,
    ours: Decisions,
    theirs: Decisions,
    other: LabelSpace,
    changes: Sequence[ChangedText],
) -> RunComparison:
    """Compare on the same rows; labels are equal where their texts are, as a file holds them.

    ``theirs`` are decisions of the space ``other``.
    """
    space = targets.space
    names = [list(map(str, own.classes.tolist())) for own in (space, other)]
    joint = {name: number for number, name in enumerate(dict.fromkeys(chain(*names)))}
    first, second = (np.array([joint[name] for name in own]) for own in names)
    truth = type(space)(np.array(list(joint))).targets(
        space.renumbered(targets.codes, first, len(joint))
    )
    one = space.renumbered(ours, first, len(joint))
    two = other.renumbered(theirs, second, len(joint))
    return RunComparison(
        against=against,
        metric=space.metric,
        headline=truth.measure(two),
        gain=truth.compare(one, two),
        changes=tuple(changes),
    )


def _changes(
    split: Split,
    labels: Sequence[Labels],
    ours: Sequence[Labels],
    theirs: Sequence[Labels],
    *,
    texts: bool,
) -> Iterator[ChangedText]:
    """The texts that two classifiers label differently."""
    rows = zip(split.rows, split.texts, labels, ours, theirs, strict=True)
    for row, text, label, own, other in rows:
        if _as_texts(own) != _as_texts(other):
            yield ChangedText(
                row=row, label=label, predicted=own, other=other, text=text if texts else ""
            )


def _as_texts(labels: Labels) -> frozenset[str]:
    """A label, or several, as a file holds them."""
    return frozenset(map(str, labels if isinstance(labels, tuple) else (labels,)))
