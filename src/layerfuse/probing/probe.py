"""The leading principal axes of a block, in which blocks are compared and fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import LEXICAL_BLOCK, BlockRef, BlockScore, BlockScores
from layerfuse.errors import DataError, check_choice
from layerfuse.files import take_tensor
from layerfuse.folds import standard_error
from layerfuse.labels import Column
from layerfuse.parallel import parallel_map
from layerfuse.probing.centroids import ClassCentroids
from layerfuse.probing.ridge import (
    Spectrum,
    decompose,
    leave_one_out,
    standardization,
    weight_rows,
)
from layerfuse.progress import SILENT, Reporter
from layerfuse.targets import Decisions, Targets

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Floats = npt.NDArray[np.float32]

N_AXES = 384
"""Principal axes of a block that heads see, at most."""

N_SEARCHED = 160
"""Leading axes of a block by which blocks are chosen, at most."""


@dataclass(frozen=True)
class PrincipalAxes:
    """The map from an embedding to the principal coordinates of a block.

    Each column is standardized on the training rows and scaled by 1/sqrt(dim), so that every block
    has a total variance of one and a wide one does not drown a narrow one; then the block is
    rotated onto its leading principal axes (Pearson, 1901).

    Attributes
    ----------
    mean, scale : ndarray of shape (dim,)
    axes : ndarray of shape (dim, rank)
        With orthonormal columns.
    """

    mean: Floats
    scale: Floats
    axes: Floats

    @classmethod
    def fit(cls, X: npt.NDArray[np.floating]) -> tuple[PrincipalAxes, Spectrum, Floats]:
        """Find the axes of training rows.

        Parameters
        ----------
        X : ndarray of shape (n, dim)

        Returns
        -------
        axes : PrincipalAxes
            A constant block has no axis; it gets one of zeros, so that it stays a block.
        space : Spectrum
            Of all axes, for a probe.
        leading : ndarray of shape (n, at most N_SEARCHED)
            The coordinates by which blocks are chosen.
        """
        mean, scale = standardization(X)
        Z = X - mean
        Z *= scale
        space = decompose(Z, overwrite=True)
        varies = len(space.eigenvalues) > 0
        axes = space.axes[:, :N_AXES] if varies else np.zeros((X.shape[1], 1))
        leading = space.rotated[:, :N_SEARCHED] if varies else np.zeros((len(X), 1))
        own = cls(mean.astype(np.float32), scale.astype(np.float32), axes.astype(np.float32))
        return own, space, np.array(leading, dtype=np.float32, order="C")

    @property
    def dim(self) -> int:
        """Columns of the embedding."""
        return int(self.axes.shape[0])

    @property
    def rank(self) -> int:
        """Principal coordinates."""
        return int(self.axes.shape[1])

    def transform(self, X: Floats) -> Floats:
        """Embeddings (n, dim) to principal coordinates (n, rank), centered on the training rows.

        Raises
        ------
        DataError
            When the embeddings are of another size.
        """
        if X.shape[1] != self.dim:
            raise DataError(
                f"A block has {X.shape[1]} columns, expected {self.dim} as in training."
            )
        return np.asarray(((X - self.mean) * self.scale) @ self.axes)

    def arrays(self) -> dict[str, Floats]:
        """What must be saved, float32."""
        return {"mean": self.mean, "scale": self.scale, "axes": self.axes}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> PrincipalAxes:
        """The inverse of `arrays`; a FormatError when they are missing or do not fit together."""
        axes = take_tensor(arrays, "axes", None, None)
        dim = len(axes)
        return cls(take_tensor(arrays, "mean", dim), take_tensor(arrays, "scale", dim), axes)


Blocks: TypeAlias = Mapping[BlockRef, Floats]

Axes: TypeAlias = PrincipalAxes | ClassCentroids
"""From a block to its coordinates; of the lexical block centroids, which learn from labels."""

_FOLDS = 5
_LOGISTIC_C = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class ProbeResults:
    """What probing each block gave.

    Attributes
    ----------
    scores : BlockScores
    coordinates : mapping from BlockRef to ndarray of shape (n, columns)
        Leading principal coordinates of the rows, by which blocks are chosen; fewer than the axes.
    axes : mapping from BlockRef to Axes
    decisions : mapping from BlockRef to Decisions
        What a probe predicts for each row that was fitted without it; of `probe_blocks` only.
    """

    scores: BlockScores
    coordinates: Blocks
    axes: Mapping[BlockRef, Axes]
    decisions: Mapping[BlockRef, Decisions] = field(default_factory=dict)


def score_blocks(
    embeddings: Blocks,
    y: Column,
    scorer: str = "ridge",
    *,
    groups: Column | None = None,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> BlockScores:
    """Score each block by how well a linear probe predicts the labels from it alone.

    Parameters
    ----------
    embeddings : mapping from BlockRef to ndarray of shape (n, dim)
    y : array-like of shape (n,)
        Labels of any kind.
    scorer : {"ridge", "logistic"}
        ``"ridge"``: ridge regression on the target matrix, exact leave-one-out in closed form.
        ``"logistic"``: multinomial logistic regression, stratified 5-fold; slower, a cross-check.
    groups : array-like of shape (n,), optional
        Rows with an equal value, such as the same text, are left out together.
    n_jobs : int, optional
        Threads, as in scikit-learn; None takes all cores.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError
        For an unknown scorer.
    DataError
        When rows and labels differ in number, or there is only one class.

    Examples
    --------
    >>> y = np.arange(40) % 2
    >>> noise = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    >>> blocks = {BlockRef("e", 0, "mean"): noise[0], BlockRef("e", 1, "mean"): noise[1]}
    >>> blocks[BlockRef("e", 1, "mean")][:, 0] += 4 * y
    >>> score_blocks(blocks, y).best.block
    BlockRef(encoder='e', layer=1, pooling='mean')
    """
    targets = Targets.from_labels(y, groups)
    return probe_blocks(embeddings, targets, scorer, n_jobs=n_jobs, reporter=reporter).scores


def probe_blocks(
    embeddings: Blocks,
    targets: Targets,
    scorer: str = "ridge",
    *,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> ProbeResults:
    """`score_blocks`, with each block's axes and leading principal coordinates.

    Weights count in the probe and in its loss.
    """
    check_scorer(scorer)
    if scorer == "logistic":
        targets.space.check_link(("softmax",), "scorer='logistic'")
    if not targets.varies:
        raise DataError("There is only one class. Give rows of at least two.")

    def probe(block: BlockRef) -> tuple[BlockScore, Decisions, Axes, Floats]:
        features = embeddings[block]
        if features.shape[0] != len(targets):
            raise DataError(
                f"{block} has {features.shape[0]} rows, but there are {len(targets)} labels."
            )
        axes: Axes
        if block == LEXICAL_BLOCK:
            axes, leading = ClassCentroids.fit(features, targets)
            space = decompose(leading)
        else:
            axes, space, leading = PrincipalAxes.fit(features)
        return *SCORERS[scorer](block, space, targets), axes, leading

    scores, coordinates, axes, decisions = [], {}, {}, {}
    with reporter.task("scoring", len(embeddings), "blocks") as advance:
        for score, decided, own_axes, leading in parallel_map(probe, embeddings, n_jobs):
            scores.append(score)
            axes[score.block], coordinates[score.block] = own_axes, leading
            decisions[score.block] = decided
            advance(1)
    return ProbeResults(BlockScores(tuple(scores), scorer), coordinates, axes, decisions)


def check_scorer(scorer: str) -> None:
    """Raise a ConfigError for an unknown scorer."""
    check_choice(scorer, SCORERS, "scorer")


def probe_rows(
    probed: ProbeResults,
    rows: npt.NDArray[np.intp],
    targets: Targets,
    *,
    lexical: Floats | None = None,
    n_jobs: int | None = None,
) -> ProbeResults:
    """Score blocks by the ridge probe from the principal coordinates of some of their rows.

    For choosing only: the probe sees the coordinates alone, and there is no macro-F1 (NaN), which
    takes longer than the probe. The axes stay as they are: they come from the embeddings of all
    rows and from no label. ``targets`` are of ``rows``, and so are the coordinates ``lexical`` of
    the lexical block, which do depend on labels.
    """

    def probe(block: BlockRef) -> tuple[BlockScore, Floats]:
        own = lexical if block == LEXICAL_BLOCK else None
        Z = probed.coordinates[block][rows] if own is None else own.copy()
        Z -= Z.mean(axis=0)
        score, _ = _ridge(block, decompose(weight_rows(Z, targets.unit_weights)), targets)
        return score, Z

    scores, coordinates = [], {}
    for score, Z in parallel_map(probe, probed.coordinates, n_jobs):
        scores.append(score)
        coordinates[score.block] = Z
    return ProbeResults(BlockScores(tuple(scores), "ridge"), coordinates, probed.axes)


def probe_space(block: BlockRef, space: Spectrum, targets: Targets) -> tuple[BlockScore, Decisions]:
    """The ridge score of a block from its whole spectrum, and what is predicted for each row."""
    if targets.unit_weights is not None:
        space = decompose(weight_rows(space.rotated, targets.unit_weights))
    score, decisions = _ridge(block, space, targets)
    return replace(score, macro_f1=targets.macro_f1(decisions)), decisions


def _ridge(block: BlockRef, space: Spectrum, targets: Targets) -> tuple[BlockScore, Decisions]:
    """The score, without macro-F1, of features that have been weighted as `weight_rows` does."""
    weights, groups = targets.unit_weights, targets.groups
    result = leave_one_out(space, targets.matrix, row_weights=weights, groups=groups)
    decisions = targets.space.decide(result.predictions)
    return _score(block, targets, decisions, result.errors, result.penalty), decisions


def _logistic(block: BlockRef, space: Spectrum, targets: Targets) -> tuple[BlockScore, Decisions]:
    """The same features; C by the lowest log loss over the folds."""
    from sklearn.linear_model import LogisticRegression

    if not targets.can_fold:
        raise DataError("The logistic scorer needs two rows of two classes; use scorer='ridge'.")
    Z = space.rotated if len(space.eigenvalues) else np.zeros((len(targets), 1))  # constant
    folds, weights = targets.folds(_FOLDS, seed=0), targets.unit_weights
    best: tuple[npt.NDArray[np.float64], Decisions, float] | None = None
    for C in _LOGISTIC_C:
        proba = np.zeros((len(targets), targets.space.n_outputs))
        for rows, held in folds:
            model = LogisticRegression(C=C, max_iter=1000)
            own = None if weights is None else weights[rows]
            fit_logistic(model, Z[rows], targets.codes[rows].astype(np.intp, copy=False), own)
            # a class of which all rows are held out is not one of the model's
            proba[np.ix_(held, model.classes_)] = model.predict_proba(Z[held])
        losses = targets.log_loss(np.log(np.maximum(proba, 1e-12)))
        losses = losses if weights is None else losses * weights
        if best is None or losses.mean() < best[0].mean():
            best = (losses, targets.space.decide(proba), 1.0 / C)
    assert best is not None
    losses, decisions, penalty = best
    score = _score(block, targets, decisions, losses, penalty)
    return replace(score, macro_f1=targets.macro_f1(decisions)), decisions


def fit_logistic(
    model: LogisticRegression,
    X: Any,
    codes: npt.NDArray[np.intp],
    row_weights: Floats | None = None,
) -> LogisticRegression:
    """Fit features (n, dim), dense or sparse; return the model.

    Where scikit-learn would warn that so many classes look like a regression, rows of weight 0
    make the classes few among the rows: filters of warnings belong to the process.
    """
    n = len(codes)
    n_more = max(0, 2 * len(np.unique(codes)) - n + 1)
    if n_more:
        rows = np.arange(n + n_more) % n
        weights = np.ones(n) if row_weights is None else row_weights
        X, codes, row_weights = X[rows], codes[rows], np.pad(weights, (0, n_more))
    return model.fit(X, codes, sample_weight=row_weights)


def _score(
    block: BlockRef,
    targets: Targets,
    decisions: Decisions,
    losses: npt.NDArray[np.floating],
    penalty: float,
) -> BlockScore:
    correct = targets.correct(decisions)
    return BlockScore(
        block=block,
        accuracy=float(correct.mean()),
        accuracy_se=standard_error(correct, targets.groups),
        macro_f1=float("nan"),
        loss=float(losses.mean()),
        loss_se=standard_error(losses, targets.groups),
        penalty=penalty,
    )


SCORERS: dict[str, Callable[[BlockRef, Spectrum, Targets], tuple[BlockScore, Decisions]]] = {
    "ridge": probe_space,
    "logistic": _logistic,
}
