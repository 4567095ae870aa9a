"""The classifiers that ship, over fused features, by name: how they are fitted and loaded."""

from __future__ import annotations

from collections.abc import Mapping

from layerfuse.errors import ConfigError, FormatError, check_choice
from layerfuse.heads.kernel import KernelHead
from layerfuse.heads.linear import (
    BalancedRidgeHead,
    LinearHead,
    LogisticHead,
    RidgeHead,
    ridge_leave_one_out,
)
from layerfuse.heads.mlp import PAPER_SCHEDULE, MlpHead
from layerfuse.heads.protocol import ANY_LINK, UNSEEN_CLASS_LOGIT, Floats, Head, HeadKind
from layerfuse.targets import Targets

__all__ = [
    "ANY_LINK",
    "HEADS",
    "PAPER_SCHEDULE",
    "UNSEEN_CLASS_LOGIT",
    "BalancedRidgeHead",
    "Floats",
    "Head",
    "KernelHead",
    "LinearHead",
    "LogisticHead",
    "MlpHead",
    "RidgeHead",
    "fit_head",
    "load_head",
    "ridge_leave_one_out",
    "search_penalty",
]

_KINDS: tuple[HeadKind, ...] = (RidgeHead, BalancedRidgeHead, LogisticHead, KernelHead, MlpHead)

HEADS: dict[str, HeadKind] = {kind.kind: kind for kind in _KINDS}
"""Heads that can be asked for, by name."""


def search_penalty(name: str, X: Floats, targets: Targets, *, seed: int = 0) -> float:
    """Find the penalty of one of `HEADS`.

    By exact leave-one-out for ``ridge``, ``balanced_ridge`` and ``kernel`` (alpha) and by
    stratified folds for ``logistic`` (1/C); ``mlp`` has none (0). ``X`` (n, dim) are centered,
    block-scaled features, of which the leading principal coordinates are enough; weights count in
    the fits and in the held-out loss; ``seed`` is that of folds and landmarks.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[-0.7], [-0.5], [0.5], [0.7]], dtype="float32")
    >>> targets = Targets.from_labels(["no", "no", "yes", "yes"])
    >>> head = fit_head("ridge", X, targets, search_penalty("ridge", X, targets))
    >>> targets.space.decode(targets.space.decide(head.logits(X))).tolist()
    ['no', 'no', 'yes', 'yes']
    """
    check_choice(name, HEADS, "head")
    return HEADS[name].search_penalty(X, targets, seed=seed)


def fit_head(name: str, X: Floats, targets: Targets, penalty: float, *, seed: int = 0) -> Head:
    """Fit one of `HEADS`; ``penalty`` is from `search_penalty`, whose other parameters it has."""
    check_choice(name, HEADS, "head")
    return HEADS[name].fit(X, targets, penalty, seed=seed)


def load_head(kind: str, arrays: Mapping[str, Floats], penalty: float) -> Head:
    """A head from its ``kind``, ``arrays()`` and ``penalty``.

    Raises
    ------
    FormatError
        For an unknown kind, or arrays that are missing, too many or do not fit together.
    """
    loaders = {**{name: own.load for name, own in HEADS.items()}, LinearHead.kind: LinearHead.load}
    try:
        check_choice(kind, loaders, "head")
    except ConfigError as error:
        raise FormatError(f"{error} A newer layerfuse may have saved it.") from error
    head = loaders[kind](arrays, penalty)
    if unused := set(arrays) - set(head.arrays()):
        raise FormatError(f"The head {kind!r} has no use for the tensors {sorted(unused)}.")
    return head
