"""Sections that weigh one thing against another: pairs of blocks, accuracy and cost, labels."""

from __future__ import annotations

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

__all__ = ["cost", "labels", "pairs"]

_SAME = 1.05  # times whose largest is less than so many times the smallest tell nothing apart


def pairs(run: Run) -> Section | None:
    """Which blocks err on different texts."""
    found = run.details["complementarity"]
    names, measured = found["blocks"], found["pairs"]
    if not measured:
        return None
    rows, cells = [], []
    for pair in measured:
        detail = (
            f"fused {points(pair['gain']['difference'])} points, CKA {pair['cka']:.2f}, "
            f"either right {percent(pair['oracle_accuracy'])}"
        )
        for a, b in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            value = 100 * pair["disagreement"]
            rows.append({"a": a, "b": b, "value": value, "detail": detail})
        gain = pair["gain"]
        cells.append(
            (
                pair["a"],
                pair["b"],
                percent(pair["disagreement"]),
                f"{pair['cka']:.2f}",
                f"{pair['yules_q']:.2f}",
                percent(pair["double_fault"]),
                percent(pair["oracle_accuracy"]),
                points(gain["difference"]),
                f"{points(gain['low'])} to {points(gain['high'])}",
            )
        )
    most = max(measured, key=lambda pair: pair["disagreement"])
    summary = (
        f"Of {plural(len(measured), 'pair')}, {most['a']} and {most['b']} differ most: on "
        f"{percent(most['disagreement'])} of the rows exactly one of them is right."
    )
    head = (
        "block",
        "with",
        "one right",
        "CKA",
        "Yule's Q",
        "both wrong",
        "either right",
        "fused, points",
        "95 % interval",
    )
    cells.sort(key=lambda row: -float(row[2].split()[0]))
    table = Table("Pairs of blocks", head, cells, frozenset(range(2, 9)), open_rows=100)
    chart = figures.heat_map(rows, names, measure="one right, % of rows", text_format=".1f")
    lead = (
        "Two blocks are worth more together when they err on different texts. Measured by "
        f"leave-one-out on {plural(found['n'], 'training row')}, for the chosen blocks and each "
        "encoder's best and last layer."
    )
    figure = Figure(
        "pairs", "Share of rows that exactly one of two gets right", summary, chart, table
    )
    return Section("complementarity", "Which blocks complement each other", [lead], [figure])


def cost(run: Run) -> Section:
    """Accuracy against time, memory and dimensions."""
    rows, cells = [], []
    for row in run.result["pareto"]:
        ships = row["name"] == "pipeline"
        low, high = row["ci95"]
        name = "layerfuse" if ships else readable(row["name"])
        rows.append(
            {
                "name": name,
                "blocks": ", ".join(row["blocks"]),
                "value": row["accuracy"],
                "low": low,
                "high": high,
                "ms": row["ms_per_text"],
                "memory_mb": row["memory_mb"],
                "dims": row["dims"],
                "front": row["on_front"],
                "ships": ships,
            }
        )
        cells.append(
            (
                name,
                percent(row["accuracy"]),
                interval(low, high),
                f"{row['ms_per_text']:.2f}",
                f"{row['memory_mb']:.0f}",
                f"{row['dims']:,}",
                "yes" if row["on_front"] else "",
            )
        )
    times = [row["ms"] for row in rows]
    by = "ms" if max(times) > _SAME * min(times) else "dims"
    front = [row["name"] for row in rows if row["front"]]
    summary = f"Nothing beats these in accuracy and cost at once: {', '.join(front)}."
    head = (
        "pipeline",
        "accuracy",
        "95 % interval",
        "ms a text",
        "MB",
        "dimensions",
        "on the front",
    )
    table = Table("Accuracy and cost", head, cells, frozenset(range(1, 6)))
    across = (
        "the time that reading one text took on this machine, in batches"
        if by == "ms"
        else "the dimensions that are fused, as all of these take about the same time"
    )
    lead = (
        f"Nested accuracy on training rows against {across}. The dashed line joins the best for "
        "each cost; filled points are beaten by none in accuracy, time, memory and dimensions at "
        "once. Hover or tap a point for its blocks."
    )
    figure = Figure("pareto", "Accuracy against cost", summary, figures.pareto(rows, by=by), table)
    return Section("cost", "What it costs", [lead], [figure])


def labels(run: Run) -> Section | None:
    """The learning curve, where the folder holds one."""
    if run.curve is None:
        return None
    rows, cells = [], []
    for point in run.curve["points"]:
        for way in ("fusion", "best_block", "last_layer"):
            own = {name: point[way][name] for name in ("value", "low", "high")}
            rows.append({"way": readable(way), "n_rows": point["n_rows"], **own})
        gain = point["gain"]
        cells.append(
            (
                f"{point['n_rows']:,}",
                *(percent(point[way]["value"]) for way in ("last_layer", "best_block", "fusion")),
                points(gain["value"]),
                f"{points(gain['low'])} to {points(gain['high'])}",
            )
        )
    rows.sort(key=lambda row: row["way"] != "fusion")
    summary = str(run.curve["verdict"]["sentence"])
    head = ("labels", "last layer", "best block", "fusion", "gain, points", "95 % interval")
    table = Table("Accuracy by number of labels", head, cells, frozenset(range(6)))
    figure = Figure(
        "learning", "Accuracy by number of labels", summary, figures.learning_curves(rows), table
    )
    return Section("labels", "How many labels it takes", [], [figure])
