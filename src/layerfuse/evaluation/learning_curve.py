"""Learning curve: accuracy by the number of labels, on nested stratified draws of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.errors import ConfigError, DataError
from layerfuse.labels import Column
from layerfuse.metrics import Estimate, percentile_interval
from layerfuse.model_selection import SearchSpace, check_links, check_search, search
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Blocks, Floats, Plan, Rows, predict_held
from layerfuse.probing import PrincipalAxes, ProbeResults, probe_rows
from layerfuse.progress import SILENT, Reporter, track
from layerfuse.resources import Budget
from layerfuse.selection import AUTO, CostBudget, check_selection, resolve_selection
from layerfuse.targets import Targets

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the labels that a curve is measured at."""

METHODS = ("last_layer", "best_block", "fusion")
"""What is compared at each share."""

_PER_CLASS = 4  # rows of each class in a draw, at least
_FOLDS = 3  # of a draw, for thresholds
_RESAMPLES, _CHUNK = 2000, 100
_FIVE_BLOCKS = CostBudget(Budget(blocks=5), {})


@dataclass(frozen=True)
class Draw:
    """One draw of labeled rows: plan and test accuracy (0 to 1) of each of `METHODS`."""

    repeat: int
    plans: Mapping[str, Plan]
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class CurvePoint:
    """Mean accuracy over draws of ``n_rows`` labels, a ``share`` (0 to 1) of all.

    ``gain`` is fusion minus last layer on the same draws and test rows. `learning_curve` says what
    the intervals cover.
    """

    share: float
    n_rows: int
    last_layer: Estimate
    best_block: Estimate
    fusion: Estimate
    gain: Estimate
    draws: tuple[Draw, ...]


@dataclass(frozen=True)
class LearningCurve:
    """Points by increasing number of labels, and the number of training and of test rows.

    ``metric`` is what the points measure: accuracy, or micro-F1 where texts have any number of
    labels.
    """

    points: tuple[CurvePoint, ...]
    n_train: int
    n_test: int
    metric: str = "accuracy"

    @property
    def largest_gain(self) -> CurvePoint:
        """Where fusion gains most over the last layer; the largest of several is optimistic."""
        return max(self.points, key=lambda point: point.gain.value)

    @property
    def rows_to_match(self) -> float | None:
        """Labels with which fusion first reaches what the last layer reaches with the most labels.

        Between two points accuracy is interpolated linearly in the logarithm of the number of
        labels. The first point's number means itself or fewer; None when it is never reached.
        """
        target = self.points[-1].last_layer.value
        if self.points[0].fusion.value >= target:
            return float(self.points[0].n_rows)
        for below, above in pairwise(self.points):
            low, high = below.fusion.value, above.fusion.value
            if high >= target:
                part = (target - low) / (high - low)
                return float(below.n_rows * (above.n_rows / below.n_rows) ** part)
        return None


def check_draws(shares: Sequence[float], repeats: int) -> tuple[float, ...]:
    """The shares sorted, each once; a ConfigError for what cannot be drawn."""
    for share in shares:
        if not 0 < share <= 1:
            raise ConfigError(
                f"A share of {100 * share:g}% of the labels cannot be drawn. Give shares above 0 "
                "and at most 100%."
            )
    if not shares:
        raise ConfigError("No share of the labels was given. Give at least one.")
    if repeats < 1:
        raise ConfigError(f"repeats={repeats} draws nothing; give at least 1.")
    return tuple(sorted(set(shares)))


def learning_curve(
    train_embeddings: Blocks,
    y: Column,
    test_embeddings: Blocks,
    y_test: Column,
    *,
    shares: Sequence[float] = SHARES,
    repeats: int = 5,
    selection: str = AUTO,
    budget: CostBudget = _FIVE_BLOCKS,
    fusion: str = "concat",
    head: str = "ridge",
    groups: Column | None = None,
    class_weight: str | Mapping[object, float] | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    reporter: Reporter = SILENT,
) -> LearningCurve:
    """Measure three methods with more and more of the labels.

    For each share, rows are drawn class by class; on these rows alone blocks are probed and chosen,
    and heads with their penalties are fitted: (a) the last layer of the encoder whose last layer
    has the lowest leave-one-out loss, (b) the block with the lowest, each with a ridge head, and
    (c) fusion by the given selection, fusion and head. Principal axes come from all training
    embeddings and no label. A larger share holds the rows of a smaller one of the same repeat.

    The 95% intervals are percentiles of resampled test rows and, independently, resampled repeats
    (the pigeonhole bootstrap; Owen, Annals of Applied Statistics, 2007). With few repeats they
    underestimate the choice of training rows, and where all rows are drawn they are for this
    training set.

    Parameters
    ----------
    train_embeddings, test_embeddings : mapping of BlockRef to ndarray
        The same blocks of shape (n, dim) and (n_test, dim).
    y, y_test : array-like of shape (n,) and (n_test,)
        Labels of any kind.
    shares : sequence of float
        Shares of the n rows, above 0 and at most 1. At least 4 rows of each class are drawn (all of
        a class with fewer); a share that would draw as many rows as a smaller one is omitted.
    repeats : int
        Draws for each share; one where all rows are drawn.
    selection, budget, fusion, head : str, CostBudget, str, str
        Of method (c); see `SearchSpace`. The budget does not limit (a) and (b).
    groups : array-like of shape (n,), optional
        Rows with an equal value, such as the same text, are left out together.
    class_weight : {"balanced"} or mapping from label to float, optional
        As in scikit-learn, of each draw.
    seed : int
        Seed of draws, intervals and models.
    n_jobs : int, optional
        Threads; None or -1 takes all cores.
    reporter : Reporter
        Receives progress.

    Raises
    ------
    ConfigError
        For shares, repeats or a search space that cannot be used.
    DataError
        For one class only, no test rows, test labels that training lacks, or arrays that do not
        fit together.
    """
    shares = check_draws(shares, repeats)
    check_search(fusion, head)
    check_selection(selection)
    targets = Targets.from_labels(y, groups)
    check_links(fusion, head, targets.space)  # refused before the work, as are class weights
    targets.class_weights(class_weight)
    if np.count_nonzero(targets.counts) < 2:
        raise DataError("All labels are the same. Give rows of at least two classes.")
    truth = targets.space.encode(y_test)
    if not len(truth):
        raise DataError("There are no test rows to measure on. Give at least one.")
    if not len(train_embeddings):
        raise DataError("There are no blocks. Give at least one.")
    present = set(test_embeddings)  # `in` would read a block
    if missing := [block for block in train_embeddings if block not in present]:
        raise DataError(f"Test rows lack the block {missing[0]}. Give the same blocks for both.")
    space = SearchSpace(selection, budget, fusion, head, seed)
    drawn = _draw(targets, shares, repeats, seed)
    jobs = [rows for _, draws in drawn.values() for rows in draws]
    axes, leading = _project(train_embeddings, len(targets), n_jobs, reporter)

    def choose(rows: Rows) -> dict[str, Plan]:
        return _choose(leading, rows, targets[rows].weighted(class_weight), space)

    plans = list(
        track(parallel_map(choose, jobs, n_jobs), "choosing", len(jobs), "draws", reporter)
    )
    # Heads see more coordinates of fewer blocks: training rows, below them the test rows.
    joined = {
        block: np.concatenate(
            [
                axes[block].transform(_rows_of(blocks, block, n))
                for blocks, n in ((train_embeddings, len(targets)), (test_embeddings, len(truth)))
            ]
        )
        for block in {block for found in plans for plan in found.values() for block in plan.blocks}
    }
    held = np.arange(len(targets), len(targets) + len(truth))

    def measure(job: tuple[Rows, Mapping[str, Plan]]) -> Floats:
        rows, by_method = job
        own, parts = targets[rows].weighted(class_weight), {}
        for plan in dict.fromkeys(by_method.values()):
            logits = predict_held(plan, joined, own, rows, held, seed=seed)
            space = own.space.tuned_by(lambda: _out_of_fold(plan, joined, own, rows, seed), own)  # noqa: B023
            parts[plan] = truth.parts(space.decide(logits))
        return np.array([parts[by_method[method]] for method in METHODS])

    measured = parallel_map(measure, zip(jobs, plans, strict=True), n_jobs)
    results = list(track(measured, "training", len(jobs), "draws", reporter))
    drawn_tests = _test_draws(len(truth), seed)
    points, start = [], 0
    for n_rows, (share, draws) in drawn.items():
        own = slice(start, start + len(draws))
        parts = np.array(results[own])
        points.append(_measure_point(share, n_rows, plans[own], parts, drawn_tests, seed))
        start += len(draws)
    metric = targets.space.metric
    return LearningCurve(tuple(reversed(points)), len(targets), len(truth), metric)


def _out_of_fold(
    plan: Plan, coordinates: Blocks, targets: Targets, rows: Rows, seed: int
) -> Floats:
    """Logits (n_rows, n_outputs) of the rows of a draw by models that had not seen them."""
    logits = np.zeros((len(rows), targets.space.n_outputs), dtype=np.float32)
    for known, held in targets.folds(_FOLDS, seed):
        own = predict_held(plan, coordinates, targets[known], rows[known], rows[held], seed=seed)
        logits[held] = own
    return logits


def _draw(
    targets: Targets, shares: Sequence[float], repeats: int, seed: int
) -> dict[int, tuple[float, list[Rows]]]:
    """By number of rows the share and its draws, the largest first: no core waits for it alone."""

    def draw(share: float, repeat: int) -> Rows:
        return targets.sample(round(share * len(targets)), (seed, repeat), _PER_CLASS)

    drawn: dict[int, tuple[float, list[Rows]]] = {}
    for share in reversed(shares):
        first = draw(share, 0)
        count = 1 if len(first) == len(targets) else repeats
        drawn[len(first)] = (share, [first, *(draw(share, repeat) for repeat in range(1, count))])
    return drawn


def _project(
    embeddings: Blocks, n: int, n_jobs: int | None, reporter: Reporter
) -> tuple[dict[BlockRef, PrincipalAxes], dict[BlockRef, Floats]]:
    """Each block's axes, and the leading coordinates (n, columns) that choosing uses."""
    fitted = parallel_map(
        lambda block: PrincipalAxes.fit(_rows_of(embeddings, block, n)), embeddings, n_jobs
    )
    results = list(track(fitted, "principal axes", len(embeddings), "blocks", reporter))
    return (
        {block: axes for block, (axes, _, _) in zip(embeddings, results, strict=True)},
        {block: leading for block, (_, _, leading) in zip(embeddings, results, strict=True)},
    )


def _rows_of(embeddings: Blocks, block: BlockRef, n: int) -> Floats:
    X = embeddings[block]
    if len(X) != n:
        raise DataError(f"{block} has {len(X)} rows, but there are {n} labels.")
    return X


def _choose(
    coordinates: Blocks, rows: Rows, targets: Targets, space: SearchSpace
) -> dict[str, Plan]:
    """What each method trains, from some rows and their targets alone."""
    space = replace(space, selection=resolve_selection(space.selection, targets))
    probed = ProbeResults(BlockScores((), "ridge"), coordinates, {})
    probed = probe_rows(probed, rows, targets, n_jobs=1)
    scores = probed.scores
    lasts = {scores.last(encoder).block for encoder in scores.encoders}
    ranking = [score.block for score in scores.ranking]
    return {
        "last_layer": Plan((next(block for block in ranking if block in lasts),)),
        "best_block": Plan((ranking[0],)),
        "fusion": search(probed, targets, space).plan,
    }


def _test_draws(n_test: int, seed: int) -> list[Floats]:
    """How often each test row is drawn in each resample, in chunks of shape (chunk, n_test)."""
    random = np.random.default_rng(seed)
    shares = np.full(n_test, 1 / n_test)
    return [
        random.multinomial(n_test, shares, _CHUNK).astype(np.float32)
        for _ in range(_RESAMPLES // _CHUNK)
    ]


def _measure_point(
    share: float,
    n_rows: int,
    plans: Sequence[Mapping[str, Plan]],
    parts: Floats,
    drawn_tests: Sequence[Floats],
    seed: int,
) -> CurvePoint:
    """``parts`` (repeats, methods, n_test, 2) are those of the metric in each draw."""
    count, _, n_test, _ = parts.shape
    hits, sizes = (parts[..., place].reshape(-1, n_test) for place in range(2))
    resampled = np.concatenate(
        [(hits @ chunk.T) / np.maximum(sizes @ chunk.T, 1) for chunk in drawn_tests], axis=1
    )
    # The same repeats for every method, drawn beside the test rows.
    random = np.random.default_rng([seed, n_rows])
    repeats = random.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
    means = np.einsum("rmb,br->mb", resampled.reshape(count, len(METHODS), -1), repeats)
    sums = parts.sum(axis=2, dtype=np.float64)
    accuracy = sums[..., 0] / np.maximum(sums[..., 1], 1)  # (repeats, methods)
    last, best, fusion = accuracy.mean(axis=0)
    draws = tuple(
        Draw(repeat, by_method, dict(zip(METHODS, accuracy[repeat].tolist(), strict=True)))
        for repeat, by_method in enumerate(plans)
    )
    return CurvePoint(
        share,
        n_rows,
        last_layer=percentile_interval(last, means[0]),
        best_block=percentile_interval(best, means[1]),
        fusion=percentile_interval(fusion, means[2]),
        gain=percentile_interval(fusion - last, means[2] - means[0]),
        draws=draws,
    )
