"""Sections about what was chosen: verdict, layers, selection path."""

from __future__ import annotations

from typing import Any

from layerfuse import figures
from layerfuse.report.parts import (
    Figure,
    Section,
    Table,
    interval,
    percent,
    plural,
    points,
    readable,
)
from layerfuse.report.reading import Run

__all__ = ["choice", "curves", "path", "verdict"]


def verdict(run: Run) -> Section:
    """Whether it was worth it, against everything simpler."""
    rows: list[dict[str, Any]] = []
    cells = []
    for item in _baselines(run):
        gain = item["pipeline_minus_baseline"][run.where]
        name = _full_name(item)
        value, low, high = gain["difference"], gain["low"], gain["high"]
        if item["name"] != "majority":
            rows.append({"name": name, "value": value, "low": low, "high": high})
        measured = item[run.where]
        cells.append(
            (
                name,
                percent(measured["accuracy"]),
                interval(*measured["ci95"]),
                percent(measured["macro_f1"]),
                points(value),
                f"{points(low)} to {points(high)}",
            )
        )
    own = run.result[run.where]
    shipped = plural(len(run.chosen), "block")
    cells.append(
        (
            f"layerfuse ({shipped})",
            percent(own["accuracy"]),
            interval(*own["ci95"]),
            percent(own["macro_f1"]),
            "",
            "",
        )
    )
    clear = ", ".join(row["name"] for row in rows if row["low"] > 0) or "none of them"
    worse = ", ".join(row["name"] for row in rows if row["high"] < 0)
    summary = (
        f"The pipeline's accuracy minus that of {plural(len(rows), 'rival')} on the same "
        f"{run.rows_in_words}. It is clearly better than {clear}"
        + (f", and clearly worse than {worse}." if worse else ".")
    )
    table = Table(
        f"Accuracy on {own['n']:,} {run.rows_in_words}",
        ("pipeline", "accuracy", "95 % interval", "macro-F1", "gain, points", "95 % interval"),
        cells,
        frozenset(range(1, 6)),
        strong=frozenset({len(cells) - 1}),
    )
    note = (
        "An interval that crosses the dashed line means that the two cannot be told apart on these "
        "rows. Choosing saw training rows only."
    )
    figure = Figure(
        "gains", "Gain over simpler ways", summary, figures.gain_intervals(rows), table, note
    )
    return Section("worth", "Was it worth it?", figures=[figure])


def _baselines(run: Run) -> list[dict[str, Any]]:
    return [item for item in run.result["baselines"] if not item["name"].startswith("first_")]


def _full_name(item: dict[str, Any]) -> str:
    name = readable(item["name"])
    return (
        f"{name} ({item['encoder']})"
        if item["name"].startswith("last_l") or item["name"].startswith("last_f")
        else name
    )


def choice(run: Run) -> Section:
    """The chosen blocks on each encoder's stack of layers."""
    places: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for place, (encoder, layer, pooling) in enumerate(run.chosen, 1):
        places.setdefault((encoder, layer), []).append((place, pooling))
    rows, sentences = [], []
    for encoder in run.result["encoders"]:
        name = encoder["name"]
        used = [layer for own, layer in places if own == name]
        top = max(used, default=-1)
        for layer in range(encoder["layers"] + 1):
            own = places.get((name, layer), [])
            state = "chosen" if own else "run through" if layer <= top else "not needed"
            rows.append(
                {
                    "encoder": name,
                    "layer": layer,
                    "state": state,
                    "mark": ", ".join(pooling for _, pooling in own) or "–",
                    "place": ", ".join(str(place) for place, _ in own),
                }
            )
        if used:
            cut = encoder["layers"] - top
            rest = f"; the {plural(cut, 'layer')} above are cut off" if cut else ""
            numbers = ", ".join(str(layer) for layer in sorted(used))
            sentences.append(f"{name}: layers {numbers} of 0 to {encoder['layers']}{rest}.")
        else:
            sentences.append(f"{name}: not used.")
    selection = run.result["selection"]
    trials = {(trial["fusion"], trial["head"]) for trial in selection["trials"]}
    compared = f", compared with {plural(len(trials), 'other way', 'other ways')}" if trials else ""
    lead = (
        f"{plural(len(run.chosen), 'block')} (encoder, layer, pooling) by {selection['method']} "
        f"selection; fused by {selection['fusion']}, read by a {selection['head']} head{compared}."
    )
    table = Table(
        "Chosen blocks, in the order of choosing",
        ("order", "block", "gain in leave-one-out loss"),
        [
            (str(place), f"{encoder}:{layer}:{pooling}", f"{gain:.4f}")
            for place, ((encoder, layer, pooling), gain) in enumerate(
                zip(run.chosen, selection["gains"], strict=True), 1
            )
        ],
        frozenset({0, 2}),
    )
    figure = Figure(
        "stacks",
        "Layers in use",
        " ".join(sentences),
        figures.layer_stacks(rows),
        table,
        "Strong colour: chosen, with its place in the order of choosing. Pale: run through on the "
        "way. Grey: never run.",
    )
    return Section("chosen", "What was chosen", [lead], [figure])


def curves(run: Run) -> Section:
    """One figure for each encoder, all on one scale."""
    profile = run.result["profile"]
    charts = figures.encoder_curves(profile, run.chosen)
    found = []
    for number, (encoder, chart) in enumerate(charts.items()):
        own = [row for row in profile if row["encoder"] == encoder]
        best = max(own, key=lambda row: row["accuracy"])
        top = max(row["layer"] for row in own)
        last = max((r for r in own if r["layer"] == top), key=lambda row: row["accuracy"])
        marked = {(pooling, layer) for name, layer, pooling in run.chosen if name == encoder}
        summary = (
            f"Best is layer {best['layer']} with {best['pooling']} pooling, "
            f"{percent(best['accuracy'])}; the last layer reaches {percent(last['accuracy'])} "
            f"({last['pooling']})."
        )
        cells = [
            (
                row["pooling"],
                str(row["layer"]),
                percent(row["accuracy"]),
                f"± {100 * row['accuracy_se']:.1f}",
                percent(row["macro_f1"]),
                f"{row['loss']:.4f}",
                "yes" if (row["pooling"], row["layer"]) in marked else "",
            )
            for row in own
        ]
        head = ("pooling", "layer", "accuracy", "standard error", "macro-F1", "loss", "chosen")
        table = Table(f"Layers of {encoder}", head, cells, frozenset(range(1, 6)), open_rows=400)
        found.append(Figure(f"curve-{number}", encoder, summary, chart, table))
    lead = (
        "Each layer alone: leave-one-out accuracy of a linear probe on training rows, with 95 % "
        "bands. Diamonds are chosen blocks, squares the last layer. Choosing goes by loss and by "
        "what blocks add to each other, so the chosen ones need not be the highest."
    )
    return Section("layers", "How good each layer is", [lead], found)


def path(run: Run) -> Section:
    """Accuracy and gain after each added block."""
    gains, blocks = run.result["selection"]["gains"], run.chosen
    steps = {
        int(item["name"].removeprefix("first_")): item["cv"]
        for item in run.result["baselines"]
        if item["name"].startswith("first_")
    }
    steps[len(blocks)] = run.result["cv"]
    rows, cells = [], []
    for step, (block, gain) in enumerate(zip(blocks, gains, strict=True), 1):
        name = ":".join(map(str, block))
        measured = steps.get(step)
        if measured is not None:
            low, high = measured["ci95"]
            rows.append(
                {
                    "step": step,
                    "block": name,
                    "value": measured["accuracy"],
                    "low": low,
                    "high": high,
                    "gain": gain,
                    "ships": step == len(blocks),
                }
            )
        cells.append(
            (
                str(step),
                name,
                f"{gain:.4f}",
                percent(measured["accuracy"]) if measured else "–",
                interval(*measured["ci95"]) if measured else "–",
            )
        )
    selection = run.result["selection"]
    summary = (
        f"Nested accuracy goes from {percent(rows[0]['value'])} with one block to "
        f"{percent(rows[-1]['value'])} with {len(blocks)}."
        if len(blocks) > 1
        else f"One block, {cells[0][1]}; no other was worth adding."
    )
    head = ("step", "added block", "gain in loss", "nested accuracy", "95 % interval")
    table = Table("Gain of each added block", head, cells, frozenset({0, 2, 3, 4}))
    tables = [table]
    if selection["trials"]:
        tables.append(_trials(selection["trials"]))
    lead = (
        "Blocks are added one by one while the leave-one-out loss falls by more than a standard "
        "error. Accuracy here is nested cross-validation on training rows: the choosing is run "
        f"anew in each fold. The diamond is what ships (fusion {selection['fusion']}, head "
        f"{selection['head']}); steps before it are concatenated with a ridge head."
    )
    chosen = [Figure("path", "Added block by block", summary, figures.selection_path(rows))]
    return Section("path", "Fusion and selection path", [lead], chosen, tables)


def _trials(trials: list[dict[str, Any]]) -> Table:
    last = {(trial["fusion"], trial["head"]): trial for trial in trials}
    cells = [
        (
            trial["fusion"],
            trial["head"],
            f"{trial['n_rows']:,}",
            f"{trial['gain']:+.4f}",
            f"± {trial['gain_se']:.4f}",
        )
        for trial in sorted(last.values(), key=lambda trial: -trial["gain"])
    ]
    head = ("fusion", "head", "rows", "gain in Brier score", "standard error")
    caption = "Other fusions and heads, against concatenation with a ridge head"
    return Table(caption, head, cells, frozenset({2, 3, 4}), open_rows=6)
