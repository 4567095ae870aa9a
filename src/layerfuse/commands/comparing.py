"""Which blocks and encoders are worth combining: ``compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, resolve_layers, resolve_poolings
from layerfuse.commands.fitting import check_numbers, make_classifier, read_data
from layerfuse.complementarity import Comparison, Pair, check_pairing, find_blocks
from layerfuse.complementarity import compare as compare_blocks
from layerfuse.config import FitConfig
from layerfuse.corpus import Split, check_trainable
from layerfuse.estimator import LayerFusionClassifier
from layerfuse.estimator.analysis import MEASURED_ROWS
from layerfuse.estimator.gathering import Rows
from layerfuse.events import Reporter
from layerfuse.scoring import stratified_rows

__all__ = ["compare"]

_EXAMPLES = 3  # texts that only one block of the best pair gets right, for each of the two


def compare(
    config: FitConfig, pairs: str, to: tuple[str, ...] | None, reporter: Reporter
) -> dict[str, Any]:
    """Compare encoders or blocks on the training rows; nothing is trained or saved.

    ``to`` names the blocks in use that others may be added to. Row numbers in the result count
    from 0 over the training rows that were read (those of the part, with ``config.sample``).
    """
    check_numbers(config)
    used = None if to is None else tuple(BlockRef.parse(text) for text in to)
    dataset = read_data(config, reporter)
    train = dataset.train
    check_trainable(train.labels)
    classifier = make_classifier(config, reporter).open()
    check_pairing(pairs, [encoder.name for encoder in classifier.encoders_])
    if used is not None:  # before the work: blocks that will not be read
        find_blocks(used, _blocks(config, classifier), "--to")
    embeddings = classifier.extract(train.texts)
    _, encoded = np.unique(np.asarray(train.labels), return_inverse=True)
    rows = stratified_rows(encoded, MEASURED_ROWS, config.seed)
    if len(rows) < len(train):
        reporter.note(f"blocks are compared on {len(rows)} of {len(train)} rows")
    comparison = compare_blocks(
        embeddings if len(rows) == len(train) else Rows(embeddings, rows),
        encoded[rows],
        pairs=pairs,
        to=used,
        seed=config.seed,
        reporter=reporter,
    )
    result = comparison.to_dict()
    for entry in result["pairs"]:
        for name in ("only_a", "only_b"):
            entry[name]["rows"] = rows[entry[name]["rows"]].tolist()
    return {
        "data": {"name": dataset.name, "train_rows": len(train)},
        "pairing": pairs,
        **result,
        "examples": list(_examples(comparison.best, rows, train)),
        "verdict": {"sentence": _sentence(comparison)},
        "truncated_share": embeddings.truncated_share,
    }


def _blocks(config: FitConfig, classifier: LayerFusionClassifier) -> Iterator[BlockRef]:
    """What `extract` of the settings will give."""
    for encoder in classifier.encoders_:
        pooling = config.pooling
        own = pooling.get(encoder.name, "mean") if isinstance(pooling, Mapping) else pooling
        layers = config.layers
        for name in resolve_poolings(own):
            for layer in resolve_layers(layers, encoder.n_layers, encoder.name):  # type: ignore[arg-type]
                yield BlockRef(encoder.name, layer, name)


def _examples(pair: Pair, rows: npt.NDArray[np.intp], train: Split) -> Iterator[dict[str, Any]]:
    for block, own in ((pair.a, pair.only_a), (pair.b, pair.only_b)):
        for row in rows[list(own[:_EXAMPLES])].tolist():
            label = (train.labels or ())[row]
            yield {"right": str(block), "row": row, "label": label, "text": train.texts[row]}


def _sentence(comparison: Comparison) -> str:
    """What fusing the best pair brings, or that it brings nothing that can be seen."""
    pair, strongest = comparison.best, comparison.strongest
    gain = pair.gain
    points, low, high = (100 * value for value in (gain.difference, gain.low, gain.high))
    numbers = (
        f"fused they have {pair.loss_gain:.4f} ± {pair.loss_gain_se:.4f} less leave-one-out loss "
        f"than {pair.better} alone, and {points:+.1f} points of accuracy over the more accurate "
        f"one (95 % interval {low:+.1f} to {high:+.1f})."
    )
    if pair.loss_gain <= pair.loss_gain_se:
        return (
            f"no pair is worth combining by what {comparison.n} training rows can show; the best "
            f"is {pair.a} and {pair.b}: {numbers}"
        )
    if strongest is pair:
        return f"{pair.a} and {pair.b} are worth combining: {numbers}"
    return (
        f"{pair.a} and {pair.b} gain most: {numbers} The lowest loss of all is that of "
        f"{strongest.a} and {strongest.b} fused, {strongest.loss:.4f} against {pair.loss:.4f}."
    )
