"""Fusions by name: how they are fitted and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, FormatError, did_you_mean
from layerfuse.fusion.ensembles import PREDICTIONS, fit_predictions, load_predictions
from layerfuse.fusion.learned import NEURAL, fit_neural, load_neural
from layerfuse.fusion.products import PROJECTED, fit_projected, load_projected
from layerfuse.fusion.protocol import RESIDUAL, Concat, FittedFusion, Fusion, Residual
from layerfuse.heads import unit_mean
from layerfuse.targets import Targets

__all__ = ["FUSIONS", "check_fusion", "fit_fusion", "load_fusion"]

Floats = npt.NDArray[np.float32]

FUSIONS: tuple[str, ...] = ("concat", *PROJECTED, *NEURAL, *PREDICTIONS)
"""All operations; ``NAME+residual`` is the residual form of those in between."""

_PLAIN_ONLY = {
    "concat": "concatenation is the residual already",
    **dict.fromkeys(PREDICTIONS, "it combines predictions, beside which there is no room"),
}


def fit_fusion(
    name: str,
    blocks: Sequence[Floats],
    targets: Targets,
    *,
    size: int = 256,
    row_weights: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> FittedFusion:
    """Fit a fusion on training rows.

    Parameters
    ----------
    name
        One of `FUSIONS`, or one with ``+residual``: the scaled blocks are kept beside its output.
    blocks, y
        Scaled, centred blocks, such as principal coordinates, one (n, dim) each, and class
        indices (n,), which ``concat`` and the projected operations do not read.
    size
        Columns to which the projected and the neural operations bring each block, at most.
    seed
        Of what the neural operations draw.
    class_weight
        A weight for each class (n_classes,), or None; for fusions that bring a head.

    Raises
    ------
    ConfigError
        For a name that is not known or has no residual form.
    """
    check_fusion(name)
    operation = name.removesuffix(RESIDUAL)
    residual = operation != name
    if operation in PREDICTIONS:
        return fit_predictions(operation, blocks, targets, row_weights)
    fusion: Fusion = Concat()
    head = None
    if operation in PROJECTED:
        fusion = fit_projected(operation, blocks, size)
    elif operation in NEURAL:
        fusion, head = fit_neural(
            operation, blocks, targets.codes, targets.space.n_outputs,
            size=size, seed=seed, residual=residual, row_weights=unit_mean(row_weights),
        )  # fmt: skip
    if residual:
        fusion = Residual(fusion)
    return FittedFusion(fusion, fusion.transform(blocks), head)


def load_fusion(name: str, arrays: Mapping[str, Floats], n_blocks: int) -> Fusion:
    """The inverse of a fusion's ``arrays``.

    Raises
    ------
    FormatError
        For a name that is not known, or arrays that are missing, too many or do not fit together.
    """
    try:
        check_fusion(name)
    except ConfigError as error:
        raise FormatError(f"There is a fusion {name!r}, which this layerfuse lacks.") from error
    operation = name.removesuffix(RESIDUAL)
    fusion: Fusion = Concat()
    if operation in PROJECTED:
        fusion = load_projected(operation, arrays, n_blocks)
    elif operation in NEURAL:
        fusion = load_neural(operation, arrays, n_blocks)
    elif operation in PREDICTIONS:
        fusion = load_predictions(operation, arrays, n_blocks)
    if more := set(arrays) - set(fusion.arrays()):
        raise FormatError(f"The fusion {name!r} has no use for the tensors {sorted(more)}.")
    return fusion if operation == name else Residual(fusion)


def check_fusion(name: str, also: Sequence[str] = ()) -> None:
    """Raise a ConfigError for a name that is not known or has no residual form.

    ``also`` are other names that may stand where a fusion's does.
    """
    if name in also:
        return
    operation = name.removesuffix(RESIDUAL)
    if operation not in FUSIONS:
        known = (*also, *FUSIONS)
        residual = [own + RESIDUAL for own in FUSIONS if own not in _PLAIN_ONLY]
        raise ConfigError(
            f"Unknown fusion {name!r}. Choose from {', '.join(known)}; most also as "
            f"NAME{RESIDUAL}." + did_you_mean(name, [*known, *residual])
        )
    if operation != name and operation in _PLAIN_ONLY:
        raise ConfigError(
            f"The fusion {operation!r} has no residual form: {_PLAIN_ONLY[operation]}. Use "
            f"fusion={operation!r}."
        )
