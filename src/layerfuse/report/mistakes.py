"""Sections about where the pipeline errs: confusion, classes, calibration, hardest texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse import figures
from layerfuse.report.details import Predicted
from layerfuse.report.parts import Figure, Section, Table, percent, plural
from layerfuse.report.reading import Run

__all__ = ["calibration", "classes", "hardest"]

_PART = 12  # classes of the most confused part
_MOST = 120  # classes above which the whole matrix would be no picture
_BINS = 10

Ints = npt.NDArray[np.intp]


def classes(run: Run) -> Section:
    """Confusion matrix, and classes by the number of errors that they take part in."""
    names, rows = run.details["classes"], run.rows[run.where]
    counts = np.zeros((len(names), len(names)), dtype=np.intp)
    np.add.at(counts, (rows.truth, rows.predicted), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    hurt = wrong.sum(axis=0) + wrong.sum(axis=1)
    by_hurt = np.argsort(-hurt, kind="stable")
    top = np.sort(by_hurt[:_PART])
    pairs = np.dstack(
        np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:8], wrong.shape)
    )
    confused = [(int(t), int(p)) for t, p in pairs[0] if wrong[t, p]]
    said = "; ".join(f"{names[t]} taken for {names[p]} ({wrong[t, p]})" for t, p in confused[:3])
    errors = int(wrong.sum())
    summary = f"{plural(errors, 'error')} on {len(rows):,} {run.rows_in_words}. " + (
        f"Most often: {said}." if said else ""
    )
    worst = Table(
        "Most frequent confusions",
        ("true class", "predicted", "rows", "of the true class"),
        [
            (names[t], names[p], str(wrong[t, p]), percent(wrong[t, p] / counts[t].sum()))
            for t, p in confused
        ],
        frozenset({2, 3}),
    )
    whole = len(names) <= _PART
    title = "Confusion matrix" if whole else f"The {_PART} most confused of {len(names)} classes"
    shown = [
        Figure(
            "confusion",
            title,
            summary,
            figures.confusion(_cells(counts, names, top, whole=True), [names[c] for c in top]),
            worst,
            "" if whole else "Rows of these classes that went to other classes are not drawn here.",
        )
    ]
    if not whole and len(names) <= _MOST:
        everything = np.arange(len(names))
        chart = figures.confusion(
            _cells(counts, names, everything, whole=False), names, numbers=False
        )
        text = f"All {len(names)} classes; a full diagonal would be perfect."
        shown.append(Figure("confusion-all", "All classes", text, chart, folded=True))
    return Section(
        "classes",
        "Where it errs: classes",
        [],
        shown,
        [_class_table(counts, wrong, names, by_hurt)],
    )


def _cells(counts: Ints, names: list[str], chosen: Ints, *, whole: bool) -> list[dict[str, Any]]:
    """Cells of some classes; with ``whole`` the empty ones too."""
    return [
        {
            "truth": names[t],
            "predicted": names[p],
            "count": int(counts[t, p]),
            "share": float(counts[t, p] / max(1, counts[t].sum())),
        }
        for t in chosen
        for p in chosen
        if whole or counts[t, p]
    ]


def _class_table(counts: Ints, wrong: Ints, names: list[str], order: Ints) -> Table:
    cells = []
    for label in order:
        own, given = int(counts[label].sum()), int(counts[:, label].sum())
        hits = int(counts[label, label])
        recall = hits / own if own else None
        precision = hits / given if given else None
        rival = int(wrong[label].argmax())
        cells.append(
            (
                names[label],
                f"{own:,}",
                percent(recall),
                percent(precision),
                percent(2 * hits / (own + given) if own + given else None),
                str(own - hits),
                str(given - hits),
                names[rival] if wrong[label, rival] else "–",
            )
        )
    head = ("class", "rows", "recall", "precision", "F1", "missed", "false alarms", "taken for")
    return Table("Classes, those with most errors first", head, cells, frozenset(range(1, 7)))


def calibration(run: Run) -> Section:
    """Whether probabilities are true, with ECE."""
    rows, measured = run.rows[run.where], run.result[run.where]
    found = _bins(rows)
    low, high = measured["intervals"]["ece"]
    gap = float(np.mean(rows.confidence) - rows.right.mean())
    side = "over-confident" if gap > 0 else "under-confident"
    summary = (
        f"Expected calibration error {100 * measured['ece']:.1f} points (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f}) on {len(rows):,} {run.rows_in_words}; on average "
        f"{side} by {100 * abs(gap):.1f} points. Log loss {measured['log_loss']:.3f}."
    )
    cells = [
        (
            f"{100 * row['from']:.0f} to {100 * row['to']:.0f} %",
            f"{row['count']:,}",
            percent(row["confidence"]),
            percent(row["value"]),
            f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
        )
        for row in found
    ]
    head = ("confidence", "rows", "mean confidence", "accuracy", "95 % interval")
    table = Table("Calibration by bin", head, cells, frozenset({1, 2, 3, 4}))
    figure = Figure(
        "calibration",
        "Accuracy by confidence",
        summary,
        figures.reliability(found),
        table,
        "On the dashed line a probability means what it says. Bars are 95 % intervals.",
    )
    return Section("calibration", "Can its probabilities be trusted?", [], [figure])


def _bins(rows: Predicted) -> list[dict[str, Any]]:
    """Rows by confidence in tenths, with Wilson's interval (1927) of each accuracy."""
    from scipy.stats import binomtest

    edges = np.linspace(0, 1, _BINS + 1)
    places = np.clip(np.digitize(rows.confidence, edges[1:-1], right=True), 0, _BINS - 1)
    found = []
    for place in range(_BINS):
        inside = places == place
        count, hits = int(inside.sum()), int(rows.right[inside].sum())
        if count:
            span = binomtest(hits, count).proportion_ci(method="wilson")
            found.append(
                {
                    "from": float(edges[place]),
                    "to": float(edges[place + 1]),
                    "count": count,
                    "confidence": float(rows.confidence[inside].mean()),
                    "value": hits / count,
                    "low": min(float(span.low), hits / count),
                    "high": max(float(span.high), hits / count),
                }
            )
    return found


def hardest(run: Run) -> Section:
    """Training texts that models which had not seen them got most wrong."""
    found = run.details["hardest"]
    cells = [
        (
            str(text["row"]),
            text["label"],
            f"{text['predicted']} ({100 * text['confidence']:.0f} %)",
            percent(text["own"]) if text["own"] >= 0.001 else "< 0.1 %",
            "check the label" if text["suspect"] else "",
            text["text"],
        )
        for text in found["texts"]
    ]
    lead = (
        f"Of {plural(found['n'], 'training row')}, {found['wrong']:,} are predicted wrongly by "
        f"models that had not seen them. In {found['suspects']:,} of these another class is as "
        "likely as it is for rows that bear it: check their labels first."
    )
    head = ("row", "label", "predicted", "its label's probability", "", "text")
    table = Table(
        "Hardest texts (rows of train, counted from 0)",
        head,
        cells,
        frozenset({0, 3}),
        frozenset({5}),
        open_rows=8,
    )
    return Section("texts", "Hardest and likely mislabelled texts", [lead], [], [table])
