"""How accuracy grows with the number of labels, on one dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerfuse.embeddings.extraction import Rows
from layerfuse.evaluation.learning_curve import learning_curve
from layerfuse.probing import ProbeResults
from layerfuse.progress import Reporter
from layerfuse.study.combinations import allowance_of
from layerfuse.study.reading import EmbeddedData
from layerfuse.study.settings import StudySettings

__all__ = ["measure_curve"]


def measure_curve(
    embedded: EmbeddedData, probed: ProbeResults, settings: StudySettings, reporter: Reporter
) -> dict[str, Any]:
    """The last layer, the best block and fusion with some labels and with all.

    Test rows of classes that training lacks are left out here.
    """
    data = embedded.data
    known = np.flatnonzero(data.y_test < data.n_classes)
    found = learning_curve(
        embedded.train,
        data.y,
        Rows(embedded.test, known),
        data.y_test[known],
        shares=settings.curve_shares,
        repeats=settings.curve_repeats,
        allowance=allowance_of(0, settings.max_blocks),
        probed=probed,
        reporter=reporter,
    ).to_dict()
    points = [
        {key: value for key, value in point.items() if key != "draws"} for point in found["points"]
    ]
    return {**found, "points": points}
