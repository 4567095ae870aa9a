"""The study's figures, as files."""

from __future__ import annotations

from pathlib import Path

from layerfuse.figures.study import (
    accuracy_curves,
    cost_dots,
    differences,
    layer_depths,
    promise_scatter,
)
from layerfuse.report.theme import Chart, save_chart
from layerfuse.study.claims_fusion import group_gains
from layerfuse.study.claims_layers import best_against_last
from layerfuse.study.evidence import Evidence, Row
from layerfuse.study.wording import set_name

__all__ = ["charts_of", "draw_all"]


def draw_all(evidence: Evidence, folder: Path) -> None:
    """Write each figure as ``folder/NAME.svg`` and ``.png``."""
    for name, chart in charts_of(evidence).items():
        for ending in (".svg", ".png"):
            save_chart(chart, folder / f"{name}{ending}")


def charts_of(evidence: Evidence) -> dict[str, Chart]:
    """Figures by name; those without data are left out."""
    charts: dict[str, Chart] = {}
    if layers := _layers(evidence):
        charts["layers"] = layer_depths(layers)
        rows = [_named(row, row["encoder"]) for row in best_against_last(evidence)]
        charts["best_against_last"] = differences(
            rows, "accuracy of the best layer minus the last, points"
        )
    if gains := group_gains(evidence):
        rows = [_named(row, row["group"].replace("+", " + ")) for row in gains]
        title = "accuracy of several encoders minus the best one, points"
        charts["group_gains"] = differences(rows, title)
    if scatter := _promises(evidence):
        charts["complementarity"] = promise_scatter(scatter)
    if curves := _curves(evidence):
        charts["curves"] = accuracy_curves(curves)
    if evidence.resources:
        charts["resources"] = cost_dots([_cost(row) for row in evidence.resources])
    return charts


def _layers(evidence: Evidence) -> list[Row]:
    """Each encoder at the pooling of its best last layer."""
    found = []
    for dataset, profile in evidence.results("profile"):
        pooling = {
            name: own["last"].rpartition(":")[2] for name, own in profile["encoders"].items()
        }
        found += [
            {
                "set": set_name(dataset),
                "encoder": row["encoder"],
                "depth": row["depth"],
                "value": row["accuracy"],
                "low": row["low"],
                "high": row["high"],
            }
            for row in profile["blocks"]
            if row["pooling"] == pooling[row["encoder"]]
        ]
    return found


def _named(row: Row, name: str) -> Row:
    keys = ("difference", "low", "high", "verdict")
    return {"set": set_name(row["dataset"]), "name": name, **{key: row[key] for key in keys}}


def _promises(evidence: Evidence) -> list[Row]:
    return [
        {"set": set_name(dataset), "promised": promised, "came": came}
        for dataset, found in evidence.results("complementarity")
        for promised, came in found["points"]
    ]


def _curves(evidence: Evidence) -> list[Row]:
    ways = {"last_layer": "last layer", "best_block": "best block", "fusion": "fusion"}
    return [
        {"set": set_name(dataset), "way": name, "labels": point["n_rows"], **point[way]}
        for dataset, found in evidence.results("curve")
        for point in found["points"]
        for way, name in ways.items()
    ]


def _cost(row: Row) -> Row:
    return {
        "name": f"{row['group'].replace('+', ' + ')}, {row['way']}",
        "reading": "cut at the layer in use" if row["cut"] else "whole encoders",
        "latency": row["latency_ms"],
        "memory": row["peak_mb"],
        "throughput": row["texts_per_s"],
    }
