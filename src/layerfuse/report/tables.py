"""Numbers, names and tables as text: the page shows all of them, the terminal some."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.calibration import AbstentionFigures
from layerfuse.cli_options import FitConfig
from layerfuse.data.audit import Audit
from layerfuse.evaluation.learning_curve import LearningCurve
from layerfuse.evaluation.verdict import BaselineComparison
from layerfuse.metrics import Estimate, Evaluation, LabelSetEvaluation, PairedDifference
from layerfuse.report.run_report import (
    AbstentionReport,
    CalibrationBin,
    ClassText,
    ConfusionCell,
    Environment,
    HardestTexts,
    HardText,
    LabelFigures,
    NearDuplicates,
    RunReport,
    SeedRun,
)

Ints = npt.NDArray[np.intp]
Cells = Sequence[Sequence[str]]

_METRICS = {
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "ranking_precision": "label ranking average precision",
    "ece": "expected calibration error",
}
_WIDER = ("last_four", "last_matched")  # baselines that one screen has no room for
_BASELINES = {
    "pipeline": "layerfuse",
    "majority": "most frequent label",
    "tfidf": "TF-IDF + logistic",
}
_PER_ENCODER = ("last_layer", "last_four")  # baselines that each encoder has
_MOST_NAMES = 10  # of classes in a note of an audit; the counts of all are in --json


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1, such as ``"94.5%"``; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def interval(low: float, high: float, digits: int = 1) -> str:
    """Two shares in percent, such as ``"93.1 to 95.6"``."""
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign, such as ``"−1.2"``."""
    return f"{100 * share:+.1f}".replace("-", "−")


def points_interval(low: float, high: float) -> str:
    """Two differences of shares in percentage points."""
    return f"{points(low)} to {points(high)}"


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``"1 row"``, ``"1,200 rows"``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def baseline_name(name: str, encoder: str | None = None) -> str:
    """A baseline's display name, with its encoder where each encoder has one of that name.

    An encoder that ``name`` holds in brackets already stays as it is.
    """
    own, bracket, rest = name.partition(" (")
    if own.startswith("first_"):  # the pipeline's own blocks, in the order of selection
        return f"first {own.removeprefix('first_')} selected"
    shown = _BASELINES.get(own, own.replace("_", " ")) + bracket + rest
    return f"{shown} ({encoder})" if encoder is not None and name in _PER_ENCODER else shown


@dataclass(frozen=True)
class Table:
    """``numeric`` columns stand to the right; rows above ``open_rows`` are folded away."""

    caption: str
    head: tuple[str, ...]
    rows: Cells
    numeric: Sequence[int] = ()
    wide: Sequence[int] = ()
    open_rows: int = 12
    strong: Sequence[int] = ()


def estimate_cells(own: Estimate) -> tuple[str, str]:
    """A share and its interval."""
    return percent(own.value), interval(own.low, own.high)


def gain_text(gain: PairedDifference | Estimate, separator: str = " ") -> str:
    """A difference and, in brackets, its interval, in percentage points."""
    value = gain.value if isinstance(gain, Estimate) else gain.difference
    return f"{points(value)}{separator}({points_interval(gain.low, gain.high)})"


def gains_of(baselines: Iterable[BaselineComparison], rows: str) -> dict[str, PairedDifference]:
    """Gains over the baselines by their names, without steps of the path and the majority."""
    return {
        baseline_name(item.name, item.encoder): item.on(rows).gain
        for item in baselines
        if not item.is_step and item.name != "majority"
    }


def accuracy_table(report: RunReport, *, short: bool = False) -> Table:
    """Baselines, what the pipeline gains over each on the same rows, and the pipeline last.

    A ``short`` one leaves out macro-F1 and what it is not needed to decide by.
    """
    cells: list[tuple[str, ...]] = []
    for baseline in report.baselines:
        if not (baseline.is_step or (short and baseline.name in _WIDER)):
            score = baseline.on(report.verdict.rows)
            name = baseline_name(baseline.name, baseline.encoder)
            gain = gain_text(score.gain)
            cells.append((name, *estimate_cells(score.accuracy), percent(score.macro_f1), gain))
    own, metric = report.measured, report.verdict.metric
    name = f"layerfuse ({plural(len(report.selection.blocks), 'block')})"
    cells.append((name, *estimate_cells(own.headline), percent(own.macro_f1.value), ""))
    if report.test is not None and not short:
        nested = report.cv
        accuracy = estimate_cells(nested.headline)
        cells.append(("nested, training rows", *accuracy, percent(nested.macro_f1.value), ""))
    start = "on" if short else f"{sentence_case(metric)} on"
    caption = f"{start} {own.n:,} {report.rows_in_words}"
    head: tuple[str, ...] = ("pipeline", metric, "95% interval", "macro-F1")
    head += (f"Δ {metric}, points",)
    strong = [place for place, row in enumerate(cells) if row[0] == name]
    if short:
        head, cells = head[:3] + head[4:], [row[:3] + row[4:] for row in cells]
    return Table(caption, head, cells, range(1, len(head)), strong=strong)


def abstention_sentence(own: AbstentionFigures) -> str:
    """How many texts go to a person, and how many of the others are right."""
    share = f"Of every 100 texts, {100 * own.abstained.value:.0f} go to a person"
    if own.accuracy is None:
        return f"{share}: the rows are too few, or the errors too many, to promise the target."
    right, span = estimate_cells(own.accuracy)
    return f"{share}; {right} ({span}) of the rest are right."


def abstention_table(own: AbstentionReport) -> Table:
    """What abstention comes to on test rows and on training rows."""
    cells = []
    for name, found in (("test", own.test), ("training, out of fold", own.cv)):
        if found is not None:
            right = ("–", "–") if found.accuracy is None else estimate_cells(found.accuracy)
            row = [name, f"{found.n:,}", percent(found.abstained.value), *right]
            if (sets := found.sets) is not None:
                row += [percent(sets.coverage.value), f"{sets.mean_size:.2f}"]
                row += [percent(sets.one_label), percent(sets.no_label)]
            cells.append(row)
    head = ("rows", "n", "to a person", "right of the others", "95% interval")
    sets_head = ("label in the set", "labels per set", "one label", "none")
    shown = head if own.rule.coverage is None else (*head, *sets_head)
    return Table("Unsure texts go to a person", shown, cells, range(1, 9))


def selection_table(report: RunReport) -> Table:
    """The selected blocks in order, what each brought, and nested accuracy after it if measured."""
    selection, cells = report.selection, []
    known = {len(item.blocks): item.cv.accuracy for item in report.baselines if item.is_step}
    known[len(selection.blocks)] = report.cv.headline
    for number, block in enumerate(selection.blocks, 1):
        accuracy = estimate_cells(known[number]) if number in known else ("–", "–")
        cells.append((str(number), str(block), f"{selection.gains[number - 1]:.4f}", *accuracy))
    nested = f"nested {report.verdict.metric}"
    head = ("step", "added block", "gain in loss", nested, "95% interval")
    return Table("Selected blocks, in order", head, cells, (0, 2, 3, 4))


def trials_table(report: RunReport) -> Table:
    """Alternatives to a ridge head, on the most rows that each was tried on."""
    last = {trial.head: trial for trial in report.selection.trials}
    cells = [
        (own.head, f"{own.n_rows:,}", f"{own.gain:+.4f}", f"± {own.gain_se:.4f}")
        for own in sorted(last.values(), key=lambda trial: -trial.gain)
    ]
    head = ("head", "rows", "gain in Brier score", "standard error")
    return Table("Other heads, against a ridge head", head, cells, (1, 2, 3), open_rows=6)


def block_table(
    caption: str,
    shown: Iterable[BlockScore],
    profile: BlockScores,
    selected: Collection[BlockRef] = (),
) -> Table:
    """Scores of blocks, the selected ones and each encoder's last layer marked."""
    top = {name: profile.last(name).block.layer for name in profile.encoders}
    cells = []
    for score in shown:
        is_last = score.block.layer == top[score.block.encoder]
        marks = ["selected"] * (score.block in selected) + ["last layer"] * is_last
        accuracy = f"{percent(score.accuracy)} ±{100 * score.accuracy_se:.1f}"
        row = (str(score.block), accuracy, percent(score.macro_f1), f"{score.loss:.4f}")
        cells.append((*row, ", ".join(marks)))
    head = ("block", "accuracy", "macro-F1", "loss", "")
    return Table(caption, head, cells, range(1, 4), open_rows=400)


def cost_table(report: RunReport) -> Table:
    """Accuracy and cost, the most accurate first."""
    cells = [
        (
            *(baseline_name(row.name), *estimate_cells(row.accuracy)),
            *(f"{row.cost.ms_per_text:.2f}", f"{row.cost.memory_mb:.0f}", f"{row.cost.dims:,}"),
            "yes" if row.on_front else "",
        )
        for row in report.pareto
    ]
    metric = report.verdict.metric
    head = ("pipeline", metric, "95% interval", "ms/text", "MB", "dimensions", "front")
    strong = [place for place, row in enumerate(report.pareto) if row.name == "pipeline"]
    caption = f"{sentence_case(metric)} (nested, training rows) and cost"
    return Table(caption, head, cells, range(1, 6), strong=strong)


def confusion_counts(cells: Iterable[ConfusionCell], n_classes: int) -> tuple[Ints, Ints]:
    """Counts (n_classes, n_classes), and classes (n_classes,) with the most errors first."""
    counts = np.zeros((n_classes, n_classes), dtype=np.intp)
    for cell in cells:
        counts[cell.truth, cell.predicted] = cell.count
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return counts, np.argsort(-errors, kind="stable")


def class_table(confusion: Iterable[ConfusionCell], names: Sequence[str]) -> Table:
    """Errors by class, those with most errors first."""
    cells = []
    counts, order = confusion_counts(confusion, len(names))
    errors = counts * ~np.eye(len(counts), dtype=bool)
    for label in order.tolist():
        own, given, hits = counts[label].sum(), counts[:, label].sum(), counts[label, label]
        shares = ((hits, own), (hits, given), (2 * hits, own + given))
        often = int(errors[label].argmax())
        cells.append(
            (
                *(names[label], f"{own:,}"),
                *(percent(part / whole if whole else None) for part, whole in shares),
                *(str(own - hits), str(given - hits)),
                f"{names[often]} ({errors[label, often]})" if errors[label].any() else "–",
            )
        )
    measures = ("rows", "recall", "precision", "F1", "missed", "false alarms")
    head = ("class", *measures, "most often predicted as")
    return Table("Classes, those with most errors first", head, cells, range(1, 7))


def label_table(labels: Iterable[LabelFigures]) -> Table:
    """Errors by label where texts have any number of them, those with most errors first."""
    cells = []
    for own in sorted(labels, key=lambda one: 2 * one.hits - one.rows - one.predicted):
        of_f1 = (2 * own.hits, own.rows + own.predicted)
        shares = ((own.hits, own.rows), (own.hits, own.predicted), of_f1)
        cells.append(
            (
                *(own.label, f"{own.rows:,}"),
                *(percent(part / whole if whole else None) for part, whole in shares),
                *(str(own.rows - own.hits), str(own.predicted - own.hits)),
                f"{own.threshold:.3f}",
            )
        )
    measures = ("rows", "recall", "precision", "F1", "missed", "false alarms", "threshold")
    return Table("Labels, those with most errors first", ("label", *measures), cells, range(1, 8))


def calibration_table(bins: Sequence[CalibrationBin]) -> Table:
    """Accuracy by confidence."""
    cells = [
        (
            *(f"{interval(own.low, own.high, 0)}%", f"{own.count:,}", percent(own.confidence)),
            *estimate_cells(own.accuracy),
        )
        for own in bins
    ]
    head = ("confidence", "rows", "mean confidence", "accuracy", "95% interval")
    return Table("Calibration by bin", head, cells, range(1, 5))


def curve_table(curve: LearningCurve, rows: str) -> Table:
    """The learning curve; ``rows`` names what it was measured on."""
    cells = [
        (
            *(f"{point.n_rows:,}", f"{100 * point.n_rows / curve.n_train:.3g}%"),
            *(percent(own.value) for own in (point.last_layer, point.best_block, point.fusion)),
            gain_text(point.gain),
        )
        for point in curve.points
    ]
    head = ("labels", "share", "last layer", "best block", "fusion", "fusion minus last, points")
    return Table(f"{sentence_case(curve.metric)} on {curve.n_test:,} {rows}", head, cells, range(6))


def hardest_table(found: HardestTexts) -> Table:
    """Training texts by the probability of their label."""
    cells = [
        (
            *(_row(text), text.label, f"{text.predicted} ({percent(text.confidence, 0)})"),
            percent(text.label_probability) if text.label_probability >= 0.001 else "< 0.1%",
            *("check the label" if text.suspect else "", text.text),
        )
        for text in found.texts
    ]
    head = (_row_head(found.texts), "label", "predicted as", "its label's probability", "", "text")
    caption = "Hardest texts (rows of the training file, counted from 0)"
    return Table(caption, head, cells, (0, 3), wide=(5,), open_rows=8)


def _row(text: HardText | ClassText) -> str:
    return str(text.row) if text.id is None else f"{text.row}: {text.id}"


def _row_head(found: Sequence[HardText | ClassText]) -> str:
    return "row" if all(text.id is None for text in found) else "row: id"


def class_text_table(found: Sequence[ClassText]) -> Table:
    """Typical and doubtful texts of each class."""
    cells = [
        (
            *(text.label, "typical" if text.typical else "doubtful", _row(text)),
            *(percent(text.label_probability), text.text),
        )
        for text in found
    ]
    head = ("class", "", _row_head(found), "its label's probability", "text")
    return Table("Texts of each class", head, cells, (2, 3), wide=(4,), open_rows=6)


def near_table(near: NearDuplicates) -> Table:
    """Near-duplicates across train and test."""
    cells = [
        (
            *(f"{pair.test_row} / {pair.train_row}", percent(pair.similarity, 0)),
            *(" / ".join(dict.fromkeys((pair.test_label, pair.train_label))), pair.test_text),
        )
        for pair in near.pairs
    ]
    head = ("test / train row", "similarity", "label", "test text")
    caption = "Near-duplicates across train and test, those with conflicting labels first"
    return Table(caption, head, cells, (1,), wide=(3,), open_rows=4)


def metric_table(metrics: Evaluation | LabelSetEvaluation) -> Table:
    """Each metric with its interval: shares in percent, the log loss in nats."""
    cells = []
    for name, own in vars(metrics).items():
        if name == "log_loss":
            value, span = f"{own.value:.3f}", f"{own.low:.3f} to {own.high:.3f}"
            cells.append(("log loss", value, span))
        elif name != "n":
            cells.append((_METRICS.get(name, name.replace("_", " ")), *estimate_cells(own)))
    return Table("metric", ("metric", "value", "95% interval"), cells, (1,))


def seeds_sentence(seeds: Sequence[SeedRun]) -> str:
    """How far accuracies differ between fits with several seeds, and blocks that all chose."""
    parts = []
    for name, values in (("nested", [run.cv for run in seeds]), ("test", [r.test for r in seeds])):
        known = [value for value in values if value is not None]
        if known:
            low, high = percent(min(known)), percent(max(known))
            parts.append(f"{name} {percent(fmean(known))} ({low} to {high}, sd {stdev(known):.2%})")
    common = set(seeds[0].blocks).intersection(*(run.blocks for run in seeds))
    chosen = ", ".join(map(str, sorted(common))) or "none"
    return f"{len(seeds)} seeds: {', '.join(parts)}; blocks chosen by all: {chosen}"


def seeds_table(seeds: Sequence[SeedRun], metric: str) -> Table:
    """A row for each seed, with the ``metric`` of the pipeline."""
    cells = [
        (
            *(str(run.seed), percent(run.cv), "" if run.test is None else percent(run.test)),
            *(", ".join(map(str, run.blocks)), run.fusion, run.head),
        )
        for run in seeds
    ]
    head = ("seed", f"nested {metric}", f"test {metric}", "blocks", "fusion", "head")
    return Table("Fits with several seeds", head, cells, (1, 2), wide=(3,))


def audit_notes(audit: Audit) -> list[str]:
    """The languages of the texts, and what is odd about the classes."""
    small = tuple(f"{name} ({count})" for name, count in audit.small_classes.items())
    alike = tuple(" / ".join(map(repr, names)) for names in audit.alike_classes)
    languages = tuple(f"{own.code} {own.share:.0%}" for own in audit.languages if own.share > 0.04)
    found = (
        ("languages of the training texts (ISO 639)", languages),
        ("classes without a test row", audit.untested_classes),
        ("classes without a training row", audit.unseen_classes),
        ("classes with fewer than 5 training rows", small),
        ("classes that differ only in case or blanks", alike),
        ("classes that read like a missing value", audit.odd_classes),
    )
    return [f"{what}: {_first(names)}" for what, names in found if names]


def _first(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"


def audit_table(audit: Audit) -> Table:
    """What was counted in each split."""
    cells = [
        (
            *(name, f"{split.rows:,}", str(len(split.classes)), f"{split.empty.count:,}"),
            *(f"{split.duplicates.count:,}", f"{split.conflicts:,}", f"{split.over_long.count:,}"),
        )
        for name, split in audit.splits.items()
    ]
    texts = ("empty", "repeated", "conflicting labels", "over 2,000 characters")
    return Table("Splits", ("split", "rows", "classes", *texts), cells, range(1, 7))


def encoder_table(report: RunReport) -> Table:
    """The encoders at full depth."""
    cells = [
        (
            *(cost.encoder, str(cost.n_layers), f"{cost.parameters[-1] / 1e6:.1f} M"),
            f"{cost.memory_mb_at(cost.n_layers):.0f}",
            *(f"{cost.ms_at(cost.n_layers):.2f}", f"{cost.tokens_per_text:.0f}"),
            f"{cost.device}, {cost.dtype}",
            encoder.prompt or encoder.chat_prompt or "",
        )
        for encoder in report.encoders
        for cost in (encoder.cost,)
    ]
    head = ("encoder", "layers", "parameters", "MB", "ms/text", "tokens/text", "device", "prompt")
    return Table("Encoders in full", head, cells, range(1, 6))


def machine_table(report: RunReport) -> Table:
    """When, on what and from which files the run was made."""
    machine: Environment = report.environment
    facts = [
        ("created", f"{report.created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"),
        ("processor", f"{machine.cpu}, {plural(machine.cores or 1, 'core')}"),
        ("system", machine.platform),
        ("Python", machine.python),
        ("seconds", f"{report.timings.total_s:.1f}"),
        ("peak memory", f"{machine.peak_memory_mb:.0f} MB" if machine.peak_memory_mb else "–"),
        *machine.packages.items(),
    ]
    for encoder in report.encoders:
        facts.append((encoder.name, " @ ".join(filter(None, (encoder.source, encoder.revision)))))
        facts += [(f"{encoder.name}, {part}", own) for part, own in encoder.fingerprints.items()]
    return Table("Machine, versions, encoders", ("fact", "value"), facts, open_rows=60)


def settings_table(settings: FitConfig) -> Table:
    """Settings, those that are not the defaults first."""
    usual = vars(FitConfig(data=""))
    cells = [
        (name, _shown(value), "" if _shown(value) == _shown(usual[name]) else "set")
        for name, value in vars(settings).items()
    ]
    cells.sort(key=lambda row: row[2] == "")
    changed = sum(row[2] == "set" for row in cells)
    return Table("Settings", ("setting", "value", ""), cells, open_rows=changed)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_shown(own)}" for name, own in value.items()) or "–"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
