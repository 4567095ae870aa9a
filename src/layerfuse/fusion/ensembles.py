"""Combining what the blocks predict, one ridge probe for each: soft voting and stacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerfuse.calibration import TemperatureCalibrator
from layerfuse.errors import ConfigError, FormatError
from layerfuse.files import take_tensor
from layerfuse.fusion.protocol import FittedFusion
from layerfuse.heads import LinearHead, fit_ridge
from layerfuse.probing import decompose, leave_one_out, standardization
from layerfuse.targets import LabelSpace, Targets

__all__ = ["PREDICTIONS", "Stacking", "Voting", "fit_predictions", "load_predictions"]

Floats = npt.NDArray[np.float32]

PREDICTIONS = ("voting", "stacking")


@dataclass(frozen=True)
class Probes:
    """One linear map for each block: ``coefs`` (dim, n_classes), ``intercepts`` (n_classes,)."""

    coefs: tuple[Floats, ...]
    intercepts: tuple[Floats, ...]

    def scores(self, blocks: Sequence[Floats]) -> list[Floats]:
        """Arrays (n, dim), one for each block, to ridge scores (n, n_classes) each."""
        return [
            block @ coef + intercept
            for block, coef, intercept in zip(blocks, self.coefs, self.intercepts, strict=True)
        ]

    def arrays(self) -> dict[str, Floats]:
        groups = (("coef", self.coefs), ("intercept", self.intercepts))
        return {f"{name}.{i}": array for name, group in groups for i, array in enumerate(group)}


@dataclass(frozen=True)
class Voting:
    """Soft voting: ``log(1/k sum_j softmax(s_j / t_j))`` with s_j the ridge scores of block j.

    (n, dim) for each block to (n, n_classes). ``temperatures`` holds one calibrator for each block,
    fitted on the probe's leave-one-out scores: ridge scores are no logits by themselves.
    """

    probes: Probes
    temperatures: tuple[TemperatureCalibrator, ...]
    name: str = "voting"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to log probabilities (n, n_classes)."""
        return _vote(self.probes.scores(blocks), self.temperatures)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``coef.i``, ``intercept.i`` of each block, ``temperature`` (k,)."""
        values = [calibrator.temperature for calibrator in self.temperatures]
        return {**self.probes.arrays(), "temperature": np.array(values, dtype=np.float32)}


@dataclass(frozen=True)
class Stacking:
    """Stacked generalisation (Wolpert, Neural Networks, 1992): ``[s_1, ..., s_k]``, standardised.

    (n, dim) for each block to (n, k * n_classes), with s_j the ridge scores of block j. A head is
    trained on leave-one-out scores; ``mean`` and ``scale`` (k * n_classes,) are of those.
    """

    probes: Probes
    mean: Floats
    scale: Floats
    name: str = "stacking"

    def transform(self, blocks: Sequence[Floats]) -> Floats:
        """Arrays (n, dim), one for each block, to standardised scores (n, k * n_classes)."""
        return self.standardise(self.probes.scores(blocks))

    def standardise(self, scores: Sequence[Floats]) -> Floats:
        """Scores (n, n_classes) of each block to features (n, k * n_classes)."""
        joined = np.concatenate(scores, axis=1, dtype=np.float32)
        return np.asarray((joined - self.mean) * self.scale)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved: ``coef.i``, ``intercept.i`` of each block, ``mean`` and ``scale``."""
        return {**self.probes.arrays(), "mean": self.mean, "scale": self.scale}


def fit_predictions(
    name: str,
    blocks: Sequence[Floats],
    targets: Targets,
    row_weights: npt.NDArray[np.floating] | None,
) -> FittedFusion:
    """Fit ``"voting"`` or ``"stacking"`` on scaled, centred training rows, one (n, dim) per block.

    Each probe's penalty is that of the lowest exact leave-one-out loss. With ``class_weight``
    (n_classes,) voting multiplies each class's probability by its weight, in its head; stacking
    leaves weights to the head that is trained on it.
    """
    matrix, n_classes = targets.matrix, targets.space.n_outputs
    maps, unseen = [], []
    for block in blocks:
        result = leave_one_out(decompose(block), matrix)
        maps.append(fit_ridge(block, matrix, None, result.penalty))
        unseen.append(np.asarray(result.predictions, dtype=np.float32))
    probes = Probes(tuple(coef for coef, _ in maps), tuple(intercept for _, intercept in maps))
    if name == "stacking":
        joined = np.concatenate(unseen, axis=1)
        mean, scale = standardization(joined)
        stacking = Stacking(probes, mean.astype(np.float32), scale.astype(np.float32))
        return FittedFusion(stacking, stacking.standardise(unseen))
    # Temperatures are saved as float32, so that is what they are from the start.
    found = (float(np.float32(TemperatureCalibrator.fit(s, targets).temperature)) for s in unseen)
    voting = Voting(probes, tuple(TemperatureCalibrator(value) for value in found))
    weights = np.ones(n_classes)
    if row_weights is not None:
        weights = np.maximum(row_weights @ matrix / np.maximum(targets.counts, 1), 1e-12)
    head = LinearHead(
        "voting", np.eye(n_classes, dtype=np.float32), np.log(weights).astype(np.float32)
    )
    return FittedFusion(voting, _vote(unseen, voting.temperatures), head)


def load_predictions(name: str, arrays: Mapping[str, Floats], n_blocks: int) -> Voting | Stacking:
    """The inverse of ``arrays``; a FormatError when they do not fit together."""
    first = take_tensor(arrays, "coef.0", None, None)
    n_classes = first.shape[1]
    coefs = (take_tensor(arrays, f"coef.{i}", None, n_classes) for i in range(1, n_blocks))
    intercepts = (take_tensor(arrays, f"intercept.{i}", n_classes) for i in range(n_blocks))
    probes = Probes((first, *coefs), tuple(intercepts))
    if name == "stacking":
        width = n_blocks * n_classes
        mean, scale = take_tensor(arrays, "mean", width), take_tensor(arrays, "scale", width)
        return Stacking(probes, mean, scale)
    values = take_tensor(arrays, "temperature", n_blocks)
    try:
        return Voting(probes, tuple(TemperatureCalibrator(float(value)) for value in values))
    except ConfigError as error:
        raise FormatError(
            f"Tensor 'temperature' was changed after it was saved: {error}"
        ) from error


def _vote(scores: Sequence[Floats], temperatures: Sequence[TemperatureCalibrator]) -> Floats:
    proba = [
        calibrator.predict_proba(table, LabelSpace(np.arange(table.shape[1])))
        for calibrator, table in zip(temperatures, scores, strict=True)
    ]
    # A probability below float64's range counts as the smallest one that has a logarithm.
    mean = np.maximum(np.mean(proba, axis=0), np.finfo(np.float64).tiny)
    return np.asarray(np.log(mean), dtype=np.float32)
