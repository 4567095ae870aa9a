"""The papers' claims, and whether a study confirms them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.study.evidence import MARGIN, Evidence

CONFIRMED, PARTLY, REFUTED = "confirmed", "partly confirmed", "refuted"
NOT_ENOUGH = "not enough evidence"
UNTESTED = "not tested"

MIN_SETS = 3
"""Independent datasets that must show something before a claim is confirmed or refuted."""

_COSTS_MORE = 1.05  # times as much: below, it may be noise

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Claim:
    """A published claim, its outcome, and the numbers that the page's template words.

    ``needs`` says for an outcome that lacks evidence what it would take.
    """

    title: str
    outcome: str
    numbers: Mapping[str, Any]
    needs: str


@dataclass(frozen=True)
class Finding:
    """An outcome with its numbers, and the comparisons that it rests on."""

    outcome: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    compared: pd.DataFrame = field(default_factory=pd.DataFrame)


def claims_of(evidence: Evidence) -> list[Claim]:
    """The four claims of Gwak and Jung (2025), and that of their follow-up (2026).

    A claim is confirmed or refuted where at least half of the comparisons, on at least `MIN_SETS`
    independent datasets, show it or the contrary, and none shows the other. It is confirmed in part
    where both are shown, each on several datasets, or where it has two parts and one is confirmed.
    """
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
        finding = examine(evidence)
        title = f"{number}. {statement} {finding.outcome.capitalize()}."
        needs = _needs(evidence, finding) if finding.outcome == NOT_ENOUGH else ""
        examined.append(Claim(title, finding.outcome, finding.numbers, needs))
    return examined


def _outcome(evidence: Evidence, sets: pd.Series, supports: Flags, contradicts: Flags) -> str:
    """The outcome of comparisons (n,) on datasets ``sets`` that support or contradict a claim."""
    sources, shown = sets.map(evidence.sources), supports | contradicts
    if supports.any() and contradicts.any():
        fewest = min(sources[supports].nunique(), sources[contradicts].nunique())
        return PARTLY if fewest > 1 else NOT_ENOUGH
    if sources[shown].nunique() < MIN_SETS or 2 * shown.sum() < len(sets):
        return NOT_ENOUGH
    return CONFIRMED if supports.any() else REFUTED


def _of_verdicts(evidence: Evidence, table: pd.DataFrame, supports: str, *against: str) -> str:
    if table.empty:
        return NOT_ENOUGH
    verdict = table["verdict"]
    flags = (verdict.eq(supports).to_numpy(), verdict.isin(against).to_numpy())
    return _outcome(evidence, table["dataset"], *flags)


def _of_both(first: str, second: str) -> str:
    """The outcome of a claim with two parts."""
    if first == second:
        return first
    return PARTLY if {CONFIRMED, PARTLY} & {first, second} else REFUTED


def _needs(evidence: Evidence, finding: Finding) -> str:
    """How many datasets and test rows it would take to tell a difference of `MARGIN` from none."""
    table, parts = finding.compared, []
    n_sources = table["dataset"].map(evidence.sources).nunique() if len(table) else 0
    if n_sources < MIN_SETS:
        parts.append(f"at least {MIN_SETS} independent datasets (here {n_sources})")
    unclear = table[table["verdict"] == "unclear"] if "verdict" in table else table[:0]
    if len(unclear):
        n_test = evidence.data.set_index("dataset")["test_rows"]
        # An interval narrows with the square root of the number of rows.
        times = ((unclear["high"] - unclear["low"]) / (2 * MARGIN)) ** 2
        needed = (times * unclear["dataset"].map(n_test)).median()
        if needed > n_test.min():
            digits = 1 - math.floor(math.log10(needed))
            parts.append(
                f"about {round(needed, digits):,.0f} test rows per dataset to tell a difference "
                f"of {100 * MARGIN:g} point from none (here {n_test.min():,} to {n_test.max():,})"
            )
    return f"It would take {' and '.join(parts or ['more datasets or encoders'])}."


def _count(table: pd.DataFrame, verdict: str) -> int:
    return 0 if table.empty else int((table["verdict"] == verdict).sum())


def _layers_differ(evidence: Evidence) -> Finding:
    cases, borrowed = evidence.cases, evidence.borrowed
    if cases.empty:
        return Finding(UNTESTED)
    clear, same = cases["clear"].to_numpy(), cases["same"].to_numpy()
    differ = _outcome(evidence, cases["dataset"], clear, same)
    # A best block that is the same one on both datasets does not depend on them.
    shared = evidence.shared_best.assign(verdict="equal")
    depends = _of_verdicts(evidence, pd.concat([borrowed, shared]), "worse", "equal", "better")
    numbers = {
        "differ": int(clear.sum()),
        "worse": _count(borrowed, "worse"),
        "n_pairs": len(borrowed) + len(shared),
        "depends": depends,
        "cases": cases,
        "borrowed": borrowed,
        "widest": cases.loc[cases["spread"].idxmax()],
    }
    return Finding(_of_both(differ, depends), numbers, borrowed)


def _middle_beats_last(evidence: Evidence) -> Finding:
    table = evidence.middle_layers
    if table.empty:
        return Finding(UNTESTED)
    numbers = {
        "table": table,
        "better": _count(table, "better"),
        "worse": _count(table, "worse"),
        "equal": _count(table, "equal"),
        "last": int((evidence.best_layers["best_depth"] == 1).sum()),
        "bands": evidence.cases["band"].dropna(),
        "top": table.loc[table["difference"].idxmax()],
        "unclear": sorted(set(table.loc[table["verdict"] == "unclear", "dataset"])),
    }
    outcome = _of_verdicts(evidence, table, "better", "worse", "equal")
    return Finding(outcome, numbers, table)


def _fusion_helps(evidence: Evidence) -> Finding:
    table, promises = evidence.group_gains, evidence.promises
    if table.empty:
        return Finding(UNTESTED)
    helps = _of_verdicts(evidence, table, "better", "worse", "equal")
    ranked = _of_verdicts(evidence, promises, "better", "worse", "equal")
    numbers = {
        "better": _count(table, "better"),
        "worse": _count(table, "worse"),
        "kept": _count(promises, "better"),
        "top": table.loc[table["difference"].idxmax()],
        "table": table,
        "promises": promises,
    }
    return Finding(_of_both(helps, ranked), numbers, table)


def _fusion_costs(evidence: Evidence) -> Finding:
    costs = list(_costs(evidence))
    if not costs:
        return Finding(UNTESTED)
    sets = pd.Series([cost.dataset for cost in costs])
    time, memory = (
        _outcome(evidence, sets, more, ~more)
        for more in (
            np.array([getattr(cost, name) > _COSTS_MORE for cost in costs])
            for name in ("time", "memory")
        )
    )
    return Finding(_of_both(time, memory), {"costs": costs}, pd.DataFrame({"dataset": sets}))


@dataclass(frozen=True)
class _Cost:
    """A dataset's rows of resources: the best last layer, and the greedy blocks of the largest
    group with encoders cut and whole."""

    dataset: str
    last: Any
    fused: Any
    whole: Any

    @property
    def time(self) -> float:
        return float(self.fused.latency_ms / self.last.latency_ms)

    @property
    def memory(self) -> float:
        return float(self.fused.model_mb / self.last.model_mb)


def _costs(evidence: Evidence) -> Iterator[_Cost]:
    # The last layer to compare with is that of the encoder which is best on training rows.
    best = {(row.dataset, row.last_group) for row in evidence.selections.itertuples()}
    for dataset in evidence.datasets:
        rows = [row for row in evidence.resources.itertuples() if row.dataset == dataset]
        greedy = [row for row in rows if row.way == "greedy"]
        size = max((row.group.count("+") for row in greedy), default=0)
        largest = {row.cut: row for row in greedy if row.group.count("+") == size}
        lasts = [row for row in rows if row.way == "last"]
        last = next((row for row in lasts if (dataset, row.group) in best), next(iter(lasts), None))
        if last is not None and len(largest) == 2:
            yield _Cost(dataset, last, largest[True], largest[False])


def _few_labels(evidence: Evidence) -> Finding:
    falls = evidence.gain_falls
    if falls.empty:
        return Finding(UNTESTED)
    outcome = _of_verdicts(evidence, falls, "better", "worse", "equal")
    counts = {"n_falls": _count(falls, "better"), "n_rises": _count(falls, "worse")}
    return Finding(outcome, {"falls": falls, **counts}, falls)
