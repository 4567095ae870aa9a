"""The claims about fusion: it helps where encoders complement each other, and what it costs."""

from __future__ import annotations

from statistics import median
from typing import Any

from layerfuse.study.corrections import holm, verdict_of
from layerfuse.study.evidence import Evidence, Row
from layerfuse.study.wording import (
    CONFIRMED,
    REFINED,
    REFUTED,
    UNTESTED,
    Claim,
    count,
    points,
    set_name,
)

__all__ = ["fusion_costs", "fusion_helps", "group_gains", "headline_correlations"]


def group_gains(evidence: Evidence) -> list[Row]:
    """For each set and group of encoders the greedy blocks of all of them against the greedy blocks
    of the best one of them, at most as many; ``p_holm`` corrects over all of these."""
    table = [
        {
            "dataset": row["dataset"],
            "group": row["group"],
            "member_group": row["member_group"],
            "accuracy": row["accuracy"]["value"],
            **row["member"],
        }
        for row in evidence.selections
        if row["way"] == "greedy" and "member" in row
    ]
    for row, p in zip(table, holm([row["p_value"] for row in table]), strict=True):
        row |= {"p_holm": float(p), "verdict": verdict_of(row["difference"], p)}
    return table


def headline_correlations(evidence: Evidence) -> list[Row]:
    """For each set, how the measure by which pairs are ranked goes with the gain of fusing them."""
    table = []
    for dataset, found in evidence.results("complementarity"):
        own = found["correlations"].get("two encoders", {}).get(found["headline"])
        if own is not None:
            table.append({"dataset": dataset, "measure": found["headline"], **own})
    return table


def fusion_helps(evidence: Evidence) -> Claim:
    """Claim 3."""
    statement = "Fusing encoders helps when they complement each other."
    table, ranks = group_gains(evidence), headline_correlations(evidence)
    if not table:
        return Claim(3, statement, UNTESTED, ("No two encoders were fused.",))
    better = [row for row in table if row["verdict"] == "better"]
    worse = [row for row in table if row["verdict"] == "worse"]
    gains = [100 * row["difference"] for row in table]
    top = max(table, key=lambda row: row["difference"])
    sentences = [
        (
            "With as many blocks at most, several encoders beat the best one of them in "
            f"{count(len(better), len(table), 'cases (group and set)')} and are worse in "
            f"{len(worse)} (McNemar, Holm over the cases); {median(gains):+.1f} points in the "
            f"median, at most {points(top)} ({top['group']} on {set_name(top['dataset'])})."
        ),
    ]
    told = [row for row in ranks if row["low"] > 0]
    if ranks:
        values = ", ".join(
            f"{row['value']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f}) on "
            f"{set_name(row['dataset'])}"
            for row in ranks
        )
        sentences.append(
            "What fusing a pair of blocks promises on training rows (the drop in leave-one-out "
            f"loss) ranks what it brings on rows held out: rank correlation {values}."
        )
        if not told:
            sentences.append("So complementarity does not tell on which pairs fusion pays.")
    if not better:
        outcome = REFUTED
        sentences.append("No group of encoders clearly gains.")
    elif 2 * len(better) >= len(table) and not worse and ranks and len(told) == len(ranks):
        outcome = CONFIRMED
    else:
        outcome = REFINED
    if worse:
        sentences.append("It can also harm.")
    elif better and len(better) < len(table):
        unclear = len(table) - len(better)
        sentences.append(f"In the other {unclear} a single encoder may do as well.")
    return Claim(3, statement, outcome, tuple(sentences))


_CLEARLY = 1.05  # times as much: below, it may be noise


def fusion_costs(evidence: Evidence) -> Claim:
    """Claim 4."""
    statement = "Fusion costs memory and time."
    reference, fused, whole = _compared(evidence)
    if reference is None or fused is None or whole is None:
        return Claim(4, statement, UNTESTED, ("No fused pipeline was measured.",))

    def times(name: str, of: Row = fused) -> float:
        return float(of[name] / reference[name])

    time, memory = times("latency_ms"), _model_mb(fused) / _model_mb(reference)
    slower = reference["texts_per_s"] / fused["texts_per_s"]
    sentences = [
        (
            f"Against {reference['group']}'s last layer, the greedy blocks of {fused['group']} "
            "take "
            f"{time:.1f} times as long for a single text ({fused['latency_ms']:.1f} against "
            f"{reference['latency_ms']:.1f} ms), {slower:.1f} times as long for full batches, "
            f"{memory:.1f} times the memory beyond Python's own, and "
            f"{times('parameters'):.1f} times the parameters."
        ),
    ]
    if fused["cut"] and whole is not fused:
        saved = 1 - fused["parameters"] / whole["parameters"]
        faster = 1 - fused["latency_ms"] / whole["latency_ms"]
        lighter = 1 - _model_mb(fused) / _model_mb(whole)
        sentences.append(
            f"Cutting the encoders above the highest layer in use changes that by "
            f"{-100 * saved:+.0f} % of the parameters, {-100 * faster:+.0f} % of the time and "
            f"{-100 * lighter:+.0f} % of the memory against whole encoders."
        )
    dearer = (time > _CLEARLY) + (memory > _CLEARLY)
    outcome = (REFUTED, REFINED, CONFIRMED)[dearer]
    if outcome == CONFIRMED and fused["parameters"] < whole["parameters"]:
        sentences.append("The bill is smaller than the sum of whole encoders.")
    return Claim(4, statement, outcome, tuple(sentences))


def _compared(evidence: Evidence) -> tuple[Row | None, Row | None, Row | None]:
    """The last layer of the encoder that is best there, the largest group cut, and it whole."""
    rows = evidence.resources
    groups = [row for row in rows if row["way"] == "greedy"]
    if not groups:
        return None, None, None
    size = max(row["group"].count("+") for row in groups)
    largest = [row for row in groups if row["group"].count("+") == size]
    fused = next((row for row in largest if row["cut"]), None)
    whole = next((row for row in largest if not row["cut"]), None)
    lasts = [row for row in rows if row["way"] == "last"]
    named = {
        (row["dataset"], row["last_group"]) for row in evidence.selections if "last_group" in row
    }
    own = [row for row in lasts if (row["dataset"], row["group"]) in named]
    return next(iter(own or lasts), None), fused, whole


def _model_mb(row: dict[str, Any]) -> float:
    """Peak memory beyond what Python and torch take."""
    base = 0.0 if row["device"].startswith("cuda") else row["base_mb"]
    return max(float(row["peak_mb"] - base), 1e-9)
