"""What a fit tells a person in the terminal, from the same data that ``--json`` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerfuse.report.parts import readable
from layerfuse.report.terminal_rows import percent, plain_table

__all__ = [
    "layer_chart",
    "render_demo",
    "render_evaluation",
    "render_fit",
    "render_profile",
    "render_scores",
]

_BARS = "▁▂▃▄▅▆▇█"


def layer_chart(accuracies: Sequence[float], chosen: Sequence[bool]) -> Text:
    """One character a layer, its height by accuracy from the lowest to the highest layer; chosen
    layers are marked below."""
    low, high = min(accuracies), max(accuracies)
    span = (high - low) or 1.0
    bars = "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in accuracies)
    marks = "".join("^" if mark else " " for mark in chosen)
    return Text(f"{bars}\n{marks}")


def render_profile(profile: Sequence[Mapping[str, Any]], chosen: set[str], out: Console) -> None:
    """The layer table, and a chart for each encoder and pooling."""
    for encoder, pooling, rows in _curves(profile):
        title = f"{encoder}, {pooling} pooling: leave-one-out accuracy by layer"
        out.print(f"\n{title}", style="bold", soft_wrap=True)
        marks = [f"{encoder}:{row['layer']}:{pooling}" in chosen for row in rows]
        accuracies = [row["accuracy"] for row in rows]
        chart = layer_chart(accuracies, marks)
        out.print(chart, soft_wrap=True)
        best = max(range(len(rows)), key=lambda index: accuracies[index])
        numbers = [row["layer"] for row in rows]
        out.print(
            f"layers {_span(numbers)}: {percent(min(accuracies))} to "
            f"{percent(accuracies[best])}; best {rows[best]['layer']}, last "
            f"{percent(accuracies[-1])}" + ("; ^ chosen" if any(marks) else ""),
        )


def _span(numbers: Sequence[int]) -> str:
    """Rising layer numbers: the first and the last where none between is left out."""
    if len(numbers) == numbers[-1] - numbers[0] + 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _curves(
    profile: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, str, list[Mapping[str, Any]]]]:
    names = dict.fromkeys((row["encoder"], row["pooling"]) for row in profile)
    for encoder, pooling in names:
        rows = [r for r in profile if (r["encoder"], r["pooling"]) == (encoder, pooling)]
        yield encoder, pooling, sorted(rows, key=lambda row: row["layer"])


def layer_table(profile: Sequence[Mapping[str, Any]], chosen: set[str], most: int = 12) -> Table:
    """The best blocks, the chosen ones and every encoder's last layer, by rising loss."""
    ranked = sorted(profile, key=lambda row: row["loss"])
    last = {
        encoder: max(row["layer"] for row in profile if row["encoder"] == encoder)
        for encoder in dict.fromkeys(row["encoder"] for row in profile)
    }
    names = [f"{row['encoder']}:{row['layer']}:{row['pooling']}" for row in ranked]
    is_last = [row["layer"] == last[row["encoder"]] for row in ranked]
    shown = [
        place
        for place, name in enumerate(names)
        if place < most or name in chosen or is_last[place]
    ]
    count = "all" if len(shown) == len(ranked) else f"{len(shown)} of {len(ranked)}"
    table = plain_table(f"Blocks by loss, leave-one-out on training rows ({count})")
    for name in ("block", "accuracy", "macro-F1", "loss", ""):
        table.add_column(name, justify="left" if name in ("block", "") else "right")
    for place in shown:
        row, name = ranked[place], names[place]
        notes = ["chosen"] * (name in chosen) + ["last layer"] * is_last[place]
        table.add_row(
            name,
            f"{percent(row['accuracy'])} ±{100 * row['accuracy_se']:.1f}",
            percent(row["macro_f1"]),
            f"{row['loss']:.4f}",
            ", ".join(notes),
        )
    return table


def render_scores(result: Mapping[str, Any], out: Console) -> None:
    """The terminal report of a profile."""
    render_profile(result["profile"], set(), out)
    out.print()
    out.print(layer_table(result["profile"], set()))


def render_evaluation(result: Mapping[str, Any], out: Console) -> None:
    """The outcome of ``evaluate``."""
    split = f" ({result['split']})" if result["split"] else ""
    out.print(f"{result['n']} rows of {result['data']}{split}", soft_wrap=True)
    for name in ("accuracy", "macro_f1", "log_loss", "ece"):
        low, high = result["intervals"][name]
        line = f"{name:9} {result[name]:.4f}  95 % interval {low:.4f} to {high:.4f}"
        out.print(line)


def render_fit(result: Mapping[str, Any], out: Console) -> None:
    """The terminal report of a fit, and what to type next."""
    _render_run(result, out)
    out.print(f"Next: layerfuse predict {shlex.quote(result['run'])} FILE", soft_wrap=True)


def _render_run(result: Mapping[str, Any], out: Console) -> None:
    chosen = {
        f"{block['encoder']}:{block['layer']}:{block['pooling']}"
        for block in result["selection"]["blocks"]
    }
    render_profile(result["profile"], chosen, out)
    out.print()
    out.print(layer_table(result["profile"], chosen))
    steps = plain_table(f"Chosen ({result['selection']['method']})")
    steps.add_column("block")
    steps.add_column("gain in loss", justify="right")
    for block, gain in zip(
        result["selection"]["blocks"], result["selection"]["gains"], strict=True
    ):
        steps.add_row(f"{block['encoder']}:{block['layer']}:{block['pooling']}", f"{gain:.4f}")
    out.print(steps)
    out.print(f"fused by {result['selection']['fusion']}, head {_head_of(result)}")
    out.print(_accuracy_table(result))
    measured = result["test"] or result["cv"]
    out.print(f"Its probabilities: log loss {measured['log_loss']:.3f}, ECE {measured['ece']:.3f}")
    out.print(_cost_table(result))
    verdict = Text.assemble(("Verdict: ", "bold"), result["verdict"]["sentence"])
    out.print(verdict, soft_wrap=True)
    times = result["timings"]
    out.print(
        f"Time: {times['total_s']:.1f} s in all; reading {times['extract_s']:.1f}, scoring "
        f"{times['score_s']:.1f}, selecting {times['select_s']:.1f}, head {times['head_s']:.1f}, "
        f"resampling {times['cv_s']:.1f}, baselines {times['baselines_s']:.1f}.",
        soft_wrap=True,
    )
    out.print(f"Saved: {result['run']}", soft_wrap=True)


def _head_of(result: Mapping[str, Any]) -> str:
    """The head, and how many alternatives it and the fusion were compared with."""
    tried = {(trial["fusion"], trial["head"]) for trial in result["selection"]["trials"]}
    others = f"; compared with {len(tried)} others" if tried else ""
    return f"{result['selection']['head']}{others}"


def _accuracy_table(result: Mapping[str, Any]) -> Table:
    """Baselines, and what the pipeline gains over each on the same rows."""
    where = "test" if result["test"] else "cv"
    n_rows, n_blocks = result[where]["n"], len(result["selection"]["blocks"])
    rows = f"{n_rows} test rows" if where == "test" else f"{n_rows} rows out of fold"
    table = plain_table(f"Accuracy on {rows}")
    for name in ("pipeline", "accuracy", "95 % interval", "macro-F1", "gain over it"):
        table.add_column(name, justify="left" if name == "pipeline" else "right")
    for baseline in result["baselines"]:
        if baseline["name"].startswith("first_"):
            continue
        name = readable(baseline["name"])
        own = f"{name} ({baseline['encoder']})" if baseline.get("encoder") else name
        gain = baseline["pipeline_minus_baseline"][where]
        points, low, high = (100 * gain[key] for key in ("difference", "low", "high"))
        table.add_row(
            own, *_accuracy_cells(baseline[where]), f"{points:+.1f} ({low:+.1f}, {high:+.1f})"
        )
    own = f"layerfuse ({n_blocks} block{'s' if n_blocks > 1 else ''})"
    table.add_row(own, *_accuracy_cells(result[where]), "", style="bold")
    if where == "test":
        table.add_row("  nested, training rows", *_accuracy_cells(result["cv"]), "")
    return table


def _accuracy_cells(measured: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = measured["ci95"]
    interval = f"{percent(low)} to {percent(high)}"
    return percent(measured["accuracy"]), interval, percent(measured["macro_f1"])


def _cost_table(result: Mapping[str, Any]) -> Table:
    """Accuracy against cost, the most accurate first."""
    table = plain_table("Accuracy (nested, training rows) and cost")
    for name in ("pipeline", "accuracy", "ms a text", "MB", "dims", "front"):
        table.add_column(name, justify="left" if name in ("pipeline", "front") else "right")
    for row in result["pareto"]:
        table.add_row(
            readable(row["name"]),
            percent(row["accuracy"]),
            f"{row['ms_per_text']:.1f}",
            f"{row['memory_mb']:.0f}",
            str(row["dims"]),
            "*" if row["on_front"] else "",
            style="bold" if row["name"] == "pipeline" else "",
        )
    return table


def render_demo(result: Mapping[str, Any], out: Console) -> None:
    """A fit's report, and what to type next."""
    _render_run(result, out)
    out.print("\nNext, with your own texts:", style="bold")
    for line in (
        f"layerfuse predict {result['run']} new.csv      # one column: text",
        "layerfuse fit your.csv -e minilm -e smollm2-135m   # columns: text, label",
        "layerfuse audit your.csv",
    ):
        out.print(f"  {line}", soft_wrap=True)
