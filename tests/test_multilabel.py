"""Texts that have any number of labels: from a table to the server, and what is refused."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, label_ranking_average_precision_score

from commandline import run, succeed
from families import VOCABULARY, TinyModels
from helpers import Notes, build
from layerfuse import load, load_dataset
from layerfuse.blocks import BlockRef
from layerfuse.calibration import PlattCalibrator
from layerfuse.errors import ConfigError, DataError
from layerfuse.evaluation.nested import OutOfFold, TrainingSample, nested_plan
from layerfuse.heads import fit_head, search_penalty
from layerfuse.labels import find_label_sets
from layerfuse.metrics import (
    LabelSetEvaluation,
    best_f1_thresholds,
    evaluate_label_sets,
    paired_f1_difference,
)
from layerfuse.model_selection import SearchSpace
from layerfuse.pipeline import Plan
from layerfuse.probing import probe_blocks
from layerfuse.report.run_report import read_run_report
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import (
    LabelSpace,
    MultilabelSpace,
    MultilabelTargets,
    Targets,
    check_trainable,
)
from test_serving import serving

Array = npt.NDArray[Any]
TELLING = {"film": ("good", "great"), "money": ("market", "bank"), "sea": ("oil", "price")}


def texts_with_labels(n: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts that hold words of each of their labels; some have none."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for row in range(n):
        own = [name for name in TELLING if rng.random() < 0.4]
        words = list(rng.choice(VOCABULARY[-37:], size=rng.integers(2, 5)))
        words += [word for name in own for word in TELLING[name]]
        rng.shuffle(words)
        texts.append(f"{' '.join(words)} {VOCABULARY[4 + row % 30]}")
        labels.append(own)
    return texts, labels


def targets_of(members: Array, weights: Array | None = None) -> MultilabelTargets:
    space = MultilabelSpace(np.arange(members.shape[1]))
    return MultilabelTargets(space, members.astype(bool), weights=weights)


SETS = [["b", "a"], [], ["a"]]


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (SETS, ["a", "b"]),
        ([set(own) for own in SETS], ["a", "b"]),
        (tuple(frozenset(own) for own in SETS), ["a", "b"]),
        (pd.Series(SETS), ["a", "b"]),
        (np.array([[1, 1], [0, 0], [1, 0]]), [0, 1]),
        (np.array([[True, True], [False, False], [True, False]]), [0, 1]),
        (csr_matrix([[1, 1], [0, 0], [1, 0]]), [0, 1]),
        (pd.DataFrame([[1, 1], [0, 0], [1, 0]], columns=["a", "b"]), ["a", "b"]),
    ],
)
def test_lists_sets_and_indicators_are_several_labels(y: Any, classes: list[object]) -> None:
    targets = Targets.from_labels(y)
    assert targets.space.classes.tolist() == classes
    assert targets.codes.tolist() == [[True, True], [False, False], [True, False]]
    assert targets.labels.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert targets.space.encode(y).codes.tolist() == targets.codes.tolist()


@pytest.mark.parametrize("y", [["a", "b"], [("a", "b"), ("a",)], [1, 0], np.array(["a", "b"])])
def test_strings_numbers_and_tuples_are_one_label(y: Any) -> None:
    assert type(Targets.from_labels(y).space) is LabelSpace


@pytest.mark.parametrize(
    ("y", "said"),
    [
        ([["a"], "b"], "row 1"),
        ([["a"], None], "row 1"),
        ([["a"], [None]], "Row 1"),
        ([["a"], [], ["a"]], "at least two"),
        ([[["a"]], []], "row 0"),
        (np.array([[2, 0], [0, 1]]), "shape"),
    ],
)
def test_what_is_no_set_of_labels_is_refused(y: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Targets.from_labels(y).check_trainable()


def test_labels_of_other_rows_are_known_by_name() -> None:
    space = Targets.from_labels(SETS).space
    assert space.encode([["b"], []]).codes.tolist() == [[False, True], [False, False]]
    with pytest.raises(DataError, match=r": c\."):
        space.encode([["a", "c"]])
    with pytest.raises(DataError, match="any number"):
        space.encode(["a", "b"])
    assert find_label_sets(["a"]) is None


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_share_out_every_label(grouped: bool) -> None:
    rng = np.random.default_rng(0)
    members = rng.random((300, 6)) < np.array([0.5, 0.3, 0.1, 0.1, 0.05, 0.03])
    groups = np.arange(300) // 2 if grouped else None
    targets = Targets.from_labels(members.astype(int), groups)
    folds = targets.folds(5, seed=0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(300))
    for rows, held in folds:
        assert not set(rows) & set(held)
        if grouped:
            assert not set(rows // 2) & set(held // 2)
        else:
            shares = members[held].sum(axis=0) / members.sum(axis=0)
            np.testing.assert_allclose(shares, 0.2, atol=0.12)


def test_a_sample_holds_every_label() -> None:
    rng = np.random.default_rng(1)
    members = rng.random((1000, 4)) < np.array([0.5, 0.2, 0.05, 0.004])
    targets = targets_of(members)
    rows = targets.sample(200, 0)
    assert 190 <= len(rows) <= 215
    assert (np.diff(rows) > 0).all()
    assert (members[rows].sum(axis=0) >= np.minimum(2, members.sum(axis=0))).all()
    np.testing.assert_array_equal(targets.sample(5000, 0), np.arange(1000))


def test_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, proba = rng.random((200, 5)) < 0.3, rng.random((200, 5)).round(1)
    truth[:9] = False
    found = proba > 0.6
    own = evaluate_label_sets(truth, proba, found)
    assert own.micro_f1.value == pytest.approx(f1_score(truth, found, average="micro"))
    assert own.macro_f1.value == pytest.approx(f1_score(truth, found, average="macro"))
    ranked = label_ranking_average_precision_score(truth, proba)
    assert own.ranking_precision.value == pytest.approx(ranked)
    assert own.subset_accuracy.value == pytest.approx((truth == found).all(axis=1).mean())
    for name in ("micro_f1", "macro_f1", "subset_accuracy", "ranking_precision", "log_loss"):
        estimate = getattr(own, name)
        assert estimate.low < estimate.value < estimate.high, name


@pytest.mark.slow
def test_the_interval_covers_the_truth() -> None:
    def draw(n: int, seed: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        truth = rng.random((n, 4)) < 0.3
        return truth, np.clip(0.6 * truth + rng.normal(0.2, 0.3, (n, 4)), 0, 1)

    truth, proba = draw(100_000, 1)
    exact = f1_score(truth, proba > 0.5, average="micro")
    covered = 0
    for seed in range(100):
        truth, proba = draw(150, seed)
        own = evaluate_label_sets(truth, proba, proba > 0.5, n_resamples=200, seed=seed).micro_f1
        covered += own.low <= exact <= own.high
    assert covered >= 88


def test_thresholds_have_the_highest_f1() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(120, 4)).round(1)  # with ties
    truth = rng.random((120, 4)) < 1 / (1 + np.exp(-2 * scores))
    truth[:, 3] = False
    found = best_f1_thresholds(truth, scores)
    for label in range(3):
        best = max(f1_score(truth[:, label], scores[:, label] >= at) for at in scores[:, label])
        assert f1_score(truth[:, label], scores[:, label] >= found[label]) == pytest.approx(best)
    assert not (scores[:, 3] >= found[3]).any()


def test_equal_decisions_do_not_differ() -> None:
    truth = np.random.default_rng(0).random((50, 3)) < 0.4
    same = paired_f1_difference(truth, truth, truth)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    worse = paired_f1_difference(truth, truth, ~truth)
    assert worse.low > 0.5
    assert worse.p_value < 0.01


def test_calibration_finds_slope_and_intercept_of_each_label() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 2)) * 3
    truth = rng.random((20_000, 2)) < 1 / (1 + np.exp(-(logits * [0.5, 2] + [1, -1])))
    targets = targets_of(truth)
    calibrator = PlattCalibrator.fit(logits, targets)
    np.testing.assert_allclose(calibrator.slopes, [0.5, 2], rtol=0.05)
    np.testing.assert_allclose(calibrator.intercepts, [1, -1], atol=0.07)
    constant = PlattCalibrator.fit(logits, targets_of(np.zeros((20_000, 2))))
    assert constant.predict_proba(logits, targets.space).max() < 0.01


@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_of_each_label_is_scikit_learns(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 8)).astype(np.float32)
    members = X[:, :3] + rng.normal(size=(300, 3)) > np.array([0.0, 0.8, 9.0])
    weights = rng.uniform(0.2, 3, 300) if weighted else None
    targets = targets_of(members, weights)
    head = fit_head("logistic", X, targets, 0.5)
    own = None if weights is None else weights / weights.mean()
    for label in range(2):
        model = LogisticRegression(C=2.0).fit(X, members[:, label], sample_weight=own)
        expected = model.decision_function(X)
        np.testing.assert_allclose(head.logits(X)[:, label], expected, atol=5e-3)
    assert (head.logits(X)[:, 2] < -20).all()  # a label that no row has
    assert 0 < search_penalty("logistic", X, targets) < 1e3


@pytest.mark.parametrize("head", ["ridge", "logistic", "kernel"])
def test_labels_of_one_row_and_of_all_rows_do_no_harm(head: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5)).astype(np.float32)
    members = np.stack([X[:, 0] > 0, np.arange(60) == 3, np.ones(60), np.zeros(60)], axis=1)
    targets = targets_of(members)
    logits = fit_head(head, X, targets, search_penalty(head, X, targets)).logits(X)
    assert np.isfinite(logits).all()
    assert ((logits[:, 0] > np.median(logits[:, 0])) == members[:, 0]).mean() > 0.9


def sample_of(blocks: dict[BlockRef, Array], targets: Targets) -> TrainingSample:
    space = SearchSpace("greedy", CostBudget(Budget(blocks=5), {}))
    return TrainingSample(blocks, targets, probe_blocks(blocks, targets), space)


@pytest.mark.slow
def test_labels_that_live_in_different_layers_are_found() -> None:
    hits = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        members = rng.random((400, 2)) < 0.3
        blocks = {
            BlockRef("e", layer, "mean"): rng.normal(size=(400, 16)).astype(np.float32)
            for layer in range(12)
        }
        first, second = rng.permutation(12)[:2].tolist()
        blocks[BlockRef("e", first, "mean")][:, 0] += 2.5 * members[:, 0]
        blocks[BlockRef("e", second, "mean")][:, 0] += 2.5 * members[:, 1]
        chosen = sample_of(blocks, targets_of(members)).search().plan.blocks
        hits += {first, second} <= {block.layer for block in chosen}
    assert hits >= 19


def test_nothing_is_found_where_nothing_is_known() -> None:
    """Thresholds are of other folds: on noise, no better than to give each label to each row."""
    rng = np.random.default_rng(0)
    members = rng.random((300, 4)) < 0.3
    blocks = {
        BlockRef("e", layer, "mean"): rng.normal(size=(300, 8)).astype(np.float32)
        for layer in range(4)
    }
    sample = sample_of(blocks, targets_of(members))
    search = sample.search_nested(sample.targets.folds(5, 0))
    (nested,) = sample.out_of_fold([nested_plan], search)
    proba = nested.calibrated("temperature", sample.targets)
    measured = sample.targets.evaluate(proba, nested.decide(sample.targets, proba))
    everything = f1_score(members, np.ones_like(members), average="micro")
    assert measured.headline.value < everything + 0.03


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels) -> Any:
    texts, labels = texts_with_labels(150)
    return build(tiny, "bert", cv=3).fit(texts, labels), texts, labels


@pytest.mark.slow
def test_a_classifier_is_one_of_scikit_learn(fitted: Any) -> None:
    classifier, _, _ = fitted
    texts, labels = texts_with_labels(80, seed=1)
    assert classifier.classes_.tolist() == ["film", "money", "sea"]
    found, proba = classifier.predict(texts), classifier.predict_proba(texts)
    assert found.shape == proba.shape == (80, 3)
    assert set(np.unique(found)) <= {0, 1}
    truth = classifier.label_space_.encode(labels).codes
    assert f1_score(truth, found, average="micro") > 0.8
    nested = classifier.cv_
    low = nested.micro_f1.low
    assert f1_score(truth, found, average="micro") > low - 0.1
    assert classifier.decision_function(texts).shape == (80, 3)
    right = (truth == found).all(axis=1)
    assert 0 < right.mean() < 1
    for y in (labels, list(map(set, labels)), truth.astype(int)):
        assert classifier.score(texts, y) == right.mean()
    weights = np.arange(80)
    assert classifier.score(texts, labels, weights) == pytest.approx(
        np.average(right, None, weights)
    )
    assert classifier.score(texts, truth) == pytest.approx((truth == found).all(axis=1).mean())
    assert "micro-F1" in classifier.verdict_.sentence
    assert classifier.explain(texts[:1]).neighbors[0][0].label in [tuple(own) for own in labels]


def test_a_bundle_holds_all_of_it(fitted: Any, tmp_path: Path) -> None:
    classifier, texts, labels = fitted
    classifier.save(tmp_path / "run", labels={"sea": "ocean"}, explain=True)
    again = load(tmp_path / "run", device="cpu")
    assert again.classes_.tolist() == ["film", "money", "ocean"]
    np.testing.assert_array_equal(again.predict(texts), classifier.predict(texts))
    np.testing.assert_array_equal(again.predict_proba(texts), classifier.predict_proba(texts))
    assert again.cv_ == classifier.cv_
    near = again.explain(texts[:5], 1)
    names = [tuple("ocean" if name == "sea" else name for name in own) for own in labels]
    assert [own[0].label for own in near.neighbors] == names[:5]


@pytest.mark.slow
def test_groups_weights_and_a_sample_above_all_rows(tiny: TinyModels) -> None:
    texts, labels = texts_with_labels(90, seed=2)
    groups = np.arange(90) // 3
    weights = np.linspace(0.5, 2, 90)
    model = build(tiny, "bert", cv=3, sample_size=60, head="logistic", fusion="concat")
    model.fit(texts, labels, sample_weight=weights, groups=groups)
    assert model.cv_.n < 90
    assert model.predict(texts).shape == (90, 3)
    model.set_params(sample_size=10_000).fit(texts, labels)
    assert model.cv_.n == 90


def test_a_rare_label_is_noted_and_may_miss_in_folds(tiny: TinyModels) -> None:
    texts, labels = texts_with_labels(90, seed=2)
    labels = [[*own, "rare"] if row == 7 else own for row, own in enumerate(labels)]
    reporter = Notes()
    Targets.from_labels(labels).check_trainable(reporter)
    assert any("'rare'" in note for note in reporter.lines)
    model = build(tiny, "bert", cv=3).fit(texts, labels)
    assert np.isfinite(model.predict_proba(texts)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"head": "mlp"},
        {"head": "balanced_ridge"},
        {"fusion": "voting"},
        {"fusion": "gated+residual"},
        {"class_weight": "balanced"},
        {"target_accuracy": 0.9},
        {"coverage": 0.9},
    ],
)
def test_what_does_not_go_with_several_labels_is_named(
    tiny: TinyModels, options: dict[str, Any]
) -> None:
    texts, labels = texts_with_labels(30)
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name}=.*multilabel"):
        build(tiny, "bert", **options).fit(texts, labels)


def test_rows_that_cannot_be_learned_from_are_refused(tiny: TinyModels) -> None:
    texts, _ = texts_with_labels(4)
    with pytest.raises(DataError, match="two of the 4 rows"):
        build(tiny, "bert").fit(texts, [["a"], ["b"], [], []])


def write_table(folder: Path, kind: str, n: int, seed: int = 0) -> Path:
    texts, labels = texts_with_labels(n, seed)
    path = folder / f"{kind}{seed}.{'jsonl' if kind == 'lists' else 'csv'}"
    with path.open("w", newline="", encoding="utf-8") as file:
        if kind == "lists":
            for text, own in zip(texts, labels, strict=True):
                file.write(json.dumps({"text": text, "label": own}) + "\n")
            return path
        rows = csv.writer(file)
        rows.writerow(["text", *TELLING] if kind == "columns" else ["text", "label"])
        for text, own in zip(texts, labels, strict=True):
            cells = [int(name in own) for name in TELLING] if kind == "columns" else [";".join(own)]
            rows.writerow([text, *cells])
    return path


HOW = {
    "cells": ("--label-separator", ";"),
    "columns": ("--label-column", "film,money,sea"),
    "lists": (),
}


@pytest.mark.parametrize("kind", HOW)
def test_tables_of_each_kind_hold_the_same_labels(kind: str, tmp_path: Path) -> None:
    path = write_table(tmp_path, kind, 40)
    option = dict([HOW[kind]]) if HOW[kind] else {}
    names = {name.removeprefix("--").replace("-", "_"): value for name, value in option.items()}
    found = load_dataset(path, **names).train
    assert found.labels == tuple(map(frozenset, texts_with_labels(40)[1]))


def test_a_parquet_column_of_lists_is_noticed(tmp_path: Path) -> None:
    texts, labels = texts_with_labels(20)
    pd.DataFrame({"text": texts, "label": labels}).to_parquet(tmp_path / "t.parquet")
    assert load_dataset(tmp_path / "t.parquet").train.labels == tuple(map(frozenset, labels))


def test_cells_that_look_like_several_labels_are_asked_about(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,label\none,A\ntwo,A;B\nthree,B\nfour,A\n")
    with pytest.raises(DataError, match=r"'A;B' in row 1.*--label-separator ';'"):
        load_dataset(path)
    assert load_dataset(path, label_separator="").train.labels == ("A", "A;B", "B", "A")
    sets = load_dataset(path, label_separator=";").train.labels
    assert sets is not None
    assert sets[1] == {"A", "B"}
    path.write_text('text,label\none,"sales, Asia"\ntwo,"sales, Europe"\nthree,other\n')
    assert load_dataset(path).train.labels == ("sales, Asia", "sales, Europe", "other")


def test_a_label_column_that_is_no_flag_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("text,a,b\none,0,1\ntwo,7,1\n")
    with pytest.raises(DataError, match="column 'a' holds '7' in row 1"):
        load_dataset(path, label_column="a,b")


@pytest.fixture(scope="module")
def place(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on cells of several labels."""
    root = tmp_path_factory.mktemp("multilabel")
    train, test = write_table(root, "cells", 120), write_table(root, "cells", 40, seed=1)
    few = ("--cv", 2, "--dtype", "float32", "--explain", "--store", root / "store")
    encoder = ("-e", f"bert={tiny('bert')}")
    options = ("--test", test, *HOW["cells"], *encoder, *few, "--out", root / "run")
    shown = succeed("fit", train, *options)
    assert "micro-F1" in shown.out
    return root


@pytest.mark.slow
def test_rows_are_evaluated_in_whichever_form_their_labels_come(
    place: Path, tiny: TinyModels
) -> None:
    cells, lists = write_table(place, "cells", 40, seed=1), write_table(place, "lists", 40, seed=1)
    train = write_table(place, "lists", 60)
    fast = ("-e", f"bert={tiny('bert')}", "--cv", 2, "--no-report", "--store", place / "store")
    succeed("fit", train, *fast, "--out", place / "of_lists")
    for name in ("run", "of_lists"):
        found = [succeed("evaluate", place / name, data, "--json").json for data in (cells, lists)]
        assert found[0]["metrics"] == found[1]["metrics"]


def test_a_label_that_holds_the_separator_stays_one(place: Path, tiny: TinyModels) -> None:
    texts, labels = texts_with_labels(60)
    named = [["a;b" if name == "film" else name for name in own] for own in labels]
    build(tiny, "bert", cv=2).fit(texts, named).save(place / "odd")
    succeed("predict", place / "odd", write_table(place, "lists", 60), "--out", place / "odd.csv")
    with (place / "odd.csv").open(encoding="utf-8", newline="") as file:
        found = {name for row in csv.DictReader(file) for name in row["label"].split("|")}
    assert found - {""} <= {"a;b", "money", "sea"}
    assert "a;b" in found


def test_a_sample_of_a_test_split_with_one_label(tmp_path: Path) -> None:
    train, test = write_table(tmp_path, "cells", 60), tmp_path / "one.csv"
    test.write_text("text,label\n" + "a good film,film\n" * 20)
    dataset = load_dataset(train, test=test, label_separator=";").subsample(10, 0)
    assert dataset.test is not None
    assert len(dataset.test) == 10
    with pytest.raises(DataError, match="fewer than two labels"):
        check_trainable(dataset.test.labels)


def test_a_run_says_what_each_label_gets(place: Path) -> None:
    report = read_run_report(place / "run")
    assert report.verdict.metric == "micro-F1"
    assert report.test is not None
    assert report.test.headline.value > 0.6
    labels = report.diagnosis.labels
    assert [own.label for own in labels] == ["film", "money", "sea"]
    truth = texts_with_labels(40, 1)[1]
    assert [own.rows for own in labels] == [sum(n in own for own in truth) for n in TELLING]
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "Micro-F1" in page


def test_a_run_is_evaluated_by_the_columns_it_was_trained_on(place: Path) -> None:
    found = succeed("evaluate", place / "run", place / "cells1.csv", "--json").json
    report = read_run_report(place / "run")
    assert report.test is not None
    assert found["metrics"]["micro_f1"]["value"] == pytest.approx(report.test.headline.value)
    assert len(found["labels"]) == 3
    shown = succeed("evaluate", place / "run", place / "cells1.csv").out
    metrics = ("micro-F1", "macro-F1", "subset accuracy", "label ranking average precision")
    for name in (*metrics, "log loss", "expected calibration error"):
        assert f"\n{name} " in shown


@pytest.mark.slow
def test_two_runs_on_the_same_rows(place: Path, tiny: TinyModels) -> None:
    texts, labels = texts_with_labels(60)
    # knows a label that the first one does not, and lacks another
    named = [["more", *own] if row % 2 else own for row, own in enumerate(labels)]
    without = [[name for name in own if name != "sea"] for own in named]
    build(tiny, "bert", cv=2).fit(texts, without).save(place / "other")
    files = (place / "cells1.csv", "--against", place / "other")
    found = succeed("evaluate", place / "run", *files, "--json").json
    own, texts = found["comparison"], texts_with_labels(40, 1)[0]
    truth = [set(labels) for labels in texts_with_labels(40, 1)[1]]
    pairs = []
    for name in ("run", "other"):
        classifier = load(place / name, device="cpu")
        names = classifier.classes_
        pairs.append([set(names[row == 1].tolist()) for row in classifier.predict(texts)])
    f1 = [
        2 * sum(len(a & b) for a, b in zip(truth, made, strict=True))
        / sum(len(a) + len(b) for a, b in zip(truth, made, strict=True))
        for made in pairs
    ]  # fmt: skip
    assert own["metric"] == "micro-F1"
    assert found["metrics"]["micro_f1"]["value"] == pytest.approx(f1[0])
    assert own["headline"]["value"] == pytest.approx(f1[1])
    assert own["gain"]["difference"] == pytest.approx(f1[0] - f1[1])
    assert own["gain"]["low"] <= f1[0] - f1[1] <= own["gain"]["high"]
    changed = [row for row, (a, b) in enumerate(zip(*pairs, strict=True)) if a != b]
    assert [change["row"] for change in own["changes"]] == changed != []
    for change in own["changes"]:
        sets = [set(change[key]) for key in ("label", "predicted", "other")]
        assert sets == [own[change["row"]] for own in (truth, *pairs)]
    shown = succeed("evaluate", place / "run", *files, "--no-texts").out
    assert f"{len(changed)} labels differ" in shown
    assert texts[changed[0]] not in shown
    (header,) = (line for line in shown.splitlines() if "by the other" in line)
    assert "text" not in header
    assert texts[changed[0]] in succeed("evaluate", place / "run", *files).out


def test_predictions_of_every_block_are_lists(place: Path, tiny: TinyModels) -> None:
    data, path = write_table(place, "lists", 60), place / "predictions.parquet"
    encoder = ("-e", f"bert={tiny('bert')}", "--store", place / "store")
    succeed("profile", data, *encoder, "--predictions", path)
    table = pq.read_table(path)
    assert list(map(sorted, table["label"].to_pylist())) == texts_with_labels(60)[1]
    assert set(map(tuple, table["bert:1:mean"].to_pylist())) > {()}


def test_runs_of_two_kinds_are_not_compared(place: Path, tiny: TinyModels) -> None:
    build(tiny, "bert", cv=2).fit(["good film", "bank market"] * 20, ["a", "b"] * 20).save(
        place / "single"
    )
    refused = run("evaluate", place / "run", place / "cells1.csv", "--against", place / "single")
    assert refused.code == 2
    assert "--against" in refused.err
    assert "multilabel" in refused.err


def test_predictions_join_labels_and_have_a_probability_of_each(place: Path) -> None:
    classifier = load(place / "run", device="cpu")
    texts, _ = texts_with_labels(40, 1)
    out = place / "p.csv"
    succeed("predict", place / "run", place / "cells1.csv", "--out", out)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = np.array(list(TELLING))
    indicator = classifier.predict(texts).astype(bool)
    assert [row["label"] for row in rows] == [";".join(names[own]) for own in indicator]
    proba = np.array([[float(row[f"probability_{name}"]) for name in TELLING] for row in rows])
    np.testing.assert_allclose(proba, classifier.predict_proba(texts), atol=1e-3)
    assert "probability" not in rows[0]
    told = succeed("predict", place / "run", "--text", texts[0], "--explain", "--json").json
    first = told["predictions"][0]
    assert first["label"] == names[indicator[0]].tolist()
    assert first["probability"] is None
    assert set(first["probabilities"]) == set(TELLING)


def test_a_server_answers_with_lists_of_labels(place: Path) -> None:
    classifier = load(place / "run", device="cpu")
    texts, _ = texts_with_labels(6, 1)
    expected = classifier.label_space_.names(classifier.predict(texts).astype(bool))
    with serving([place / "run"]) as server:
        got = server.predict(texts, "run", explain=True).json["predictions"]
        listed = server.ask("GET", "/v1/models").json["models"]
    assert [tuple(own["label"]) for own in got] == expected
    assert {own["probability"] for own in got} == {None}
    assert all(len(own["probabilities"]) == 3 for own in got)
    assert "micro_f1" in listed[0]["cv"]


@pytest.mark.slow
def test_a_curve_is_in_micro_f1(place: Path, tiny: TinyModels) -> None:
    train, test = write_table(place, "lists", 120), write_table(place, "lists", 60, seed=1)
    encoder = ("-e", f"bert={tiny('bert')}", "--store", place / "store")
    few = ("--shares", "30,100", "--repeats", 2)
    found = succeed("curve", train, "--test", test, *encoder, *few, "--json").json["curve"]
    assert found["metric"] == "micro-F1"
    low, high = (point["fusion"] for point in found["points"])
    assert 0.3 < low["value"] <= high["value"] + 0.05
    assert high["low"] <= high["value"] <= high["high"]
    assert high["value"] > 0.6


def test_rows_of_an_indicator_matrix_are_no_lists_of_labels() -> None:
    with pytest.raises(DataError, match=r"indicator matrix.*numpy\.array"):
        Targets.from_labels([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert Targets.from_labels([[1, 0], [0], []]).codes.tolist() == (
        [[True, True], [True, False], [False, False]]
    )


@pytest.mark.parametrize("kind", ["arrow", "Int64", "boolean"])
def test_an_indicator_matrix_may_be_any_table(kind: str) -> None:
    frame = pd.DataFrame({"film": [1, 0, 1], "art": [0, 1, 1]})
    table = pa.Table.from_pandas(frame) if kind == "arrow" else frame.astype(kind)
    targets = Targets.from_labels(table)
    assert targets.space.classes.tolist() == ["film", "art"]
    np.testing.assert_array_equal(targets.codes, frame)


@pytest.mark.parametrize("names", [["a", "a"], ["a", np.nan]])
def test_columns_of_an_indicator_matrix_have_names_of_their_own(names: list[Any]) -> None:
    with pytest.raises(DataError, match="its own name"):
        Targets.from_labels(pd.DataFrame([[1, 0], [0, 1]], columns=names))


def test_a_sample_of_sorted_rows_has_each_label_in_its_share() -> None:
    members = np.repeat([[True, False], [False, True]], 2000, axis=0)
    sampled = targets_of(members).sample(100, 0)
    assert members[sampled].sum(axis=0) == pytest.approx([50, 50], abs=15)


@pytest.mark.parametrize("seed", range(5))
def test_no_constant_prediction_is_better_than_the_majority(seed: int) -> None:
    members = np.random.default_rng(seed).random((40, 4)) < [0.6, 0.3, 0.2, 0.02]
    targets = targets_of(members)

    def score(row: Array) -> float:
        return float(f1_score(members, np.tile(row, (40, 1)), average="micro"))

    rows = [np.array(row, dtype=bool) for row in product((0, 1), repeat=4) if any(row)]
    assert score(targets.most_frequent[0]) == pytest.approx(max(map(score, rows)))


@pytest.mark.slow
def test_labels_of_noise_are_said_to_be_unpredictable(tiny: TinyModels) -> None:
    texts, _ = texts_with_labels(120)
    noise = (np.random.default_rng(0).random((120, 4)) < 0.3).astype(int)
    model = build(tiny, "bert", cv=3).fit(texts, noise)
    assert model.verdict_.recommended == "majority"


def test_a_larger_sample_holds_a_smaller_one() -> None:
    members = np.random.default_rng(0).random((200, 3)) < 0.2
    small, large = (set(targets_of(members).sample(n, (0, 1), 4)) for n in (30, 90))
    assert small < large


def test_label_errors_are_found(place: Path, tiny: TinyModels) -> None:
    texts, labels = texts_with_labels(120)
    labels[5] = [name for name in TELLING if name not in labels[5]]  # all of them wrong
    path = place / "wrong.jsonl"
    rows = zip(texts, labels, strict=True)
    path.write_text("".join(json.dumps({"text": t, "label": own}) + "\n" for t, own in rows))
    encoder = ("-e", f"bert={tiny('bert')}", "--store", place / "store")
    found = succeed("audit", path, "--labels", *encoder, "--json").json
    assert 5 in [doubt["row"] for doubt in found["doubts"][:3]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("fit", "{data}", "--target-accuracy", "0.9", "--out", "{root}/no"), "target_accuracy"),
        (("fit", "{data}", "--head", "mlp", "--out", "{root}/no"), "head='mlp'"),
        (("profile", "{data}", "--scorer", "logistic"), "scorer='logistic'"),
        (("curve", "{data}", "--head", "balanced_ridge"), "head='balanced_ridge'"),
        (("curve", "{data}", "--fusion", "gated"), "fusion='gated'"),
        (("curve", "{data}", "--class-weight", "balanced"), "class_weight='balanced'"),
    ],
)
def test_commands_that_do_not_go_with_several_labels_say_so(
    place: Path, tiny: TinyModels, command: tuple[str, ...], said: str
) -> None:
    data = write_table(place, "lists", 60)
    words = [word.format(data=data, root=place) for word in command]
    words += ["-e", f"bert={tiny('bert')}", "--store", str(place / "store")]
    done = run(*words)
    assert done.code == 2, done.err
    assert said in done.err
    assert "multilabel" in done.err
    if command[0] == "curve":  # before an encoder is opened
        assert "layers of" not in done.err
    assert not (place / "no").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "sentence-transformers"])
def test_an_export_decides_as_the_run_does(place: Path, tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    done = succeed("export", place / "run", "--format", kind, "--out", tmp_path / kind, "--json")
    report = read_run_report(place / "run")
    assert isinstance(report.test, LabelSetEvaluation)
    assert done.json["n_rows"] == 40
    assert done.json["labels_changed"] == 0
    assert done.json["accuracy"] == report.test.subset_accuracy.value


def test_one_label_in_every_list_is_noted() -> None:
    for y, noted in (([["a"], ["b"]] * 3, True), ([["a"], ["b"]] * 3 + [["a", "b"]], False)):
        notes = Notes()
        Targets.from_labels(y).check_trainable(notes)
        assert any("exactly one" in line for line in notes.lines) == noted


def test_nested_probabilities_come_from_calibrations_of_other_folds() -> None:
    """Of noise, which the rows that a calibration learned from fit better than others."""
    rng = np.random.default_rng(0)
    targets = targets_of(rng.random((60, 15)) < 0.3)
    nested = OutOfFold.empty(60, 15)
    for number, held in enumerate(np.split(rng.permutation(60), 5)):
        nested.add(held, Plan((BlockRef("a", number, "mean"),)), rng.normal(size=(12, 15)))
    known, unseen = (
        targets.log_loss(np.log(proba / (1 - proba))).mean()
        for proba in (nested.calibrated("temperature", targets, unseen=own) for own in (0, 1))
    )
    assert known < unseen
    one = OutOfFold.empty(60, 15)
    one.add(np.arange(60), Plan((BlockRef("a", 0, "mean"),)), nested.logits)
    both = (one.calibrated("temperature", targets, unseen=own) for own in (False, True))
    assert np.array_equal(*both)


def test_a_matrix_of_another_width_is_refused() -> None:
    space = targets_of(np.eye(3)).space
    for width in (2, 4):
        with pytest.raises(DataError, match=r"Expected \(n, 3\), one column for each label"):
            space.encode(np.ones((5, width)))
