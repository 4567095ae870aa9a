"""What is wrong with a dataset: ``audit``, and with ``--labels`` which labels look wrong."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse.cli_options import FitConfig
from layerfuse.commands.fit import groups_of, make_classifier, read_data, read_options
from layerfuse.commands.paths import check_new_file
from layerfuse.commands.tables import Share, write_table
from layerfuse.data import TABLE_SUFFIXES, Audit, audit, load_dataset
from layerfuse.errors import LayerfuseWarning, require
from layerfuse.evaluation.baselines import tfidf_classifier
from layerfuse.evaluation.nested import Folds
from layerfuse.progress import Reporter, reporting_to
from layerfuse.report.results import LabelAudit, LabelDoubt
from layerfuse.targets import Targets, check_trainable

Floats = npt.NDArray[np.float64]


def audit_data(config: FitConfig, reporter: Reporter) -> Audit:
    """Duplicates, conflicts, leaks, empty and long texts, class counts."""
    return audit(
        load_dataset(
            config.data,
            text_column=config.text_column,
            label_column=config.label_column,
            test=config.test,
            options=read_options(config),
            reporter=reporter,
        )
    )


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
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

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
    words = word_proba(split.texts, targets, record.folds)
    proba = mix(record.proba, words, targets)
    scores = get_label_quality_scores(targets.codes, proba)
    suspect = find_label_issues(targets.codes, proba, n_jobs=1)
    best = proba.argmax(axis=1)
    ids = split.column(config.id_column)
    names = targets.space.classes.tolist()
    doubts = [
        LabelDoubt(
            row=split.rows[row],
            id=None if ids is None else ids[row],
            text=split.texts[row] if config.texts else "",
            label=names[targets.codes[row]],
            suggested=names[best[row]],
            suggested_probability=Share(proba[row, best[row]]),
            score=Share(scores[row]),
            suspect=bool(suspect[row]),
        )
        for row in np.argsort(scores, kind="stable").tolist()
    ]
    if out is not None:
        write_table(out, [vars(doubt) for doubt in doubts])
        reporter.note(f"wrote {len(doubts)} rows to {out}")
    return LabelAudit(
        name=dataset.name,
        rows=len(split),
        accuracy=classifier.cv_.accuracy,
        suspects=int(suspect.sum()),
        doubts=tuple(doubt for doubt in doubts if doubt.suspect),
    )


def word_proba(texts: Sequence[str], targets: Targets, folds: Folds) -> Floats:
    """Out-of-fold probabilities (n, n_outputs) by TF-IDF; class shares where no text has a word."""
    proba = np.tile(targets.counts / len(targets), (len(targets), 1))
    for rows, held in folds:
        with contextlib.suppress(ValueError):  # an empty vocabulary
            model = tfidf_classifier().fit([texts[row] for row in rows], targets.codes[rows])
            found = model.predict_proba([texts[row] for row in held])
            proba[held] = 0.0
            proba[np.ix_(held, model.classes_)] = found
    return proba


def mix(one: Floats, other: Floats, targets: Targets) -> Floats:
    """The weighted mean of two tables of probabilities that decides most rows as labeled.

    Not the one with the least log loss: rows with a wrong label would rule it.
    """
    weights = np.linspace(0, 1, 21)
    mixed = (weight * one + (1 - weight) * other for weight in weights)
    right = np.array([targets.correct(targets.space.decide(proba)).sum() for proba in mixed])
    weight = float(weights[right == right.max()].mean())
    return weight * one + (1 - weight) * other
