"""What the page says: its sections, in the order of a reader's questions.

Needs the extra ``report``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from layerfuse.report import figures, tables
from layerfuse.report.results import CurveResult
from layerfuse.report.run_report import RunReport
from layerfuse.report.tables import Table, baseline_name, interval, percent, plural, sentence_case

if TYPE_CHECKING:
    from layerfuse.report.theme import Chart

_SHOWN_CLASSES = 12  # in the confusion matrix that stands open
_SAME = 1.05  # times that differ by less than this factor tell nothing apart


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in words, and the numbers behind it."""

    id: str
    title: str
    summary: str
    chart: Chart
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One question of a reader: paragraphs, figures, tables and code."""

    id: str
    title: str
    lead: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    code: Mapping[str, str] = field(default_factory=dict)


def sections_of(report: RunReport, curve: CurveResult | None) -> list[Section]:
    """The page's sections; hold `theme.DRAWING` while they are built."""
    found = (
        _verdict(report),
        _selected(report),
        _layers(report),
        _pairs(report),
        _cost(report),
        _classes(report),
        _calibration(report),
        _abstention(report),
        _learning_curve(curve),
        _hardest(report),
        _data(report),
        _runtime(report),
        _usage(report),
        _provenance(report),
    )
    return [section for section in found if section is not None]


def _verdict(report: RunReport) -> Section:
    """Whether it was worth it, against every baseline."""
    gains = tables.gains_of(report.baselines, report.verdict.rows)
    better = ", ".join(name for name, gain in gains.items() if gain.low > 0)
    worse = ", ".join(name for name, gain in gains.items() if gain.high < 0)
    found = [f"significantly better than {better}"] if better else []
    found += [f"significantly worse than {worse}"] if worse else []
    summary = (
        "The pipeline's accuracy minus that of each baseline on the same "
        f"{report.rows_in_words}. "
        + (f"It is {', and '.join(found)}." if found else "No difference is significant.")
    )
    note = (
        "An interval that crosses the dashed line means that no difference is shown on these rows. "
        "Selection saw training rows only."
    )
    chart, table = figures.gain_intervals(gains), tables.accuracy_table(report)
    figure = Figure("gains", "Gain over baselines", summary, chart, table, note)
    return Section("worth", "Was it worth it?", figures=[figure])


def _selected(report: RunReport) -> Section:
    """The selected blocks, accuracy with each of them, and what was compared."""
    selection = report.selection
    count = plural(len(selection.blocks), "block")
    how = f"{selection.fusion} fusion, {selection.head} head"
    lead = [f"{count} (encoder, layer, pooling) by {selection.method} selection; {how}."]
    for encoder in report.encoders:
        own = sorted({block.layer for block in selection.blocks if block.encoder == encoder.name})
        cut = encoder.layers - max(own, default=0)
        rest = f"; the {plural(cut, 'layer')} above are not loaded" if cut else ""
        numbers = ", ".join(map(str, own))
        used = f"layers {numbers} of 0 to {encoder.layers}{rest}" if own else "not used"
        lead.append(f"{encoder.name}: {used}.")
    lead.append(
        "Blocks are added while the leave-one-out loss falls by more than a standard error. "
        "Accuracy is nested cross-validation on training rows, selection run anew in each fold; "
        "steps before the last are concatenated with a ridge head."
    )
    below = [tables.selection_table(report)]
    if selection.trials:
        below.append(tables.trials_table(report))
    return Section("chosen", "What was selected", lead, [], below)


def _layers(report: RunReport) -> Section:
    """One figure for each encoder, all on one scale."""
    selected, found = set(report.selection.blocks), []
    charts = figures.encoder_curves(report.profile, selected)
    for number, (encoder, chart) in enumerate(charts.items()):
        own = report.profile.of(encoder)
        best, last = max(own, key=lambda score: score.accuracy), own.last(encoder)
        summary = (
            f"Best is layer {best.block.layer} with {best.block.pooling} pooling, "
            f"{percent(best.accuracy)}; the last layer reaches {percent(last.accuracy)} "
            f"({last.block.pooling})."
        )
        table = tables.block_table(f"Layers of {encoder}", own, report.profile, selected)
        found.append(Figure(f"curve-{number}", encoder, summary, chart, table))
    lead = (
        "Each layer alone: leave-one-out accuracy of a linear probe on training rows, with 95% "
        "bands. Diamonds are selected blocks, squares the last layer. Selection goes by loss and "
        "by what blocks add to each other, so the selected ones need not be the highest."
    )
    return Section("layers", "How good each layer is", [lead], found)


def _pairs(report: RunReport) -> Section | None:
    """Which blocks make different errors."""
    measured = report.diagnosis.complementarity
    if not measured.pairs:
        return None
    most = max(measured.pairs, key=lambda pair: pair.disagreement)
    lead = (
        "Blocks that make different errors combine well. Measured by leave-one-out on "
        f"{plural(measured.n, 'training row')}, for the selected blocks and each encoder's best "
        f"and last layer. {most.a} and {most.b} differ most: on {percent(most.disagreement)} of "
        "the rows exactly one of them is right."
    )
    table = tables.pairs_table(measured)
    return Section("complementarity", "Which blocks complement each other", [lead], [], [table])


def _cost(report: RunReport) -> Section:
    """Accuracy against time, memory and dimensions."""
    times = [row.cost.ms_per_text for row in report.pareto]
    by_time = max(times) > _SAME * min(times)
    front = ", ".join(baseline_name(row.name) for row in report.pareto if row.on_front)
    summary = f"Nothing beats these in accuracy and cost at once: {front}."
    across = (
        "the time to read one text on this machine, in batches"
        if by_time
        else "the dimensions that are fused, as all of these take about the same time"
    )
    explained = (
        f"Nested accuracy on training rows against {across}. The dashed line joins the best for "
        "each cost; filled points are beaten by none in accuracy, time, memory and dimensions at "
        "once. Hover or tap a point for its blocks."
    )
    lead = [explained]
    measured, ratio = report.cost, report.cost.time_ratio
    if ratio is not None:
        lead.append(
            f"Times were measured in turn on the same {plural(measured.n_texts, 'text')}, "
            f"{plural(measured.n_rounds, 'round')}: the pipeline takes {ratio.value:.1f} times the "
            f"last layer's ({ratio.low:.1f} to {ratio.high:.1f})."
        )
    chart, table = figures.pareto(report.pareto, by_time=by_time), tables.cost_table(report)
    figure = Figure("pareto", "Accuracy against cost", summary, chart, table)
    return Section("cost", "What it costs", lead, [figure])


def _classes(report: RunReport) -> Section:
    """Confusion matrix, and classes by the number of errors that they take part in."""
    names = report.data.classes
    counts, order = tables.confusion_counts(report.diagnosis.confusion, len(names))
    errors = plural(int(counts.sum() - counts.trace()), "error")
    summary = f"{errors} on {report.measured.n:,} {report.rows_in_words}."
    few = len(names) <= _SHOWN_CLASSES
    figure = Figure(
        "confusion",
        "Confusion matrix" if few else f"The {_SHOWN_CLASSES} most confused classes",
        summary,
        figures.confusion_matrix(counts, names, np.sort(order[:_SHOWN_CLASSES])),
        tables.class_table(report.diagnosis.confusion, names),
        "" if few else "Rows of these classes predicted as other classes are not drawn here.",
    )
    return Section("classes", "Errors by class", [], [figure])


def _calibration(report: RunReport) -> Section:
    """Whether probabilities are calibrated."""
    bins, own = report.diagnosis.calibration, report.measured
    confidence = sum(row.count * row.confidence for row in bins) / own.n
    gap = confidence - own.accuracy.value
    side = "over-confident" if gap > 0 else "under-confident"
    summary = (
        f"Expected calibration error {100 * own.ece.value:.1f} points (95% interval "
        f"{interval(own.ece.low, own.ece.high)}) on {own.n:,} {report.rows_in_words}; on average "
        f"{side} by {100 * abs(gap):.1f} points. Log loss {own.log_loss.value:.3f}."
    )
    note = "On the dashed line confidence equals accuracy. Bars are 95% intervals."
    chart, table = figures.reliability(bins), tables.calibration_table(bins)
    figure = Figure("calibration", "Accuracy by confidence", summary, chart, table, note)
    return Section("calibration", "Are its probabilities calibrated?", [], [figure])


def _abstention(report: RunReport) -> Section | None:
    """Which share of the texts goes to a person."""
    own = report.abstention
    if own is None:
        return None
    lead = [tables.abstention_sentence(own.shown)]
    if own.rule.target_accuracy is not None:
        lead.append(
            f"Target: {percent(own.rule.target_accuracy)} of the others right, with 95% "
            "confidence. A text goes to a person below a probability of "
            f"{min(1.0, own.rule.threshold):.3f}."
        )
    if own.rule.coverage is not None:
        lead.append(
            f"Sets of labels, made to hold the right one for {percent(own.rule.coverage)} of "
            f"texts: labels with a probability of at least {own.rule.label_threshold:.3f}. A text "
            "goes to a person where the set is not one label."
        )
    lead.append("Both hold for texts that come as the training texts did.")
    table = tables.abstention_table(own)
    return Section("abstention", "Unsure texts", lead, [], [table])


def _learning_curve(result: CurveResult | None) -> Section | None:
    """The learning curve, where the folder holds one."""
    if result is None:
        return None
    curve = result.curve
    chart, table = figures.learning_curves(curve.points), tables.curve_table(curve, result.rows)
    title = "Accuracy by number of labels"
    figure = Figure("learning", title, sentence_case(result.verdict), chart, table)
    return Section("labels", "Learning curve", [], [figure])


def _hardest(report: RunReport) -> Section:
    """Training texts that models which had not seen them got most wrong."""
    found = report.diagnosis.hardest
    lead = (
        f"Of {plural(found.n, 'training row')}, {found.wrong:,} are predicted wrongly by models "
        f"that had not seen them. In {found.suspects:,} of these another class is predicted with "
        "typical confidence: check their labels first."
    )
    per_class = (
        "Typical of a class are the texts nearest to the mean of those that are predicted rightly, "
        "in the fused space; doubtful are those with the least probability of their label."
    )
    found_tables = [
        tables.hardest_table(found),
        tables.class_text_table(report.diagnosis.class_texts),
    ]
    title = "Hardest and likely mislabeled texts"
    return Section("texts", title, [lead, per_class], [], found_tables)


def _data(report: RunReport) -> Section:
    """The audit, test rows that training rows give away, and what the run noted."""
    data, audit, near = report.data, report.data.audit, report.data.near_duplicates
    lead, found = [], [tables.audit_table(audit)]
    if data.columns.texts:
        lead.append(f"{sentence_case(data.columns.sentence)}.")
    if near is not None and audit.test_name is not None:
        rows, leaks = audit.splits[audit.test_name].rows, audit.leaks.count
        lead.append(
            f"{plural(leaks, 'test row')} repeated exactly in train, {plural(near.count, 'row')} "
            f"nearly (at least {percent(near.threshold, 0)} of words and word pairs shared), "
            f"together {percent((near.count + leaks) / max(1, rows))} of {rows:,}; "
            f"{near.conflicts:,} of the near-duplicates have conflicting labels."
        )
        found += [tables.near_table(near)] if near.pairs else []
    if audit.small_classes:
        few = ", ".join(f"{name} ({count})" for name, count in audit.small_classes.items())
        lead.append(f"Classes with fewer than 5 training rows: {few}.")
    if audit.untested_classes:
        lead.append(f"Classes without a test row: {', '.join(audit.untested_classes)}.")
    if data.learned_rows != data.train_rows:
        lead.append(f"{data.learned_rows:,} of {data.train_rows:,} training rows were used.")
    if data.truncated_share:
        lead.append(
            f"{percent(data.truncated_share)} of the training texts were truncated: they are "
            "longer than an encoder reads."
        )
    if report.notes:
        notes = [(note,) for note in report.notes]
        found.append(Table("Notes of the run", ("note",), notes, open_rows=6))
    return Section("data", "The data, and what was noted", lead, [], found)


def _runtime(report: RunReport) -> Section:
    """Seconds, milliseconds and bytes."""
    used, peak = report.cost.pipeline, report.environment.peak_memory_mb
    lead = (
        f"What ships holds {used.parameters / 1e6:.1f} M parameters ({used.memory_mb:.0f} MB) and "
        f"takes {used.ms_per_text:.2f} ms/text on this machine."
        + ("" if peak is None else f" The run's memory peaked at {peak / 1e3:.1f} GB.")
    )
    found = [tables.time_table(report), tables.encoder_table(report)]
    return Section("resources", "Runtime", [lead], [], found)


def _usage(report: RunReport) -> Section:
    """Code to copy."""
    bundle = f"{report.run}/bundle"
    code = {
        "Python": "import layerfuse\n\n"
        f"classifier = layerfuse.load({bundle!r})\n"
        'classifier.predict(["a text"])\n'
        'classifier.predict_proba(["a text"])  # columns: classifier.classes_',
        "Command line": f"layerfuse predict {shlex.quote(bundle)} new.csv\n"
        f"layerfuse evaluate {shlex.quote(bundle)} labeled.csv",
    }
    lead = (
        "The bundle holds tensors, JSON and a model card, and no code. Encoders are loaded cut "
        "above the highest layer in use. Paths are as they were given where the run was made."
    )
    return Section("use", "How to use it", [lead], code=code)


def _provenance(report: RunReport) -> Section:
    """Versions, hardware, settings, seed, fingerprints."""
    found = [
        tables.machine_table(report),
        tables.settings_table(report.settings),
    ]
    return Section("provenance", "Provenance", [], [], found)
