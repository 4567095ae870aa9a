"""Which encoders are combined, which of their blocks, and how: the plans of the study."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layerfuse.blocks import BlockRef, BlockScores
from layerfuse.errors import ConfigError
from layerfuse.fusion import FUSIONS, RESIDUAL, check_fusion
from layerfuse.pipeline import Plan
from layerfuse.probing import ProbeResults
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, choose
from layerfuse.targets import Targets

__all__ = ["CHOICES", "Choice", "all_fusions", "choices", "encoder_groups", "fusion_names"]

CHOICES = ("last", "last_four", "best", "top_k", "greedy")
"""Ways to choose blocks of some encoders; all of them look at training rows alone."""

_HEADS = ("logistic", "kernel")  # the mlp takes as long as all fusions together


@dataclass(frozen=True)
class Choice:
    """The blocks that one way chooses from some encoders."""

    encoders: tuple[str, ...]
    way: str
    blocks: tuple[BlockRef, ...]

    @property
    def group(self) -> str:
        return "+".join(self.encoders)


def encoder_groups(scores: BlockScores) -> list[tuple[str, ...]]:
    """Each encoder, all pairs, and the triple: of more than three encoders that of the best."""
    names = list(dict.fromkeys(score.block.encoder for score in scores))
    groups: list[tuple[str, ...]] = [(name,) for name in names]
    groups += itertools.combinations(names, 2)
    if len(names) > 2:
        ranked = list(dict.fromkeys(score.block.encoder for score in scores.ranking))[:3]
        groups.append(tuple(name for name in names if name in ranked))
    return groups


def choices(
    probed: ProbeResults, y: Targets, encoders: tuple[str, ...], max_blocks: int
) -> list[Choice]:
    """Blocks of ``encoders`` by each way of `CHOICES`.

    ``last`` takes each encoder's last layer at the pooling that scores best there, ``last_four``
    its last four layers at that pooling (one encoder only), ``best`` each encoder's best block,
    ``top_k`` the ``max_blocks`` best blocks, ``greedy`` forward selection of at most as many.
    """
    own = tuple(score for score in probed.scores if score.block.encoder in encoders)
    scores = BlockScores(own, probed.scores.scorer)
    coordinates = {score.block: probed.coordinates[score.block] for score in own}
    part = ProbeResults(scores, coordinates, probed.axes)
    allowance = CostBudget(Budget(blocks=max_blocks), {})
    lasts = choose(part, y, "last", allowance_of(len(encoders), max_blocks)).blocks
    found = [("last", lasts)]
    if len(encoders) == 1:
        layers = sorted({score.block.layer for score in own})[-4:]
        four = (BlockRef(encoders[0], layer, lasts[0].pooling) for layer in layers)
        found.append(("last_four", tuple(four)))
    found.append(("best", tuple(scores.of(name).best.block for name in encoders)))
    found += [(way, choose(part, y, way, allowance).blocks) for way in ("top_k", "greedy")]
    return [Choice(encoders, way, blocks) for way, blocks in found]


def allowance_of(n_encoders: int, max_blocks: int) -> CostBudget:
    """Room for one block of each encoder, however few blocks are allowed."""
    return CostBudget(Budget(blocks=max(n_encoders, max_blocks)), {})


def fusion_names() -> Iterator[str]:
    """Every operation, plain and with a residual where there is one."""
    for name in FUSIONS:
        yield name
        try:
            check_fusion(name + RESIDUAL)
        except ConfigError:
            continue
        yield name + RESIDUAL


def all_fusions(blocks: Sequence[BlockRef], *, heads: bool) -> list[Plan]:
    """Each fusion of some blocks with a ridge head; with ``heads``, concatenation with others."""
    chosen = tuple(blocks)
    plans = [Plan(chosen, name) for name in fusion_names()]
    return plans + ([Plan(chosen, "concat", head) for head in _HEADS] if heads else [])
