"""What every command shows in the terminal, from the models that ``--json`` prints."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.data.audit import Audit, Finding
from layerfuse.files import human_bytes
from layerfuse.metrics import Estimate, PairedDifference
from layerfuse.report import tables
from layerfuse.report.formats import (
    interval,
    percent,
    plural,
    points,
    points_interval,
    sentence_case,
)
from layerfuse.report.results import (
    CompareResult,
    CurveResult,
    EvaluateResult,
    Example,
    ModelCheck,
    ModelList,
    ProfileResult,
    ReportResult,
    StoreCheck,
)
from layerfuse.report.run_report import RunReport

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 80  # columns of a terminal that nobody has widened
_MOST_BLOCKS = 12  # of a table
_MOST_PAIRS = 10
_MOST_ADDITIONS = 5
_MOST_CLASSES = 12
_HIDDEN = ("description", "identity")  # columns of lists that no terminal has room for
_COLUMNS = {"n_bytes": "size", "idle_s": "last used"}


def _table(title: str, *head: str, numeric: Collection[int] | None = None) -> Table:
    """A table without vertical lines: with them, five columns do not fit 80 characters.

    All but the first column are numeric by default; nameless ones are not.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        right = bool(name) and (place > 0 if numeric is None else place in numeric)
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    return table


def layer_chart(accuracies: Sequence[float], selected: Sequence[bool]) -> Text:
    """One character for each layer, its height by accuracy from the lowest to the highest layer;
    selected layers are marked below.
    """
    low, high = min(accuracies), max(accuracies)
    span = (high - low) or 1.0
    bars = "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in accuracies)
    marks = "".join("^" if mark else " " for mark in selected)
    return Text(f"  {bars}\n  {marks}".rstrip())


def _print_chart(
    title: str, scores: Sequence[BlockScore], selected: Collection[BlockRef], out: Console
) -> None:
    """A chart of scores by rising layer, one for each layer, with the range that it spans."""
    accuracies = [score.accuracy for score in scores]
    numbers = [score.block.layer for score in scores]
    layers = {block.layer for block in selected}
    best = max(scores, key=lambda score: score.accuracy)
    whole = len(numbers) == numbers[-1] - numbers[0] + 1
    shown = f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
    line = (
        f": layers {shown}, {interval(min(accuracies), max(accuracies))}%; best "
        f"{best.block.layer}, last {percent(accuracies[-1])}"
    )
    out.print(Text.assemble((title, "bold"), line))
    out.print(layer_chart(accuracies, [number in layers for number in numbers]), soft_wrap=True)


def _print_encoders(profile: BlockScores, selected: Sequence[BlockRef], out: Console) -> None:
    """A chart for each encoder, every layer at its best pooling."""
    out.print(
        "Leave-one-out accuracy by layer, lowest to highest of each encoder"
        + ("; ^ selected" if selected else "")
    )
    for encoder in profile.encoders:
        best: dict[int, BlockScore] = {}
        for score in sorted(profile.of(encoder), key=lambda score: score.accuracy):
            best[score.block.layer] = score
        own = [block for block in selected if block.encoder == encoder]
        _print_chart(encoder, [best[layer] for layer in sorted(best)], own, out)


def _print_poolings(profile: BlockScores, selected: Sequence[BlockRef], out: Console) -> None:
    """A chart for each encoder and pooling."""
    for encoder in profile.encoders:
        own = profile.of(encoder)
        for pooling in dict.fromkeys(score.block.pooling for score in own):
            scores = sorted(profile.of(encoder, pooling), key=lambda score: score.block.layer)
            kept = [b for b in selected if (b.encoder, b.pooling) == (encoder, pooling)]
            _print_chart(f"{encoder}, {pooling} pooling", scores, kept, out)


def _layer_table(profile: BlockScores, selected: Collection[BlockRef]) -> Table:
    """The best blocks, the selected ones and every encoder's last layer, by rising loss."""
    top = {name: profile.last(name).block.layer for name in profile.encoders}
    shown = [
        (score, score.block in selected, score.block.layer == top[score.block.encoder])
        for score in profile.ranking
    ]
    kept = [row for place, row in enumerate(shown) if place < _MOST_BLOCKS or row[1] or row[2]]
    count = "all" if len(kept) == len(shown) else f"{len(kept)} of {len(shown)}"
    title = f"Blocks by loss, leave-one-out on training rows ({count})"
    table = _table(title, "block", "accuracy", "macro-F1", "loss", "")
    for score, is_selected, is_last in kept:
        table.add_row(
            str(score.block),
            f"{percent(score.accuracy)} ±{100 * score.accuracy_se:.1f}",
            percent(score.macro_f1),
            f"{score.loss:.4f}",
            ", ".join(["selected"] * is_selected + ["last layer"] * is_last),
        )
    return table


def render_scores(result: ProfileResult, out: Console) -> None:
    """The outcome of ``profile``."""
    _print_poolings(result.profile, (), out)
    out.print()
    out.print(_layer_table(result.profile, ()))


def render_fit(report: RunReport, out: Console, *, verbose: bool = False) -> None:
    """A fit on one screen, and what to type next; ``verbose`` puts everything else before it."""
    _print_run(report, out, verbose)
    out.print(f"Next: layerfuse predict {shlex.quote(report.run)} FILE", soft_wrap=True)


def render_demo(report: RunReport, out: Console, *, verbose: bool = False) -> None:
    """A fit's report, and what to type next."""
    _print_run(report, out, verbose)
    for line in (
        f"Next: layerfuse predict {shlex.quote(report.run)} new.csv  # a column text",
        "      layerfuse fit your.csv -e minilm -e smollm2-135m  # columns text and label",
    ):
        out.print(line, soft_wrap=True)


def _print_run(report: RunReport, out: Console, verbose: bool) -> None:
    selection = report.selection
    if verbose:
        _print_details(report, out)
    _print_encoders(report.profile, selection.blocks, out)
    trials = len({(trial.fusion, trial.head) for trial in selection.trials})
    compared = f" ({plural(trials, 'alternative')} compared)" if trials else ""
    out.print(
        f"\nSelected ({selection.method}): {selection.fusion} fusion, {selection.head} head"
        f"{compared}"
    )
    names = list(map(str, selection.blocks))
    for place, (name, gain) in enumerate(zip(names, selection.gains, strict=True), 1):
        padded = name.ljust(max(map(len, names)))
        out.print(f"  {place}. {padded}  loss −{gain:.4f}", soft_wrap=True)
    out.print()
    headline = sentence_case(report.verdict.headline)
    rest = report.verdict.sentence.removeprefix(report.verdict.headline)
    out.print(Text.assemble("Verdict: ", (headline, "bold"), rest))
    _print_baselines(report, out, verbose)
    out.print(_cost_line(report))


def _print_details(report: RunReport, out: Console) -> None:
    """What the page has and one screen has no room for."""
    _print_poolings(report.profile, report.selection.blocks, out)
    out.print(_layer_table(report.profile, report.selection.blocks))
    for own in (
        *((tables.trials_table(report),) if report.selection.trials else ()),
        tables.class_table(report),
        tables.calibration_table(report.diagnosis.calibration),
        tables.cost_table(report),
        tables.encoder_table(report),
        tables.time_table(report),
    ):
        table = _table(own.caption, *own.head, numeric=own.numeric)
        for place, row in enumerate(own.rows[: max(own.open_rows, _MOST_BLOCKS)]):
            table.add_row(*row, style="bold" if place in own.strong else "")
        out.print(table)
    measured = report.measured
    log_loss, ece = measured.log_loss.value, measured.ece.value
    out.print(f"Calibration: log loss {log_loss:.3f}, ECE {ece:.3f}\n")


def _print_baselines(report: RunReport, out: Console, verbose: bool) -> None:
    """The table of accuracies, without lines, and without macro-F1 unless there is time for it."""
    own = tables.accuracy_table(report, short=not verbose)
    shown = [place for place in range(len(own.head)) if verbose or place != 3]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(f"on {report.measured.n:,} {report.rows_in_words}", overflow="fold")
    for place in shown[1:]:
        table.add_column(own.head[place], justify="right")
    for number, row in enumerate(own.rows):
        cells = (row[place] for place in shown)
        table.add_row(*cells, style="bold" if number in own.strong else "")
    out.print(table)


def _cost_line(report: RunReport) -> str:
    used, ratio = report.cost.pipeline, report.cost.time_ratio
    times = ""
    if ratio is not None:
        span = f"{ratio.low:.1f} to {ratio.high:.1f}"
        times = f", {ratio.value:.1f}x the last layer ({span})"
    return (
        f"Cost: {used.ms_per_text:.1f} ms/text{times}; {used.memory_mb:.0f} MB, "
        f"{used.dims:,} dimensions"
    )


def _gain(gain: PairedDifference | Estimate, separator: str = " ") -> str:
    value = gain.value if isinstance(gain, Estimate) else gain.difference
    return f"{points(value)}{separator}({points_interval(gain.low, gain.high)})"


def render_evaluation(result: EvaluateResult, out: Console) -> None:
    """The outcome of ``evaluate``."""
    split = f" ({result.split})" if result.split else ""
    metrics = result.metrics
    out.print(f"{plural(metrics.n, 'row')} of {result.data}{split}", soft_wrap=True)
    for name, own in vars(metrics).items():
        if isinstance(own, Estimate):
            out.print(f"{name:9} {own.value:.4f}  95% interval {own.low:.4f} to {own.high:.4f}")


def render_comparison(result: CompareResult, out: Console) -> None:
    """The headline, the best pairs, what to add next, and texts that one of the best pair alone
    gets right.
    """
    headline = result.headline
    name = headline.measure.replace("_", " ").capitalize()
    line = f"{name} {headline.value:+.4f}: {headline.a} + {headline.b}"
    out.print(Text(line, "bold"), soft_wrap=True)
    out.print(Text.assemble(("Verdict: ", "bold"), result.verdict), soft_wrap=True)
    out.print()
    _print_pairs(result, out)
    if result.additions:
        out.print(_addition_table(result), width=_WIDTH)
    for block in dict.fromkeys(example.right for example in result.examples):
        out.print(f"Only {block} is right, for example:", style="bold", soft_wrap=True)
        for example in result.examples:
            if example.right == block:
                out.print(_example(example))


def _print_pairs(result: CompareResult, out: Console) -> None:
    """Two lines for each pair: one for each block, and below a number its uncertainty."""
    title = f"Pairs (leave-one-out on {plural(result.n, 'training row')})"
    columns = ("alone", "fused", "gain, points", "loss gain", "CKA", "Q", "either")
    table = _table(title, "blocks", *columns)
    for pair in result.pairs[:_MOST_PAIRS]:
        table.add_row(
            f"{pair.a}\n{pair.b}",
            f"{percent(pair.accuracy_a)}\n{percent(pair.accuracy_b)}",
            percent(pair.accuracy),
            _gain(pair.gain, "\n"),
            f"{pair.loss_gain:+.4f}\n± {pair.loss_gain_se:.4f}",
            f"{pair.cka:.2f}",
            f"{pair.yules_q:.2f}",
            percent(pair.oracle_accuracy),
        )
    out.print(table, width=_WIDTH)
    hidden = len(result.pairs) - _MOST_PAIRS
    if hidden > 0:
        out.print(f"and {hidden} more, which --json lists\n")


def _addition_table(result: CompareResult) -> Table:
    """The best blocks to add, and the best one of every encoder that is not in use."""
    title = f"What to add next to {', '.join(map(str, result.pipeline))}"
    table = _table(title, "block", "accuracy", "gain, points", "loss gain", "")
    seen: set[str] = set()
    for place, addition in enumerate(result.additions):
        encoder = addition.block.encoder
        first = addition.new_encoder and encoder not in seen
        seen.add(encoder)
        if place < _MOST_ADDITIONS or first:
            table.add_row(
                str(addition.block),
                percent(addition.accuracy),
                _gain(addition.gain),
                f"{addition.loss_gain:+.4f} ± {addition.loss_gain_se:.4f}",
                "new encoder" if addition.new_encoder else "",
            )
    return table


def _example(example: Example) -> Text:
    """One line of the text with its row and label, cut where the terminal ends."""
    line = f"  {example.row} [{example.label}] {example.text}"
    printable = "".join(sign if sign.isprintable() else " " for sign in line)
    text = Text(f"  {' '.join(printable.split())}")
    text.truncate(_WIDTH, overflow="ellipsis")
    return text


def render_curve(result: CurveResult, out: Console) -> None:
    """The verdict, the table by number of labels, and what its intervals cover."""
    out.print(Text.assemble(("Verdict: ", "bold"), result.verdict), width=_WIDTH)
    out.print()
    curve = result.curve
    rows = "test rows" if result.measured_on == "test" else result.measured_on
    columns = ("share", "last layer", "best block", "fusion", "fusion minus last, points")
    table = _table(f"Accuracy on {curve.n_test:,} {rows}", "labels", *columns)
    for point in curve.points:
        table.add_row(
            f"{point.n_rows:,}",
            f"{100 * point.n_rows / curve.n_train:.3g}%",
            *(percent(own.value) for own in (point.last_layer, point.best_block, point.fusion)),
            _gain(point.gain),
        )
    out.print(table, width=_WIDTH)
    counts = [len(point.draws) for point in curve.points]
    draws = plural(max(counts), "draw")
    if counts[-1] < max(counts):
        draws += " (one of all labels)"
    out.print(
        f"Means over {draws}; in brackets 95% intervals over test rows and draws. Blocks, fusion "
        "and penalties are selected anew from the labels of each draw.",
        width=_WIDTH,
    )


def render_rows(result: BaseModel, out: Console) -> None:
    """Records of one kind as a table, or one record as lines."""
    for name, value in result:
        if isinstance(value, tuple):
            _print_records(value, out)
        else:
            out.print(f"{name}: {value}", soft_wrap=True)


def _print_records(records: Sequence[object], out: Console) -> None:
    if not records:
        out.print("nothing")
        return
    table = Table()
    names = [name for name in vars(records[0]) if name not in _HIDDEN]
    for name in names:
        table.add_column(_COLUMNS.get(name, name.replace("_", " ")), overflow="fold")
    for record in records:
        table.add_row(*(_cell(name, getattr(record, name)) for name in names))
    out.print(table)


def _cell(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name == "n_bytes":
        return human_bytes(value)
    if isinstance(value, float):  # seconds since the last use
        days = value / 86_400
        return f"{days:.1f} days ago" if days > 1 else f"{24 * days:.1f} h ago"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry:,}" for key, entry in value.items())
    return str(value)


def render_models(result: ModelList, out: Console) -> None:
    """The named encoders, three lines each: no terminal has room for their table."""
    for entry in result.models:
        out.print(f"{entry.name}{' (downloaded)' if entry.pulled else ''}", style="bold")
        out.print(f"  {entry.description}", highlight=False)
        facts = (
            f"{entry.layers} layers of {entry.dim}",
            f"{entry.parameters / 1e6:.0f} M parameters",
            human_bytes(entry.n_bytes),
            f"languages: {entry.languages}",
            f"up to {entry.max_tokens} tokens",
            f"license: {entry.license}",
            *([f"prompt: {entry.prompt}"] if entry.prompt else ()),
        )
        out.print(f"  {'; '.join(facts)}", soft_wrap=True, markup=False, highlight=False)


def render_written(result: ReportResult, out: Console) -> None:
    """The outcome of ``report``."""
    out.print(f"{result.report} ({human_bytes(result.n_bytes)})", soft_wrap=True)
    if result.figures:
        out.print(f"{len(result.figures)} figures beside {result.figures[0]}", soft_wrap=True)


def render_check(result: ModelCheck, out: Console) -> None:
    """The outcome of ``models check``."""
    out.print(
        f"{result.name}: {result.layers} layers of {result.dim}, {result.dtype} on {result.device}"
    )
    for check in result.checks:
        out.print(
            f"  {'ok    ' if check.ok else 'FAILED'} {check.name}: {check.deviation:.1e} "
            f"(tolerance {check.tolerance:.0e})",
        )


def render_verify(result: StoreCheck, out: Console) -> None:
    """The outcome of ``store verify``."""
    out.print(
        f"{result.root}: {plural(result.shards, 'shard')}, {human_bytes(result.n_bytes)} intact",
        soft_wrap=True,
    )
    for path in result.damaged:
        out.print(f"damaged, set aside: {path}", soft_wrap=True)


def render_audit(result: Audit, out: Console) -> None:
    """The outcome of ``datasets audit``."""
    out.print(result.name, style="bold", soft_wrap=True)
    for name, split in result.splits.items():
        out.print(f"{name}: {plural(split.rows, 'row')}")
        for word, finding in (
            ("empty", split.empty), ("repeated", split.duplicates), ("long", split.over_long)
        ):  # fmt: skip
            _print_finding(f"{word} texts", finding, out)
        if split.conflicts:
            out.print(f"  texts with conflicting labels: {split.conflicts}")
        if not (split.conflicts or split.empty.count or split.duplicates.count):
            out.print("  no empty, repeated or conflicting texts")
        shown = list(split.classes.items())[:_MOST_CLASSES]
        more = len(split.classes) - len(shown)
        tail = f" and {more} more" if more else ""
        counts = ", ".join(f"{label}: {count}" for label, count in shown)
        out.print(f"  rows by class: {counts}{tail}", soft_wrap=True)
        if len(split.classes) == 1 and name != result.test_name:
            out.print("  only one class: a classifier needs two")
    _print_finding(f"rows of {result.test_name} that are in train", result.leaks, out)
    for word, names in _class_findings(result):
        if names:
            out.print(f"  {word}: {', '.join(names)}", soft_wrap=True)


def _class_findings(result: Audit) -> Iterator[tuple[str, Collection[str]]]:
    yield "untested classes", result.untested_classes
    yield "unseen classes", result.unseen_classes
    yield "small classes", result.small_classes


def _print_finding(name: str, finding: Finding, out: Console) -> None:
    if finding.count:
        rows = ", ".join(map(str, finding.rows))
        more = ", …" if finding.count > len(finding.rows) else ""
        out.print(f"  {name}: {finding.count} (row {rows}{more}, counted from 0)")
