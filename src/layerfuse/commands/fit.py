"""Measuring and training: ``fit``, ``demo`` and ``report``."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse._version import __version__
from layerfuse.blocks import BlockRef
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.classifier.validation import open_encoders
from layerfuse.cli_options import FitConfig, ReadConfig
from layerfuse.commands.diagnosis import (
    Latency,
    Predicted,
    diagnose,
    environment,
    find_near_duplicates,
    measure_latency,
    write_rows,
)
from layerfuse.commands.output import check_new_file, check_new_folder, open_store
from layerfuse.data import ReadOptions, Split, TextDataset, audit, load_dataset
from layerfuse.embeddings.extraction import BlockView
from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.tabular import ColumnEncoder
from layerfuse.errors import (
    ConfigError,
    FormatError,
    LayerfuseError,
    LayerfuseWarning,
    MissingExtraError,
    NotFoundError,
    StorageError,
    did_you_mean,
    require,
)
from layerfuse.evaluation.baselines import Baseline
from layerfuse.evaluation.verdict import Rows, Verdict, tradeoffs
from layerfuse.files import atomic_folder, is_url
from layerfuse.folds import text_groups
from layerfuse.labels import is_missing
from layerfuse.metrics import Estimate
from layerfuse.objects import local_folder, new_folder
from layerfuse.pipeline import RIDGES
from layerfuse.progress import SILENT, Advance, Reporter, Stopwatch, reporting_to
from layerfuse.report.results import CurveResult, ReportResult
from layerfuse.report.run_report import (
    REPORT_FILE,
    AbstentionReport,
    ColumnsReport,
    CostReport,
    DataReport,
    EncoderReport,
    RunReport,
    SeedRun,
    SelectionReport,
    Timings,
    read_model,
    read_run_report,
    write_run_report,
)
from layerfuse.resources import Budget, EncoderCost
from layerfuse.targets import Targets, check_trainable


class _Recorder:
    """Hands everything on to a reporter, and keeps the notes."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.reporter.note(line)

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return self.reporter.task(name, total, unit)


def fit(config: FitConfig, reporter: Reporter) -> RunReport:
    """Fit a pipeline on a dataset, measure it, save the run folder; return the report.

    Where the same settings have saved a run but not its page, only that is written.
    """
    clock = Stopwatch()
    recorder = _Recorder(reporter)
    run = run_folder(config)
    if config.explain and not config.texts:
        raise ConfigError("--explain keeps training texts in the bundle. Leave out --no-texts.")
    if isinstance(run, Path) and (stopped := _without_page(run, config)) is not None:
        reporter.note(f"{run} was saved on {stopped.created:%Y-%m-%d %H:%M} UTC, without its page")
        write_report(run, None, None, reporter)
        return stopped
    check_new_folder(run)
    dataset = read_data(config, recorder)
    texts, labels = dataset.train.texts, dataset.train.labels or ()
    test = dataset.test
    check_trainable(labels)
    if test is not None:  # before the work: labels that training does not have
        Targets.from_labels(labels).space.encode(test.labels or ())
    if config.columns:  # and values of another kind
        known = {name: dataset.train.columns[name] for name in config.columns}
        columns = ColumnEncoder.fit(known, dataset.train.rows)
        if test is not None:
            columns.transform(test.columns, test.rows)
    classifier = make_classifier(config, recorder)
    with reporting_to(recorder), warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerfuseWarning)  # they are among the notes
        groups = groups_of(dataset.train, config)
        rows = dataset.train.table(config.columns) if config.columns else texts
        classifier.fit(rows, labels, groups=groups)
        if config.accept_advice and simplify(classifier, recorder):
            classifier.fit(rows, labels, groups=groups)

    clock("total_s")  # the classifier knows its stages
    space, record = classifier.label_space_, classifier.fit_record_
    measured = replace(record.sample.targets, space=space)
    cv = Predicted.of(measured, record.proba, record.decisions)
    tested, test_metrics, test_rows, test_blocks, gap = None, None, None, None, None
    rule, abstention = classifier.abstention_, None
    if rule is not None:
        own = rule.measure(record.proba, record.sample.targets)
        abstention = AbstentionReport(rule=rule, cv=own)
    if test is not None:
        targets = space.encode(test.labels or ())
        with reporting_to(recorder):
            test_blocks = classifier.extract(
                test.table(config.columns) if config.columns else test.texts
            )
        proba = classifier.model_.predict_proba(test_blocks)
        test_metrics = targets.evaluate(proba, seed=config.seed)
        if rule is not None:
            abstention = AbstentionReport(rule=rule, cv=own, test=rule.measure(proba, targets))
        tested = Predicted.of(targets, proba)
        test_rows = Rows(targets, tested.predicted, config.seed)
    clock("extract_s")
    seeds = _fit_seeds(classifier, config, dataset, test_rows, test_blocks, recorder)
    clock("seeds_s")
    baselines = record.run_baselines(None if test is None else test.texts, test_blocks)
    clock("baselines_s")
    latency = _time_pipelines(classifier, baselines, texts, recorder)
    costs = classifier.costs_ if latency is None else latency.costs(classifier.costs_)
    record = replace(record, costs=costs)
    clock("latency_s")
    verdict = record.judge(baselines, test_rows)
    if test_rows is not None and test_blocks is not None:
        gap = record.measure_gap(test_rows, test_blocks)
    clock("baselines_s")
    sample = dataset.train.take(record.sample_rows)
    if not config.texts:
        sample = replace(sample, texts=("",) * len(sample))
        recorder.note("texts are left out of the report (--no-texts); rows are given by number")
    diagnosis = diagnose(classifier, cv, sample, config.id_column, tested)
    plan, selection = classifier.plan_, classifier.selection_
    cost = _cost(verdict, plan.blocks, latency)
    report = RunReport(
        layerfuse_version=__version__,
        created=datetime.now(UTC).replace(microsecond=0),
        run=str(run),
        data=DataReport(
            name=dataset.name,
            train_rows=len(texts),
            learned_rows=classifier.n_rows_,
            test_split=dataset.test_name,
            columns=ColumnsReport.of(dataset, config),
            classes=tuple(map(str, space.classes.tolist())),
            truncated_share=classifier.truncated_share_,
            read_share=classifier.read_share_,
            audit=audit(dataset),
            near_duplicates=find_near_duplicates(dataset, texts=config.texts),
        ),
        encoders=tuple(_encoder(encoder, costs[encoder.name]) for encoder in classifier.encoders_),
        profile=classifier.profile_,
        selection=SelectionReport(
            method=selection.method,
            reason=selection.reason,
            blocks=selection.blocks,
            gains=selection.gains_,
            fusion=plan.fusion,
            head=plan.head,
            trials=classifier.trials_,
        ),
        cv=classifier.cv_,
        test=test_metrics,
        baselines=verdict.comparisons,
        verdict=verdict,
        gap=gap,
        abstention=abstention,
        seeds=seeds,
        pareto=tuple(tradeoffs(verdict.comparisons, plan, cost.pipeline, classifier.cv_.headline)),
        cost=cost,
        diagnosis=diagnosis,
        timings=_timings(classifier.timings_, clock),
        settings=config,
        environment=environment(),
        notes=tuple(recorder.notes),
    )
    with new_folder(run) as path:
        with atomic_folder(path) as folder:
            classifier.save(
                folder / "bundle",
                text_column=dataset.text_column,
                label_column=dataset.label_column,
                label_separator=config.label_separator,
                strip_html=config.strip_html,
                explain=config.explain,
            )
            write_run_report(folder, report)
            parts = {"cv": (cv, sample)}
            if tested is not None and test is not None:
                parts["test"] = tested, test
            write_rows(folder / "rows.parquet", parts, config.id_column, baselines)
        if config.report:
            try:
                write_report(path, None, None, SILENT if is_url(run) else reporter)
            except MissingExtraError:
                reporter.note("no report.html; to get one: pip install 'layerfuse[report]'")
    return report


def _timings(of_fit: Mapping[str, float], clock: Stopwatch) -> Timings:
    """Seconds of the stages of a fit and of those of this command."""
    own = clock.seconds()
    return Timings(**{**of_fit, **own, "extract_s": of_fit["extract_s"] + own["extract_s"]})


def _fit_seeds(
    classifier: LayerFusionClassifier,
    config: FitConfig,
    dataset: TextDataset,
    test: Rows | None,
    test_blocks: BlockView | None,
    reporter: _Recorder,
) -> tuple[SeedRun, ...]:
    """Fits with other seeds beside the one that is reported; embeddings come from the store."""
    runs = []
    train, given = dataset.train, classifier.get_params(deep=False)
    for seed in range(config.seed, config.seed + config.seeds) if config.seeds > 1 else ():
        other = classifier
        if seed != config.seed:
            with reporting_to(reporter.reporter), warnings.catch_warnings():
                warnings.simplefilter("ignore", LayerfuseWarning)  # the first fit has noted them
                other = LayerFusionClassifier(
                    **given | {"encoders": classifier.encoders_, "random_state": seed}
                ).fit(
                    train.table(config.columns) if config.columns else train.texts,
                    train.labels or (),
                    groups=groups_of(train, config),
                )
        accuracy = None
        if test is not None and test_blocks is not None:
            proba = other.model_.predict_proba(test_blocks)
            decisions = other.label_space_.decide(proba)
            accuracy = test.targets.evaluate(proba, decisions).headline.value
        plan = other.plan_
        runs.append(
            SeedRun(
                seed=seed,
                cv=other.cv_.headline.value,
                test=accuracy,
                blocks=plan.blocks,
                fusion=plan.fusion,
                head=plan.head,
            )
        )
    return tuple(runs)


_ADVISED = {"last_layer": "last", "best_block": "best"}  # how each is selected


def simplify(classifier: LayerFusionClassifier, reporter: Reporter) -> bool:
    """Set a fitted classifier to the cheapest simpler pipeline that its verdict recommends.

    Returns whether there is one that reads a single block; then it has to be fitted again.
    """
    verdict = classifier.verdict_
    item = next((item for item in verdict.simpler if item.name in _ADVISED), None)
    if item is None:
        reporter.note("advice: no single block is as good; the pipeline stays as it was chosen")
        return False
    selection, head = _ADVISED[item.name], classifier.plan_.head
    head = head if head in RIDGES else "ridge"  # that of the baseline
    reporter.note(f"advice: {item.blocks[0]} alone (selection={selection!r}, head={head!r})")
    if verdict.recommended == "tfidf":
        reporter.note("TF-IDF would be simpler still, but cannot be saved in a bundle")
    encoders = classifier.encoders_
    if item.name == "last_layer":
        encoders = tuple(encoder for encoder in encoders if encoder.name == item.encoder)
    classifier.set_params(encoders=encoders, selection=selection, fusion="concat", head=head)
    return True


def _time_pipelines(
    classifier: LayerFusionClassifier,
    baselines: Sequence[Baseline],
    texts: Sequence[str],
    reporter: Reporter,
) -> Latency | None:
    """The pipeline and its baselines timed in turn; without it costs are those of other times."""
    pipelines = [baseline.plan.blocks for baseline in baselines if baseline.plan is not None]
    pipelines.append(classifier.plan_.blocks)
    why = "the encoders take too long for it"
    try:
        latency = measure_latency(classifier.encoders_, pipelines, texts, reporter)
    except LayerfuseError as error:  # stored embeddings do without the weights
        latency, why = None, str(error)
    if latency is None:
        reporter.note(f"pipelines are not timed side by side: {why}")
    return latency


def _cost(verdict: Verdict, blocks: Sequence[BlockRef], latency: Latency | None) -> CostReport:
    value = verdict.time_ratio
    if latency is None or value is None:
        return CostReport(pipeline=verdict.cost, time_ratio=None, n_texts=0, n_rounds=0)
    ratios = latency.ratios(blocks, tuple(map(BlockRef.parse, verdict.against)))
    span = Estimate(value, min(value, float(ratios.min())), max(value, float(ratios.max())))
    return CostReport(
        pipeline=verdict.cost,
        time_ratio=span,
        n_texts=latency.n_texts,
        n_rounds=latency.n_rounds,
    )


def _encoder(encoder: FrozenEncoder, cost: EncoderCost) -> EncoderReport:
    return EncoderReport(
        name=encoder.name,
        source=encoder.source.origin,
        revision=encoder.source.revision,
        fingerprints=encoder.fingerprints,
        prompt=encoder.prompt,
        chat_prompt=encoder.chat_prompt,
        max_length=encoder.max_length,
        windows=None if encoder.windows is None else tuple(encoder.windows),
        overlap=encoder.overlap,
        max_windows=encoder.max_windows,
        cost=cost,
    )


def make_encoders(config: ReadConfig, reporter: Reporter) -> tuple[FrozenEncoder, ...]:
    """The encoders of the settings, each with its prompt and candidates."""
    opened = open_encoders(config.encoders, reporter)
    names = [encoder.name for encoder in opened]
    by_name = config.pooling if isinstance(config.pooling, Mapping) else {}
    for name in (*config.prompts, *config.chat_prompts, *by_name):
        if name not in names:
            raise ConfigError(
                f"A prompt or pooling names {name!r}, which is not one of the encoders "
                f"({', '.join(names)}).{did_you_mean(name, names)}"
            )
    encoders = tuple(
        FrozenEncoder(
            encoder.source,
            prompt=config.prompts.get(encoder.name),
            chat_prompt=config.chat_prompts.get(encoder.name),
            layers=config.layers,  # type: ignore[arg-type]  # a text is "all"
            pooling=(
                by_name.get(encoder.name, "mean")
                if isinstance(config.pooling, Mapping)
                else config.pooling
            ),
            max_length=config.max_length,
            windows=config.windows,
            max_windows=config.max_windows,
            device=config.device,
            dtype=config.dtype,
            reporter=reporter,
        )
        for encoder in opened
    )
    for encoder in encoders:
        if encoder.prompt is not None and encoder.name not in config.prompts:
            reporter.note(
                f"{encoder.name}: its own prompt, {encoder.prompt!r} (another one: --prompt "
                f"{encoder.name}='...{{text}}...', or only '{{text}}')"
            )
    return encoders


def make_classifier(config: FitConfig, reporter: Reporter) -> LayerFusionClassifier:
    """The classifier of the settings, not fitted; its store is made when it is written to."""
    return LayerFusionClassifier(
        encoders=make_encoders(config, reporter),
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
        lexical=config.lexical,
        columns=config.columns,
        fragments=config.fragments,
        calibration=None if config.calibration == "none" else config.calibration,
        target_accuracy=config.target_accuracy,
        coverage=config.coverage,
        cv=config.cv,
        store=open_store(config.store, new=True, cluster=config.cluster),
        n_jobs=config.n_jobs,
        random_state=config.seed,
    )


def read_all(config: ReadConfig, reporter: Reporter, *, labeled: bool = True) -> TextDataset:
    """The dataset of the settings, or the stratified part of it that they ask for.

    Labels are needed unless it need not be ``labeled``.
    """
    dataset = load_dataset(
        config.data,
        text_column=config.text_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        test=getattr(config, "test", None),
        labeled=labeled,
        id_column=config.id_column,
        group_column=config.group_column,
        columns=getattr(config, "columns", ()),
        strip_html=config.strip_html,
        reporter=reporter,
    )
    return dataset if config.sample is None else dataset.subsample(config.sample, config.seed)


def read_data(config: ReadConfig, reporter: Reporter) -> TextDataset:
    """`read_all`, and note sizes, columns and leaks."""
    dataset = read_all(config, reporter)
    sizes = ", ".join(f"{len(split)} {name} rows" for name, split in dataset.splits.items())
    reporter.note(f"{dataset.name}: {sizes}")
    columns = ColumnsReport.of(dataset, config)
    if columns.texts:
        reporter.note(columns.sentence)
    for name, split in dataset.splits.items():
        if split.n_unlabeled:
            reporter.note(f"{split.n_unlabeled} {name} rows have no label and are skipped")
    if dataset.test is not None:
        seen = set(dataset.splits["train"].texts) if "train" in dataset.splits else set()
        if leaks := sum(text in seen and bool(text.strip()) for text in dataset.test.texts):
            reporter.note(
                f"{leaks} of {len(dataset.test)} test texts are training texts too, which inflates "
                "the figures; see layerfuse audit"
            )
        known = {own for own in groups_of(dataset.train, config) or () if not is_missing(own)}
        if shared := sum(own in known for own in groups_of(dataset.test, config) or ()):
            reporter.note(
                f"{shared} of {len(dataset.test)} test rows are of a group that training rows are "
                f"of, too ({config.group_column}): test figures are not those for new groups"
            )
    return dataset


def read_options(config: ReadConfig) -> ReadOptions:
    """What the settings say of reading a table."""
    return ReadOptions(
        id_column=config.id_column,
        group_column=config.group_column,
        strip_html=config.strip_html,
    )


def groups_of(split: Split, config: ReadConfig) -> list[object] | None:
    """The values of the group column; None for blanks, whose rows are groups of their own."""
    given = split.column(config.group_column)
    if given is None:
        return None
    return [None if isinstance(own, str) and not own.strip() else own for own in given]


def text_codes(split: Split, config: ReadConfig) -> npt.NDArray[np.intp]:
    """Numbers (n,) of groups of rows with one text, but for case and blanks, or one group."""
    found = text_groups(split.texts, groups_of(split, config))
    return np.arange(len(split)) if found is None else found.codes


def run_folder(config: FitConfig) -> str | Path:
    """Where the run is to be saved: a folder or a URL."""
    if config.out is not None:
        return config.out if is_url(config.out) else Path(config.out)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")  # two fits may begin in one second
    return Path("runs") / f"{Path(config.data).name.partition('.')[0] or 'run'}-{stamp}"


def _without_page(run: Path, config: FitConfig) -> RunReport | None:
    """The report of a run by the same command that ended before its page was written."""
    if not config.report or (run / _PAGE).exists():
        return None
    report = _read_report(run)
    if report is None:
        return None
    saved_at = (run / REPORT_FILE).stat().st_mtime
    places = map(os.path.expanduser, filter(None, (config.data, config.test)))
    roots = [Path(place).resolve() for place in places]
    files = (path for root in roots for path in (root, *root.rglob("*")) if path.is_file())
    others = (path for path in files if not path.is_relative_to(run.resolve()))
    if any(_written(path) > saved_at for path in others):
        return None  # it is of other rows
    given, saved = (json.dumps(asdict(own), default=str) for own in (config, report.settings))
    return report if given == saved else None


def _written(path: Path) -> float:
    """When a file was written, or put in its place, in seconds."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


def _read_report(run: Path) -> RunReport | None:
    try:
        return read_run_report(run)
    except (FormatError, NotFoundError):
        return None


_PAGE = "report.html"
_DATA = "r52"
_ENCODERS = ("minilm",)
_MAX_LENGTH = 128  # tokens; news stories say early what they are about


def demo(out: Path, sample: int, reporter: Reporter, *, report: bool = True) -> RunReport:
    """Fit a small encoder on a stratified part of R52; replaces the folder of an older demo."""
    if out.exists():
        older = _read_report(out)  # one that is not a demo's, somebody wants to keep
        used = None if older is None else (older.settings.data, tuple(older.settings.encoders))
        if used != (_DATA, _ENCODERS):
            raise StorageError(f"{out} exists and is not a demo's folder. Choose another --out.")
        shutil.rmtree(out)
    config = FitConfig(
        data=_DATA,
        encoders=_ENCODERS,
        sample=sample,
        lexical=True,
        max_length=_MAX_LENGTH,
        out=str(out),
        report=report,
    )
    return fit(config, reporter)


def write_report(
    run: str | Path, out: Path | None, figures: Path | None, reporter: Reporter
) -> ReportResult:
    """Write a run's page to ``out`` (by default into the run folder), and its figures as SVG and
    PNG into the folder ``figures`` where one is given.

    Raises
    ------
    ConfigError
        For a run at a URL without ``out``.
    """
    if is_url(run) and out is None:
        raise ConfigError(f"{run} is a URL. Give the name of an HTML file with --out.")
    run = local_folder(run)
    for module in ("altair", "jinja2", "vl_convert"):
        require(module, "report", "The HTML report")
    found = read_run_report(run)
    curve = read_model(run / "curve.json", CurveResult)
    path = run / _PAGE if out is None else out
    check_new_file(path, (".html", ".htm"))
    if figures is not None and figures.exists() and not figures.is_dir():
        raise ConfigError(f"{figures} is not a folder. Give a folder for the figures.")
    from layerfuse.report.html import write_page

    saved = write_page(found, curve, path, figures)
    reporter.note(f"report: {path}")
    return ReportResult(
        report=str(path), n_bytes=path.stat().st_size, figures=tuple(map(str, saved))
    )
