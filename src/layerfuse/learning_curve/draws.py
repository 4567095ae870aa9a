"""Which rows are labelled: nested stratified draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError

__all__ = ["SHARES", "check_draws", "draw_rows"]

Labels = npt.NDArray[np.intp]

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the labels that a curve is measured at."""

_FEWEST = 4  # rows of each class in a draw, where it has so many


def check_draws(shares: Sequence[float], repeats: int) -> tuple[float, ...]:
    """The shares sorted, each once.

    Raises
    ------
    ConfigError
        For no share, one that is not above 0 and at most 1, or fewer than one repeat.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise ConfigError(
                f"A share of {100 * share:g} % of the labels cannot be drawn. Give shares above 0 "
                "and at most 100 %."
            )
    if not shares:
        raise ConfigError("No share of the labels was given. Give at least one.")
    if repeats < 1:
        raise ConfigError(f"repeats={repeats} draws nothing; give at least 1.")
    return tuple(sorted(set(shares)))


def draw_rows(y: Labels, share: float, repeat: int, seed: int) -> Labels:
    """Sorted numbers of the rows of one draw, each class in its share but at least four rows.

    ``y`` are class indices (n,). With the same ``repeat`` and ``seed`` a larger ``share`` (0 to 1)
    holds the rows of a smaller one.
    """
    order = np.random.default_rng([seed, repeat]).permutation(len(y))
    kept = []
    for label in np.unique(y):
        own = order[y[order] == label]
        kept.append(own[: max(min(_FEWEST, len(own)), round(share * len(own)))])
    return np.sort(np.concatenate(kept))
