"""The search over all blocks of three encoders on MR, against exhaustive greedy search.

The exhaustive search tries every block at every step, at its own best penalty, and stops at the
same number of blocks. Both use the same principal coordinates; accuracy is that of the same head.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fusions import MAX_BLOCKS, Data
from benchmarks.packaged import read_sets
from layerfuse.blocks import BlockRef
from layerfuse.evaluation.nested import TrainingSample
from layerfuse.model_selection import SearchSpace
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Plan
from layerfuse.probing import ProbeResults, decompose, leave_one_out, probe_blocks
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets


def run() -> list[dict[str, Any]]:
    sets = read_sets(["mr"])
    if not sets:
        return []
    data = Data.embed(sets[0])
    y = data.y
    start = time.perf_counter()
    targets = Targets.from_labels(y)
    probed = probe_blocks(data.train, targets)
    space = SearchSpace("greedy", CostBudget(Budget(blocks=MAX_BLOCKS), {}))
    sample = TrainingSample(data.train, targets, probed, space)
    probing = time.perf_counter() - start
    found = sample.search()
    ours = time.perf_counter() - start
    start = time.perf_counter()
    chosen = exhaustive(probed, targets, len(found.selection.blocks))
    theirs = time.perf_counter() - start
    measured = {}
    for name, blocks in (("ours", found.selection.blocks), ("exhaustive", tuple(chosen))):
        result = leave_one_out(decompose(_joined(probed, blocks)), targets.matrix)
        test = (
            sample.fit(Plan(blocks), data.train, targets).logits(data.test).argmax(axis=1)
            == data.y_test
        )
        measured[name] = {
            "blocks": [str(block) for block in blocks],
            "loss": result.loss,
            "leave_one_out_accuracy": float((result.predictions.argmax(axis=1) == y).mean()),
            "test_accuracy": float(test.mean()),
        }
        print(name, measured[name])
    print(f"{len(data.train)} blocks: {ours:.1f} s with probing ({probing:.1f} s)")
    print(f"exhaustive greedy search: {theirs:.0f} s after probing")
    return [
        {
            "dataset": "mr",
            "blocks": len(data.train),
            "rows": len(y),
            "ours_s": ours,
            "probing_s": probing,
            "exhaustive_s": theirs,
            "fusion": found.plan.fusion,
            "head": found.plan.head,
            **measured,
        }
    ]


def exhaustive(probed: ProbeResults, targets: Targets, n_blocks: int) -> list[BlockRef]:
    """Forward selection that tries every block at every step, each at its best penalty."""
    chosen: list[BlockRef] = []
    for _ in range(n_blocks):
        rest = [block for block in probed.coordinates if block not in chosen]

        def loss(block: BlockRef) -> float:
            return leave_one_out(decompose(_joined(probed, [*chosen, block])), targets.matrix).loss

        losses = dict(zip(rest, parallel_map(loss, rest), strict=True))
        chosen.append(min(losses, key=lambda block: losses[block]))
    return chosen


def _joined(probed: ProbeResults, blocks: Any) -> npt.NDArray[Any]:
    return np.concatenate([probed.coordinates[block] for block in blocks], axis=1)
