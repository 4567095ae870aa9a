"""Comparing blocks and amounts of labels: ``compare`` and ``curve``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.cli_options import CurveConfig, ReadConfig
from layerfuse.commands.fit import make_encoders, read_data, text_codes
from layerfuse.commands.paths import check_new_file, open_store
from layerfuse.commands.tables import RESULT_SUFFIXES, write_table
from layerfuse.complementarity import EncoderComparison, MeasuredPair, check_pairing, find_blocks
from layerfuse.complementarity import compare as compare_blocks
from layerfuse.data import Split
from layerfuse.data.audit import Finding
from layerfuse.embeddings.extraction import extract_all
from layerfuse.errors import DataError
from layerfuse.evaluation.learning_curve import SHARES, LearningCurve, check_draws, learning_curve
from layerfuse.model_selection import check_search
from layerfuse.progress import Reporter
from layerfuse.report.results import CompareResult, CurveResult, Example, TrainingData
from layerfuse.report.run_report import write_model
from layerfuse.report.tables import percent, points, points_interval
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, check_selection
from layerfuse.targets import Targets, check_trainable

_EXAMPLES = 3  # texts that only one block of the best pair gets right, for each of the two
_MOST_ROWS = 10_000  # of the training rows and of the test rows that are measured on
_HELD_OUT = 4  # one row in so many, where there is no test split

Indices = npt.NDArray[np.intp]


def compare(
    config: ReadConfig,
    pairs: str,
    to: tuple[str, ...] | None,
    reporter: Reporter,
    out: Path | None = None,
) -> CompareResult:
    """Compare encoders or blocks on the training rows; nothing is trained.

    ``to`` names the blocks in use that others may be added to, ``out`` a table of all pairs to
    write. Row numbers in the result count from 0 over the training rows that were read (those of
    the part, with ``config.sample``).
    """
    if out is not None:
        check_new_file(out, RESULT_SUFFIXES)
    used = None if to is None else tuple(BlockRef.parse(text) for text in to)
    dataset = read_data(config, reporter)
    train = dataset.train
    check_trainable(train.labels)
    encoders = make_encoders(config, reporter)
    check_pairing(pairs, [encoder.name for encoder in encoders])
    if used is not None:  # before the work: blocks that will not be read
        find_blocks(used, (block for one in encoders for block in one.candidates), "--to")
    store = open_store(config.store, new=True)
    embeddings = extract_all(train.texts, encoders, store, reporter=reporter)
    groups = text_codes(train, config)
    targets = Targets.from_labels(train.labels)
    rows = targets.sample(_MOST_ROWS, config.seed)
    if len(rows) < len(train):
        reporter.note(f"blocks are compared on {len(rows)} of {len(train)} rows")
    comparison = compare_blocks(
        embeddings if len(rows) == len(train) else embeddings.take(rows),
        targets[rows].labels,
        pairs=pairs,
        to=used,
        groups=groups[rows],
        seed=config.seed,
        reporter=reporter,
    )
    pairs_found = tuple(
        replace(pair, only_a=_renumber(pair.only_a, rows), only_b=_renumber(pair.only_b, rows))
        for pair in comparison.pairs
    )
    if out is not None:
        write_table(out, [pair.to_row() for pair in pairs_found])
    return CompareResult(
        data=TrainingData(name=dataset.name, train_rows=len(train)),
        pairing=pairs,
        n=comparison.n,
        pairs=pairs_found,
        pipeline=comparison.pipeline,
        additions=comparison.additions,
        examples=tuple(_examples(pairs_found[0], train)),
        verdict=_comparison_summary(comparison),
        truncated_share=embeddings.truncated_share,
    )


def _renumber(finding: Finding, rows: Indices) -> Finding:
    """A finding among measured rows, by their numbers among all rows."""
    return Finding(finding.count, tuple(rows[list(finding.rows)].tolist()))


def _examples(pair: MeasuredPair, train: Split) -> Iterator[Example]:
    for block, finding in ((pair.a, pair.only_a), (pair.b, pair.only_b)):
        for row in finding.rows[:_EXAMPLES]:
            label = (train.labels or ())[row]
            yield Example(right=block, row=row, label=label, text=train.texts[row])


def _comparison_summary(comparison: EncoderComparison) -> str:
    """What fusing the best pair brings, or that it brings nothing significant."""
    pair, strongest, gain = comparison.best, comparison.strongest, comparison.best.gain
    numbers = (
        f"fused they have {pair.loss_gain:.4f} ± {pair.loss_gain_se:.4f} less leave-one-out loss "
        f"than {pair.better} alone, and {points(gain.difference)} points of accuracy over the more "
        f"accurate one (95% interval {points_interval(gain.low, gain.high)})."
    )
    if gain.high < 0:
        numbers += " By accuracy the more accurate one alone is significantly better."
    if pair.loss_gain <= pair.loss_gain_se:
        return (
            f"no pair is significantly worth combining on {comparison.n} training rows; the best "
            f"is {pair.a} and {pair.b}: {numbers}"
        )
    if strongest is pair:
        worth = "lower the loss together" if gain.high < 0 else "are worth combining"
        return f"{pair.a} and {pair.b} {worth}: {numbers}"
    return (
        f"{pair.a} and {pair.b} gain most: {numbers} The lowest loss of all is that of "
        f"{strongest.a} and {strongest.b} fused, {strongest.loss:.4f} against {pair.loss:.4f}."
    )


def curve(
    config: CurveConfig,
    reporter: Reporter,
    shares: Sequence[float] = SHARES,
    repeats: int = 5,
    out: Path | None = None,
) -> CurveResult:
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
        check_new_file(out, (".json",))
    check_draws(shares, repeats)
    check_search(config.fusion, config.head)
    check_selection(config.selection)
    dataset = read_data(config, reporter)
    train, test = dataset.train, dataset.test
    check_trainable(train.labels)
    groups = text_codes(train, config)
    targets = Targets.from_labels(train.labels, groups)
    if test is None:
        known, others = _hold_out(targets, config.seed)
        truth = targets[others]
        reporter.note(f"no test split: {len(others)} training rows are held out to measure on")
    else:
        known, truth = np.arange(len(train)), targets.space.encode(test.labels or ())
        others = np.arange(len(test))
    n_known = len(known)
    known = known[targets[known].sample(_MOST_ROWS, config.seed)]
    measured = truth.sample(_MOST_ROWS, config.seed)
    for used, there, name in ((known, n_known, "training"), (measured, len(others), "test")):
        if len(used) < there:
            reporter.note(f"{len(used)} of {there} {name} rows are used")
    encoders = make_encoders(config, reporter)
    store = open_store(config.store, new=True)
    embeddings = extract_all(train.texts, encoders, store, reporter=reporter)
    of_test = embeddings
    if test is not None:
        of_test = extract_all(test.texts, encoders, store, reporter=reporter)
    found = learning_curve(
        embeddings.take(known),
        targets[known].labels,
        of_test.take(others[measured]),
        truth[measured].labels,
        shares=shares,
        repeats=repeats,
        selection=config.selection,
        budget=CostBudget(Budget(blocks=config.max_blocks), {}),
        fusion=config.fusion,
        head=config.head,
        groups=groups[known],
        class_weight=config.class_weight,
        seed=config.seed,
        reporter=reporter,
    )
    result = CurveResult(
        data=TrainingData(name=dataset.name, train_rows=len(train), test_split=dataset.test_name),
        measured_on="test" if test is not None else "held-out training rows",
        selection=config.selection,
        fusion=config.fusion,
        head=config.head,
        curve=found,
        rows_to_match=found.rows_to_match,
        verdict=_curve_summary(found),
        truncated_share=embeddings.truncated_share,
    )
    if out is not None:
        write_model(out, result)
    return result


def _hold_out(targets: Targets, seed: int) -> tuple[Indices, Indices]:
    """Rows to train on and rows that are held out, of each class its share; two stay of each.

    Equal texts are on one side.
    """
    if targets.groups is not None:
        return targets.folds(_HELD_OUT, seed)[0]
    codes = targets.codes
    order = np.random.default_rng(seed).permutation(len(codes))
    held = []
    for label in np.unique(codes):
        own = order[codes[order] == label]
        held.append(own[: max(0, min(round(len(own) / _HELD_OUT), len(own) - 2))])
    others = np.sort(np.concatenate(held))
    if not len(others):
        raise DataError(
            f"There is no test split, and {len(codes)} training rows are too few to hold any out. "
            "Give rows to measure on with --test, or more training rows."
        )
    return np.setdiff1d(np.arange(len(codes)), others), others


def _curve_summary(found: LearningCurve) -> str:
    """Where fusion gains most, and how many labels it saves."""
    at, last = found.largest_gain, found.points[-1]
    interval = points_interval(at.gain.low, at.gain.high)
    numbers = f"{points(at.gain.value)} points (95% interval {interval})"
    if at.gain.low > 0:
        gain = f"fusion gains most over the last layer with {at.n_rows:,} labels: {numbers}."
    else:
        gain = (
            "no significant gain over the last layer with any number of labels; the largest is "
            f"with {at.n_rows:,}: {numbers}."
        )
    if at.gain.value > 0 and at.best_block.value >= at.fusion.value:
        gain += " The best block alone reaches as much there."
    accuracy = (
        f"the accuracy of the last layer with {last.n_rows:,} labels "
        f"({percent(last.last_layer.value)})"
    )
    needed, first = found.rows_to_match, found.points[0].n_rows
    if needed is None:
        return f"{gain} Fusion does not reach {accuracy}."
    labels = f"about {float(f'{needed:.2g}'):,.0f}"
    if needed <= first:
        labels = f"{first:,} or fewer"
    elif needed > 0.95 * last.n_rows:  # "with about 300" would say nothing of 300
        return f"{gain} It needs as many labels to reach {accuracy}."
    return f"{gain} With {labels} labels it reaches {accuracy}."
