"""What is measured without a model that ships: ``profile``, ``compare``, ``curve``, ``audit``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef
from layerfuse.cli_options import CurveConfig, FitConfig, ReadConfig
from layerfuse.commands.fit import (
    groups_of,
    make_classifier,
    make_encoders,
    read_all,
    read_data,
    text_codes,
)
from layerfuse.commands.output import (
    RESULT_SUFFIXES,
    Share,
    check_new_file,
    open_store,
    write_table,
)
from layerfuse.complementarity import EncoderComparison, check_pairing, find_blocks
from layerfuse.complementarity import compare as compare_blocks
from layerfuse.data import TABLE_SUFFIXES, Audit, Split, audit
from layerfuse.embeddings.extraction import extract_all
from layerfuse.errors import DataError, LayerfuseWarning, require
from layerfuse.evaluation.baselines import tfidf_out_of_fold
from layerfuse.evaluation.learning_curve import SHARES, LearningCurve, check_draws, learning_curve
from layerfuse.files import atomic_write
from layerfuse.model_selection import check_links, check_search
from layerfuse.probing import check_scorer, probe_blocks
from layerfuse.progress import Reporter, reporting_to
from layerfuse.report.results import (
    CompareResult,
    CurveResult,
    LabelAudit,
    LabelDoubt,
    ProfileResult,
    TrainingData,
)
from layerfuse.report.run_report import write_model
from layerfuse.report.tables import percent, plural, points, points_interval
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget, check_selection
from layerfuse.targets import Decisions, Targets, check_trainable

_MOST_ROWS = 10_000  # of the training rows and of the test rows that are measured on
_HELD_OUT = 4  # one row in so many, where there is no test split
_LEAST_ROWS = 3  # of a class, of which one is held out

Floats = npt.NDArray[np.float64]


_FIGURES: dict[str, Literal["svg", "pdf", "png"]] = {".svg": "svg", ".pdf": "pdf", ".png": "png"}


def profile(
    config: ReadConfig,
    scorer: str,
    reporter: Reporter,
    out: Path | None = None,
    predictions: Path | None = None,
) -> ProfileResult:
    """Score every block on the training rows; no classifier is trained.

    ``out`` is a table of all blocks, or a figure of all layers, by its suffix; ``predictions`` a
    Parquet file of what each block predicts for each row, see `_write_predictions`.
    """
    check_scorer(scorer)
    if predictions is not None:
        check_new_file(predictions, (".parquet",), "--predictions")
    if out is not None:
        check_new_file(out, (*RESULT_SUFFIXES, *_FIGURES))
        if out.suffix.lower() in _FIGURES:
            require("altair", "report", "A figure")
    dataset = read_data(config, reporter)
    train = dataset.train
    check_trainable(train.labels)
    encoders = make_encoders(config, reporter)
    store = open_store(config.store, new=True)
    embeddings = extract_all(train.texts, encoders, store, reporter=reporter)
    targets = Targets.from_labels(train.labels, text_codes(train, config))
    probed = probe_blocks(embeddings, targets, scorer, n_jobs=config.n_jobs, reporter=reporter)
    scores = probed.scores
    if predictions is not None:
        _write_predictions(predictions, train, config.id_column, targets, probed.decisions)
        reporter.note(f"wrote what {len(scores)} blocks predict for {len(train)} rows")
    if out is not None and out.suffix.lower() in _FIGURES:
        from layerfuse.report import plot_scores

        with atomic_write(out) as temporary:
            plot_scores(scores).save(temporary, format=_FIGURES[out.suffix.lower()])
    elif out is not None:
        write_table(out, [score.to_row() for score in scores])
    return ProfileResult(
        data=TrainingData(name=dataset.name, train_rows=len(train)),
        profile=scores,
        truncated_share=embeddings.truncated_share,
    )


def _write_predictions(
    path: Path,
    split: Split,
    id_column: str | None,
    targets: Targets,
    decisions: Mapping[BlockRef, Decisions],
) -> None:
    """Write row, id, label and for each block the label that a probe without the row predicts.

    Where texts have any number of labels there are lists of them.
    """
    import pyarrow
    import pyarrow.parquet

    space = targets.space
    columns: dict[str, Sequence[object]] = {"row": split.rows}
    if id_column is not None:
        columns["id"] = split.ids(id_column)
    columns |= {"label": space.names(targets.codes)}
    columns |= {str(block): space.names(own) for block, own in decisions.items()}
    with atomic_write(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns), temporary, compression="zstd")


def compare(
    config: ReadConfig,
    pairs: str,
    to: tuple[str, ...] | None,
    reporter: Reporter,
    out: Path | None = None,
) -> CompareResult:
    """Compare encoders or blocks on the training rows; nothing is trained.

    ``to`` names the blocks in use that others may be added to, ``out`` a table of all pairs to
    write.
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
        n_jobs=config.n_jobs,
        reporter=reporter,
    )
    if out is not None:
        write_table(out, [pair.to_row() for pair in comparison.pairs])
    return CompareResult(
        data=TrainingData(name=dataset.name, train_rows=len(train)),
        pairing=pairs,
        n=comparison.n,
        pairs=comparison.pairs,
        pipeline=comparison.pipeline,
        additions=comparison.additions,
        verdict=_comparison_summary(comparison),
        truncated_share=embeddings.truncated_share,
    )


def _comparison_summary(comparison: EncoderComparison) -> str:
    """What fusing the best pair brings, or that it brings nothing significant."""
    pair, strongest, gain = comparison.best, comparison.strongest, comparison.best.gain
    numbers = (
        f"fused they have {abs(pair.loss_gain):.4f} ± {pair.loss_gain_se:.4f} "
        f"{'less' if pair.loss_gain >= 0 else 'more'} leave-one-out loss than {pair.better} alone, "
        f"and {points(gain.difference)} points of accuracy over the more accurate one (95% "
        f"interval {points_interval(gain.low, gain.high)})."
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

    Measured on the test split, or where there is none on a stratified quarter of the training rows,
    which is held out throughout; at most 10,000 rows of either are used. No model is saved; ``out``
    is where the result will be written as JSON.
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
    check_links(config.fusion, config.head, targets.space)
    targets.class_weights(config.class_weight)
    if test is None and targets.counts.max() < _LEAST_ROWS:
        raise DataError(
            f"There is no test split, and {len(train)} training rows are too few to hold any out. "
            "Give rows to measure on with --test, or more training rows."
        )
    if test is None:
        known, others = targets.folds(_HELD_OUT, config.seed)[0]
        unseen = targets[known].counts == 0  # classes whose only rows would be held out
        kept = np.array([not unseen[targets.codes[row]].any() for row in others])
        if not kept.all():
            left = plural(int((~kept).sum()), "held-out row is", "held-out rows are")
            reporter.note(f"{left} left out: no other row is of the class")
        others = others[kept]
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
        n_jobs=config.n_jobs,
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
        f"the {found.metric} of the last layer with {last.n_rows:,} labels "
        f"({percent(last.last_layer.value)})"
    )
    needed, first = found.rows_to_match, found.points[0].n_rows
    if needed is None:
        return f"{gain} Fusion does not reach {accuracy}."
    labels = f"about {float(f'{needed:.2g}'):,.0f}"
    if needed <= first:
        labels = f"{first:,} or fewer"
    elif needed > 0.95 * last.n_rows:  # "with about 300" would say nothing of 300
        return f"{gain} It takes fusion about as many labels to reach {accuracy}."
    return f"{gain} With {labels} labels it reaches {accuracy}."


def audit_data(config: FitConfig, reporter: Reporter) -> Audit:
    """Duplicates, conflicts, leaks, empty and long texts, class counts."""
    return audit(read_all(config, reporter))


def audit_labels(config: FitConfig, out: Path | None, reporter: Reporter) -> LabelAudit:
    """Rank the training rows by how doubtful their labels are, and write all of them to ``out``.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 2021) by cleanlab, on the probabilities of
    models that had not seen the row: the pipeline's, and TF-IDF's as far as they help.

    Raises
    ------
    MissingExtraError
        Without cleanlab.
    LayerfuseError
        As of `fit`.
    """
    require("cleanlab", "labels", "An audit of labels")
    if out is not None:
        check_new_file(out, TABLE_SUFFIXES)
    dataset = read_data(config, reporter)
    split = dataset.train
    check_trainable(split.labels)
    # Rows of each class are needed out of fold, and none may be left out.
    whole = replace(config, fusion="concat", head="ridge", fragments="keep")
    classifier = make_classifier(whole, reporter).set_params(sample_size=len(split))
    with reporting_to(reporter), warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerfuseWarning)  # they are noted
        classifier.fit(split.texts, split.labels or (), groups=groups_of(split, config))
    record = classifier.fit_record_
    targets = record.sample.targets
    words = tfidf_out_of_fold(split.texts, targets, record.search.folds)
    proba = mix(record.proba, words, targets)
    scores, suspect = _QUALITIES[targets.space.link_name](targets, proba)
    space = targets.space.tuned(proba, targets)
    best = space.decide(proba)
    ids = split.ids(config.id_column)
    given, suggested = space.names(targets.codes), space.names(best)
    certainty = space.certainty(proba, best)
    doubts = [
        LabelDoubt(
            row=split.rows[row],
            id=ids[row],
            text=split.texts[row] if config.texts else "",
            label=given[row],
            suggested=suggested[row],
            suggested_probability=certainty[row],
            score=scores[row],
            suspect=bool(suspect[row]),
        )
        for row in np.argsort(scores, kind="stable").tolist()
    ]
    if out is not None:
        write_table(out, [_shares(vars(doubt)) for doubt in doubts])
        reporter.note(f"wrote {len(doubts)} rows to {out}")
    return LabelAudit(
        name=dataset.name,
        rows=len(split),
        accuracy=classifier.cv_.headline,
        suspects=int(suspect.sum()),
        doubts=tuple(doubt for doubt in doubts if doubt.suspect),
    )


def _shares(row: Mapping[str, object]) -> dict[str, object]:
    """A row of a table whose fractions are shares."""
    return {name: Share(own) if isinstance(own, float) else own for name, own in row.items()}


def _label_quality(targets: Targets, proba: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """How well each label fits (n,), and whether it is likely wrong (n,)."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    codes = targets.codes
    return get_label_quality_scores(codes, proba), find_label_issues(codes, proba, n_jobs=1)


def _label_set_quality(targets: Targets, proba: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The same where rows have any number of labels."""
    from cleanlab.multilabel_classification import get_label_quality_scores
    from cleanlab.multilabel_classification.filter import find_label_issues

    codes = [np.flatnonzero(row).tolist() for row in targets.codes]
    return get_label_quality_scores(codes, proba), find_label_issues(codes, proba, n_jobs=1)


_QUALITIES = {"softmax": _label_quality, "sigmoid": _label_set_quality}


def mix(one: Floats, other: Floats, targets: Targets) -> Floats:
    """The weighted mean of two tables of probabilities that decides most rows as labeled.

    Not the one with the least log loss: rows with a wrong label would rule it.
    """
    weights = np.linspace(0, 1, 21)
    mixed = (weight * one + (1 - weight) * other for weight in weights)
    right = np.array([targets.correct(targets.space.decide(proba)).sum() for proba in mixed])
    weight = float(weights[right == right.max()].mean())
    return weight * one + (1 - weight) * other
