"""Selections and fusions of a dataset: chosen on training rows, measured on test rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.fusion import RESIDUAL
from layerfuse.metrics import evaluate_predictions, paired_difference, share_interval
from layerfuse.model_selection import SearchSpace, search
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Plan, train
from layerfuse.probing import ProbeResults, probe_rows
from layerfuse.progress import Reporter
from layerfuse.study.combinations import Choice, all_fusions, allowance_of, choices, encoder_groups
from layerfuse.study.reading import EmbeddedData
from layerfuse.study.settings import StudySettings
from layerfuse.targets import LabelSpace, Targets

__all__ = ["SEARCHED", "measure_fusions"]

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]

SEARCHED = "search"
"""The way of the automatic search, which also chooses fusion and head."""

_RESAMPLES = 500
_DESCENDED = ("scalar_mix", "gated", "bilinear")  # by gradient descent


@dataclass(frozen=True)
class _Rows:
    """Principal coordinates of the rows that are learned from, and of the test rows."""

    known: Mapping[BlockRef, Floats]
    other: Mapping[BlockRef, Floats]
    targets: Targets
    seed: int

    @classmethod
    def of(
        cls,
        embedded: EmbeddedData,
        probed: ProbeResults,
        blocks: Sequence[BlockRef],
        rows: Labels,
        seed: int,
    ) -> _Rows:
        """Centred on the rows; each block is read once."""

        def turn(block: BlockRef) -> tuple[BlockRef, Floats, Floats]:
            axes = probed.axes[block]
            known = axes.transform(embedded.train[block][rows])
            mean = known.mean(axis=0)
            return block, known - mean, axes.transform(embedded.test[block]) - mean

        known, other = {}, {}
        for block, own, test in parallel_map(turn, blocks):
            known[block], other[block] = own, test
        return cls(known, other, targets_of(embedded)[rows], seed)

    def predict(self, plan: Plan) -> tuple[Labels, float]:
        """Classes (n_test,) by a plan that is trained on the rows, and the seconds it took."""
        started = time.perf_counter()
        known = {block: self.known[block] for block in plan.blocks}
        logits = train(plan, known, self.targets, seed=self.seed).logits(self.other)
        return logits.argmax(axis=1), time.perf_counter() - started


def targets_of(embedded: EmbeddedData) -> Targets:
    return Targets(LabelSpace(np.arange(embedded.data.n_classes)), embedded.data.y)


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
    n_rows = min(settings.most_rows, round(settings.share * len(data.y)))
    rows = targets_of(embedded).sample(n_rows, seed)
    y = targets_of(embedded)[rows]
    drawn = probe_rows(probed, rows, y)
    groups = encoder_groups(drawn.scores)
    every = [c for group in groups for c in choices(drawn, y, group, settings.max_blocks)]
    found = _searched(drawn, y, groups[-1], settings, seed)
    plans = _plans(every, groups, found)
    blocks = list(dict.fromkeys(block for plan in plans for block in plan.blocks))
    learned = _Rows.of(embedded, probed, blocks, rows, seed)
    guesses: dict[Plan, tuple[Labels, float]] = {}
    with reporter.task(f"fusions of {data.name}, seed {seed}", len(plans), "fits") as advance:
        for plan, guess in zip(plans, parallel_map(learned.predict, plans), strict=True):
            guesses[plan] = guess
            advance(1)
    correct = {plan: guess == data.y_test for plan, (guess, _) in guesses.items()}
    losses = {score.block: score.loss for score in drawn.scores}
    return {
        "rows": len(rows),
        "test_rows": len(data.y_test),
        "selections": _selections(every, found, guesses, correct, losses, data.y_test),
        "fusions": _fusions(every, groups, guesses, correct),
    }


def _searched(
    probed: ProbeResults,
    y: Targets,
    encoders: tuple[str, ...],
    settings: StudySettings,
    seed: int,
) -> tuple[Choice, Plan]:
    """What a fit with automatic settings on the largest group would come to."""
    own = {b: Z for b, Z in probed.coordinates.items() if b.encoder in encoders}
    scores = type(probed.scores)(
        tuple(s for s in probed.scores if s.block in own), probed.scores.scorer
    )
    allowance = allowance_of(0, settings.max_blocks)
    recipe = SearchSpace("greedy", allowance, "auto", "auto", seed)
    plan = search(ProbeResults(scores, own, probed.axes), y, recipe).plan
    return Choice(encoders, SEARCHED, plan.blocks), plan


def _plans(
    every: Sequence[Choice], groups: Sequence[tuple[str, ...]], found: tuple[Choice, Plan]
) -> list[Plan]:
    plans = [Plan(choice.blocks) for choice in every] + [found[1]]
    for choice, heads in _fused(every, groups):
        plans += all_fusions(choice.blocks, heads=heads)
    # The slowest first, so that no core waits for one at the end.
    return sorted(dict.fromkeys(plans), key=lambda plan: -_slowness(plan))


def _slowness(plan: Plan) -> bool:
    return plan.head != "ridge" or plan.fusion.removesuffix(RESIDUAL) in _DESCENDED


def _fused(every: Sequence[Choice], groups: Sequence[tuple[str, ...]]) -> list[tuple[Choice, bool]]:
    """The choices of which all fusions are measured; True where all heads are, too."""
    kept = [(c, False) for c in every if c.way == "best" and len(c.encoders) > 1]
    return kept + [(c, True) for c in every if c.way == "greedy" and c.encoders == groups[-1]]


def _selections(
    every: Sequence[Choice],
    found: tuple[Choice, Plan],
    guesses: Mapping[Plan, tuple[Labels, float]],
    correct: Mapping[Plan, npt.NDArray[np.bool_]],
    losses: Mapping[BlockRef, float],
    y_test: Labels,
) -> list[dict[str, Any]]:
    """Each choice with intervals, against the best last layer and the best of its encoders."""
    lasts = [c for c in every if c.way == "last" and len(c.encoders) == 1]
    last = min(lasts, key=lambda choice: losses[choice.blocks[0]])
    table = []
    plans = [(choice, Plan(choice.blocks)) for choice in every] + [found]
    for choice, plan in plans:
        right = correct[plan]
        row: dict[str, Any] = {
            "group": choice.group,
            "way": choice.way,
            "fusion": plan.fusion,
            "head": plan.head,
            "blocks": [str(block) for block in plan.blocks],
            **_measures(guesses[plan][0], y_test),
            "seconds": guesses[plan][1],
            **_against("last", right, correct[Plan(last.blocks)], last.group),
        }
        if len(choice.encoders) > 1:
            way = "greedy" if choice.way == SEARCHED else choice.way
            members = [c for c in every if len(c.encoders) == 1 and c.way == way]
            rival = _best_member(choice, members, losses)
            row |= _against("member", right, correct[Plan(rival.blocks)], rival.group)
        table.append(row)
    return table


def _best_member(
    choice: Choice, members: Sequence[Choice], losses: Mapping[BlockRef, float]
) -> Choice:
    """The encoder of a group whose best block of the same way has the lowest training loss."""
    own = [member for member in members if member.encoders[0] in choice.encoders]
    return min(own, key=lambda member: min(losses[block] for block in member.blocks))


def _fusions(
    every: Sequence[Choice],
    groups: Sequence[tuple[str, ...]],
    guesses: Mapping[Plan, tuple[Labels, float]],
    correct: Mapping[Plan, npt.NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    """Each fusion against the concatenation of the same blocks."""
    table = []
    for choice, heads in _fused(every, groups):
        plain = correct[Plan(choice.blocks)]
        for plan in all_fusions(choice.blocks, heads=heads):
            share = share_interval(int(correct[plan].sum()), len(plain))
            table.append(
                {
                    "group": choice.group,
                    "way": choice.way,
                    "fusion": plan.fusion,
                    "head": plan.head,
                    "accuracy": share.value,
                    "low": share.low,
                    "high": share.high,
                    "seconds": guesses[plan][1],
                    **_against("concat", correct[plan], plain, None),
                }
            )
    return table


def _against(
    name: str,
    right: npt.NDArray[np.bool_],
    rival: npt.NDArray[np.bool_],
    group: str | None,
) -> dict[str, Any]:
    found = paired_difference(right, rival).to_dict()
    named = {} if group is None else {f"{name}_group": group}
    return named | {f"{name}_{key}": value for key, value in found.items()}


def _measures(predicted: Labels, y_test: Labels) -> dict[str, float]:
    """Accuracy and macro-F1 with intervals."""
    table = np.eye(int(max(predicted.max(), y_test.max(), 1)) + 1)[predicted]
    found = evaluate_predictions(y_test, table, n_resamples=_RESAMPLES)
    return {
        "accuracy": found.accuracy.value,
        "low": found.accuracy.low,
        "high": found.accuracy.high,
        "macro_f1": found.macro_f1.value,
        "macro_f1_low": found.macro_f1.low,
        "macro_f1_high": found.macro_f1.high,
    }
