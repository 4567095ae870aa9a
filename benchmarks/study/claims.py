"""The papers' claims, and whether a study confirms them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.study.evidence import Evidence

CONFIRMED, PARTLY, REFUTED = "confirmed", "partly confirmed", "refuted"
UNTESTED = "not tested"

_CLEARLY = 1.05  # times as much: below, it may be noise

Finding = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """A published claim, its outcome, and the numbers that the page's template words."""

    title: str
    outcome: str
    numbers: Mapping[str, Any]


def claims_of(evidence: Evidence) -> list[Claim]:
    """The four claims of Gwak and Jung (2025), and that of their follow-up (2026)."""
    claims: dict[str, Callable[[Evidence], Finding]] = {
        "Layers differ in how well they classify, and the best one depends on the dataset.": (
            _layers_differ
        ),
        "Middle-to-late layers beat the last one.": _middle_beats_last,
        "Fusing encoders helps when they complement each other.": _fusion_helps,
        "Fusion costs memory and time.": _fusion_costs,
        "Fusion pays most when labels are few.": _few_labels,
    }
    examined = []
    for number, (statement, examine) in enumerate(claims.items(), start=1):
        outcome, numbers = examine(evidence)
        title = f"{number}. {statement} {outcome.capitalize()}."
        examined.append(Claim(title, outcome, numbers))
    return examined


def _count(table: pd.DataFrame, verdict: str) -> int:
    return 0 if table.empty else int((table["verdict"] == verdict).sum())


def _layers_differ(evidence: Evidence) -> Finding:
    cases, borrowed = evidence.cases, evidence.borrowed
    if cases.empty:
        return UNTESTED, {}
    clear, worse = int(cases["clear"].sum()), _count(borrowed, "worse")
    n_pairs = len(cases) * (len(evidence.datasets) - 1)
    depends = 2 * worse >= n_pairs
    if clear == len(cases) and depends:
        outcome = CONFIRMED
    else:
        outcome = PARTLY if clear or worse else REFUTED
    widest = cases.loc[cases["spread"].idxmax()]
    numbers = {"differ": clear, "worse": worse, "n_pairs": n_pairs, "depends": depends}
    return outcome, {**numbers, "cases": cases, "borrowed": borrowed, "widest": widest}


def _middle_beats_last(evidence: Evidence) -> Finding:
    table = evidence.best_layers
    if table.empty:
        return UNTESTED, {}
    better = table["verdict"] == "better"
    inside = int((better & table["best_depth"].between(0.5, 1, inclusive="left")).sum())
    outcome = CONFIRMED if inside == len(table) else PARTLY if inside else REFUTED
    return outcome, {
        "table": table,
        "better": int(better.sum()),
        "worse": _count(table, "worse"),
        "inside": inside,
        "last": int((table["best_depth"] == 1).sum()),
        "bands": evidence.cases["band"].dropna(),
        "top": table.loc[table["difference"].idxmax()],
        "unclear": sorted(set(table.loc[~better, "dataset"])),
    }


def _fusion_helps(evidence: Evidence) -> Finding:
    table, promises = evidence.group_gains, evidence.promises
    if table.empty:
        return UNTESTED, {}
    better, worse = _count(table, "better"), _count(table, "worse")
    kept = int((promises["low"] > 0).sum()) if len(promises) else 0
    always = 2 * better >= len(table) and not worse and 0 < kept == len(promises)
    outcome = REFUTED if not better else CONFIRMED if always else PARTLY
    top = table.loc[table["difference"].idxmax()]
    numbers = {"better": better, "worse": worse, "kept": kept, "top": top}
    return outcome, {**numbers, "table": table, "promises": promises}


def _fusion_costs(evidence: Evidence) -> Finding:
    rows = list(evidence.resources.itertuples())
    greedy = [row for row in rows if row.way == "greedy"]
    size = max((row.group.count("+") for row in greedy), default=0)
    largest = {row.cut: row for row in greedy if row.group.count("+") == size}
    # The last layer to compare with is that of the encoder which is best on training rows.
    lasts = [row for row in rows if row.way == "last"]
    best = {(row.dataset, row.last_group) for row in evidence.selections.itertuples()}
    last = next((row for row in lasts if (row.dataset, row.group) in best), next(iter(lasts), None))
    if last is None or len(largest) < 2:
        return UNTESTED, {}
    fused, whole = largest[True], largest[False]
    time, memory = fused.latency_ms / last.latency_ms, fused.model_mb / last.model_mb
    outcome = (REFUTED, PARTLY, CONFIRMED)[(time > _CLEARLY) + (memory > _CLEARLY)]
    numbers = {"last": last, "fused": fused, "whole": whole, "time": time, "memory": memory}
    return outcome, numbers


def _few_labels(evidence: Evidence) -> Finding:
    curves = evidence.curves
    if curves.empty:
        return UNTESTED, {}
    first, last = (
        getattr(curves.groupby("dataset", sort=False), end)(1) for end in ("head", "tail")
    )
    falls = (first["gain_difference"].to_numpy() > last["gain_difference"].to_numpy()).sum()
    outcome = CONFIRMED if falls == len(first) else PARTLY if falls else REFUTED
    ends = list(zip(first.itertuples(), last.itertuples(), strict=True))
    return outcome, {"falls": int(falls), "ends": ends}
