"""What the page says: its sections, each from the run report, in the order of a reader's questions.

Needs the extra ``report``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerfuse.config import FitConfig
from layerfuse.data.audit import SplitAudit
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.report import figures
from layerfuse.report.formats import (
    baseline_name,
    interval,
    percent,
    plural,
    points,
    points_interval,
)
from layerfuse.report.results import CurveResult
from layerfuse.report.run_report import RunReport

if TYPE_CHECKING:
    from layerfuse.report.theme import Chart


_SHOWN_CLASSES = 12  # in the confusion matrix that stands open
_MOST_CLASSES = 120  # above, the whole matrix would be no picture
_SAME = 1.05  # times that differ by less than this factor tell nothing apart

Ints = npt.NDArray[np.intp]
Cells = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Cells are texts; ``numeric`` columns are set to the right, ``wide`` ones hold running text.

    Rows above ``open_rows`` are folded away, ``strong`` ones are bold.
    """

    caption: str
    head: tuple[str, ...]
    rows: Cells
    numeric: Sequence[int] = ()
    wide: Sequence[int] = ()
    open_rows: int = 12
    strong: Sequence[int] = ()


@dataclass(frozen=True)
class Figure:
    """A chart with its title, what it shows in words, and the numbers behind it.

    ``folded`` charts are drawn when they are opened.
    """

    id: str
    title: str
    summary: str
    chart: Chart
    table: Table | None = None
    note: str = ""
    folded: bool = False


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
        _path(report),
        _pairs(report),
        _cost(report),
        _classes(report),
        _calibration(report),
        _learning_curve(curve),
        _hardest(report),
        _duplicates(report),
        _data(report),
        _runtime(report),
        _usage(report),
        _provenance(report),
    )
    return [section for section in found if section is not None]


def _estimate(own: Estimate) -> tuple[str, str]:
    """Cells of a share and of its interval."""
    return percent(own.value), interval(own.low, own.high)


def _gain(gain: PairedDifference) -> tuple[str, str]:
    """Cells of a difference and of its interval."""
    return points(gain.difference), points_interval(gain.low, gain.high)


def _verdict(report: RunReport) -> Section:
    """Whether it was worth it, against every baseline."""
    gains, cells = [], []
    for baseline in report.baselines:
        if baseline.is_step:
            continue
        name, score = baseline_name(baseline.name, baseline.encoder), report.score(baseline)
        gain = score.gain
        if baseline.name != "majority":
            gains.append(figures.GainPoint(name, gain.difference, gain.low, gain.high))
        cells.append(
            (
                name,
                *_estimate(score.accuracy),
                percent(score.macro_f1),
                *_gain(gain),
            )
        )
    own = report.measured
    name = f"layerfuse ({plural(len(report.selection.blocks), 'block')})"
    cells.append((name, *_estimate(own.accuracy), percent(own.macro_f1.value), "", ""))
    better = ", ".join(gain.name for gain in gains if gain.low > 0) or "none of them"
    worse = ", ".join(gain.name for gain in gains if gain.high < 0)
    summary = (
        f"The pipeline's accuracy minus that of {plural(len(gains), 'baseline')} on the same "
        f"{report.rows_in_words}. It is significantly better than {better}"
        + (f", and significantly worse than {worse}." if worse else ".")
    )
    table = Table(
        f"Accuracy on {own.n:,} {report.rows_in_words}",
        ("pipeline", "accuracy", "95% interval", "macro-F1", "gain, points", "95% interval"),
        cells,
        range(1, 6),
        strong=[len(cells) - 1],
    )
    note = (
        "An interval that crosses the dashed line means that no difference is shown on these rows. "
        "Selection saw training rows only."
    )
    chart = figures.gain_intervals(gains)
    figure = Figure("gains", "Gain over baselines", summary, chart, table, note)
    return Section("worth", "Was it worth it?", figures=[figure])


def _selected(report: RunReport) -> Section:
    """The selected blocks on each encoder's stack of layers."""
    stack, sentences = [], []
    selection = report.selection
    for encoder in report.encoders:
        own = [
            (place, block)
            for place, block in enumerate(selection.blocks, 1)
            if block.encoder == encoder.name
        ]
        top = max((block.layer for _, block in own), default=-1)
        for layer in range(encoder.layers + 1):
            here = [(place, block) for place, block in own if block.layer == layer]
            state = "selected" if here else "computed" if layer <= top else "not loaded"
            poolings = ", ".join(block.pooling for _, block in here) or "–"
            places = ", ".join(str(place) for place, _ in here)
            stack.append(figures.StackPoint(encoder.name, layer, state, poolings, places))
        cut = encoder.layers - top
        rest = f"; the {plural(cut, 'layer')} above are cut off" if cut else ""
        numbers = ", ".join(map(str, sorted({block.layer for _, block in own})))
        sentences.append(
            f"{encoder.name}: layers {numbers} of 0 to {encoder.layers}{rest}."
            if own
            else f"{encoder.name}: not used."
        )
    trials = {(trial.fusion, trial.head) for trial in selection.trials}
    compared = f"; compared with {plural(len(trials), 'alternative')}" if trials else ""
    lead = (
        f"{plural(len(selection.blocks), 'block')} (encoder, layer, pooling) by {selection.method} "
        f"selection; {selection.fusion} fusion, {selection.head} head{compared}."
    )
    table = Table(
        "Selected blocks, in order",
        ("order", "block", "gain in leave-one-out loss"),
        [
            (str(place), str(block), f"{gain:.4f}")
            for place, (block, gain) in enumerate(
                zip(selection.blocks, selection.gains, strict=True), 1
            )
        ],
        (0, 2),
    )
    figure = Figure(
        "stacks",
        "Layers in use",
        " ".join(sentences),
        figures.layer_stacks(stack),
        table,
        "Strong color: selected, with its place in the order of selection. Pale: computed but "
        "unused. Grey: not loaded.",
    )
    return Section("chosen", "What was selected", [lead], [figure])


def _layers(report: RunReport) -> Section:
    """One figure for each encoder, all on one scale."""
    selected = set(report.selection.blocks)
    found = []
    for number, (encoder, chart) in enumerate(
        figures.encoder_curves(report.profile, selected).items()
    ):
        own = report.profile.of(encoder)
        best, last = max(own, key=lambda score: score.accuracy), own.last(encoder)
        summary = (
            f"Best is layer {best.block.layer} with {best.block.pooling} pooling, "
            f"{percent(best.accuracy)}; the last layer reaches {percent(last.accuracy)} "
            f"({last.block.pooling})."
        )
        cells = [
            (
                score.block.pooling,
                str(score.block.layer),
                percent(score.accuracy),
                f"± {100 * score.accuracy_se:.1f}",
                percent(score.macro_f1),
                f"{score.loss:.4f}",
                "yes" if score.block in selected else "",
            )
            for score in own
        ]
        head = ("pooling", "layer", "accuracy", "standard error", "macro-F1", "loss", "selected")
        table = Table(f"Layers of {encoder}", head, cells, range(1, 6), open_rows=400)
        found.append(Figure(f"curve-{number}", encoder, summary, chart, table))
    lead = (
        "Each layer alone: leave-one-out accuracy of a linear probe on training rows, with 95% "
        "bands. Diamonds are selected blocks, squares the last layer. Selection goes by loss and "
        "by what blocks add to each other, so the selected ones need not be the highest."
    )
    return Section("layers", "How good each layer is", [lead], found)


def _path(report: RunReport) -> Section:
    """Accuracy and gain after each added block."""
    selection, cells, path = report.selection, [], []
    steps = {len(item.blocks): item.cv.accuracy for item in report.baselines if item.is_step}
    steps[len(selection.blocks)] = report.cv.accuracy
    for step, (block, gain) in enumerate(zip(selection.blocks, selection.gains, strict=True), 1):
        own = steps.get(step)
        if own is not None:
            ships = step == len(selection.blocks)
            path.append(
                figures.PathPoint(step, str(block), own.value, own.low, own.high, gain, ships)
            )
        accuracy = ("–", "–") if own is None else _estimate(own)
        cells.append((str(step), str(block), f"{gain:.4f}", *accuracy))
    summary = (
        f"Nested accuracy goes from {percent(path[0].value)} with {plural(path[0].step, 'block')} "
        f"to {percent(path[-1].value)} with {path[-1].step}."
        if len(path) > 1
        else f"One block, {selection.blocks[0]}; no other was worth adding."
    )
    head = ("step", "added block", "gain in loss", "nested accuracy", "95% interval")
    tables = [Table("Gain of each added block", head, cells, (0, 2, 3, 4))]
    if selection.trials:
        tables.append(_trials(report))
    lead = (
        "Blocks are added one by one while the leave-one-out loss falls by more than a standard "
        "error. Accuracy here is nested cross-validation on training rows: selection is run anew "
        f"in each fold. The diamond is what ships ({selection.fusion} fusion, {selection.head} "
        "head); steps before it are concatenated with a ridge head."
    )
    figure = Figure("path", "Added block by block", summary, figures.selection_path(path))
    return Section("path", "Fusion and selection path", [lead], [figure], tables)


def _trials(report: RunReport) -> Table:
    last = {(trial.fusion, trial.head): trial for trial in report.selection.trials}
    cells = [
        (own.fusion, own.head, f"{own.n_rows:,}", f"{own.gain:+.4f}", f"± {own.gain_se:.4f}")
        for own in sorted(last.values(), key=lambda trial: -trial.gain)
    ]
    head = ("fusion", "head", "rows", "gain in Brier score", "standard error")
    caption = "Other fusions and heads, against concatenation with a ridge head"
    return Table(caption, head, cells, (2, 3, 4), open_rows=6)


def _pairs(report: RunReport) -> Section | None:
    """Which blocks make different errors."""
    measured = report.diagnosis.complementarity
    pairs = sorted(measured.pairs, key=lambda pair: -pair.disagreement)
    if not pairs:
        return None
    tiles, cells = [], []
    for pair in pairs:
        detail = (
            f"fused {points(pair.gain.difference)} points, CKA {pair.cka:.2f}, "
            f"either right {percent(pair.oracle_accuracy)}"
        )
        for a, b in ((pair.a, pair.b), (pair.b, pair.a)):
            tiles.append(figures.PairPoint(str(a), str(b), 100 * pair.disagreement, detail))
        cells.append(
            (
                str(pair.a),
                str(pair.b),
                percent(pair.disagreement),
                f"{pair.cka:.2f}",
                f"{pair.yules_q:.2f}",
                percent(pair.double_fault),
                percent(pair.oracle_accuracy),
                *_gain(pair.gain),
            )
        )
    summary = (
        f"Of {plural(len(pairs), 'pair')}, {pairs[0].a} and {pairs[0].b} differ most: on "
        f"{percent(pairs[0].disagreement)} of the rows exactly one of them is right."
    )
    names = ("block", "with", "one right", "CKA", "Yule's Q", "both wrong", "either right")
    head = (*names, "gain fused, points", "95% interval")
    table = Table("Pairs of blocks", head, cells, range(2, 9), open_rows=100)
    chart = figures.heat_map(
        tiles, list(map(str, measured.blocks)), measure="one right, % of rows", number=".1f"
    )
    lead = (
        "Blocks that make different errors combine well. Measured by leave-one-out on "
        f"{plural(measured.n, 'training row')}, for the selected blocks and each encoder's best "
        "and last layer."
    )
    title = "Share of rows that exactly one of two gets right"
    figure = Figure("pairs", title, summary, chart, table)
    return Section("complementarity", "Which blocks complement each other", [lead], [figure])


def _cost(report: RunReport) -> Section:
    """Accuracy against time, memory and dimensions."""
    dots, cells = [], []
    for row in report.pareto:
        name, cost, own = baseline_name(row.name), row.cost, row.accuracy
        dots.append(
            figures.ParetoPoint(
                name,
                ", ".join(map(str, row.blocks)),
                *(own.value, own.low, own.high),
                *(cost.ms_per_text, cost.memory_mb, cost.dims),
                front=row.on_front,
                ships=row.name == "pipeline",
            )
        )
        numbers = (f"{cost.ms_per_text:.2f}", f"{cost.memory_mb:.0f}", f"{cost.dims:,}")
        cells.append((name, *_estimate(own), *numbers, "yes" if row.on_front else ""))
    by_time = max(dot.ms for dot in dots) > _SAME * min(dot.ms for dot in dots)
    front = ", ".join(dot.name for dot in dots if dot.front)
    summary = f"Nothing beats these in accuracy and cost at once: {front}."
    head = ("pipeline", "accuracy", "95% interval", "ms/text", "MB", "dimensions", "on the front")
    across = (
        "the time to read one text on this machine, in batches"
        if by_time
        else "the dimensions that are fused, as all of these take about the same time"
    )
    measured, ratio = report.cost, report.cost.time_ratio
    side_by_side = (
        ""
        if ratio is None
        else (
            f" Times were measured in turn on the same {plural(measured.n_texts, 'text')}, "
            f"{plural(measured.n_rounds, 'round')}: the pipeline takes {ratio.value:.1f} times the "
            f"last layer's ({ratio.low:.1f} to {ratio.high:.1f})."
        )
    )
    lead = (
        f"Nested accuracy on training rows against {across}. The dashed line joins the best for "
        "each cost; filled points are beaten by none in accuracy, time, memory and dimensions at "
        f"once. Hover or tap a point for its blocks.{side_by_side}"
    )
    chart = figures.pareto(dots, by="ms" if by_time else "dims")
    table = Table("Accuracy and cost", head, cells, range(1, 6))
    figure = Figure("pareto", "Accuracy against cost", summary, chart, table)
    return Section("cost", "What it costs", [lead], [figure])


def _classes(report: RunReport) -> Section:
    """Confusion matrix, and classes by the number of errors that they take part in."""
    names = report.data.classes
    counts = np.zeros((len(names), len(names)), dtype=np.intp)
    for cell in report.diagnosis.confusion:
        counts[cell.truth, cell.predicted] = cell.count
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-(errors.sum(axis=0) + errors.sum(axis=1)), kind="stable")
    ranked = np.argsort(-errors, axis=None, kind="stable")[:8]
    places = np.stack(np.unravel_index(ranked, errors.shape), axis=1).tolist()
    confused = [(t, p) for t, p in places if errors[t, p]]
    often = "; ".join(
        f"{names[t]} predicted as {names[p]} ({errors[t, p]})" for t, p in confused[:3]
    )
    summary = (
        f"{plural(int(errors.sum()), 'error')} on {report.measured.n:,} {report.rows_in_words}."
    )
    worst = Table(
        "Most frequent confusions",
        ("true class", "predicted as", "rows", "of the true class"),
        [
            (names[t], names[p], str(errors[t, p]), percent(errors[t, p] / counts[t].sum()))
            for t, p in confused
        ],
        (2, 3),
    )
    few = len(names) <= _SHOWN_CLASSES
    shown = np.sort(order[:_SHOWN_CLASSES])
    drawn = [
        Figure(
            "confusion",
            "Confusion matrix" if few else f"The {_SHOWN_CLASSES} most confused classes",
            f"{summary} Most often: {often}." if often else summary,
            figures.confusion_matrix(
                _matrix_cells(counts, names, shown, empty=True), [names[place] for place in shown]
            ),
            worst,
            "" if few else "Rows of these classes predicted as other classes are not drawn here.",
        )
    ]
    if not few and len(names) <= _MOST_CLASSES:
        cells = _matrix_cells(counts, names, np.arange(len(names)), empty=False)
        chart = figures.confusion_matrix(cells, names, numbers=False)
        text = f"All {len(names)} classes; a full diagonal would be perfect."
        drawn.append(Figure("confusion-all", "All classes", text, chart, folded=True))
    tables = [_class_table(counts, errors, names, order)]
    return Section("classes", "Errors by class", [], drawn, tables)


def _matrix_cells(
    counts: Ints, names: Sequence[str], shown: Ints, *, empty: bool
) -> list[figures.CellPoint]:
    """Cells of some classes, the ``empty`` ones too or not."""
    return [
        figures.CellPoint(
            names[t], names[p], int(counts[t, p]), float(counts[t, p] / max(1, counts[t].sum()))
        )
        for t in shown
        for p in shown
        if empty or counts[t, p]
    ]


def _class_table(counts: Ints, errors: Ints, names: Sequence[str], order: Ints) -> Table:
    cells = []
    for label in order:
        own, given = int(counts[label].sum()), int(counts[:, label].sum())
        hits, other = int(counts[label, label]), int(errors[label].argmax())
        cells.append(
            (
                names[label],
                f"{own:,}",
                percent(hits / own if own else None),
                percent(hits / given if given else None),
                percent(2 * hits / (own + given) if own + given else None),
                str(own - hits),
                str(given - hits),
                names[other] if errors[label, other] else "–",
            )
        )
    measures = ("rows", "recall", "precision", "F1", "missed", "false alarms")
    head = ("class", *measures, "most often predicted as")
    return Table("Classes, those with most errors first", head, cells, range(1, 7))


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
    dots, cells = [], []
    for row in bins:
        share = row.accuracy
        span = (share.value, share.low, share.high)
        dots.append(figures.BinPoint(row.confidence, *span, row.count))
        edges = f"{interval(row.low, row.high, 0)}%"
        cells.append((edges, f"{row.count:,}", percent(row.confidence), *_estimate(share)))
    head = ("confidence", "rows", "mean confidence", "accuracy", "95% interval")
    figure = Figure(
        "calibration",
        "Accuracy by confidence",
        summary,
        figures.reliability(dots),
        Table("Calibration by bin", head, cells, range(1, 5)),
        "On the dashed line confidence equals accuracy. Bars are 95% intervals.",
    )
    return Section("calibration", "Are its probabilities calibrated?", [], [figure])


def _learning_curve(result: CurveResult | None) -> Section | None:
    """The learning curve, where the folder holds one."""
    if result is None:
        return None
    found = result.curve.points
    lines = [
        figures.CurvePoint(name, point.n_rows, own.value, own.low, own.high)
        for name in ("fusion", "best block", "last layer")
        for point in found
        for own in (getattr(point, name.replace(" ", "_")),)
    ]
    cells = [
        (
            f"{point.n_rows:,}",
            *(percent(own.value) for own in (point.last_layer, point.best_block, point.fusion)),
            *(points(point.gain.value), points_interval(point.gain.low, point.gain.high)),
        )
        for point in found
    ]
    head = ("labels", "last layer", "best block", "fusion", "gain, points", "95% interval")
    title = "Accuracy by number of labels"
    table = Table(title, head, cells, range(6))
    figure = Figure("learning", title, result.verdict, figures.learning_curves(lines), table)
    return Section("labels", "Learning curve", [], [figure])


def _hardest(report: RunReport) -> Section:
    """Training texts that models which had not seen them got most wrong."""
    found = report.diagnosis.hardest
    cells = [
        (
            str(text.row),
            text.label,
            f"{text.predicted} ({percent(text.confidence, 0)})",
            percent(text.label_probability) if text.label_probability >= 0.001 else "< 0.1%",
            "check the label" if text.suspect else "",
            text.text,
        )
        for text in found.texts
    ]
    lead = (
        f"Of {plural(found.n, 'training row')}, {found.wrong:,} are predicted wrongly by models "
        f"that had not seen them. In {found.suspects:,} of these another class is predicted with "
        "typical confidence: check their labels first."
    )
    head = ("row", "label", "predicted as", "its label's probability", "", "text")
    caption = "Hardest texts (rows of train, counted from 0)"
    table = Table(caption, head, cells, (0, 3), wide=(5,), open_rows=8)
    return Section("texts", "Hardest and likely mislabelled texts", [lead], [], [table])


def _duplicates(report: RunReport) -> Section:
    """Test rows that training rows give away."""
    title = "Near-duplicates across train and test"
    near, audit = report.data.near_duplicates, report.data.audit
    if near is None or audit.test_name is None:
        lead = "No test split, so near-duplicates across train and test were not searched."
        return Section("duplicates", title, [lead])
    rows, leaks = audit.splits[audit.test_name].rows, audit.leaks.count
    lead = (
        f"{plural(leaks, 'test row')} repeated exactly in train, {plural(near.count, 'row')} "
        f"nearly (at least {percent(near.threshold, 0)} of words and word pairs shared), together "
        f"{percent((near.count + leaks) / max(1, rows))} of {rows:,}. "
        f"{plural(near.conflicts, 'near-duplicate has', 'near-duplicates have')} conflicting "
        "labels."
    )
    cells = [
        (
            f"{pair.test_row} / {pair.train_row}",
            percent(pair.similarity, 0),
            " / ".join(dict.fromkeys((pair.test_label, pair.train_label))),
            pair.test_text,
        )
        for pair in near.pairs
    ]
    head = ("test / train row", "similarity", "label", "test text")
    caption = "Pairs, those with conflicting labels first"
    tables = [Table(caption, head, cells, (1,), wide=(3,), open_rows=4)] if cells else []
    return Section("duplicates", title, [lead], [], tables)


def _data(report: RunReport) -> Section:
    """The audit, and what the run noted."""
    data, audit = report.data, report.data.audit
    splits = list(audit.splits.values())
    cells = [
        ("rows", *(f"{split.rows:,}" for split in splits)),
        ("classes", *(str(len(split.classes)) for split in splits)),
        ("largest class", *map(_largest, splits)),
        ("empty texts", *(f"{split.empty.count:,}" for split in splits)),
        ("repeated texts", *(f"{split.duplicates.count:,}" for split in splits)),
        ("texts with conflicting labels", *(f"{split.conflicts:,}" for split in splits)),
        ("texts over 2,000 characters", *(f"{split.over_long.count:,}" for split in splits)),
    ]
    tables = [Table("Splits", ("", *audit.splits), cells, range(1, len(splits) + 1))]
    if report.notes:
        notes = [(note,) for note in report.notes]
        tables.append(Table("Notes of the run", ("note",), notes, open_rows=6))
    lead = []
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
    return Section("data", "The data", lead, [], tables)


def _largest(split: SplitAudit) -> str:
    name, count = next(iter(split.classes.items()), ("–", 0))
    return f"{name} ({percent(count / max(1, split.rows), 0)})"


def _runtime(report: RunReport) -> Section:
    """Seconds, milliseconds and bytes."""
    times, used = report.timings, report.cost.pipeline
    steps = {
        "extracting embeddings": times.extract_s,
        "scoring blocks": times.score_s,
        "selection and nested resampling": times.search_s,
        "training the head": times.head_s,
        "baselines": times.baselines_s,
        "timing pipelines side by side": times.latency_s,
        "total": times.total_s,
    }
    cells = [(name, f"{seconds:.1f}") for name, seconds in steps.items() if seconds]
    caption = "Time of the run, seconds"
    last = [len(cells) - 1]
    tables = [Table(caption, ("step", "seconds"), cells, (1,), strong=last)]
    encoders = [
        (
            cost.encoder,
            str(cost.n_layers),
            f"{cost.parameters[-1] / 1e6:.1f} M",
            f"{cost.memory_mb_at(cost.n_layers):.0f}",
            f"{cost.ms_at(cost.n_layers):.2f}",
            f"{cost.tokens_per_text:.0f}",
            f"{cost.device}, {cost.dtype}",
        )
        for cost in (encoder.cost for encoder in report.encoders)
    ]
    head = ("encoder", "layers", "parameters", "MB", "ms/text", "tokens/text", "device")
    tables.append(Table("Encoders in full", head, encoders, range(1, 6)))
    peak = report.environment.peak_memory_mb
    lead = (
        f"What ships holds {used.parameters / 1e6:.1f} M parameters ({used.memory_mb:.0f} MB) and "
        f"takes {used.ms_per_text:.2f} ms/text on this machine."
        + ("" if peak is None else f" The run's memory peaked at {peak / 1e3:.1f} GB.")
    )
    return Section("resources", "Runtime", [lead], [], tables)


def _usage(report: RunReport) -> Section:
    """Code to copy."""
    bundle = f"{report.run}/bundle"
    code = {
        "Python": "import layerfuse\n\n"
        f"classifier = layerfuse.load({bundle!r})\n"
        'classifier.predict(["a text"])\n'
        'classifier.predict_proba(["a text"])  # columns: classifier.classes_',
        "Command line": f"layerfuse predict {shlex.quote(bundle)} new.csv\n"
        f"layerfuse evaluate {shlex.quote(bundle)} labelled.csv",
    }
    lead = (
        "The bundle holds tensors, JSON and a model card, and no code. Encoders are loaded cut "
        "above the highest layer in use."
    )
    return Section("use", "How to use it", [lead], code=code)


def _provenance(report: RunReport) -> Section:
    """Versions, hardware, settings, seed, fingerprints."""
    machine, settings = report.environment, report.settings
    facts = [
        ("created", f"{report.created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
        ("data", report.data.name),
        ("seed", str(settings.seed)),
        ("processor", f"{machine.cpu}, {plural(machine.cores or 1, 'core')}"),
        ("system", machine.platform),
        ("Python", machine.python),
        *machine.packages.items(),
    ]
    tables = [Table("Machine and versions", ("fact", "value"), facts, open_rows=30)]
    fingerprints = [
        (encoder.name, part, value, " @ ".join(filter(None, (encoder.source, encoder.revision))))
        for encoder in report.encoders
        for part, value in encoder.fingerprints.items()
    ]
    head = ("encoder", "part", "fingerprint", "source")
    tables.append(Table("Fingerprints", head, fingerprints, open_rows=30))
    usual = vars(FitConfig(data=""))
    rows = [
        (name, _shown(value), "" if _shown(value) == _shown(usual[name]) else "set")
        for name, value in vars(settings).items()
    ]
    rows.sort(key=lambda row: row[2] == "")
    changed = sum(row[2] == "set" for row in rows)
    tables.append(Table("Settings", ("setting", "value", ""), rows, open_rows=changed))
    return Section("provenance", "Provenance", [], [], tables)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_shown(own)}" for name, own in value.items()) or "–"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
