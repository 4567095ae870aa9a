"""Scoring blocks with a probe: a linear classifier that measures a block and is thrown away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.errors import ConfigError, DataError, did_you_mean
from layerfuse.parallel import spread
from layerfuse.probing.axes import PrincipalAxes
from layerfuse.probing.ridge import Spectrum, decompose, leave_one_out, one_hot
from layerfuse.progress import SILENT, Reporter
from layerfuse.targets import Column, find_classes, stratified_folds

__all__ = [
    "SCORERS",
    "Probed",
    "check_scorer",
    "probe_blocks",
    "probe_rows",
    "probe_space",
    "score_blocks",
]

Blocks: TypeAlias = Mapping[BlockRef, npt.NDArray[np.float32]]

_FOLDS = 5
_LOGISTIC_C = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Probed:
    """Scores, each block's leading principal coordinates (n, columns), and its principal axes.

    There are fewer coordinates than axes: they are for choosing, where many blocks are compared.
    """

    scores: BlockScores
    coordinates: Mapping[BlockRef, npt.NDArray[np.float32]]
    axes: Mapping[BlockRef, PrincipalAxes]


def score_blocks(
    embeddings: Blocks, y: Column, scorer: str = "ridge", *, reporter: Reporter = SILENT
) -> BlockScores:
    """Score each block by how well a linear probe predicts the labels from it alone.

    Parameters
    ----------
    embeddings
        Mapping from block to array (n, dim).
    y
        Labels (n,), of any kind.
    scorer
        ``"ridge"``: ridge regression on one-hot labels, exact leave-one-out in closed form.
        ``"logistic"``: multinomial logistic regression, stratified 5-fold; slower, a cross-check.

    Raises
    ------
    ConfigError
        For an unknown scorer.
    DataError
        When rows and labels differ in number, or there is only one class.
    """
    return probe_blocks(embeddings, y, scorer, reporter=reporter).scores


def probe_blocks(
    embeddings: Blocks,
    y: Column,
    scorer: str = "ridge",
    *,
    reporter: Reporter = SILENT,
) -> Probed:
    """`score_blocks`, keeping each block's leading principal coordinates and its axes."""
    check_scorer(scorer)
    classes, encoded = find_classes(y)
    if len(classes) < 2:
        raise DataError("All labels are the same; there is nothing to tell apart.")

    def probe(block: BlockRef) -> tuple[BlockScore, PrincipalAxes, npt.NDArray[np.float32]]:
        features = embeddings[block]
        if len(features) != len(encoded):
            raise DataError(
                f"{block} has {len(features)} rows, but there are {len(encoded)} labels."
            )
        axes, space, leading = PrincipalAxes.fit(features)
        return SCORERS[scorer](block, space, encoded, len(classes)), axes, leading

    scores, coordinates, axes = [], {}, {}
    with reporter.task("scoring", len(embeddings), "blocks") as advance:
        for score, own, leading in spread(probe, embeddings):
            scores.append(score)
            axes[score.block], coordinates[score.block] = own, leading
            advance(1)
    return Probed(BlockScores(tuple(scores), scorer), coordinates, axes)


def check_scorer(scorer: str) -> None:
    """Raise a ConfigError for an unknown scorer."""
    if scorer not in SCORERS:
        raise ConfigError(
            f"Unknown scorer {scorer!r}. Choose from {', '.join(SCORERS)}."
            + did_you_mean(scorer, SCORERS)
        )


def probe_rows(probed: Probed, rows: npt.NDArray[np.intp], y: npt.NDArray[np.intp]) -> Probed:
    """Score blocks by the ridge probe from the principal coordinates of some of their rows.

    For choosing only: the scores are of the coordinates alone, and come without macro-F1 (NaN),
    which takes longer than the probe. ``y`` are the class indices of those rows. The axes stay:
    they come from the embeddings of all rows and from no label.
    """
    targets = one_hot(y, int(y.max()) + 1)
    centred, scores = {}, []
    for block, Z in probed.coordinates.items():
        centred[block] = Z[rows] - Z[rows].mean(axis=0)
        result = leave_one_out(decompose(centred[block]), targets)
        correct = result.predictions.argmax(axis=1) == y
        scores.append(_score(block, correct, result.errors, result.penalty))
    return Probed(BlockScores(tuple(scores), "ridge"), centred, probed.axes)


def probe_space(
    block: BlockRef, space: Spectrum, y: npt.NDArray[np.intp], n_classes: int
) -> BlockScore:
    """The ridge score of a block from its whole spectrum; ``y`` are class indices (n,)."""
    result = leave_one_out(space, one_hot(y, n_classes))
    predicted = result.predictions.argmax(axis=1)
    score = _score(block, predicted == y, result.errors, result.penalty)
    return replace(score, macro_f1=_macro_f1(y, predicted))


def _logistic(
    block: BlockRef, space: Spectrum, y: npt.NDArray[np.intp], n_classes: int
) -> BlockScore:
    """The same features; C by the lowest log loss over the folds."""
    from sklearn.linear_model import LogisticRegression

    if (np.bincount(y) > 1).sum() < 2:
        raise DataError("The logistic scorer needs two rows of two classes; use scorer='ridge'.")
    folds = stratified_folds(y, _FOLDS, seed=0)
    best: tuple[npt.NDArray[np.floating], npt.NDArray[np.intp], float] | None = None
    for C in _LOGISTIC_C:
        proba = np.zeros((len(y), n_classes))
        for rows, held in folds:
            model = LogisticRegression(C=C, max_iter=1000).fit(space.rotated[rows], y[rows])
            # a class of which all rows are held out is not one of the model's
            proba[np.ix_(held, model.classes_)] = model.predict_proba(space.rotated[held])
        losses = -np.log(np.maximum(proba[np.arange(len(y)), y], 1e-12))
        if best is None or losses.mean() < best[0].mean():
            best = (losses, proba.argmax(axis=1), 1.0 / C)
    assert best is not None
    score = _score(block, best[1] == y, best[0], best[2])
    return replace(score, macro_f1=_macro_f1(y, best[1]))


def _score(
    block: BlockRef,
    correct: npt.NDArray[np.bool_],
    losses: npt.NDArray[np.floating],
    penalty: float,
) -> BlockScore:
    root = np.sqrt(len(correct))
    return BlockScore(
        block=block,
        accuracy=float(correct.mean()),
        accuracy_se=float(correct.std() / root),
        macro_f1=float("nan"),
        loss=float(losses.mean()),
        loss_se=float(losses.std() / root),
        penalty=penalty,
    )


def _macro_f1(y: npt.NDArray[np.intp], predicted: npt.NDArray[np.intp]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, predicted, average="macro", zero_division=0))


SCORERS: dict[str, Callable[[BlockRef, Spectrum, npt.NDArray[np.intp], int], BlockScore]] = {
    "ridge": probe_space,
    "logistic": _logistic,
}
