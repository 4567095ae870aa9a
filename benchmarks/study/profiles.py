"""How good every layer is, by leave-one-out on training rows and once on test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from benchmarks.packaged import Labels
from benchmarks.study.evidence import holm
from benchmarks.study.inputs import EmbeddedData
from layerfuse import BlockRef, BlockScores
from layerfuse.metrics import paired_difference, share_interval
from layerfuse.parallel import parallel_map
from layerfuse.probing import PrincipalAxes, ProbeResults, probe_space
from layerfuse.progress import Reporter


@dataclass(frozen=True)
class Profile:
    """Blocks probed on all training rows, and the class (n_test,) that each predicts.

    The prediction is that of the ridge regression on the block's leading principal coordinates, at
    the penalty that leave-one-out chose.
    """

    probed: ProbeResults
    predicted: Mapping[BlockRef, Labels]


def profile_blocks(embedded: EmbeddedData, reporter: Reporter) -> Profile:
    """Probe each block once; training and test rows are read one block at a time."""
    targets = embedded.data.targets
    center = targets.matrix.mean(axis=0)

    def probe(block: BlockRef) -> tuple[Any, ...]:
        axes, space, leading = PrincipalAxes.fit(embedded.train[block])
        score, _ = probe_space(block, space, targets)
        # Axes are orthogonal, so the ridge solution takes no system of equations.
        used = slice(0, axes.rank)
        shrunk = space.rotated[:, used] / (space.eigenvalues[used] + np.float32(score.penalty))
        weights = shrunk.T @ (targets.matrix - center)
        logits = axes.transform(embedded.test[block])[:, : len(weights)] @ weights
        return score, axes, leading, targets.space.decide(center + logits)

    scores, axes, coordinates, predicted = [], {}, {}, {}
    blocks = list(embedded.train)
    with reporter.task(f"layers of {embedded.data.name}", len(blocks), "blocks") as advance:
        for block, result in zip(blocks, parallel_map(probe, blocks), strict=True):
            score, axes[block], coordinates[block], predicted[block] = result
            scores.append(score)
            advance(1)
    return Profile(ProbeResults(BlockScores(tuple(scores), "ridge"), coordinates, axes), predicted)


def describe_profile(profile: Profile, y_test: Labels) -> dict[str, Any]:
    """Every block with its comparisons, and each encoder's best layer beside its last.

    A block is compared with the last layer of its encoder at the same pooling, and with the
    encoder's best block (the lowest leave-one-out loss), by McNemar's test on test rows; p-values
    are Holm's over all layers and poolings of the encoder that are compared. A block with the same
    vector for every text is ``constant`` and is not compared with the last layer: it says nothing
    about texts.
    """
    scores, axes = profile.probed.scores, profile.probed.axes
    correct = {block: guess == y_test for block, guess in profile.predicted.items()}
    rows: list[dict[str, Any]] = []
    encoders: dict[str, dict[str, Any]] = {}

    def compare(references: Mapping[BlockRef, BlockRef], prefix: str) -> dict[BlockRef, Any]:
        """Differences to a reference each, with p-values corrected over all of them."""
        pairs = {a: paired_difference(correct[a], correct[b]) for a, b in references.items()}
        corrected = holm([pair.p_value for pair in pairs.values()])
        return {
            block: {
                f"{prefix}diff": pair.difference,
                f"{prefix}diff_low": pair.low,
                f"{prefix}diff_high": pair.high,
                f"{prefix}p": pair.p_value,
                f"{prefix}p_holm": float(p),
            }
            for (block, pair), p in zip(pairs.items(), corrected, strict=True)
        }

    for name in scores.encoders:
        own = scores.of(name)
        best, last = own.best.block, scores.last(name).block
        constant = {s.block: not axes[s.block].arrays()["axes"].any() for s in own}
        lower = [s.block for s in own if s.block.layer < last.layer and not constant[s.block]]
        against_last = compare({b: replace(b, layer=last.layer) for b in lower}, "")
        against_best = compare({s.block: best for s in own if s.block != best}, "best_")
        for score in own:
            block = score.block
            share = share_interval(int(correct[block].sum()), len(y_test))
            f1 = f1_score(y_test, profile.predicted[block], average="macro", zero_division=0)
            rows.append(
                {
                    "block": str(block),
                    "encoder": name,
                    "layer": block.layer,
                    "pooling": block.pooling,
                    "depth": _depth(block, last),
                    "constant": constant[block],
                    "loss": score.loss,
                    "loss_se": score.loss_se,
                    "loo_accuracy": score.accuracy,
                    "loo_accuracy_se": score.accuracy_se,
                    "accuracy": share.value,
                    "low": share.low,
                    "high": share.high,
                    "macro_f1": float(f1),
                    **against_last.get(block, {}),
                    **against_best.get(block, {}),
                }
            )
        encoders[name] = {
            "layers": last.layer,
            "best": str(best),
            "last": str(last),
            "best_depth": _depth(best, last),
            "accuracy_best": float(correct[best].mean()),
            "accuracy_last": float(correct[last].mean()),
            **asdict(paired_difference(correct[best], correct[last])),
            "compared": len(against_last),
        }
    return {"test_rows": len(y_test), "encoders": encoders, "blocks": rows}


def _depth(block: BlockRef, last: BlockRef) -> float:
    return block.layer / last.layer if last.layer else 1.0
