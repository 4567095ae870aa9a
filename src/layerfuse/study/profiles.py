"""How good every layer is, by leave-one-out on training rows and once on test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.metrics import paired_difference, share_interval
from layerfuse.parallel import parallel_map
from layerfuse.probing import PrincipalAxes, ProbeResults, probe_space
from layerfuse.progress import Reporter
from layerfuse.study.corrections import holm
from layerfuse.study.reading import EmbeddedData
from layerfuse.targets import LabelSpace, Targets

__all__ = ["Profiled", "describe_profile", "profile_blocks"]

Floats = npt.NDArray[np.float32]
Guesses = Mapping[BlockRef, npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Profiled:
    """Blocks probed on all training rows, and the class (n_test,) that each predicts.

    The prediction is that of the ridge regression on the block's leading principal coordinates, at
    the penalty that leave-one-out chose.
    """

    probed: ProbeResults
    predicted: Guesses


def profile_blocks(embedded: EmbeddedData, reporter: Reporter) -> Profiled:
    """Probe each block once; training and test rows are read one block at a time."""
    y, n_classes = embedded.data.y, embedded.data.n_classes
    own_targets = Targets(LabelSpace(np.arange(n_classes)), y)
    targets = own_targets.matrix
    centre = targets.mean(axis=0)

    def probe(
        block: BlockRef,
    ) -> tuple[BlockScore, PrincipalAxes, Floats, npt.NDArray[np.intp]]:
        axes, space, leading = PrincipalAxes.fit(embedded.train[block])
        score = probe_space(block, space, own_targets)
        # Axes are orthogonal, so that the ridge solution takes no system of equations.
        used = slice(0, axes.rank)
        shrunk = space.rotated[:, used] / (space.eigenvalues[used] + np.float32(score.penalty))
        weights = shrunk.T @ (targets - centre)
        logits = axes.transform(embedded.test[block])[:, : len(weights)] @ weights
        return score, axes, leading, (centre + logits).argmax(axis=1)

    scores, axes, coordinates, predicted = [], {}, {}, {}
    blocks = list(embedded.train)
    with reporter.task(f"layers of {embedded.data.name}", len(blocks), "blocks") as advance:
        for score, own, leading, guess in parallel_map(probe, blocks):
            block = score.block
            scores.append(score)
            axes[block], coordinates[block], predicted[block] = own, leading, guess
            advance(1)
    return Profiled(ProbeResults(BlockScores(tuple(scores), "ridge"), coordinates, axes), predicted)


def describe_profile(profiled: Profiled, y_test: npt.NDArray[np.intp]) -> dict[str, Any]:
    """Every block with its comparisons, and each encoder's best layer beside its last.

    A block is compared with the last layer of its encoder at the same pooling, and with the
    encoder's best block (the lowest leave-one-out loss), by McNemar's test on test rows; p-values
    are Holm's over all layers and poolings of the encoder that are compared.
    """
    from sklearn.metrics import f1_score

    scores = profiled.probed.scores
    correct = {block: guess == y_test for block, guess in profiled.predicted.items()}
    rows: list[dict[str, Any]] = []
    encoders: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(score.block.encoder for score in scores):
        own = scores.of(name)
        n_layers = max(score.block.layer for score in own)
        best = own.best.block
        last = next(s.block for s in own.ranking if s.block.layer == n_layers)
        against_last = _family(
            {s.block: replace(s.block, layer=n_layers) for s in own if s.block.layer < n_layers},
            correct,
        )
        against_best = _family({s.block: best for s in own if s.block != best}, correct)
        for score in own:
            block = score.block
            share = share_interval(int(correct[block].sum()), len(y_test))
            guess = profiled.predicted[block]
            f1 = f1_score(y_test, guess, average="macro", zero_division=0)
            rows.append(
                {
                    "block": str(block),
                    "encoder": name,
                    "layer": block.layer,
                    "pooling": block.pooling,
                    "depth": block.layer / n_layers if n_layers else 1.0,
                    "loss": score.loss,
                    "loss_se": score.loss_se,
                    "loo_accuracy": score.accuracy,
                    "loo_accuracy_se": score.accuracy_se,
                    "accuracy": share.value,
                    "low": share.low,
                    "high": share.high,
                    "macro_f1": float(f1),
                    **against_last.get(block, {}),
                    **{f"best_{key}": v for key, v in against_best.get(block, {}).items()},
                }
            )
        difference = paired_difference(correct[best], correct[last])
        encoders[name] = {
            "layers": n_layers,
            "best": str(best),
            "last": str(last),
            "best_depth": best.layer / n_layers if n_layers else 1.0,
            "accuracy_best": float(correct[best].mean()),
            "accuracy_last": float(correct[last].mean()),
            **difference.to_dict(),
            "compared": len(against_last),
        }
    return {"test_rows": len(y_test), "encoders": encoders, "blocks": rows}


def _family(
    pairs: Mapping[BlockRef, BlockRef], correct: Mapping[BlockRef, npt.NDArray[np.bool_]]
) -> dict[BlockRef, dict[str, float]]:
    """Differences to a reference each, with p-values corrected over all of them."""
    found = {
        block: paired_difference(correct[block], correct[reference]).to_dict()
        for block, reference in pairs.items()
    }
    corrected = holm([entry["p_value"] for entry in found.values()])
    return {
        block: {
            "diff": entry["difference"],
            "diff_low": entry["low"],
            "diff_high": entry["high"],
            "p": entry["p_value"],
            "p_holm": float(p),
        }
        for (block, entry), p in zip(found.items(), corrected, strict=True)
    }
