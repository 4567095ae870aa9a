"""Which layers of each encoder are used."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from layerfuse.figures.theme import Chart, Row, ordered

__all__ = ["layer_stacks"]

_STATES = ("chosen", "run through", "not needed")


def layer_stacks(rows: Sequence[Row], *, row_height: int = 46) -> Chart:
    """Each encoder as a row of layers, from its input to its last block.

    Parameters
    ----------
    rows
        With ``encoder``, ``layer``, ``state`` (chosen, run through or not needed), ``mark`` and
        ``place``, texts that the tooltip and the chosen cell carry.
    row_height
        Pixels of one encoder.
    """
    own = [dict(row) for row in rows]
    layers = sorted({row["layer"] for row in own})
    base = alt.Chart(alt.Data(values=own)).encode(
        x=alt.X("layer:O", sort=layers)
        .title("layer (0 is the embedding output)")
        .axis(labelAngle=0, labelOverlap="greedy", labelSeparation=5, ticks=False, domain=False)
        .scale(paddingInner=0.12),
        y=alt.Y("encoder:N", sort=ordered(own, "encoder"))
        .title(None)
        .axis(ticks=False, domain=False, grid=False, labelFontSize=13, labelPadding=8)
        .scale(paddingInner=0.3),
        tooltip=[
            alt.Tooltip("encoder:N", title="encoder"),
            alt.Tooltip("layer:O", title="layer"),
            alt.Tooltip("state:N", title="state"),
            alt.Tooltip("mark:N", title="pooling"),
        ],
    )
    cells = [
        base.transform_filter(alt.datum.state == state).mark_rect(style=style, cornerRadius=4)
        for state, style in zip(_STATES, ("chosen-fill", "read-fill", "idle-fill"), strict=True)
        if any(row["state"] == state for row in own)
    ]
    marks = base.transform_filter(alt.datum.state == _STATES[0]).mark_text(
        style="on-mark", aria=False
    )
    layered: Chart = alt.layer(*cells, marks.encode(text="place:N")).properties(
        width="container", height=row_height * len(ordered(own, "encoder"))
    )
    return layered
