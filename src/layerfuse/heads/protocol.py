"""The protocols of heads: what is fitted, and the kinds that can be fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.targets import Targets

Floats: TypeAlias = npt.NDArray[np.float32]

ANY_LINK = ("softmax", "sigmoid")
"""Links of one label a row, and of any number."""

UNSEEN_CLASS_LOGIT = -30.0
"""The logit of a class without a training row."""


class Head(Protocol):
    """A classifier over fused features; numpy only."""

    @property
    def kind(self) -> str:
        """A name of `HEADS`, or ``"linear"`` for a head that came with a fusion."""

    @property
    def penalty(self) -> float:
        """The penalty it was fitted with, in the units of its kind; 0 where it has none."""

    @property
    def shape(self) -> tuple[int, int]:
        """(dim, n_outputs)."""

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_outputs)."""

    def arrays(self) -> dict[str, Floats]:
        """What must be saved; `load_head` is the inverse."""


class HeadKind(Protocol):
    """A class of heads: a new one is a new file, and its name in `layerfuse.heads`."""

    @property
    def kind(self) -> str:
        """Its name in `HEADS`."""

    @property
    def links(self) -> tuple[str, ...]:
        """The links (`LabelSpace.link_name`) of the targets that it can be fitted to."""

    def fit(self, X: Floats, targets: Targets, penalty: float, *, seed: int) -> Head:
        """Fit a head; see `fit_head`."""

    def search_penalty(self, X: Floats, targets: Targets, *, seed: int) -> float:
        """Find the penalty; see `search_penalty`."""

    def load(self, arrays: Mapping[str, Floats], penalty: float) -> Head:
        """The inverse of `Head.arrays`; a FormatError when they do not fit together."""
