"""The tables below the study's findings, as heads and rows of text."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from layerfuse.files import human_bytes
from layerfuse.study.claims_fusion import group_gains
from layerfuse.study.claims_layers import best_against_last
from layerfuse.study.corrections import holm, verdict_of
from layerfuse.study.evidence import Evidence, Row
from layerfuse.study.wording import markdown, p_text, percent, points, set_name

__all__ = [
    "curve_rows",
    "data_lines",
    "fusion_rows",
    "gain_rows",
    "layer_rows",
    "resource_rows",
    "selection_rows",
]

Table = tuple[list[str], list[list[str]]]


def data_lines(evidence: Evidence) -> Iterator[str]:
    """What each set holds, and what is wrong with it."""
    found = list(evidence.results("data"))
    heads = ["set", "classes", "train", "learned", "test", "largest class, %"]
    heads += ["repeated in train", "two labels", "repeated in test", "test rows in train"]
    rows = [
        [
            set_name(dataset),
            *(f"{data[key]:,}" for key in ("classes", "train_rows", "learned_rows", "test_rows")),
            percent(data["largest_class_share"]),
            str(data["duplicates_train"]),
            str(data["conflicts_train"]),
            str(data["duplicates_test"]),
            str(data["leaks"]),
        ]
        for dataset, data in found
    ]
    yield from markdown(heads, rows)
    yield ""
    for dataset, data in found:
        for line in _remarks(data):
            yield f"- {set_name(dataset)}: {line}"
    for shared in evidence.index["shared_texts"]:
        yield (
            f"- {shared['rows']:,} test texts of {set_name(shared['test_of'])} "
            f"({percent(shared['fraction'])} %) are training texts of "
            f"{set_name(shared['train_of'])}, punctuation and spaces aside: the two are not "
            "independent results."
        )
    yield ""


def _remarks(data: Row) -> Iterator[str]:
    if data["parts_left_out"]:
        yield (
            f"{data['parts_left_out']:,} training rows are parts of longer rows and left out; the "
            f"test rows are its {data['test_split']} split."
        )
    if data["single_row_classes"]:
        yield (
            f"left out, for they have one training row: {', '.join(data['single_row_classes'])}; "
            f"{data['test_rows_of_unlearned_classes']} test rows of them count as wrong."
        )
    if data["leaks"]:
        share = data["leaks"] / data["test_rows"]
        yield (
            f"{data['leaks']} test rows are also training rows ({100 * share:.2f} %), which is the "
            "most that accuracies can owe to them."
        )


def layer_rows(evidence: Evidence) -> Table:
    """Each encoder's best layer against its last."""
    heads = ["set", "encoder", "best", "last", "accuracy", "of the last", "difference", "p"]
    rows = [
        [
            set_name(row["dataset"]),
            row["encoder"],
            _short(row["best"], row["layers"]),
            _short(row["last"], row["layers"]),
            percent(row["accuracy_best"]),
            percent(row["accuracy_last"]),
            points(row),
            p_text(row["p_holm"]),
        ]
        for row in best_against_last(evidence)
    ]
    return heads, rows


def _short(block: str, layers: int) -> str:
    """``mpnet:8:mean`` of 12 layers as ``8 of 12, mean``."""
    _, layer, pooling = block.rsplit(":", 2)
    return f"{layer} of {layers}, {pooling}"


def selection_rows(evidence: Evidence) -> Table:
    """Every way to choose, for each encoder and group."""
    heads = ["set", "encoders", "choice", "blocks", "accuracy", "macro-F1", "over the last layer"]
    rows = [
        [
            set_name(row["dataset"]),
            row["group"].replace("+", " + "),
            row["way"].replace("_", " ") + _plan(row),
            str(len(row["blocks"])),
            *(_estimate(row[name]) for name in ("accuracy", "macro_f1")),
            points(row["last"]),
        ]
        for row in evidence.selections
    ]
    return heads, rows


def _plan(row: Row) -> str:
    if (row["fusion"], row["head"]) == ("concat", "ridge"):
        return ""
    return f" ({row['fusion']}, {row['head']})"


def _estimate(found: Row) -> str:
    spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.1f}"
    low, high = percent(found["low"]), percent(found["high"])
    return f"{percent(found['value'])}{spread} ({low} to {high})"


def gain_rows(evidence: Evidence) -> Table:
    """Groups of encoders against the best of them."""
    heads = ["set", "encoders", "against", "accuracy", "difference", "p", ""]
    rows = [
        [
            set_name(row["dataset"]),
            row["group"].replace("+", " + "),
            row["member_group"],
            percent(row["accuracy"]),
            points(row),
            p_text(row["p_holm"]),
            row["verdict"],
        ]
        for row in group_gains(evidence)
    ]
    return heads, rows


def fusion_rows(evidence: Evidence) -> Table:
    """Each fusion and head against concatenation with a ridge head, best mean first."""
    families: dict[tuple[str, str, str], list[Row]] = {}
    for row in evidence.fusions:
        if (row["fusion"], row["head"]) != ("concat", "ridge"):
            families.setdefault((row["dataset"], row["group"], row["way"]), []).append(row)
    by_name: dict[tuple[str, str], list[tuple[Row, str]]] = {}
    for family in families.values():
        corrected = holm([row["concat"]["p_value"] for row in family])
        for row, p in zip(family, corrected, strict=True):
            verdict = verdict_of(row["concat"]["difference"], p)
            by_name.setdefault((row["fusion"], row["head"]), []).append((row, verdict))

    def mean(found: list[tuple[Row, str]]) -> float:
        return fmean(row["concat"]["difference"] for row, _ in found)

    heads = ["fusion, head", "comparisons", "greedy blocks", "best blocks", "better", "worse", "s"]
    rows = []
    for (fusion, head), found in sorted(by_name.items(), key=lambda item: -mean(item[1])):
        cells = []
        for way in ("greedy", "best"):
            own = [pair for pair in found if pair[0]["way"] == way]
            cells.append(f"{100 * mean(own):+.1f}" if own else "–")
        verdicts = [verdict for _, verdict in found]
        rows.append(
            [
                f"{fusion}, {head}",
                str(len(found)),
                *cells,
                str(verdicts.count("better")),
                str(verdicts.count("worse")),
                f"{fmean(row['seconds'] for row, _ in found):.1f}",
            ]
        )
    return heads, rows


def curve_rows(evidence: Evidence) -> Table:
    """Accuracy by the number of labels."""
    heads = ["set", "labels", "share, %", "last layer", "best block", "fusion", "gain"]
    rows = [
        [
            set_name(dataset),
            f"{point['n_rows']:,}",
            f"{100 * point['share']:g}",
            *(percent(point[way]["value"]) for way in ("last_layer", "best_block", "fusion")),
            points({"difference": point["gain"]["value"], **point["gain"]}),
        ]
        for dataset, found in evidence.results("curve")
        for point in found["points"]
    ]
    return heads, rows


def resource_rows(evidence: Evidence) -> Table:
    """What each pipeline takes."""
    heads = ["texts of", "pipeline", "", "parameters, M", "peak MB", "without torch, MB", "load s"]
    heads += ["one text, ms", "texts/s", "embedding", "bundle"]
    rows = [
        [
            set_name(row["dataset"]),
            f"{row['group'].replace('+', ' + ')}, {row['way']}",
            "cut" if row["cut"] else "whole",
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['peak_mb'] - (0 if row['device'].startswith('cuda') else row['base_mb']):,.0f}",
            f"{row['load_s']:.1f}",
            f"{row['latency_ms']:.1f}",
            f"{row['texts_per_s']:,.1f}",
            human_bytes(row["embedding_bytes"]),
            human_bytes(row["bundle_bytes"]),
        ]
        for row in evidence.resources
    ]
    return heads, rows
