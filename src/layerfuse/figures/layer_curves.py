"""How good each layer of an encoder is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import altair as alt

from layerfuse.figures.theme import Chart, Row, ordered, percentages

__all__ = ["encoder_curves", "layer_curves"]

_NORMAL = 1.96  # standard errors on either side that hold 95 %


def layer_curves(
    rows: Sequence[Row],
    chosen: Collection[tuple[str, int]] = (),
    *,
    series: str = "pooling",
    measure: str = "accuracy, % of rows",
    domain: tuple[float, float] | None = None,
    height: int = 240,
) -> Chart:
    """One line for each series over the layers, its band, the last layer and chosen ones marked.

    Parameters
    ----------
    rows
        With ``series``, ``layer``, ``value``, ``low`` and ``high``, the last three shares from 0
        to 1.
    chosen
        Pairs of a series and a layer.
    series, measure
        What the series are, and the title of the vertical axis.
    domain
        Ends of the vertical axis in percent; from the rows by default.
    height
        Pixels.
    """
    own = percentages(list(rows), "value", "low", "high")
    last = {name: max(r["layer"] for r in own if r["series"] == name) for name in _names(own)}
    for row in own:
        picked = (row["series"], row["layer"]) in chosen
        marks = (["chosen"] if picked else []) + (
            ["last layer"] if row["layer"] == last[row["series"]] else []
        )
        row |= {"chosen": picked, "last": row["layer"] == last[row["series"]]}
        row["note"] = ", ".join(marks) or "–"
    low, high = domain or (min(r["low"] for r in own), max(r["high"] for r in own))
    layers = [row["layer"] for row in own]
    x = alt.X("layer:Q").title("layer (0 is the embedding output)")
    x = x.axis(tickMinStep=1, format="d").scale(
        domain=[min(layers), max(layers)], nice=False, padding=8
    )
    y = alt.Y("value:Q").title(measure).scale(domain=[low, high], zero=False, nice=True)
    names = _names(own)
    legend = alt.Legend(title=series) if len(names) > 1 else None
    base = alt.Chart(alt.Data(values=own)).encode(x=x)
    lines = base.encode(
        color=alt.Color("series:N", sort=names, legend=legend),
    )
    points = base.encode(
        y=y,
        tooltip=[
            alt.Tooltip("series:N", title=series),
            alt.Tooltip("layer:Q", title="layer"),
            alt.Tooltip("value:Q", title=measure, format=".1f"),
            alt.Tooltip("low:Q", title="low", format=".1f"),
            alt.Tooltip("high:Q", title="high", format=".1f"),
            alt.Tooltip("note:N", title="marked as"),
        ],
    )
    band = lines.mark_area(style="band").encode(
        y=alt.Y("low:Q").title(measure).scale(domain=[low, high], zero=False, nice=True),
        y2="high:Q",
    )
    last_ones = points.transform_filter("datum.last")
    chosen_ones = points.transform_filter("datum.chosen")
    layered: Chart = alt.layer(
        band,
        lines.mark_line().encode(
            y=y, strokeDash=alt.StrokeDash("series:N", sort=names, legend=None)
        ),
        points.mark_point(filled=True, size=30, opacity=1).encode(
            color=alt.Color("series:N", sort=names, legend=legend)
        ),
        last_ones.mark_point(style="ring", shape="square", size=140, aria=False),
        chosen_ones.mark_point(
            style="chosen", shape="diamond", size=150, filled=True, opacity=1, aria=False
        ),
    ).properties(width="container", height=height)
    return layered


def encoder_curves(
    rows: Sequence[Row], chosen: Collection[tuple[str, int, str]] = ()
) -> dict[str, Chart]:
    """A figure of `layer_curves` for each encoder, all on one scale, with 95 % bands.

    Parameters
    ----------
    rows
        With ``encoder``, ``layer``, ``pooling``, ``accuracy`` and ``accuracy_se`` (shares).
    chosen
        Encoder, layer and pooling of the blocks to mark.
    """
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        spread = _NORMAL * row["accuracy_se"]
        curves.setdefault(row["encoder"], []).append(
            {
                "series": row["pooling"],
                "layer": row["layer"],
                "value": row["accuracy"],
                "low": max(0.0, row["accuracy"] - spread),
                "high": min(1.0, row["accuracy"] + spread),
            }
        )
    ends = [row[end] for own in curves.values() for row in own for end in ("low", "high")]
    domain = (100 * min(ends), 100 * max(ends)) if ends else None
    return {
        encoder: layer_curves(
            own,
            {(pooling, layer) for name, layer, pooling in chosen if name == encoder},
            domain=domain,
        )
        for encoder, own in curves.items()
    }


def _names(rows: Sequence[Row]) -> list[str]:
    return ordered(list(rows), "series")
