"""The results as CSV tables, one row a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layerfuse.files import atomic_write
from layerfuse.study.claims_fusion import group_gains
from layerfuse.study.claims_layers import best_against_last, borrowed_layers
from layerfuse.study.evidence import Evidence, Row

__all__ = ["table_texts", "tables_of", "write_tables"]


def tables_of(evidence: Evidence) -> dict[str, list[Row]]:
    """Tables by name; shares from 0 to 1, blocks joined by spaces. Empty ones are left out."""
    layers = [
        {"dataset": dataset, **row}
        for dataset, profile in evidence.results("profile")
        for row in profile["blocks"]
    ]
    pairs = [
        {"dataset": dataset, **row}
        for dataset, found in evidence.results("complementarity")
        for row in found["encoder_pairs"]
    ]
    curves = [
        {"dataset": dataset, "share": point["share"], "labels": point["n_rows"], **_flat(point)}
        for dataset, found in evidence.results("curve")
        for point in found["points"]
    ]
    found = {
        "layers": layers,
        "best_against_last": best_against_last(evidence),
        "borrowed_layers": borrowed_layers(evidence),
        "selections": [_flat(row) for row in evidence.selections],
        "fusions": [_flat(row) for row in evidence.fusions],
        "group_gains": group_gains(evidence),
        "encoder_pairs": pairs,
        "curves": curves,
        "resources": evidence.resources,
    }
    return {name: rows for name, rows in found.items() if rows}


def table_texts(evidence: Evidence) -> dict[str, str]:
    """The same as CSV, by file name."""
    found = {}
    for name, rows in tables_of(evidence).items():
        heads = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows([_cell(row.get(head)) for head in heads] for row in rows)
        found[f"{name}.csv"] = text.getvalue()
    return found


def write_tables(evidence: Evidence, folder: Path) -> None:
    """Write each table into a folder."""
    for name, text in table_texts(evidence).items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _flat(row: Row) -> Row:
    """Objects inside a row become columns of their own."""
    flat: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}_{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(str, value))
    return value
