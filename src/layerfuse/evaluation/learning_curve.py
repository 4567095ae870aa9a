"""Which rows are labelled: nested stratified draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.errors import ConfigError, DataError
from layerfuse.metrics import Estimate
from layerfuse.model_selection import SearchSpace, check_search, search
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Blocks, Plan, train
from layerfuse.probing import PrincipalAxes, ProbeResults, probe_rows
from layerfuse.progress import SILENT, Reporter
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, check_selection
from layerfuse.targets import Column, LabelSpace, Targets, as_list, find_classes

__all__ = [
    "SHARES",
    "WAYS",
    "CurvePoint",
    "Draw",
    "LearningCurve",
    "Plans",
    "Result",
    "check_draws",
    "draw_rows",
    "learning_curve",
    "measure_point",
    "weigh_test_rows",
]

Labels = npt.NDArray[np.intp]

SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Shares of the labels that a curve is measured at."""

_FEWEST = 4  # rows of each class in a draw, where it has so many


def check_draws(shares: Sequence[float], repeats: int) -> tuple[float, ...]:
    """The shares sorted, each once.

    Raises
    ------
    ConfigError
        For no share, one that is not above 0 and at most 1, or fewer than one repeat.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise ConfigError(
                f"A share of {100 * share:g} % of the labels cannot be drawn. Give shares above 0 "
                "and at most 100 %."
            )
    if not shares:
        raise ConfigError("No share of the labels was given. Give at least one.")
    if repeats < 1:
        raise ConfigError(f"repeats={repeats} draws nothing; give at least 1.")
    return tuple(sorted(set(shares)))


def draw_rows(y: Labels, share: float, repeat: int, seed: int) -> Labels:
    """Sorted numbers of the rows of one draw, each class in its share but at least four rows.

    ``y`` are class indices (n,). With the same ``repeat`` and ``seed`` a larger ``share`` (0 to 1)
    holds the rows of a smaller one.
    """
    order = np.random.default_rng([seed, repeat]).permutation(len(y))
    kept = []
    for label in np.unique(y):
        own = order[y[order] == label]
        kept.append(own[: max(min(_FEWEST, len(own)), round(share * len(own)))])
    return np.sort(np.concatenate(kept))


Floats = npt.NDArray[np.float32]
Plans: TypeAlias = Mapping[str, Plan]

WAYS = ("last_layer", "best_block", "fusion")
"""What is compared at each share."""

Result: TypeAlias = tuple[Plans, Mapping[str, Labels]]
"""For each way its plan, and the classes (n_test,) that it predicts."""

_RESAMPLES, _PART = 2000, 100
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Draw:
    """One draw of labelled rows: what was trained on it, and how good that is.

    ``plans`` and ``accuracy`` (shares from 0 to 1 of the test rows) go by the names in `WAYS`.
    """

    repeat: int
    plans: Mapping[str, Plan]
    accuracy: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        ways = {
            name: {
                "accuracy": self.accuracy[name],
                "blocks": [str(block) for block in plan.blocks],
                "fusion": plan.fusion,
                "head": plan.head,
            }
            for name, plan in self.plans.items()
        }
        return {"repeat": self.repeat, **ways}


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with ``n_rows`` labels, ``share`` (0 to 1) of all.

    The accuracies are means over draws, ``gain`` is fusion minus last layer on the same draws and
    test rows; see `learning_curve` for what the intervals cover.
    """

    share: float
    n_rows: int
    last_layer: Estimate
    best_block: Estimate
    fusion: Estimate
    gain: Estimate
    draws: tuple[Draw, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "share": self.share,
            "n_rows": self.n_rows,
            "repeats": len(self.draws),
            **{name: getattr(self, name).to_dict() for name in (*WAYS, "gain")},
            "draws": [draw.to_dict() for draw in self.draws],
        }


@dataclass(frozen=True)
class LearningCurve:
    """Points by rising number of labels, measured on ``n_test`` rows; ``n_train`` is all labels."""

    points: tuple[CurvePoint, ...]
    n_train: int
    n_test: int

    @property
    def largest_gain(self) -> CurvePoint:
        """Where fusion gains most over the last layer; the largest of several is optimistic."""
        return max(self.points, key=lambda point: point.gain.value)

    @property
    def rows_to_match(self) -> float | None:
        """Labels with which fusion first reaches what the last layer reaches with the most labels.

        Between two points accuracy is taken to grow linearly in the logarithm of the number of
        labels. The first point's number stands for itself or fewer; None when it is never reached.
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "n_train": self.n_train,
            "n_test": self.n_test,
            "rows_to_match": self.rows_to_match,
            "largest_gain_rows": self.largest_gain.n_rows,
            "points": [point.to_dict() for point in self.points],
        }


def weigh_test_rows(n_test: int, seed: int) -> Iterator[Floats]:
    """How often each test row is drawn in each resample, in parts of (part, n_test)."""
    random = np.random.default_rng(seed)
    for _ in range(_RESAMPLES // _PART):
        yield random.multinomial(n_test, np.full(n_test, 1 / n_test), _PART).astype(np.float32)


def measure_point(
    share: float,
    n_rows: int,
    results: Sequence[Result],
    truth: Labels,
    weights: Sequence[Floats],
    seed: int,
) -> CurvePoint:
    """``results`` holds plans and predictions of each draw."""
    correct = np.array([[guess[way] == truth for way in WAYS] for _, guess in results])
    count, _, n_test = correct.shape
    rows = correct.reshape(-1, n_test).astype(np.float32)
    resampled = np.concatenate([rows @ part.T for part in weights], axis=1) / n_test
    # The same repeats for every way, drawn beside the test rows.
    random = np.random.default_rng([seed, n_rows])
    repeats = random.multinomial(count, np.full(count, 1 / count), _RESAMPLES) / count
    means = np.einsum("rwb,br->wb", resampled.reshape(count, len(WAYS), -1), repeats)
    accuracy = correct.mean(axis=2)  # (repeats, ways)
    values = accuracy.mean(axis=0)
    return CurvePoint(
        share=share,
        n_rows=n_rows,
        last_layer=_estimate(values[0], means[0]),
        best_block=_estimate(values[1], means[1]),
        fusion=_estimate(values[2], means[2]),
        gain=_estimate(values[2] - values[0], means[2] - means[0]),
        draws=tuple(
            Draw(repeat, plans, dict(zip(WAYS, accuracy[repeat].tolist(), strict=True)))
            for repeat, (plans, _) in enumerate(results)
        ),
    )


def _estimate(value: float, resampled: npt.NDArray[np.floating]) -> Estimate:
    low, high = np.quantile(resampled, _QUANTILES)
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


_FIVE_BLOCKS = CostBudget(Budget(blocks=5), {})


def learning_curve(
    train_embeddings: Blocks,
    y: Column,
    test_embeddings: Blocks,
    y_test: Column,
    *,
    shares: Sequence[float] = SHARES,
    repeats: int = 5,
    selection: str = "greedy",
    allowance: CostBudget = _FIVE_BLOCKS,
    fusion: str = "concat",
    head: str = "ridge",
    seed: int = 0,
    probed: ProbeResults | None = None,
    reporter: Reporter = SILENT,
) -> LearningCurve:
    """Measure three ways to a classifier with more and more of the labels.

    For each share, rows are drawn class by class; on these rows alone blocks are probed and chosen,
    and heads with their penalties are fitted: (a) the last layer of the encoder whose last layer
    has the lowest leave-one-out loss, (b) the block with the lowest, each with a ridge head, and
    (c) fusion by the given selection, fusion and head. Test labels are compared with predictions
    and read for nothing else.

    Texts without labels are there for everyone: blocks are brought to principal axes that come from
    all training embeddings and no label. As in a fit, choosing looks at the 200 leading ones, and
    heads see 384. Blocks are read once for all draws, those that some draw uses once more.

    The draws of one repeat are nested: a larger share holds the rows of a smaller one. There is one
    draw only where all rows are drawn.

    The 95 % intervals are percentiles of resampled test rows and, independently, resampled repeats
    (the pigeonhole bootstrap; Owen, Annals of Applied Statistics, 2007), the same ones for every
    way. They cover which test rows there were and which training rows were drawn from these ones.
    With few repeats they know little of the latter, and where all rows are drawn nothing: they are
    for this training set then. Another corpus or encoder they never cover.

    Parameters
    ----------
    train_embeddings, test_embeddings
        Mappings from the same blocks to arrays (n, dim) and (n_test, dim).
    y, y_test
        Labels (n,) and (n_test,), of any kind.
    shares
        Shares of the n rows, above 0 and at most 1. At least 4 rows of each class are drawn (all of
        a class with fewer); a share that would draw as many rows as a smaller one is left out.
    repeats
        Draws for each share.
    selection, allowance, fusion, head
        How (c) is made; see `SearchSpace`. The allowance does not limit (a) and (b).
    seed
        Of draws, intervals and models.
    probed
        What `probe_blocks` made of all training rows; its axes and coordinates are used and its
        scores are not. Found anew where it is not given.
    reporter
        Receives progress.

    Raises
    ------
    ConfigError
        For shares, repeats or a recipe that cannot be used.
    DataError
        For one class only, no test rows, test labels that training lacks, or arrays that do not
        fit together.
    """
    shares = check_draws(shares, repeats)
    check_search(fusion, head)
    check_selection(selection)
    classes, encoded = find_classes(y)
    truth = _encode(classes.tolist(), as_list(y_test, "labels"))
    targets = Targets(LabelSpace(classes), encoded)
    space = SearchSpace(selection, allowance, fusion, head, seed)
    drawn: dict[int, tuple[float, list[Labels]]] = {}
    for share in reversed(shares):  # the largest first, so that no core waits for one at the end
        first = draw_rows(encoded, share, 0, seed)
        count = 1 if len(first) == len(encoded) else repeats
        others = [draw_rows(encoded, share, repeat, seed) for repeat in range(1, count)]
        drawn[len(first)] = (share, [first, *others])
    jobs = [rows for _, draws in drawn.values() for rows in draws]
    there = set(test_embeddings)  # `in` would read a block
    if missing := [block for block in train_embeddings if block not in there]:
        raise DataError(f"Test rows lack the block {missing[0]}. Give the same blocks for both.")
    axes, plans = _choose(train_embeddings, targets, jobs, space, probed, reporter)
    used = {block for found in plans for plan in found.values() for block in plan.blocks}
    known = _coordinates(train_embeddings, used, axes, len(encoded))
    other = _coordinates(test_embeddings, used, axes, len(truth))

    def guess(job: tuple[Labels, Plans]) -> Result:
        rows, plans = job
        return plans, _predict(plans, known, other, rows, targets[rows], seed)

    results: list[Result] = []
    with reporter.task("training", len(jobs), "draws") as advance:
        for result in parallel_map(guess, zip(jobs, plans, strict=True)):
            results.append(result)
            advance(1)
    weights = list(weigh_test_rows(len(truth), seed))
    by_draw = iter(results)
    points = []
    for n_rows, (share, draws) in drawn.items():
        own = [next(by_draw) for _ in draws]
        points.append(measure_point(share, n_rows, own, truth, weights, seed))
    return LearningCurve(tuple(reversed(points)), len(encoded), len(truth))


def _encode(classes: list[Any], labels: list[Any]) -> Labels:
    """Test labels (n_test,) to class indices."""
    if len(classes) < 2:
        raise DataError("All labels are the same; there is nothing to tell apart.")
    if not len(labels):
        raise DataError("There are no test rows to measure on. Give at least one.")
    places = {label: place for place, label in enumerate(classes)}
    if unknown := [label for label in labels if label not in places]:
        raise DataError(
            f"Test rows hold the label {unknown[0]!r}, which training rows lack. Add training rows "
            "of this class, or leave it out."
        )
    return np.array([places[label] for label in labels], dtype=np.intp)


def _choose(
    embeddings: Blocks,
    targets: Targets,
    jobs: Sequence[Labels],
    space: SearchSpace,
    probed: ProbeResults | None,
    reporter: Reporter,
) -> tuple[dict[BlockRef, PrincipalAxes], list[Plans]]:
    """Each block's axes, and the plans of each draw of rows.

    The coordinates that choosing looks at are gone afterwards: heads see more of fewer blocks.
    """
    if probed is None:
        axes, leading = _turn(embeddings, len(targets), reporter)
    else:
        axes, leading = dict(probed.axes), dict(probed.coordinates)
    plans: list[Plans] = []
    with reporter.task("choosing", len(jobs), "draws") as advance:
        for found in parallel_map(lambda rows: _plans(leading, rows, targets[rows], space), jobs):
            plans.append(found)
            advance(1)
    return axes, plans


def _turn(
    embeddings: Blocks, n: int, reporter: Reporter
) -> tuple[dict[BlockRef, PrincipalAxes], dict[BlockRef, Floats]]:
    """Each block's axes, and the coordinates (n, rank) that choosing looks at."""
    if not len(embeddings):
        raise DataError("There are no blocks. Give at least one.")

    def turn(block: BlockRef) -> tuple[BlockRef, PrincipalAxes, Floats]:
        own, _, leading = PrincipalAxes.fit(_rows_of(embeddings, block, n))
        return block, own, leading

    axes, coordinates = {}, {}
    with reporter.task("principal axes", len(embeddings), "blocks") as advance:
        for block, own, leading in parallel_map(turn, embeddings):
            axes[block], coordinates[block] = own, leading
            advance(1)
    return axes, coordinates


def _coordinates(
    embeddings: Blocks, used: Iterable[BlockRef], axes: Mapping[BlockRef, PrincipalAxes], n: int
) -> dict[BlockRef, Floats]:
    """The coordinates (n, rank) that heads see."""
    return {block: axes[block].transform(_rows_of(embeddings, block, n)) for block in used}


def _rows_of(embeddings: Blocks, block: BlockRef, n: int) -> Floats:
    X = embeddings[block]
    if len(X) != n:
        raise DataError(f"{block} has {len(X)} rows, but there are {n} labels.")
    return X


def _plans(coordinates: Blocks, rows: Labels, targets: Targets, space: SearchSpace) -> Plans:
    """What each way comes to on some rows and their classes."""
    scores: list[BlockScore] = []
    for block, Z in coordinates.items():  # one by one: all blocks of all draws are too many
        alone = ProbeResults(BlockScores((), "ridge"), {block: Z}, {})
        scores += probe_rows(alone, rows, targets, n_jobs=1).scores
    probed = ProbeResults(BlockScores(tuple(scores), "ridge"), _Centred(coordinates, rows), {})
    ranking = [score.block for score in probed.scores.ranking]
    last = {block.encoder: block.layer for block in sorted(ranking)}
    at_last = next(block for block in ranking if block.layer == last[block.encoder])
    return {
        "last_layer": Plan((at_last,)),
        "best_block": Plan((ranking[0],)),
        "fusion": search(probed, targets, space).plan,
    }


def _predict(
    plans: Plans, known: Blocks, other: Blocks, rows: Labels, targets: Targets, seed: int
) -> dict[str, Labels]:
    """Train each way's plan on some rows and their classes; class indices (n_test,) of others."""
    predicted: dict[Plan, Labels] = {}
    for plan in dict.fromkeys(plans.values()):
        means = {block: known[block][rows].mean(axis=0) for block in plan.blocks}
        own = {block: known[block][rows] - mean for block, mean in means.items()}
        others = {block: other[block] - mean for block, mean in means.items()}
        predicted[plan] = targets.space.decide(train(plan, own, targets, seed=seed).logits(others))
    return {way: predicted[plan] for way, plan in plans.items()}


class _Centred(Mapping[BlockRef, Floats]):
    """Some rows of each block, centred, made when they are asked for."""

    def __init__(self, coordinates: Blocks, rows: Labels) -> None:
        self._coordinates = coordinates
        self._rows = rows

    def __getitem__(self, block: BlockRef) -> Floats:
        Z = self._coordinates[block][self._rows]
        return np.asarray(Z - Z.mean(axis=0))

    def __iter__(self) -> Iterator[BlockRef]:
        return iter(self._coordinates)

    def __len__(self) -> int:
        return len(self._coordinates)
