"""Selections and fusions of a dataset: chosen on training rows, measured on test rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.packaged import Labels
from benchmarks.study.inputs import EmbeddedData, StudySettings
from layerfuse import BlockRef, BlockScores
from layerfuse.fusion import FUSIONS, RESIDUAL
from layerfuse.metrics import Estimate, evaluate_predictions, paired_difference, share_interval
from layerfuse.model_selection import SearchSpace, search
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Plan, train
from layerfuse.probing import ProbeResults, probe_rows
from layerfuse.progress import Reporter
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, choose
from layerfuse.targets import Targets

Floats = npt.NDArray[np.float32]

_RESAMPLES = 500
_HEADS = ("logistic", "kernel")  # the mlp takes as long as all fusions together
_DESCENDED = ("scalar_mix", "gated", "bilinear")  # by gradient descent


@dataclass(frozen=True)
class Choice:
    """The blocks that one way of choosing takes from some encoders."""

    encoders: tuple[str, ...]
    way: str
    blocks: tuple[BlockRef, ...]

    @property
    def group(self) -> str:
        return "+".join(self.encoders)


def encoder_groups(scores: BlockScores) -> list[tuple[str, ...]]:
    """Each encoder, all pairs, and the triple: of more than three encoders that of the best."""
    names = scores.encoders
    groups: list[tuple[str, ...]] = [(name,) for name in names]
    groups += combinations(names, 2)
    if len(names) > 2:
        best = list(dict.fromkeys(score.block.encoder for score in scores.ranking))[:3]
        groups.append(tuple(name for name in names if name in best))
    return groups


def blocks_only(max_blocks: int) -> CostBudget:
    """A budget of nothing but the number of blocks."""
    return CostBudget(Budget(blocks=max_blocks), {})


def choose_all(
    probed: ProbeResults, targets: Targets, groups: Sequence[tuple[str, ...]], max_blocks: int
) -> list[Choice]:
    """Blocks of each group of encoders by each way of choosing, from training rows alone.

    ``last`` takes each encoder's last layer at the pooling that scores best there, ``last_four``
    its last four layers at that pooling (one encoder only), ``best`` each encoder's best block,
    ``top_k`` the ``max_blocks`` best blocks, ``greedy`` forward selection of at most as many.
    """
    chosen = []
    for encoders in groups:
        part = _restrict(probed, encoders)
        last = tuple(part.scores.last(name).block for name in encoders)
        ways = {"last": last}
        if len(encoders) == 1:
            layers = sorted({score.block.layer for score in part.scores})[-4:]
            ways["last_four"] = tuple(replace(last[0], layer=layer) for layer in layers)
        ways["best"] = tuple(part.scores.of(name).best.block for name in encoders)
        ways["top_k"] = tuple(score.block for score in part.scores.ranking[:max_blocks])
        ways["greedy"] = choose(part, targets, "greedy", blocks_only(max_blocks)).blocks
        chosen += [Choice(encoders, way, blocks) for way, blocks in ways.items()]
    return chosen


def _restrict(probed: ProbeResults, encoders: Sequence[str]) -> ProbeResults:
    """Only the blocks of some encoders."""
    scores = tuple(score for score in probed.scores if score.block.encoder in encoders)
    coordinates = {score.block: probed.coordinates[score.block] for score in scores}
    return ProbeResults(BlockScores(scores, probed.scores.scorer), coordinates, probed.axes)


def measure_fusions(
    embedded: EmbeddedData,
    probed: ProbeResults,
    settings: StudySettings,
    seed: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Every choice of blocks, concatenated, for each encoder, all pairs and the triple; every
    fusion of the best blocks of pairs and triple, and of the triple's greedy blocks.

    The seed draws the rows that are learned from. Principal axes are those of all training rows and
    no label. Test labels are compared with predictions and read for nothing else.
    """
    data = embedded.data
    n_rows = min(settings.most_rows, round(settings.share * len(data.targets)))
    rows = data.targets.sample(n_rows, seed)
    targets = data.targets[rows]
    drawn = probe_rows(probed, rows, targets)
    groups = encoder_groups(drawn.scores)
    plans = {
        choice: Plan(choice.blocks)
        for choice in choose_all(drawn, targets, groups, settings.max_blocks)
    }
    fused = {
        choice: list(_fusions(choice.blocks, heads=choice.way == "greedy"))
        for choice in plans
        if (choice.way == "best" and len(choice.encoders) > 1)
        or (choice.way == "greedy" and choice.encoders == groups[-1])
    }
    # What a fit with automatic settings on the largest group would come to.
    space = SearchSpace("greedy", blocks_only(settings.max_blocks), seed=seed)
    searched = search(_restrict(drawn, groups[-1]), targets, space).plan
    plans[Choice(groups[-1], "search", searched.blocks)] = searched
    every = dict.fromkeys([*plans.values(), *(plan for own in fused.values() for plan in own)])
    predicted = _predict_all(list(every), embedded, probed, rows, seed, reporter)
    correct = {plan: labels == data.y_test for plan, (labels, _) in predicted.items()}
    losses = {score.block: score.loss for score in drawn.scores}

    def against(name: str, plan: Plan, other: Plan) -> dict[str, Any]:
        difference = asdict(paired_difference(correct[plan], correct[other]))
        return {f"{name}_{key}": value for key, value in difference.items()}

    def best_single(way: str, encoders: Sequence[str]) -> Choice:
        """Of some encoders the one whose best block of a way has the lowest training loss."""
        own = [c for c in plans if c.way == way and len(c.encoders) == 1 and c.group in encoders]
        return min(own, key=lambda choice: min(losses[block] for block in choice.blocks))

    def row_of(choice: Choice, plan: Plan) -> dict[str, Any]:
        names = {"group": choice.group, "way": choice.way, "fusion": plan.fusion, "head": plan.head}
        return {**names, "seconds": predicted[plan][1]}

    last = best_single("last", [group[0] for group in groups])
    selections = []
    for choice, plan in plans.items():
        labels = predicted[plan][0]
        table = np.eye(int(max(labels.max(), data.y_test.max(), 1)) + 1)[labels]
        evaluation = evaluate_predictions(data.y_test, table, n_resamples=_RESAMPLES)
        row = {
            **row_of(choice, plan),
            "blocks": list(map(str, plan.blocks)),
            **_estimate("accuracy", evaluation.accuracy),
            **_estimate("macro_f1", evaluation.macro_f1, "macro_f1_"),
            "last_group": last.group,
            **against("last", plan, plans[last]),
        }
        if len(choice.encoders) > 1:
            way = "greedy" if choice.way == "search" else choice.way
            member = best_single(way, choice.encoders)
            row |= {"member_group": member.group, **against("member", plan, plans[member])}
        selections.append(row)
    n_test = len(data.y_test)
    fusions = [
        {
            **row_of(choice, plan),
            **_estimate("accuracy", share_interval(int(correct[plan].sum()), n_test)),
            **against("concat", plan, plans[choice]),
        }
        for choice, own in fused.items()
        for plan in own
    ]
    measured = {"selections": selections, "fusions": fusions}
    return {"rows": len(rows), "test_rows": n_test, **measured}


def _estimate(name: str, estimate: Estimate, prefix: str = "") -> dict[str, float]:
    ends = {f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}
    return {name: estimate.value, **ends}


def _fusions(blocks: tuple[BlockRef, ...], *, heads: bool) -> Iterator[Plan]:
    """Each fusion of some blocks with a ridge head; with ``heads``, concatenation with others."""
    yield from (Plan(blocks, name) for name in FUSIONS)
    if heads:
        yield from (Plan(blocks, "concat", head) for head in _HEADS)


def _predict_all(
    plans: Sequence[Plan],
    embedded: EmbeddedData,
    probed: ProbeResults,
    rows: Labels,
    seed: int,
    reporter: Reporter,
) -> dict[Plan, tuple[Labels, float]]:
    """Classes (n_test,) by each plan, trained on some rows, and the seconds that it took."""

    targets = embedded.data.targets[rows]

    def project(block: BlockRef) -> tuple[Floats, Floats]:
        """Coordinates of training and test rows, centered on the former; each is read once."""
        axes = probed.axes[block]
        train_rows = axes.transform(embedded.train[block][rows])
        mean = train_rows.mean(axis=0)
        return train_rows - mean, axes.transform(embedded.test[block]) - mean

    def predict(plan: Plan) -> tuple[Labels, float]:
        started = time.perf_counter()
        own = {block: coordinates[block][0] for block in plan.blocks}
        logits = train(plan, own, targets, seed=seed).logits(test)
        return targets.space.decide(logits), time.perf_counter() - started

    def is_fast(plan: Plan) -> bool:
        return plan.head == "ridge" and plan.fusion.removesuffix(RESIDUAL) not in _DESCENDED

    blocks = list(dict.fromkeys(block for plan in plans for block in plan.blocks))
    coordinates = dict(zip(blocks, parallel_map(project, blocks), strict=True))
    test = {block: sides[1] for block, sides in coordinates.items()}
    # The slowest first, so that no core waits for one at the end.
    ordered = sorted(plans, key=is_fast)
    predicted = {}
    title = f"fusions of {embedded.data.name}, seed {seed}"
    with reporter.task(title, len(ordered), "fits") as advance:
        for plan, prediction in zip(ordered, parallel_map(predict, ordered), strict=True):
            predicted[plan] = prediction
            advance(1)
    return predicted
