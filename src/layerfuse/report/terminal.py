"""What every command shows in the terminal, from the models that ``--json`` prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import singledispatch

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from layerfuse.blocks import LEXICAL_BLOCK, NOT_MODELS, BlockRef, BlockScore
from layerfuse.data.audit import Audit, Finding
from layerfuse.files import human_bytes
from layerfuse.report import tables
from layerfuse.report.results import (
    CompareResult,
    CurveResult,
    EvaluateResult,
    ExportResult,
    LabelAudit,
    Labels,
    ModelList,
    ProfileResult,
    RunComparison,
)
from layerfuse.report.run_report import RunReport
from layerfuse.report.tables import gain_text, interval, percent, plural, sentence_case

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 80  # columns of a terminal that nobody has widened
_NOISE = 4  # standard errors that a bar's full height spans at least
_MOST_ROWS = 12  # of a table; --json has all
_MOST_PAIRS = 10
_MOST_ADDITIONS = 5
_EXAMPLES = 5
_MOST_DOUBTS = 20
_HIDDEN = ("description", "identity")  # columns of lists that no terminal has room for
_NAMES = {"n_bytes": "size", "idle_s": "last used"}


@singledispatch
def render(result: object, out: Console) -> None:
    """Print a command's result: values that there are as lines, records as a table."""
    for name, value in vars(result).items():
        if isinstance(value, tuple) and value and hasattr(value[0], "__dict__"):
            _print_records(value, out)
        elif value is not None:
            out.print(f"{_NAMES.get(name, name)}: {_cell(name, value)}", soft_wrap=True)


def _print_records(records: Sequence[object], out: Console) -> None:
    table = Table()
    names = [name for name in vars(records[0]) if name not in _HIDDEN]
    for name in names:
        table.add_column(_NAMES.get(name, name.replace("_", " ")), overflow="fold")
    for record in records:
        table.add_row(*(_cell(name, getattr(record, name)) for name in names))
    out.print(table)


def _cell(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name == "n_bytes":
        return human_bytes(value)
    if isinstance(value, float) and name == "idle_s":
        days = value / 86_400
        return f"{days:.1f} days ago" if days > 1 else f"{24 * days:.1f} h ago"
    if isinstance(value, float):
        return f"{value:.1e}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry:,}" for key, entry in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _labels(value: Labels) -> str:
    """A label, or several, in a table's cell."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _print_table(own: tables.Table, out: Console, *, short: bool = False) -> None:
    """Without vertical lines: with them, five columns do not fit 80 characters.

    A ``short`` one has no other lines either, and its caption in place of the first column's name.
    """
    head = (own.caption, *own.head[1:]) if short else own.head
    table = Table(
        title=None if short else own.caption,
        title_justify="left",
        box=None if short else SIMPLE_HEAD,
        padding=(0, 2 if short else 1, 0, 0),
    )
    for place, name in enumerate(head):
        right = place in own.numeric
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for place, row in enumerate(own.rows):
        table.add_row(*row, style="bold" if place in own.strong else "")
    out.print(table)


def _print_chart(
    title: str, scores: Sequence[BlockScore], selected: Collection[BlockRef], out: Console
) -> None:
    """One bar for each layer, the selected ones marked below, and the range that they span.

    The full height is at least four standard errors, so that noise does not look like a cliff.
    """
    accuracies = [score.accuracy for score in scores]
    numbers = [score.block.layer for score in scores]
    best = max(scores, key=lambda score: score.accuracy)
    whole = len(numbers) == numbers[-1] - numbers[0] + 1
    shown = f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
    line = (
        f": layers {shown}, {interval(min(accuracies), best.accuracy)}%; best "
        f"{best.block.layer}, last {percent(accuracies[-1])}"
    )
    out.print(Text.assemble((title, "bold"), line))
    span = max(best.accuracy - min(accuracies), _NOISE * best.accuracy_se) or 1.0
    heights = [1 - (best.accuracy - value) / span for value in accuracies]
    bars = "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)
    marked = {block.layer for block in selected}
    marks = "".join("^" if number in marked else " " for number in numbers)
    out.print(Text(f"  {bars}\n  {marks}".rstrip()), soft_wrap=True)


@render.register
def _render_profile(result: ProfileResult, out: Console) -> None:
    """A chart for each encoder and pooling; the best blocks and each encoder's last layer."""
    profile = result.profile
    for encoder in profile.encoders:
        for pooling in dict.fromkeys(score.block.pooling for score in profile.of(encoder)):
            scores = sorted(profile.of(encoder, pooling), key=lambda score: score.block.layer)
            _print_chart(f"{encoder}, {pooling} pooling", scores, (), out)
    out.print()
    top = {name: profile.last(name).block.layer for name in profile.encoders}
    shown = [
        score
        for place, score in enumerate(profile.ranking)
        if place < _MOST_ROWS or score.block.layer == top[score.block.encoder]
    ]
    count = "all" if len(shown) == len(profile) else f"{len(shown)} of {len(profile)}"
    how = "leave-one-out" if profile.scorer == "ridge" else "cross-validated"
    caption = f"Blocks by loss, {how} on training rows ({count})"
    _print_table(tables.block_table(caption, shown, profile), out)


@render.register
def _render_fit(report: RunReport, out: Console) -> None:
    """A fit on one screen, and what to type next."""
    selection, profile = report.selection, report.profile
    out.print("Leave-one-out accuracy by layer, lowest to highest of each encoder; ^ selected")
    for encoder in profile.encoders:  # every layer at its best pooling
        by_accuracy = sorted(profile.of(encoder), key=lambda score: score.accuracy)
        best = {score.block.layer: score for score in by_accuracy}
        own = [block for block in selection.blocks if block.encoder == encoder]
        if encoder in NOT_MODELS:
            what = "words (TF-IDF)" if encoder == LEXICAL_BLOCK.encoder else "other columns"
            line = f": {what}, {percent(best[0].accuracy)}{' ^' if own else ''}"
            out.print(Text.assemble((encoder, "bold"), line))
            continue
        _print_chart(encoder, [best[layer] for layer in sorted(best)], own, out)
    others = len({trial.head for trial in selection.trials})
    compared = f" ({plural(others, 'other')} compared)" if others else ""
    out.print(
        f"\nSelected ({selection.method}): {selection.fusion} fusion, {selection.head} head"
        f"{compared}"
    )
    names = list(map(str, selection.blocks))
    for place, (name, gain) in enumerate(zip(names, selection.gains, strict=True), 1):
        padded = name.ljust(max(map(len, names)))
        out.print(f"  {place}. {padded}  loss {-gain:+.4f}", soft_wrap=True)
    out.print()
    headline = sentence_case(report.verdict.headline)
    rest = report.verdict.sentence.removeprefix(report.verdict.headline)
    out.print(Text.assemble("Verdict: ", (headline, "bold"), rest))
    if report.gap is not None and report.gap.sentence:
        out.print(f"Note: {report.gap.sentence}")
    _print_table(tables.accuracy_table(report, short=True), out, short=True)
    if report.abstention is not None:
        out.print(tables.abstention_sentence(report.abstention.shown))
        _print_table(tables.abstention_table(report.abstention), out)
    if report.seeds:
        out.print(tables.seeds_sentence(report.seeds), soft_wrap=True)
    used, ratio, times = report.cost.pipeline, report.cost.time_ratio, ""
    if ratio is not None:
        times = f", {ratio.value:.1f}x the last layer ({ratio.low:.1f} to {ratio.high:.1f})"
    out.print(
        f"Cost: {used.ms_per_text:.1f} ms/text{times}; {used.memory_mb:.0f} MB, "
        f"{used.dims:,} dimensions"
    )
    out.print(f"Next: layerfuse predict {shlex.quote(report.run)} FILE", soft_wrap=True)


@render.register
def _render_evaluation(result: EvaluateResult, out: Console) -> None:
    split = f" ({result.split})" if result.split else ""
    out.print(f"{plural(result.metrics.n, 'row')} of {result.data}{split}", soft_wrap=True)
    _print_table(tables.metric_table(result.metrics), out, short=True)
    if result.abstention is not None:
        out.print(tables.abstention_sentence(result.abstention))
    classes = tables.label_table(result.labels)
    if not result.labels:
        classes = tables.class_table(result.confusion, result.classes)
    _print_table(replace(classes, rows=classes.rows[:_MOST_ROWS]), out)
    if result.comparison is not None:
        _print_run_comparison(result.comparison, out)


def _print_run_comparison(own: RunComparison, out: Console) -> None:
    """The difference on the same rows, and texts whose label changed."""
    out.print(
        f"{own.against}: {own.metric} {percent(own.headline.value)}; this one's difference is "
        f"{gain_text(own.gain)} points; "
        f"{plural(len(own.changes), 'label differs', 'labels differ')}",
        soft_wrap=True,
    )
    cells: list[tuple[str, ...]] = [
        (
            str(change.row),
            *map(_labels, (change.label, change.predicted, change.other)),
            " ".join(change.text.split())[:_WIDTH],
        )
        for change in own.changes[:_MOST_ROWS]
    ]
    if cells:
        head: tuple[str, ...] = ("row", "label", "predicted", "by the other", "text")
        if not any(change.text for change in own.changes):  # --no-texts
            head, cells = head[:-1], [cell[:-1] for cell in cells]
        _print_table(tables.Table("Labels that differ", head, cells, (0,)), out)


@render.register
def _render_comparison(result: CompareResult, out: Console) -> None:
    """The best pairs, and what to add next."""
    out.print(Text.assemble(("Verdict: ", "bold"), result.verdict), soft_wrap=True)
    out.print()
    _print_table(_pair_table(result, out.width), out)
    out.print(
        "fused: of the two together; gain: over the better one; CKA: 1 for the same;\n"
        "Q: 1 where they err on the same rows; either: at least one is right\n"
    )
    hidden = len(result.pairs) - _MOST_PAIRS
    if hidden > 0:
        out.print(f"and {hidden} more, which --json lists\n")
    if result.additions:
        _print_table(_addition_table(result, out.width), out)


def _pair_table(result: CompareResult, width: int) -> tables.Table:
    """Two parts for each pair: one for each block, and below a number its uncertainty."""
    head = ("blocks", "alone", "fused", "gain, points", "gain, loss", "CKA", "Q", "either")
    shown = result.pairs[:_MOST_PAIRS]
    numbers = [
        (
            percent(pair.accuracy),
            gain_text(pair.gain, "\n"),
            f"{pair.loss_gain:+.4f}\n± {pair.loss_gain_se:.4f}",
            f"{pair.cka:.2f}",
            f"{pair.yules_q:.2f}",
            percent(pair.oracle_accuracy),
        )
        for pair in shown
    ]
    room = _room(head, [("100.0%", *cells) for cells in numbers], width)
    rows = []
    for pair, cells in zip(shown, numbers, strict=True):
        names = [_folded(str(block), room) for block in (pair.a, pair.b)]
        below = "\n" * (1 + names[0].count("\n"))
        alone = f"{percent(pair.accuracy_a)}{below}{percent(pair.accuracy_b)}"
        rows.append(("\n".join(names), alone, *cells))
    caption = f"Pairs (leave-one-out on {plural(result.n, 'training row')})"
    return tables.Table(caption, head, rows, range(1, 8))


def _addition_table(result: CompareResult, width: int) -> tables.Table:
    head = ("block", "accuracy", "gain, points", "gain, loss", "")
    shown = result.additions[:_MOST_ADDITIONS]
    numbers = [
        (
            *(percent(own.accuracy), gain_text(own.gain)),
            f"{own.loss_gain:+.4f} ± {own.loss_gain_se:.4f}",
            "new encoder" if own.new_encoder else "",
        )
        for own in shown
    ]
    room = _room(head, numbers, width)
    rows = [
        (_folded(str(own.block), room), *cells) for own, cells in zip(shown, numbers, strict=True)
    ]
    caption = f"What to add next to {', '.join(map(str, result.pipeline))}"
    return tables.Table(caption, head, rows, range(1, 4))


def _room(head: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> int:
    """Characters that all columns but the first leave it in a table of `_print_table`."""
    columns = zip(head[1:], *cells, strict=True)
    taken = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    return width - sum(taken) - 2 * len(head) - 1


def _folded(name: str, room: int) -> str:
    """The name of a block in lines that end between its words, as far as these fit."""
    lines = [""]
    for part in re.findall(r"[^:/_-]*[:/_-]*", name):
        if lines[-1] and len(lines[-1] + part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


@render.register
def _render_curve(result: CurveResult, out: Console) -> None:
    """The verdict, the table by number of labels, and what its intervals cover."""
    out.print(Text.assemble(("Verdict: ", "bold"), result.verdict), width=_WIDTH)
    out.print()
    _print_table(tables.curve_table(result.curve, result.rows), out)
    counts = [len(point.draws) for point in result.curve.points]
    draws = plural(max(counts), "draw")
    if counts[-1] < max(counts):
        draws += " (one of all labels)"
    out.print(
        f"Means over {draws}; in brackets 95% intervals over test rows and draws. Blocks, fusion "
        "and penalties are selected anew from the labels of each draw.",
        width=_WIDTH,
    )


@render.register
def _render_models(result: ModelList, out: Console) -> None:
    """The named encoders, a paragraph each: no terminal has room for their table."""
    for entry in result.models:
        out.print(f"{entry.name}{' (downloaded)' if entry.pulled else ''}", style="bold")
        facts = (
            entry.description,
            f"{entry.layers} layers of {entry.dim}",
            f"{entry.parameters / 1e6:.0f} M parameters",
            human_bytes(entry.n_bytes),
            f"languages: {entry.languages}",
            f"up to {entry.max_tokens} tokens",
            f"license: {entry.license}",
            *([f"prompt: {entry.prompt}"] if entry.prompt else ()),
        )
        out.print(Padding(Text("; ".join(facts)), (0, 0, 0, 2), expand=False))


@render.register
def _render_export(result: ExportResult, out: Console) -> None:
    where = f"on {plural(result.n_rows, 'text')} of {result.rows}"
    lines = [
        f"{result.out} ({human_bytes(result.n_bytes)})",
        f"  reads {', '.join(map(str, result.blocks))}",
        f"  largest difference from float32: {result.difference:.1e} {where}",
    ]
    if result.dtype_difference is not None and result.labels_changed is not None:
        lines.append(
            f"  largest difference from {result.dtype}, as fitted: {result.dtype_difference:.1e}; "
            f"{plural(result.labels_changed, 'label')} changed"
        )
    if result.accuracy is not None:
        lines.append(f"  accuracy: {percent(result.accuracy, 2)}")
    if int8 := result.int8:
        accuracy = ""
        if int8.accuracy is not None and int8.accuracy_change is not None:
            change = f"{100 * int8.accuracy_change:+.2f} points"
            accuracy = f"accuracy {percent(int8.accuracy, 2)} ({change}), "
        lines.append(
            f"  int8: {accuracy}{plural(int8.labels_changed, 'label')} changed, largest "
            f"difference {int8.difference:.1e}"
        )
    for line in lines:
        out.print(line, soft_wrap=True)


@render.register
def _render_audit(result: Audit, out: Console) -> None:
    out.print(result.name, style="bold", soft_wrap=True)
    for name, split in result.splits.items():
        out.print(f"{name}: {plural(split.rows, 'row')}")
        _print_finding("empty texts", split.empty, out)
        _print_finding("repeated texts", split.duplicates, out)
        _print_finding("long texts", split.over_long, out)
        if split.unlabeled:
            out.print(f"  rows without a label, skipped: {split.unlabeled}")
        if split.conflicts:
            first = split.conflict_rows[:_EXAMPLES]
            rows = " / ".join(", ".join(map(str, own[:_EXAMPLES])) for own in first)
            out.print(f"  texts with conflicting labels: {split.conflicts} (rows {rows})")
        if not (split.conflicts or split.empty.count or split.duplicates.count):
            out.print("  no empty, repeated or conflicting texts")
        shown = list(split.classes.items())[:_MOST_ROWS]
        more = len(split.classes) - len(shown)
        tail = f" and {more} more" if more else ""
        counts = ", ".join(f"{label}: {count}" for label, count in shown)
        out.print(f"  rows by class: {counts}{tail}", soft_wrap=True)
        if len(split.classes) == 1 and name != result.test_name:
            out.print("  only one class: a classifier needs two")
    _print_finding(f"rows of {result.test_name} that are in train", result.leaks, out)
    for note in tables.audit_notes(result):
        out.print(f"  {note}", soft_wrap=True)


@render.register
def _render_labels(result: LabelAudit, out: Console) -> None:
    """The most doubtful labels."""
    own = result.accuracy
    out.print(
        f"{result.name}: {result.suspects:,} of {plural(result.rows, 'label')} look wrong to "
        f"models that did not see the row and agree with {percent(own.value)} of all labels "
        f"({interval(own.low, own.high)})",
        soft_wrap=True,
    )
    shown = result.doubts[:_MOST_DOUBTS]
    cells = [
        (
            str(doubt.row if doubt.id is None else doubt.id),
            *(_labels(doubt.label), _labels(doubt.suggested), f"{doubt.score:.3f}"),
            " ".join(doubt.text.split())[:_WIDTH],
        )
        for doubt in shown
    ]
    if cells:
        first = "row" if result.doubts[0].id is None else "id"
        head = (first, "label", "suggested", "score", "text")
        _print_table(tables.Table("Doubtful labels, worst first", head, cells, (3,)), out)
    if len(shown) < result.suspects:
        out.print(f"and {result.suspects - len(shown)} more; --out FILE writes all rows, ranked")


def _print_finding(name: str, finding: Finding, out: Console) -> None:
    if finding.count:
        rows = ", ".join(map(str, finding.rows[:_EXAMPLES]))
        more = ", …" if finding.count > _EXAMPLES else ""
        out.print(f"  {name}: {finding.count} (row {rows}{more}, counted from 0)")
