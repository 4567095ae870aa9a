"""Rows that stay together: groups, folds and leave-one-out without the whole group."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import (
    GroupKFold,
    LeaveOneGroupOut,
    ShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
)

from commandline import write_text
from families import TinyModels
from helpers import Notes, sentences
from layerfuse import FrozenEncoder, LayerFusionClassifier
from layerfuse.blocks import BlockRef
from layerfuse.classifier.validation import check_training
from layerfuse.data import load_dataset
from layerfuse.errors import ConfigError, DataError
from layerfuse.evaluation.learning_curve import learning_curve
from layerfuse.folds import Groups, standard_error, text_groups
from layerfuse.probing import probe_blocks, score_blocks
from layerfuse.probing.ridge import (
    RidgeState,
    decompose,
    leave_one_out,
    prior_errors,
    weight_rows,
)
from layerfuse.selection import select_blocks
from layerfuse.targets import Targets

Array = npt.NDArray[Any]
A = BlockRef("e", 0, "mean")


def codes_of(groups: Groups | None) -> list[int]:
    assert groups is not None
    return groups.codes.tolist()


def test_groups_are_connected_by_any_column() -> None:
    assert codes_of(Groups.of(["a", "b", "a", "c", "d"], [1, 2, 3, 3, 4])) == [0, 1, 0, 0, 2]
    assert codes_of(Groups.of([(1, 2), (1, 2), None])) == [0, 0, 1]
    assert Groups.of(["a", "b"], [1, 2]) is None
    assert Groups.of(None) is None
    assert Groups.of([]) is None


def test_texts_are_equal_but_for_case_and_blanks() -> None:
    assert codes_of(text_groups(["A  film", "a film ", "a\tFILM", "a films"])) == [0, 0, 0, 1]


def test_groups_of_some_rows() -> None:
    groups = Groups(np.array([0, 1, 0, 1, 2]))
    assert groups[np.array([0, 3, 4])] is None
    assert codes_of(groups[np.array([0, 2, 3])]) == [0, 0, 1]
    assert [rows.tolist() for rows in groups.repeated] == [[[0, 2], [1, 3]]]
    assert groups.apart(np.array([0, 1, 4]), np.array([3])).tolist() == [0, 4]


def test_the_standard_error_counts_a_group_once() -> None:
    """Three copies of each value say no more than the values."""
    values = np.random.default_rng(0).normal(size=50)
    groups = Groups(np.repeat(np.arange(50), 3))
    assert standard_error(np.repeat(values, 3), groups) == pytest.approx(
        standard_error(values, None)
    )


def problem(n: int, dim: int, sizes: list[int], seed: int = 0) -> tuple[Array, Array, Groups]:
    """Features, a target matrix of three columns and groups of the given sizes, in turn."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.full(sizes[i % len(sizes)], i) for i in range(n)])[:n]
    X = rng.normal(size=(n, dim))
    X -= X.mean(axis=0)
    return X, np.eye(3)[rng.integers(0, 3, n)], Groups(rng.permutation(codes))


def weights_of(n: int) -> Array:
    """With a mean of 1."""
    weights = np.linspace(0.2, 3, n, dtype=np.float32)
    return np.asarray(weights / weights.mean())


def without_groups(
    X: Array, targets: Array, groups: Groups, alpha: float, weights: Array | None = None
) -> Array:
    """Predictions of fits without the row's group."""
    predictions = np.empty_like(targets)
    for group in np.unique(groups.codes):
        held = groups.codes == group
        own = None if weights is None else weights[~held]
        model = Ridge(alpha=alpha).fit(X[~held], targets[~held], sample_weight=own)
        predictions[held] = model.predict(X[held])
    return predictions


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [[1, 2, 3], [2], [1, 1, 1, 1, 5], [17, 1, 20]])
@pytest.mark.parametrize(("n", "dim"), [(60, 8), (30, 50)])
def test_leave_one_group_out_equals_refits(
    n: int, dim: int, sizes: list[int], weighted: bool
) -> None:
    X, targets, groups = problem(n, dim, sizes)
    weights = weights_of(n) if weighted else None
    space = decompose(weight_rows(X, weights))
    got = leave_one_out(space, targets, [0.05], row_weights=weights, groups=groups)
    expected = without_groups(X, targets, groups, 0.05 * n, weights)
    np.testing.assert_allclose(got.predictions, expected, atol=1e-4)
    errors = ((targets - expected) ** 2).sum(axis=1) * (1 if weights is None else weights)
    np.testing.assert_allclose(got.errors, errors, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_block_is_added_as_by_refits_without_the_group(weighted: bool, dtype: Any) -> None:
    n = 60
    X, targets, groups = problem(n, 12, [1, 2, 3, 15])
    weights = weights_of(n) if weighted else None
    blocks = [weight_rows(part.astype(dtype), weights) for part in (X[:, :7], X[:, 7:])]
    own = targets.astype(dtype)
    state = RidgeState.of(blocks[:1], own, row_weights=weights, groups=groups)
    scale = 1 if weights is None else weights
    for errors, used in (
        (state.errors, X[:, :7]),
        ((state.residuals() ** 2).sum(axis=1), X[:, :7]),
        (state.errors_with(blocks[1]), X),
    ):
        unseen = without_groups(used, targets, groups, state.penalty, weights)
        expected = ((targets - unseen) ** 2).sum(axis=1) * scale
        np.testing.assert_allclose(errors, expected, atol=2e-3 if dtype == np.float32 else 1e-4)
    constant = without_groups(np.zeros((n, 1)), targets, groups, 1.0, weights)
    expected = ((targets - constant) ** 2).sum(axis=1) * scale
    np.testing.assert_allclose(prior_errors(targets, groups, weights), expected, atol=1e-5)


def test_the_penalty_is_the_one_with_the_least_loss_of_unseen_groups() -> None:
    X, targets, groups = problem(90, 40, [3])
    penalties = [1e-4, 1e-2, 1.0, 10.0]
    losses = [
        ((targets - without_groups(X, targets, groups, 90 * p)) ** 2).sum(axis=1).mean()
        for p in penalties
    ]
    found = leave_one_out(decompose(X), targets, penalties, groups=groups)
    assert found.penalty == pytest.approx(90 * penalties[int(np.argmin(losses))])
    assert found.loss == pytest.approx(min(losses), rel=1e-4)


def test_rows_that_are_alone_change_nothing() -> None:
    X, targets, _ = problem(40, 10, [1])
    alone, none = (
        probe_blocks({A: X.astype(np.float32)}, Targets.from_labels(targets.argmax(axis=1), g))
        for g in (range(40), None)
    )
    assert alone.scores == none.scores


@pytest.mark.parametrize("n_groups", [12, 1500])
@pytest.mark.parametrize(
    "cv", [4, StratifiedKFold(3), GroupKFold(3), "pairs"], ids=["4", "strat", "group", "pairs"]
)
def test_a_group_is_on_one_side_of_every_fold(n_groups: int, cv: Any) -> None:
    rng = np.random.default_rng(0)
    n = 3 * n_groups
    groups, y = rng.integers(0, n_groups, n), rng.integers(0, 3, n)
    targets = Targets.from_labels(y, groups)
    given = [(np.arange(n) % 6 != part, np.arange(n) % 6 == part) for part in range(6)]
    folds = targets.folds(given if cv == "pairs" else cv, seed=1)
    for rows, held in folds:
        assert not set(groups[rows]) & set(groups[held])
        assert len(rows)
    held = np.concatenate([held for _, held in folds])
    assert sorted(held.tolist()) == list(range(n))
    if cv == 4:
        assert len(folds) == 4
        for code in range(3):
            shares = [np.mean(y[held] == code) for _, held in folds]
            assert max(shares) - min(shares) < (0.3 if n_groups == 12 else 0.06)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "classes"), [(40, 2), (300, 7), (60, 25)])
@pytest.mark.parametrize("n_groups", [None, 12, 60])
@pytest.mark.filterwarnings("ignore:The (least|number):UserWarning")  # of scikit-learn's own
def test_folds_are_as_even_as_those_of_scikit_learn(
    n: int, classes: int, n_groups: int | None
) -> None:
    """Without groups they are the same ones."""
    unevenness = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, classes, n)
        groups = None if n_groups is None else rng.integers(0, n_groups, n)
        splitter: Any = StratifiedKFold if groups is None else StratifiedGroupKFold
        n_folds = min(4, np.bincount(y).max())
        theirs = list(splitter(n_folds, shuffle=True, random_state=seed).split(y, y, groups))
        ours = Targets.from_labels(y, groups).folds(n_folds, seed)
        if groups is None:
            for (_, held), (_, their_held) in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(held, their_held)
        counts = [
            [np.bincount(y[held], minlength=classes) for _, held in f] for f in (ours, theirs)
        ]
        unevenness.append([float(np.std(of_folds, axis=0).sum()) for of_folds in counts])
    ours_mean, theirs_mean = np.mean(unevenness, axis=0)
    assert ours_mean <= 1.05 * theirs_mean


def test_folds_warn_of_nothing_and_leave_the_filters_alone() -> None:
    """Filters belong to the whole process: touching them is wrong where several threads fit."""
    targets = Targets.from_labels([0] * 9 + [1, 2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = warnings.filters
        for groups in (None, np.arange(12) // 2):
            Targets.from_labels(targets.codes, groups).folds(5, seed=0)
        assert warnings.filters is before


@pytest.mark.parametrize(
    "cv",
    [
        ShuffleSplit(3, random_state=0),
        GroupKFold(3),
        StratifiedKFold(9),
        [1, 2],
        [([0, 1], [2, 99])],
        [([0.5], [1.5])],
        [],
        [(range(6), range(6, 12)), (range(0, 12, 2), range(6))],
    ],
)
def test_folds_that_cannot_be_used_are_refused(cv: Any) -> None:
    with pytest.raises(ConfigError, match="cv="):
        Targets.from_labels([0, 1] * 6).folds(cv, seed=0)


def test_leave_one_group_out_of_scikit_learn() -> None:
    groups = np.repeat([0, 1, 2], 4)
    folds = Targets.from_labels([0, 1] * 6, groups).folds(LeaveOneGroupOut(), seed=0)
    assert [held.tolist() for _, held in folds] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_users_groups_and_equal_texts_are_merged() -> None:
    texts = ["one", "two", "One", "three", "four", "five"]
    notes = Notes()
    data = check_training(texts, [0, 1, 0, 1, 0, 1], None, [0, 1, 2, 2, 3, 4], None, "keep", notes)
    assert codes_of(data.targets.groups) == [0, 1, 0, 0, 2, 3]
    assert "2 of 6 training rows" in "\n".join(notes.lines)


def test_too_few_distinct_texts_are_not_kept_together_which_is_said() -> None:
    texts, y, notes = ["good", "bad"] * 20, [1, 0] * 20, Notes()
    data = check_training(texts, y, None, None, None, "keep", notes)
    assert data.targets.groups is None
    assert "too few different texts" in "\n".join(notes.lines)
    with pytest.raises(DataError, match="groups"):
        check_training(sentences(40), y, None, y, None, "keep", notes)


def near_chance(n_distinct: int) -> float:
    """Three standard errors above a half."""
    return 0.5 + 3 * 0.5 / np.sqrt(n_distinct)


def tripled() -> tuple[list[str], Array]:
    """80 texts with random labels, each three times."""
    y = np.random.default_rng(3).permutation([0, 1] * 40)
    order = np.random.default_rng(4).permutation(240)
    texts = np.repeat(np.array(sentences(80), dtype=object), 3)
    return texts[order].tolist(), np.repeat(y, 3)[order]


class TestTripledTextsWithRandomLabels:
    @pytest.mark.slow
    @pytest.mark.parametrize("head", ["auto", "ridge", "logistic", "kernel", "mlp"])
    def test_nothing_is_above_chance(self, tiny: TinyModels, head: str) -> None:
        texts, y = tripled()
        encoder = FrozenEncoder.from_pretrained(tiny("bert"), pooling=("mean", "max"))
        model = LayerFusionClassifier([encoder], head=head, store=None).fit(texts, y)
        assert model.cv_.accuracy.value < near_chance(80)
        assert max(score.accuracy for score in model.profile_) < near_chance(80) + 0.05
        record = model.fit_record_
        for baseline in record.run_baselines():
            correct = record.sample.targets.correct(baseline.out_of_fold)
            assert correct.mean() < near_chance(80), baseline.name


def blocks_of(X: Array) -> dict[BlockRef, Array]:
    return {BlockRef("e", layer, "mean"): X[:, layer] for layer in range(X.shape[1])}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_copies_change_no_score_and_no_choice(seed: int) -> None:
    """Three copies of each row, left out together, are as good as one."""
    random = np.random.default_rng(seed)
    y = random.permutation([0, 1] * 40)
    X = random.normal(size=(80, 4, 60)).astype(np.float32)
    X[:, :, 0] += 0.8 * y[:, None]
    order = random.permutation(240)
    texts = np.repeat(np.arange(80), 3)[order]
    many = blocks_of(X[texts]), y[texts]
    for found, expected in zip(
        score_blocks(*many, groups=texts), score_blocks(blocks_of(X), y), strict=True
    ):
        assert found.accuracy == expected.accuracy
        assert found.accuracy_se == pytest.approx(expected.accuracy_se)
        assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    assert score_blocks(*many).best.accuracy > 0.85  # what the copies give away
    found_blocks, expected_blocks = (
        select_blocks(*many, groups=texts),
        select_blocks(blocks_of(X), y),
    )
    assert found_blocks.blocks == expected_blocks.blocks
    np.testing.assert_allclose(found_blocks.gains_, expected_blocks.gains_, rtol=0.02, atol=1e-4)


@pytest.mark.slow
def test_random_labels_of_copies_stay_random() -> None:
    """By logistic probes, and in learning curves."""
    accuracies = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        texts, y = np.repeat(np.arange(80), 3), random.permutation([0, 1] * 40)
        blocks = blocks_of(random.normal(size=(80, 2, 60)).astype(np.float32)[texts])
        scores = score_blocks(blocks, y[texts], "logistic", groups=texts)
        accuracies += [score.accuracy for score in scores]
        new = blocks_of(random.normal(size=(200, 2, 60)).astype(np.float32))
        curve = learning_curve(
            blocks, y[texts], new, np.arange(200) % 2, shares=[1.0], groups=texts, repeats=1
        )
        assert curve.points[0].fusion.value < near_chance(200)
    assert np.mean(accuracies) < near_chance(6 * 80)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_group_is_like_no_other(missing: object) -> None:
    assert codes_of(Groups.of(["x", missing, missing, "x"])) == [0, 1, 2, 0]
    assert Groups.of([missing, missing]) is None


def test_a_group_that_cannot_be_hashed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"group of row 1 is \[1\] \(list\)"):
        Groups.of(["x", [1]])  # type: ignore[list-item]
    lines = ['{"text": "a", "label": "x", "who": "i"}', '{"text": "b", "label": "y", "who": {}}']
    path = write_text(tmp_path / "t.jsonl", "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="column 'who' holds an object in row 1"):
        load_dataset(path, group_column="who")


def test_folds_leave_two_classes_where_they_can() -> None:
    n_tried = 0
    for seed in range(40):
        y = np.where(np.random.default_rng(seed).random(12) < 0.3, "rare", "usual")
        targets = Targets.from_labels(y, np.repeat(["a", "b", "c"], 4).tolist())
        if targets.can_fold_groups:
            n_tried += 1
            for number in (seed, 2**32 - 1 - seed):
                assert all(targets[rows].varies for rows, _ in targets.folds(2, number))
    assert n_tried > 20
    for seed in range(12):  # of three classes, two of which are one group each
        targets = Targets.from_labels(list("aabbcccc"), list("11223344"))
        assert all(targets[rows].varies for rows, _ in targets.folds(2, seed))
