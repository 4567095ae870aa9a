"""What the learning curves say: whether fusion pays most where labels are few."""

from __future__ import annotations

from layerfuse.study.evidence import Evidence
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

__all__ = ["few_labels"]


def few_labels(evidence: Evidence) -> Claim:
    """The claim of Gwak and Jung's follow-up (2026)."""
    statement = "Fusion pays most when labels are few."
    found = list(evidence.results("curve"))
    if not found:
        return Claim(5, statement, UNTESTED, ("No learning curve was measured.",))
    most, sentences = 0, []
    for dataset, curve in found:
        own = curve["points"]
        first, last = own[0], own[-1]
        if first["gain"]["value"] > last["gain"]["value"]:
            most += 1
        sentences.append(
            f"{set_name(dataset)}: {_gain(first['gain'])} points over the last layer with "
            f"{first['n_rows']:,} labels, {_gain(last['gain'])} with {last['n_rows']:,}."
        )
    lead = (
        f"The gain is larger with the fewest labels than with all in "
        f"{count(most, len(found), 'sets')}."
    )
    outcome = CONFIRMED if most == len(found) else REFINED if most else REFUTED
    return Claim(5, statement, outcome, (lead, *sentences))


def _gain(gain: dict[str, float]) -> str:
    return points({"difference": gain["value"], "low": gain["low"], "high": gain["high"]})
