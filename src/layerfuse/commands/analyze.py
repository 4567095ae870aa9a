"""Which blocks and encoders are worth combining: ``compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, resolve_layers, resolve_poolings
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.classifier.analysis import MEASURED_ROWS
from layerfuse.commands.fit import make_classifier, read_data
from layerfuse.commands.paths import check_new_file
from layerfuse.commands.predict import encode_labels
from layerfuse.complementarity import Comparison, Pair, check_pairing, find_blocks
from layerfuse.complementarity import compare as compare_blocks
from layerfuse.config import FitConfig
from layerfuse.data import Split, check_trainable
from layerfuse.embeddings.extraction import Rows
from layerfuse.errors import DataError
from layerfuse.evaluation.learning_curve import SHARES, LearningCurve, check_draws, learning_curve
from layerfuse.files import write_json
from layerfuse.model_selection import check_recipe
from layerfuse.progress import Reporter
from layerfuse.resources import resolve_budget
from layerfuse.selection import Allowance, check_selection
from layerfuse.targets import stratified_rows

__all__ = ["compare", "curve"]

_EXAMPLES = 3  # texts that only one block of the best pair gets right, for each of the two


def compare(
    config: FitConfig, pairs: str, to: tuple[str, ...] | None, reporter: Reporter
) -> dict[str, Any]:
    """Compare encoders or blocks on the training rows; nothing is trained or saved.

    ``to`` names the blocks in use that others may be added to. Row numbers in the result count
    from 0 over the training rows that were read (those of the part, with ``config.sample``).
    """
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
        "verdict": {"sentence": _comparison_summary(comparison)},
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


def _comparison_summary(comparison: Comparison) -> str:
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


Labels = npt.NDArray[np.intp]

_HELD_OUT = 4  # one row in so many, where there is no test split


def curve(
    config: FitConfig,
    reporter: Reporter,
    shares: Sequence[float] = SHARES,
    repeats: int = 5,
    out: Path | None = None,
) -> dict[str, Any]:
    """Accuracy of the last layer, the best block and fusion with more and more of the labels.

    Measured on the test split, or where there is none on a quarter of the training rows, class by
    class, that is held out throughout; at most 10,000 rows of either are used. No model is saved;
    ``out`` is where the result will be written as JSON.
    ``shares`` (above 0, at most 1) and ``repeats`` are those of `learning_curve`; class weights and
    calibration play no part.

    Raises
    ------
    ConfigError
        For settings, shares or repeats that cannot be used.
    DataError
        For data that cannot be trained on, or too few rows to hold any out.
    """
    if out is not None:
        check_new_file(out)
    check_draws(shares, repeats)
    check_recipe(config.fusion, config.head)
    check_selection(config.selection)
    classifier = make_classifier(config, reporter)
    budget = replace(resolve_budget(classifier.budget), blocks=config.max_blocks)
    dataset = read_data(config, reporter)
    train, test = dataset.train, dataset.test
    check_trainable(train.labels)
    classes, encoded = np.unique(np.asarray(train.labels), return_inverse=True)
    if test is None:
        known, others = _hold_out(encoded, config.seed)
        truth = encoded[others]
        reporter.note(f"no test split: {len(others)} training rows are held out to measure on")
    else:
        known, truth = np.arange(len(train)), encode_labels(classes, test.labels or ())
        others = np.arange(len(test))
    known = known[stratified_rows(encoded[known], MEASURED_ROWS, config.seed)]
    measured = stratified_rows(truth, MEASURED_ROWS, config.seed)
    n_known = len(train) if test is not None else len(train) - len(others)
    for used, there, name in ((known, n_known, "training"), (measured, len(others), "test")):
        if len(used) < there:
            reporter.note(f"{len(used)} of {there} {name} rows are used")
    classifier.open()
    embeddings = classifier.extract(train.texts)
    test_embeddings = embeddings if test is None else classifier.extract(test.texts)
    only_blocks = set(budget.limits) <= {"blocks"}
    found = learning_curve(
        Rows(embeddings, known),
        encoded[known],
        Rows(test_embeddings, others[measured]),
        truth[measured],
        shares=shares,
        repeats=repeats,
        selection=config.selection,
        allowance=Allowance(budget, {} if only_blocks else embeddings.costs),
        fusion=config.fusion,
        head=config.head,
        seed=config.seed,
        reporter=reporter,
    )
    result = {
        "data": {"name": dataset.name, "train_rows": len(train), "test_split": dataset.test_name},
        "measured_on": "test" if test is not None else "held-out training rows",
        "selection": config.selection,
        "fusion": config.fusion,
        "head": config.head,
        **found.to_dict(),
        "verdict": {"sentence": _curve_summary(found)},
        "truncated_share": embeddings.truncated_share,
    }
    if out is not None:
        write_json(out, result)
    return result


def _hold_out(y: Labels, seed: int) -> tuple[Labels, Labels]:
    """Rows to train on and rows that are held out, of each class its share; two stay of each."""
    order = np.random.default_rng(seed).permutation(len(y))
    held = []
    for label in np.unique(y):
        own = order[y[order] == label]
        held.append(own[: max(0, min(round(len(own) / _HELD_OUT), len(own) - 2))])
    others = np.sort(np.concatenate(held))
    if not len(others):
        raise DataError(
            f"There is no test split, and {len(y)} training rows are too few to hold any out. Give "
            "rows to measure on with --test, or more training rows."
        )
    return np.setdiff1d(np.arange(len(y)), others), others


def _curve_summary(found: LearningCurve) -> str:
    """Where fusion gains most, and how many labels it saves."""
    at, last = found.largest_gain, found.points[-1]
    points, low, high = (100 * value for value in (at.gain.value, at.gain.low, at.gain.high))
    numbers = f"{points:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
    if at.gain.low > 0:
        gain = f"fusion gains most over the last layer with {at.n_rows:,} labels: {numbers}."
    else:
        gain = (
            "no clear gain over the last layer with any number of labels; the largest is that "
            f"with {at.n_rows:,}: {numbers}."
        )
    if at.gain.value > 0 and at.best_block.value >= at.fusion.value:
        gain += " The best block alone reaches as much there."
    accuracy = (
        f"what the last layer reaches with {last.n_rows:,} ({100 * last.last_layer.value:.1f} %)"
    )
    needed = found.rows_to_match
    if needed is None:
        return f"{gain} Fusion does not reach {accuracy}."
    first = found.points[0].n_rows
    labels = f"{first:,} or fewer" if needed <= first else f"about {float(f'{needed:.2g}'):,.0f}"
    return f"{gain} With {labels} labels it reaches {accuracy}."
