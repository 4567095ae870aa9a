"""The search over all blocks of three encoders on MR, against exhaustive greedy search.

The exhaustive search tries every block at every step, at its own best penalty, and stops at the
same number of blocks. Both use the same principal coordinates; accuracy is that of the same head.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.fusions import Data, search_space
from benchmarks.packaged import read_sets
from layerfuse.blocks import BlockRef
from layerfuse.complementarity import ProbeData
from layerfuse.evaluation.nested import TrainingSample
from layerfuse.parallel import parallel_map
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks


def run() -> list[dict[str, Any]]:
    sets = read_sets(["mr"])
    if not sets:
        return []
    data = Data.embed(sets[0])
    targets = data.targets
    start = time.perf_counter()
    probed = probe_blocks(data.train, targets)
    training = TrainingSample(data.train, targets, probed, search_space())
    probing = time.perf_counter() - start
    found = training.search()
    ours = time.perf_counter() - start
    start = time.perf_counter()
    probes = ProbeData(probed.scores, probed.coordinates, targets)
    chosen = exhaustive(probes, len(found.selection.blocks))
    theirs = time.perf_counter() - start
    measured = {}
    for name, blocks in (("ours", found.selection.blocks), ("exhaustive", tuple(chosen))):
        result = probes.fit(blocks)
        logits = training.fit(Plan(blocks), data.train, targets).logits(data.test)
        test = targets.space.decide(logits) == data.y_test
        measured[name] = {
            "blocks": [str(block) for block in blocks],
            "loss": result.loss,
            "leave_one_out_accuracy": float(probes.correct(result.predictions).mean()),
            "test_accuracy": float(test.mean()),
        }
        print(name, measured[name])
    print(f"{len(data.train)} blocks: {ours:.1f} s with probing ({probing:.1f} s)")
    print(f"exhaustive greedy search: {theirs:.0f} s after probing")
    return [
        {
            "dataset": "mr",
            "blocks": len(data.train),
            "rows": len(targets),
            "ours_s": ours,
            "probing_s": probing,
            "exhaustive_s": theirs,
            "fusion": found.plan.fusion,
            "head": found.plan.head,
            **measured,
        }
    ]


def exhaustive(probes: ProbeData, n_blocks: int) -> list[BlockRef]:
    """Forward selection that tries every block at every step, each at its best penalty."""
    chosen: list[BlockRef] = []
    for _ in range(n_blocks):
        rest = [block for block in probes.coordinates if block not in chosen]

        def loss(block: BlockRef) -> float:
            return probes.fit([*chosen, block]).loss

        losses = dict(zip(rest, parallel_map(loss, rest), strict=True))
        chosen.append(min(losses, key=lambda block: losses[block]))
    return chosen
