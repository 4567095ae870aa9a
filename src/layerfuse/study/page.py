"""The study as one Markdown page: findings first, then details; every number from the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from layerfuse.study.claims_fusion import fusion_costs, fusion_helps
from layerfuse.study.claims_labels import few_labels
from layerfuse.study.claims_layers import layers_differ, middle_beats_last
from layerfuse.study.details import (
    curve_rows,
    data_lines,
    fusion_rows,
    gain_rows,
    layer_rows,
    resource_rows,
    selection_rows,
)
from layerfuse.study.evidence import Evidence
from layerfuse.study.wording import Claim, markdown, set_name

__all__ = ["claims_of", "write_page"]

_FIGURES = {
    1: ("layers", "Test accuracy of every layer, with 95 % intervals", "profiles"),
    2: ("best_against_last", "Best layer minus last layer, in points", "profiles"),
    3: ("group_gains", "Several encoders minus the best one of them, in points", "fusions"),
    4: ("resources", "Time and memory of pipelines", "resources"),
    5: ("curves", "Accuracy with some and with all labels", "curves"),
}


def claims_of(evidence: Evidence) -> list[Claim]:
    """The four claims, and that of the follow-up about few labels."""
    claims = (layers_differ, middle_beats_last, fusion_helps, fusion_costs, few_labels)
    return [make(evidence) for make in claims]


def write_page(evidence: Evidence, place: str, figures: Sequence[str]) -> str:
    """The page.

    ``place`` is the path from the page's folder to the results folder, ``figures`` are the names of
    the figures that are there.
    """
    return "\n".join([*_top(evidence), *_findings(evidence, place, figures), *_details(evidence)])


def _top(evidence: Evidence) -> Iterator[str]:
    index = evidence.index
    settings, machine = index["settings"], index["machine"]
    dates = sorted({unit["date"] for unit in evidence.units.values()})
    yield "# The study"
    yield ""
    yield (
        "<!-- Written from results by `layerfuse reproduce` and `make study`; edits are lost. -->"
    )
    yield ""
    yield (
        f"Encoders: {', '.join(evidence.encoders)}; poolings: {', '.join(settings['poolings'])}; "
        f"sets: {', '.join(set_name(name) for name in evidence.datasets)}. Claims are those of "
        "Gwak and Jung (2025; the last one 2026)."
    )
    yield ""
    yield (
        f"Measured on {machine['cpu']}, {machine['cores']} cores"
        + (f", {machine['gpu']}" if machine["gpu"] else "")
        + f", torch {machine['torch']}, transformers {machine['transformers']}, layerfuse "
        f"{machine['layerfuse']}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
        f"{_plural(settings['seeds'], 'seed')}."
    )
    if index["skipped"]:
        yield ""
        yield "Skipped, and not part of any number below:"
        yield ""
        yield from (f"- {name}: {_flat(reason)}" for name, reason in index["skipped"].items())
    yield ""


def _findings(evidence: Evidence, place: str, figures: Sequence[str]) -> Iterator[str]:
    preset = evidence.index["settings"]["preset"]
    yield "## Findings"
    yield ""
    for claim in claims_of(evidence):
        name, caption, part = _FIGURES[claim.number]
        yield f"### {claim.number}. {claim.statement} {claim.outcome.capitalize()}."
        yield ""
        yield " ".join(claim.sentences)
        yield ""
        if name in figures:
            yield f"![{caption}]({place}/figures/{name}.svg)"
            yield ""
        yield f"`layerfuse reproduce --preset {preset} --only {part}`"
        yield ""


def _details(evidence: Evidence) -> Iterator[str]:
    settings = evidence.index["settings"]
    sections = (
        ("Layers", layer_rows(evidence), 4, _LAYERS),
        ("Selections", selection_rows(evidence), 3, _SELECTIONS),
        ("Groups of encoders", gain_rows(evidence), 3, _GROUPS),
        ("Fusions", fusion_rows(evidence), 1, _FUSIONS),
        ("Labels", curve_rows(evidence), 1, _CURVES),
        ("Resources", resource_rows(evidence), 3, _RESOURCES),
    )
    yield "## Details"
    yield ""
    yield "### Data"
    yield ""
    yield from data_lines(evidence)
    for title, (heads, rows), left, text in sections:
        if rows:
            yield f"### {title}"
            yield ""
            yield text.format(**settings, percent=f"{100 * settings['share']:g} %")
            yield ""
            yield from markdown(heads, rows, left)
            yield ""
    yield "### Statistics"
    yield ""
    yield _STATISTICS
    yield ""


_LAYERS = (
    "Best: the block with the lowest leave-one-out loss on training rows; last: the last layer at "
    "the pooling with the lowest. Accuracies in % on test rows; p is McNemar's, corrected by Holm "
    "over all rows of this table."
)
_SELECTIONS = (
    "Blocks are chosen on {percent} of the training rows, {most_rows} at most, drawn by the seed, "
    "and concatenated with a ridge head (the search may choose another fusion or head). Accuracy "
    "and macro-F1 in % on test rows with 95 % intervals; gains in points over the last layer that "
    "is best on training rows."
)
_GROUPS = (
    "The greedy blocks of several encoders against the greedy blocks of the one of them that is "
    "best on training rows, {max_blocks} at most each; p corrected by Holm over this table."
)
_FUSIONS = (
    "Points over concatenation of the same blocks (the greedy ones of the largest group, and each "
    "encoder's best of pairs and triple), mean over sets; in brackets how many of the comparisons "
    "are clearly better and worse (Holm over all fusions of a set, group and choice)."
)
_CURVES = (
    "Accuracy in % with some of the labels, blocks and penalties chosen on them alone; "
    "{curve_repeats} draws but one of all labels. Gain of fusion over the last layer in points."
)
_RESOURCES = (
    "Each pipeline in a process of its own: loaded from its bundle, {timed} test texts. Peak "
    "memory includes Python and torch. Whole: every encoder runs to its last layer; cut: to the "
    "highest layer in use."
)
_STATISTICS = (
    "All choices (layers, blocks, penalties, fusions, heads) look at training rows alone; test "
    "labels are compared with predictions and read for nothing else. Accuracy has Wilson's "
    "interval, macro-F1 and differences the percentile bootstrap over test rows (pairs of "
    "predictions on the same rows for differences), all at 95 %. Over several seeds a table shows "
    "the mean, the mean of the seeds' intervals, and twice the median p-value (Meinshausen, Meier "
    "and Bühlmann, 2009). Intervals cover which test rows there were; not another corpus or "
    "encoder."
)


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _flat(text: str) -> str:
    return " ".join(text.split())
