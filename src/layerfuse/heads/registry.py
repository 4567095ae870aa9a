"""Heads by name: what they share, how they are fitted and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, FormatError, did_you_mean
from layerfuse.heads.kernel import KernelHead, fit_kernel, search_kernel
from layerfuse.heads.linear import LinearHead, fit_linear, search_linear
from layerfuse.heads.mlp import MlpHead, fit_mlp
from layerfuse.targets import Targets

__all__ = ["HEADS", "Head", "check_head", "fit_head", "load_head", "search_penalty", "unit_mean"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

HEADS = ("ridge", "logistic", "kernel", "mlp")
"""Heads that can be asked for; `load_head` also knows those that come with a fusion."""

_LINEAR = ("ridge", "logistic", "softmax", "voting")


class Head(Protocol):
    """A classifier over fused features, numpy only.

    ``penalty`` is the strength found, in the units of the kind, and 0 where it has none; ``shape``
    is (dim, n_classes).
    """

    @property
    def kind(self) -> str: ...

    @property
    def penalty(self) -> float: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def logits(self, X: Floats) -> Floats:
        """Features (n, dim) to logits (n, n_classes)."""

    def arrays(self) -> dict[str, Floats]:
        """What must be saved, float32; `load_head` is the inverse."""


def search_penalty(
    kind: str, Z: Floats, targets: Targets, *, row_weights: Floats | None = None, seed: int = 0
) -> float:
    """Find the penalty of a head."""
    check_head(kind)
    if kind == "mlp":
        return 0.0
    if kind == "kernel":
        return search_kernel(Z, targets, seed)
    return search_linear(kind, Z, targets, unit_mean(row_weights), seed)


def fit_head(
    kind: str,
    X: Floats,
    targets: Targets,
    penalty: float,
    *,
    row_weights: Floats | None = None,
    seed: int = 0,
) -> Head:
    """Fit a head."""
    check_head(kind)
    y, n_classes = targets.codes, targets.space.n_outputs
    weights = unit_mean(row_weights)
    if kind == "mlp":
        return fit_mlp(X, y, n_classes, weights, seed)
    if kind == "kernel":
        return fit_kernel(X, targets, penalty, weights, seed)
    return fit_linear(kind, X, targets, penalty, weights)


def unit_mean(row_weights: Floats | None) -> Floats | None:
    """Weights divided by their mean."""
    return None if row_weights is None else np.asarray(row_weights / row_weights.mean(), np.float32)


def load_head(kind: str, arrays: Mapping[str, Floats], penalty: float) -> Head:
    """The inverse of a head's ``arrays``.

    Raises
    ------
    FormatError
        For a kind that is not known, or arrays that are missing, too many or do not fit together.
    """
    head: Head
    if kind in _LINEAR:
        head = LinearHead.from_arrays(kind, arrays, penalty)
    elif kind == "kernel":
        head = KernelHead.from_arrays(arrays, penalty)
    elif kind == "mlp":
        head = MlpHead.from_arrays(arrays)
    else:
        raise FormatError(f"There is a head {kind!r}, which this layerfuse lacks.")
    if more := set(arrays) - set(head.arrays()):
        raise FormatError(f"The head {kind!r} has no use for the tensors {sorted(more)}.")
    return head


def check_head(kind: str, also: Sequence[str] = ()) -> None:
    """Raise a ConfigError for a kind of head that is neither known nor one of ``also``."""
    known = (*also, *HEADS)
    if kind not in known:
        raise ConfigError(
            f"Unknown head {kind!r}. Choose from {', '.join(known)}." + did_you_mean(kind, known)
        )
