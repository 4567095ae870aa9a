"""A run as one HTML file that needs nothing else; sections follow a reader's questions.

Needs the extra ``report``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from layerfuse._version import __version__
from layerfuse.files import atomic_write
from layerfuse.report import figures, tables
from layerfuse.report.figures import DRAWING, THEMES, Chart, save_chart, vega_spec
from layerfuse.report.results import CurveResult
from layerfuse.report.run_report import RunReport
from layerfuse.report.tables import (
    Table,
    baseline_name,
    interval,
    percent,
    plural,
    points,
    points_interval,
    sentence_case,
)

_SNIPPET = "window.vegaEmbed = vegaEmbed;"  # what the bundle of vl-convert hands to the page
_SHOWN_CLASSES = 12  # in the confusion matrix that stands open


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
    """One question of a reader: paragraphs, figures and tables."""

    id: str
    title: str
    lead: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


def write_page(
    report: RunReport, curve: CurveResult | None, path: Path, folder: Path | None = None
) -> list[Path]:
    """Write the page to ``path``, and its figures into ``folder`` if there is one; return these."""
    saved = []
    with DRAWING:  # several threads may write pages at once
        found = (
            *(_verdict(report), _selected(report), _layers(report), _cost(report)),
            *(_classes(report), _calibration(report), _abstention(report)),
            *(_learning_curve(curve), _hardest(report), _data(report), _provenance(report)),
        )
        sections = [section for section in found if section is not None]
        drawn = [figure for section in sections for figure in section.figures]
        charts = {
            figure.id: vega_spec(figure.chart)
            | {"description": f"{figure.title}. {figure.summary}"}  # what screen readers say
            for figure in drawn
        }
        if folder is not None:
            saved = [
                save_chart(figure.chart, folder / f"{figure.id}{ending}")
                for figure in drawn
                for ending in (".svg", ".png")
            ]
    script = _bundle() + _asset("page.js")
    templates = Environment(
        loader=PackageLoader("layerfuse.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (interval, percent, points, points_interval, sentence_case)
    templates.filters |= {function.__name__: function for function in filters}
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    html = templates.get_template("page.html").render(
        report=report,
        version=__version__,
        sections=sections,
        css=Markup(_asset("page.css")),  # noqa: S704  # from this package
        script=Markup(script),  # noqa: S704  # from this package and vl-convert
        policy=_policy_of(script),
        data={"charts": charts, "themes": THEMES},
    )
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return saved


def _policy_of(script: str) -> str:
    """A content security policy: only this script may run, and nothing may be fetched."""
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (files("layerfuse.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script; none of it may end the script element."""
    script: str = vl_convert.javascript_bundle(_SNIPPET, vl_version=figures.vega_lite_version())
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _verdict(report: RunReport) -> Section:
    """Whether it was worth it, against every baseline."""
    gains = tables.gains_of(report.baselines, report.verdict.rows)
    better = ", ".join(name for name, gain in gains.items() if gain.low > 0)
    worse = ", ".join(name for name, gain in gains.items() if gain.high < 0)
    found = [f"significantly better than {better}"] if better else []
    found += [f"significantly worse than {worse}"] if worse else []
    summary = (
        f"The pipeline's {report.verdict.metric} minus that of each baseline on the same "
        f"{report.rows_in_words}. "
        + (f"It is {', and '.join(found)}." if found else "No difference is significant.")
    )
    note = (
        "An interval that crosses the dashed line means that no difference is shown on these rows. "
        "Selection saw training rows only."
    )
    chart, table = (
        figures.gain_intervals(gains, report.verdict.metric),
        tables.accuracy_table(report),
    )
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
        top = encoder.cost.n_layers
        cut = top - max(own, default=0)
        rest = f"; the {plural(cut, 'layer')} above are not loaded" if cut else ""
        numbers = ", ".join(map(str, own))
        name = "layer" if len(own) == 1 else "layers"
        used = f"{name} {numbers} (there are 0 to {top}){rest}" if own else "not used"
        lead.append(f"{encoder.name}: {used}.")
    if selection.reason:
        lead.append(f"{selection.reason}.")
    if selection.method == "greedy":
        lead.append(
            "Blocks are added while the leave-one-out loss falls by more than a standard error."
        )
    lead.append(
        "Accuracy is nested cross-validation on training rows, selection run anew in each fold; "
        "steps before the last are concatenated with a ridge head."
    )
    below = [tables.selection_table(report)]
    if selection.trials:
        below.append(tables.trials_table(report))
    return Section("chosen", "What was selected", lead, tables=below)


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


def _cost(report: RunReport) -> Section:
    """Accuracy against time, memory and dimensions."""
    front = ", ".join(baseline_name(row.name) for row in report.pareto if row.on_front)
    summary = f"Nothing beats these in accuracy and cost at once: {front}."
    explained = (
        "Nested accuracy on training rows against the time to read one text on this machine, in "
        "batches (fused dimensions where all take about the same time). No pipeline beats a filled "
        "point in accuracy, time, memory and dimensions at once; the diamond is the one saved. "
        "Hover or tap a point for its blocks."
    )
    lead = [explained]
    measured, ratio = report.cost, report.cost.time_ratio
    if ratio is not None:
        lead.append(
            f"Times were measured in turn on the same {plural(measured.n_texts, 'text')}, "
            f"{plural(measured.n_rounds, 'round')}: the pipeline takes {ratio.value:.1f} times the "
            f"last layer's ({ratio.low:.1f} to {ratio.high:.1f})."
        )
    chart, table = figures.pareto(report.pareto, report.verdict.metric), tables.cost_table(report)
    figure = Figure("pareto", "Accuracy against cost", summary, chart, table)
    return Section("cost", "What it costs", lead, [figure], [tables.encoder_table(report)])


def _classes(report: RunReport) -> Section:
    """Confusion matrix, and classes by the number of errors that they take part in."""
    if report.diagnosis.labels:
        lead = (
            f"Recall, precision and F1 of each label on {report.measured.n:,} "
            f"{report.rows_in_words}. A text has a label from the label's threshold on, which has "
            "the highest F1 on training rows, out of fold."
        )
        table = tables.label_table(report.diagnosis.labels)
        return Section("classes", "Errors by label", [lead], tables=[table])
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
    return Section("classes", "Errors by class", figures=[figure])


def _calibration(report: RunReport) -> Section:
    """Whether probabilities are calibrated."""
    bins, own = report.diagnosis.calibration, report.measured
    total = sum(row.count for row in bins)
    gap = sum(row.count * (row.confidence - row.accuracy.value) for row in bins) / total
    side = "over-confident" if gap > 0 else "under-confident"
    summary = (
        f"Expected calibration error {100 * own.ece.value:.1f} points (95% interval "
        f"{interval(own.ece.low, own.ece.high)}) on {own.n:,} {report.rows_in_words}; on average "
        f"{side} by {100 * abs(gap):.1f} points. Log loss {own.log_loss.value:.3f}."
    )
    note = "On the dashed line confidence equals accuracy. Bars are 95% intervals."
    chart, table = figures.reliability(bins), tables.calibration_table(bins)
    figure = Figure("calibration", "Accuracy by confidence", summary, chart, table, note)
    return Section("calibration", "Are its probabilities calibrated?", figures=[figure])


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
    return Section("abstention", "Unsure texts", lead, tables=[table])


def _learning_curve(result: CurveResult | None) -> Section | None:
    """The learning curve, where the folder holds one."""
    if result is None:
        return None
    curve = result.curve
    chart, table = (
        figures.learning_curves(curve.points, curve.metric),
        tables.curve_table(curve, result.rows),
    )
    title = f"{sentence_case(curve.metric)} by number of labels"
    figure = Figure("learning", title, sentence_case(result.verdict), chart, table)
    return Section("labels", "Learning curve", figures=[figure])


def _hardest(report: RunReport) -> Section:
    """Training texts that models which had not seen them got most wrong."""
    found = report.diagnosis.hardest
    lead = (
        f"Of {plural(found.n, 'training row')}, {found.wrong:,} are predicted wrongly by models "
        f"that had not seen them. In {found.suspects:,} of these another class is predicted with "
        "typical confidence: check their labels first."
    )
    per_class = (
        "Typical of a class are the texts nearest to the mean of those predicted correctly, "
        "in the fused space; doubtful are those with the least probability of their label."
    )
    shown = [
        tables.hardest_table(found),
        tables.class_text_table(report.diagnosis.class_texts),
    ]
    return Section("texts", "Hardest and likely mislabeled texts", [lead, per_class], tables=shown)


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
    lead += [f"{sentence_case(note)}." for note in tables.audit_notes(audit)]
    found += [tables.seeds_table(report.seeds, report.verdict.metric)] if report.seeds else []
    if data.learned_rows != data.train_rows:
        lead.append(f"{data.learned_rows:,} of {data.train_rows:,} training rows were used.")
    if data.truncated_share:
        lead.append(
            f"{percent(data.truncated_share)} of the training texts were cut, as they are longer "
            f"than an encoder reads; {percent(data.read_share)} of all tokens were read."
        )
    if report.notes:
        notes = [(note,) for note in report.notes]
        found.append(Table("Notes of the run", ("note",), notes, open_rows=6))
    return Section("data", "The data, and what was noted", lead, tables=found)


def _provenance(report: RunReport) -> Section:
    """Versions, hardware, settings, seed, fingerprints."""
    found = [tables.machine_table(report), tables.settings_table(report.settings)]
    return Section("provenance", "Provenance", tables=found)
