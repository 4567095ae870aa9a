"""The claims about layers: they differ, the best depends on the data, the last is not the best."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

from layerfuse.study.corrections import ALPHA, holm, verdict_of
from layerfuse.study.evidence import Evidence, Row
from layerfuse.study.wording import (
    CONFIRMED,
    REFINED,
    REFUTED,
    UNTESTED,
    Claim,
    count,
    percent,
    points,
    set_name,
)

__all__ = ["best_against_last", "borrowed_layers", "layers_differ", "middle_beats_last"]

_MIDDLE = 0.5  # of the depth, from where a layer counts as middle-to-late


def best_against_last(evidence: Evidence) -> list[Row]:
    """For each set and encoder the block that is best on training rows against the last layer, on
    test rows; ``p_holm`` corrects over all of these, ``verdict`` follows from it."""
    table = [
        {"dataset": dataset, "encoder": name, **found}
        for dataset, profile in evidence.results("profile")
        for name, found in profile["encoders"].items()
    ]
    for row, p in zip(table, holm([row["p_value"] for row in table]), strict=True):
        row |= {"p_holm": float(p), "verdict": verdict_of(row["difference"], p)}
    return table


def borrowed_layers(evidence: Evidence) -> list[Row]:
    """For each encoder and two sets, what the one's best block does on the other against its own;
    pairs with the same best block are left out."""
    profiles = dict(evidence.results("profile"))
    table: list[Row] = []
    for on, profile in profiles.items():
        blocks = {row["block"]: row for row in profile["blocks"]}
        for other, there in profiles.items():
            for name, found in profile["encoders"].items():
                borrowed = there["encoders"][name]["best"]
                if other != on and borrowed != found["best"]:
                    row = blocks[borrowed]
                    table.append(
                        {
                            "encoder": name,
                            "on": on,
                            "from": other,
                            "block": borrowed,
                            "difference": row["best_diff"],
                            "low": row["best_diff_low"],
                            "high": row["best_diff_high"],
                            "p_value": row["best_p"],
                        }
                    )
    for row, p in zip(table, holm([row["p_value"] for row in table]), strict=True):
        row |= {"p_holm": float(p), "verdict": verdict_of(row["difference"], p)}
    return table


def layers_differ(evidence: Evidence) -> Claim:
    """Claim 1."""
    statement = "Layers differ in how well they classify, and the best one depends on the dataset."
    cases = list(_cases(evidence))
    if not cases:
        return Claim(1, statement, UNTESTED, ("No layer was profiled.",))
    differ = [case for case in cases if case["clear"]]
    widest = max(cases, key=lambda case: case["spread"])
    sentences = [
        (
            f"In {count(len(differ), len(cases), 'cases (encoder and set)')} at least one layer "
            "differs from the last one at the same pooling on test rows (McNemar, Holm over the "
            f"layers and poolings of the encoder, level {ALPHA:g})."
        ),
        (
            f"From the worst to the best layer lie {percent(min(c['spread'] for c in cases))} to "
            f"{percent(widest['spread'])} points (most: {widest['encoder']} on "
            f"{set_name(widest['dataset'])})."
        ),
    ]
    depends: bool | None = None
    partly = False
    if len(evidence.datasets) > 1:
        borrowed = borrowed_layers(evidence)
        n_pairs = len(evidence.encoders) * len(evidence.datasets) * (len(evidence.datasets) - 1)
        worse = [row for row in borrowed if row["verdict"] == "worse"]
        depends, partly = 2 * len(worse) >= n_pairs, bool(worse)
        sentences.append(
            f"Of {n_pairs} ordered pairs of sets for an encoder, {n_pairs - len(borrowed)} share "
            "the best block."
        )
        if borrowed:
            costs = [-100 * row["difference"] for row in borrowed]
            sentences.append(
                f"In the other {len(borrowed)} the block that is best on one set costs "
                f"{median(costs):.1f} points on the other (median; {min(costs):+.1f} to "
                f"{max(costs):+.1f}) against its own best; the loss is clear in {len(worse)} "
                "(corrected)."
            )
        if not worse:
            sentences.append("That the best layer depends on the set is not borne out.")
        elif not depends:
            sentences.append(
                "So which layer is best depends on the set less often than not by what these test "
                "rows can tell."
            )
    every, none = len(differ) == len(cases), not differ
    if every and depends is not False:
        outcome = CONFIRMED
    elif none and not partly:
        outcome = REFUTED
    else:
        outcome = REFINED
    return Claim(1, statement, outcome, tuple(sentences))


def middle_beats_last(evidence: Evidence) -> Claim:
    """Claim 2."""
    statement = "Middle-to-late layers beat the last one."
    table = best_against_last(evidence)
    if not table:
        return Claim(2, statement, UNTESTED, ("No layer was profiled.",))
    better = [row for row in table if row["verdict"] == "better"]
    worse = [row for row in table if row["verdict"] == "worse"]
    inside = [row for row in better if _MIDDLE <= row["best_depth"] < 1]
    last = sum(row["best_depth"] == 1 for row in table)
    gains = [100 * row["difference"] for row in table]
    bands = [case["band"] for case in _cases(evidence) if case["band"] is not None]
    top = max(table, key=lambda row: row["difference"])
    sentences = [
        (
            f"The block that is best on training rows beats the last layer on test rows in "
            f"{count(len(better), len(table), 'cases')} and is worse in {len(worse)} (McNemar, "
            f"Holm over the cases). Of the {len(better)} where it wins, {len(inside)} lie in the "
            "upper half below the last layer."
        ),
        (
            f"The difference is {median(gains):+.1f} points in the median, at most "
            f"{points(top)} ({top['encoder']} on {set_name(top['dataset'])})."
        ),
    ]
    if last:
        sentences.append(f"In {count(last, len(table), 'cases')} the last layer itself is chosen.")
    if bands:
        mean = 100 * fmean(bands)
        word = "above" if mean > 0 else "below"
        sentences.append(
            f"An average layer of the upper half, not chosen, lies {abs(mean):.1f} points {word} "
            f"the last one ({min(100 * b for b in bands):+.1f} to "
            f"{max(100 * b for b in bands):+.1f} over cases)."
        )
    if len(inside) == len(table):
        outcome = CONFIRMED
    elif not inside:
        outcome = REFUTED
        sentences.append("No case shows a middle-to-late layer that is clearly better.")
    else:
        outcome = REFINED
        rest = sorted({set_name(row["dataset"]) for row in table if row["verdict"] != "better"})
        if rest:
            sentences.append(f"Not clearly so for every encoder on {', '.join(rest)}.")
    return Claim(2, statement, outcome, tuple(sentences))


def _cases(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """Each encoder and set: whether a layer clearly differs from the last, how far layers spread at
    the pooling of the last one, and how an average layer of the upper half compares with it."""
    for dataset, profile in evidence.results("profile"):
        for name, found in profile["encoders"].items():
            rows = [row for row in profile["blocks"] if row["encoder"] == name]
            pooling = found["last"].rpartition(":")[2]
            own = [row for row in rows if row["pooling"] == pooling]
            shares = [row["accuracy"] for row in own]
            band = [row["diff"] for row in own if "diff" in row and row["depth"] >= _MIDDLE]
            yield {
                "dataset": dataset,
                "encoder": name,
                "clear": any(row.get("p_holm", 1.0) < ALPHA for row in rows),
                "spread": max(shares) - min(shares),
                "band": fmean(band) if band else None,
            }
