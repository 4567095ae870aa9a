"""Combining the embeddings of several blocks into one feature matrix: fusions by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from layerfuse.errors import ConfigError, FormatError, check_choice
from layerfuse.fusion.ensembles import Stacking, Voting
from layerfuse.fusion.learned import Bilinear, Gated, ScalarMix
from layerfuse.fusion.products import PRODUCTS, Concat
from layerfuse.fusion.protocol import RESIDUAL, FittedFusion, Fusion, FusionInputs, FusionKind
from layerfuse.heads import Floats
from layerfuse.targets import Targets

__all__ = [
    "FUSIONS",
    "RESIDUAL",
    "FittedFusion",
    "Fusion",
    "FusionKind",
    "check_fusion",
    "fit_fusion",
    "load_fusion",
]

_LEARNED = (ScalarMix(), Gated(), Bilinear())
_KINDS: tuple[FusionKind, ...] = (Concat(), *PRODUCTS, *_LEARNED, Voting(), Stacking())

FUSIONS: dict[str, FusionKind] = {form.name: form for kind in _KINDS for form in kind.forms()}
"""All fusions by name, residual forms (``NAME+residual``) included."""


def fit_fusion(
    name: str, blocks: Sequence[Floats], targets: Targets, *,
    size: int = 256, seed: int = 0,
) -> FittedFusion:  # fmt: skip
    """Fit one of `FUSIONS` on training rows.

    ``blocks`` (n, dim) are scaled and centered, such as principal coordinates. ``targets`` and
    their weights are read by the learned fusions and the ensembles, and ``seed`` is that of what
    they draw. ``size`` is the maximum number of columns to which the projected and the learned
    operations bring each block.

    Examples
    --------
    >>> import numpy as np
    >>> blocks = [np.array([[-1.0], [1.0]], dtype="float32")] * 2
    >>> fit_fusion("concat", blocks, Targets.from_labels(["no", "yes"])).features.tolist()
    [[-1.0, -1.0], [1.0, 1.0]]
    """
    check_fusion(name)
    return FUSIONS[name].fit(FusionInputs(blocks, targets, size, seed))


def load_fusion(name: str, arrays: Mapping[str, Floats], n_blocks: int) -> Fusion:
    """A fusion of ``n_blocks`` blocks from its ``name`` and ``arrays()``.

    Raises
    ------
    FormatError
        For an unknown name, or arrays that are missing, too many or do not fit together.
    """
    try:
        check_fusion(name)
    except ConfigError as error:
        raise FormatError(f"{error} A newer layerfuse may have saved it.") from error
    fusion = FUSIONS[name].load(arrays, n_blocks)
    if unused := set(arrays) - set(fusion.arrays()):
        raise FormatError(f"The fusion {name!r} has no use for the tensors {sorted(unused)}.")
    return fusion


def check_fusion(name: str, also: Sequence[str] = ()) -> None:
    """Refuse a name that is neither one of `FUSIONS` nor one of ``also``.

    Raises
    ------
    ConfigError
        For an unknown name, or an operation without a residual form.
    """
    operation = FUSIONS.get(str(name).removesuffix(RESIDUAL))
    if operation is not None and name not in FUSIONS:
        raise ConfigError(
            f"The fusion {operation.name!r} has no residual form: {operation.no_residual}. Use "
            f"fusion={operation.name!r}."
        )
    check_choice(name, (*also, *FUSIONS), "fusion")
