"""Pairs of blocks: how much they agree, how alike they are, and pairs informative only together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.folds import standard_error
from layerfuse.metrics import check_correct_pair
from layerfuse.probing.ridge import leave_one_out, prior_errors, spectrum
from layerfuse.targets import Targets


@dataclass(frozen=True)
class Agreement:
    """How many rows both, one or none of two classifiers a and b get right.

    The measures are those of Kuncheva and Whitaker, "Measures of Diversity in Classifier
    Ensembles" (Machine Learning 51, 2003); all but Q are shares of rows from 0 to 1.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        """Rows."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def accuracy_a(self) -> float:
        """Share of rows that a gets right."""
        return (self.both + self.only_a) / self.n

    @property
    def accuracy_b(self) -> float:
        """Share of rows that b gets right."""
        return (self.both + self.only_b) / self.n

    @property
    def disagreement(self) -> float:
        """Exactly one is right."""
        return (self.only_a + self.only_b) / self.n

    @property
    def double_fault(self) -> float:
        """Both are wrong."""
        return self.neither / self.n

    @property
    def oracle_accuracy(self) -> float:
        """At least one is right: what a perfect judge between the two would reach."""
        return 1.0 - self.neither / self.n

    @property
    def yules_q(self) -> float:
        """Yule's Q (1900), from -1 (never right together) over 0 (independent) to 1.

        Its denominator is 0 exactly when one of the two is right on every row or wrong on every
        row. Such a one is independent of any other, so that Q is 0 there.
        """
        together, apart = self.both * self.neither, self.only_a * self.only_b
        return (together - apart) / (together + apart) if together + apart else 0.0


def measure_agreement(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> Agreement:
    """Count how often two classifiers are right on the same rows; both arrays are (n,) bool."""
    a, b = check_correct_pair(correct_a, correct_b)
    return Agreement(
        both=int((a & b).sum()),
        only_a=int((a & ~b).sum()),
        only_b=int((b & ~a).sum()),
        neither=int((~a & ~b).sum()),
    )


def linear_cka(X: npt.NDArray[np.floating], Y: npt.NDArray[np.floating]) -> float:
    r"""Linear centered kernel alignment of two feature matrices over the same rows.

    :math:`\|X^T Y\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)` with centered columns (Kornblith et al.,
    "Similarity of Neural Network Representations Revisited", ICML 2019, section 3): 1 for features
    that are equal up to rotation, scale and offset, 0 for features that are uncorrelated in every
    pair of columns. Where there are fewer rows than columns the same numbers come from the two
    (n, n) Gram matrices, so the cost is that of the smaller way. A matrix whose columns are all
    constant says nothing, and its similarity with anything is 0.

    It is biased upwards for few rows: two random matrices of d columns give about d / (n + d).
    ``X`` (n, dim_x) and ``Y`` (n, dim_y) are finite.
    """
    a, b = _centered(X), _centered(Y)
    if len(a) < max(a.shape[1], b.shape[1]):
        left, right = a @ a.T, b @ b.T
        shared, own = float((left * right).sum()), np.linalg.norm(left) * np.linalg.norm(right)
    else:
        shared = float(np.linalg.norm(a.T @ b) ** 2)
        own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.clip(shared / own, 0.0, 1.0)) if own > 0 else 0.0


def _centered(X: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Columns of mean 0; one that is constant becomes exactly 0."""
    wide = X.astype(np.float64)  # before centering, so that a large offset is harmless
    return np.where(wide.max(axis=0) > wide.min(axis=0), wide - wide.mean(axis=0), 0.0)


Floats = npt.NDArray[np.float32]

_MOST_ROWS = 2000
_MOST_BLOCKS = 48
_LEADING = 32  # coordinates of each block that are joined …
_MULTIPLIED = 16  # … or multiplied with each other
_FINALISTS = 8
_SIGNIFICANT = 4.0  # standard errors: the best of a thousand pairs is above two by chance


def find_pair(
    coordinates: Mapping[BlockRef, Floats], candidates: Sequence[BlockRef], targets: Targets
) -> tuple[BlockRef, BlockRef] | None:
    """The most informative pair of blocks when concatenated, or None.

    All pairs of the first 48 candidates are ranked by the share of the targets' variance that a
    linear regression on both explains; the best few are checked by leave-one-out. At most 2,000
    rows are read. Coordinates are principal ones (n, columns), candidates the best first. None
    where no loss is four standard errors below that of the targets' mean.
    """
    rows, blocks, centered = _prepare(coordinates, candidates, targets, _LEADING)
    stops = np.cumsum([block.shape[1] for block in blocks.values()])
    columns = dict(zip(blocks, np.split(np.arange(stops[-1]), stops[:-1]), strict=True))
    joined = np.concatenate(list(blocks.values()), axis=1)
    gram, towards = joined.T @ joined, joined.T @ centered
    gram[np.diag_indices_from(gram)] += 1e-3 * len(rows)

    def explained(a: BlockRef, b: BlockRef) -> float:
        own = np.concatenate([columns[a], columns[b]])
        return float((towards[own] * np.linalg.solve(gram[np.ix_(own, own)], towards[own])).sum())

    def join(a: BlockRef, b: BlockRef) -> Floats:
        return np.concatenate([blocks[a], blocks[b]], axis=1)

    return _best(list(blocks), explained, join, targets[rows])


def find_interaction(
    coordinates: Mapping[BlockRef, Floats], candidates: Sequence[BlockRef], targets: Targets
) -> tuple[BlockRef, BlockRef] | None:
    """The pair of blocks with the most informative products of coordinates; see `find_pair`.

    Pairs are ranked by the squared third moments ``mean(a_i b_j y_c)``, summed over i, j and c.
    """
    rows, blocks, centered = _prepare(coordinates, candidates, targets, _MULTIPLIED)

    @lru_cache(maxsize=1)  # pairs come by their first block
    def weighted(a: BlockRef) -> Floats:
        return (blocks[a][:, :, None] * centered[:, None, :]).reshape(len(rows), -1)

    def moments(a: BlockRef, b: BlockRef) -> float:
        return float(np.square(blocks[b].T @ weighted(a)).mean())

    def join(a: BlockRef, b: BlockRef) -> Floats:
        return (blocks[a][:, :, None] * blocks[b][:, None, :]).reshape(len(rows), -1)

    return _best(list(blocks), moments, join, targets[rows])


def _prepare(
    coordinates: Mapping[BlockRef, Floats],
    candidates: Sequence[BlockRef],
    targets: Targets,
    n_columns: int,
) -> tuple[npt.NDArray[np.intp], dict[BlockRef, Floats], Floats]:
    """Rows, the first candidates' leading coordinates of variance one there, centered targets."""
    rows = np.sort(np.random.default_rng(0).permutation(len(targets))[:_MOST_ROWS])
    blocks = {}
    for block in candidates[:_MOST_BLOCKS]:
        Z = coordinates[block][rows, :n_columns]
        deviation = Z.std(axis=0)
        blocks[block] = (Z - Z.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    matrix = targets.matrix[rows]
    return rows, blocks, matrix - matrix.mean(axis=0)


def _best(
    blocks: Sequence[BlockRef],
    rank: Callable[[BlockRef, BlockRef], float],
    join: Callable[[BlockRef, BlockRef], Floats],
    targets: Targets,
) -> tuple[BlockRef, BlockRef] | None:
    """Of the highest-ranked pairs the one of the lowest leave-one-out loss, if significant."""
    pairs = sorted(combinations(blocks, 2), key=lambda pair: -rank(*pair))[:_FINALISTS]
    matrix, groups = targets.matrix, targets.groups
    before = prior_errors(matrix, groups)
    best, highest = None, 0.0
    for pair in pairs:
        gain = before - leave_one_out(spectrum(join(*pair)), matrix, groups=groups).errors
        mean, error = float(gain.mean()), standard_error(gain, groups)
        if mean > highest and mean > _SIGNIFICANT * error:
            best, highest = pair, mean
    return best
