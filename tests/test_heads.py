"""Heads against scikit-learn's own, and what class weights and rare classes do."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_array
from scipy.special import softmax
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge

from layerfuse import BlockRef
from layerfuse.errors import ConfigError, FormatError, StorageError
from layerfuse.evaluation.baselines import tfidf_proba
from layerfuse.heads import (
    HEADS,
    KernelHead,
    LinearHead,
    fit_head,
    load_head,
    ridge_leave_one_out,
    search_penalty,
)
from layerfuse.heads.optimizer import MIN_ROWS_TO_HOLD_OUT, as_tensor, held_out_rows
from layerfuse.pipeline import Plan, train_parts
from layerfuse.probing import score_blocks
from layerfuse.probing.probe import fit_logistic
from layerfuse.probing.ridge import PENALTIES
from layerfuse.targets import LabelSpace, Targets

Array = npt.NDArray[Any]
LINEAR = ("ridge", "balanced_ridge", "logistic")
SEARCHED = ("ridge", "balanced_ridge", "logistic", "kernel")  # those that have a penalty
OTHERS = ("kernel", "mlp")


def targets_of(y: Array, n_classes: int | None = None, weights: Array | None = None) -> Targets:
    return Targets(LabelSpace(np.arange(n_classes or int(y.max()) + 1)), y, weights=weights)


def problem(
    n_classes: int, n: int = 240, dim: int = 10, seed: int = 0, spread: float = 1.5
) -> tuple[Array, Array]:
    """Centered features of total variance about one, and class indices."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    X = rng.normal(size=(n, dim))
    X[:, :n_classes] += spread * np.eye(n_classes)[y]
    X = (X - X.mean(axis=0)) / X.std(axis=0) / np.sqrt(dim)
    return X.astype(np.float32), y


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("C", [0.1, 30.0])
def test_logistic_equals_scikit_learns(n_classes: int, C: float) -> None:
    """Two classes are two columns: the softmax of the logits is always predict_proba."""
    X, y = problem(n_classes)
    head = fit_head("logistic", X, targets_of(y), 1 / C)
    assert isinstance(head, LinearHead)
    assert head.coef.shape == (10, n_classes)
    assert head.intercept.shape == (n_classes,)
    oracle = LogisticRegression(C=C, max_iter=1000).fit(X, y)
    proba = softmax(head.logits(X), axis=1)
    np.testing.assert_allclose(proba, oracle.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_ridge_equals_scikit_learns(n_classes: int) -> None:
    X, y = problem(n_classes)
    head = fit_head("ridge", X, targets_of(y), 3.0)
    oracle = Ridge(alpha=3.0).fit(X, np.eye(n_classes)[y])
    np.testing.assert_allclose(head.logits(X), oracle.predict(X), atol=1e-5)
    np.testing.assert_allclose(head.logits(X).sum(axis=1), 1, atol=1e-5)  # one-hot targets do


def brute_force_losses(X: Array, y: Array, weights: Array) -> list[float]:
    """The weighted squared error of each row by a ridge fitted without it, for each penalty."""
    relative, T = weights / weights.mean(), np.eye(int(y.max()) + 1)[y]
    losses = []
    for penalty in PENALTIES * len(y):
        loss = 0.0
        for row in range(len(y)):
            others = np.arange(len(y)) != row
            model = Ridge(alpha=penalty).fit(X[others], T[others], sample_weight=relative[others])
            error = T[row] - model.predict(X[row : row + 1])[0]
            loss += relative[row] * float(error @ error)
        losses.append(loss / len(y))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["equal", "rows", "classes"])
def test_the_penalty_of_ridge_is_that_of_leave_one_out(weighting: str) -> None:
    X, y = problem(3, n=60, spread=1.0)
    rng = np.random.default_rng(4)
    weights = {
        "equal": np.ones(60),
        "rows": rng.exponential(size=60) + 0.01,
        "classes": np.array([0.1, 1.0, 8.0])[y],
    }[weighting]
    losses = brute_force_losses(X.astype(float), y, weights)
    found = search_penalty("ridge", X, targets_of(y, weights=3 * weights))
    assert found == pytest.approx(PENALTIES[int(np.argmin(losses))] * 60)
    result = ridge_leave_one_out(X, targets_of(y, weights=weights))
    assert result.loss == pytest.approx(min(losses), rel=1e-4)


def test_weighted_leave_one_out_predictions_are_those_of_fits_without_the_row() -> None:
    X, y = problem(2, n=40)
    weights = np.random.default_rng(1).exponential(size=40).astype(np.float32) + 0.1
    weights /= weights.mean()
    result = ridge_leave_one_out(X, targets_of(y, weights=weights))
    for row in range(40):
        others = np.arange(40) != row
        model = Ridge(alpha=result.penalty)
        model.fit(X[others].astype(float), np.eye(2)[y[others]], sample_weight=weights[others])
        expected = model.predict(X[row : row + 1])[0]
        np.testing.assert_allclose(result.predictions[row], expected, atol=1e-4)


@pytest.mark.parametrize("kind", SEARCHED)
def test_the_search_reads_the_weights(kind: str) -> None:
    """Half of the rows are noise; without their weight the penalty is that of the others."""
    X, y = problem(2, n=400, spread=4.0)
    y = np.where(np.arange(400) < 200, y, np.random.default_rng(0).integers(0, 2, 400))
    weights = np.where(np.arange(400) < 200, 1.0, 1e-6)
    weighted = search_penalty(kind, X, targets_of(y, weights=weights))
    assert weighted < search_penalty(kind, X, targets_of(y))


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_equal_weights_change_nothing(kind: str) -> None:
    X, y = problem(3)
    targets, equal = targets_of(y), targets_of(y, weights=np.full(len(y), 0.7))
    penalty = search_penalty(kind, X, targets)
    assert search_penalty(kind, X, equal) == penalty
    plain = fit_head(kind, X, targets, penalty)
    weighted = fit_head(kind, X, equal, penalty)
    np.testing.assert_array_equal(weighted.logits(X), plain.logits(X))


def test_the_penalty_of_logistic_is_near_scikit_learns_choice() -> None:
    """Either may stop one or two steps from the other where the loss is flat."""
    X, y = problem(3, spread=1.0)
    grid = np.logspace(-1.5, 3, 10)
    oracle = LogisticRegressionCV(
        Cs=grid, cv=3, scoring="neg_log_loss", max_iter=1000, use_legacy_attributes=False,
        l1_ratios=(0.0,),
    ).fit(X, y)  # fmt: skip
    steps = np.abs(np.log10(1 / search_penalty("logistic", X, targets_of(y))) - np.log10(oracle.C_))
    assert steps < 1.1


@pytest.mark.parametrize("kind", LINEAR)
def test_the_penalty_falls_where_the_signal_is_clear(kind: str) -> None:
    penalties = []
    for spread in (6.0, 0.3):
        X, y = problem(2, spread=spread)
        penalties.append(search_penalty(kind, X, targets_of(y)))
    assert penalties[0] < penalties[1]


@pytest.mark.parametrize("kind", LINEAR)
def test_the_penalty_is_the_same_for_turned_features(kind: str) -> None:
    X, y = problem(3)
    turned, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))
    again = search_penalty(kind, (X @ turned).astype(np.float32), targets_of(y))
    assert again == pytest.approx(search_penalty(kind, X, targets_of(y)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_heavier_class_is_predicted_more_often(kind: str) -> None:
    X, y = problem(3, n=120, spread=1.0)
    counts = []
    for weight in (0.2, 1.0, 5.0):
        weights = np.array([1.0, weight, 1.0])[y]
        penalty = search_penalty(kind, X, targets_of(y, weights=weights))
        head = fit_head(kind, X, targets_of(y, weights=weights), penalty)
        counts.append(int((head.logits(X).argmax(axis=1) == 1).sum()))
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_balanced_weights_help_a_rare_class(kind: str) -> None:
    X, y = problem(2, n=600, spread=1.0)
    kept = (y == 0) | (np.random.default_rng(0).random(600) < 0.1)
    X, y = X[kept], y[kept]
    weights = (len(y) / 2 / np.bincount(y))[y]
    plain = fit_head(kind, X, targets_of(y), 1.0).logits(X).argmax(axis=1)
    heavier = targets_of(y, weights=weights)
    balanced = fit_head(kind, X, heavier, 1.0).logits(X).argmax(axis=1)
    rare = y == 1
    assert (balanced[rare] == 1).mean() > (plain[rare] == 1).mean() + 0.2


def test_a_balanced_ridge_is_a_ridge_with_balanced_classes() -> None:
    X, y = problem(3, n=300, spread=1.0)
    kept = (y > 0) | (np.random.default_rng(0).random(300) < 0.2)
    X, y = X[kept], y[kept]
    targets = targets_of(y)
    weighted = targets.weighted("balanced")
    shares = weighted.weights / np.sqrt(1 / np.bincount(y))[y]
    np.testing.assert_allclose(shares, shares[0])
    penalty = search_penalty("balanced_ridge", X, targets)
    assert penalty == search_penalty("ridge", X, weighted)
    found = fit_head("balanced_ridge", X, targets, penalty).logits(X)
    np.testing.assert_allclose(found, fit_head("ridge", X, weighted, penalty).logits(X))
    assert np.abs(found - fit_head("ridge", X, targets, penalty).logits(X)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("n_seen", [2, 4])
def test_a_class_without_rows_is_never_predicted(kind: str, n_seen: int) -> None:
    X, y = problem(n_seen)
    labels = np.array([0, 2, 3, 5])[y]  # of six classes, 1 and 4 are missing (or more)
    head = fit_head(kind, X, targets_of(labels, 6), 0.1)
    rng = np.random.default_rng(0)
    far = rng.normal(size=(500, 10)).astype(np.float32)
    predicted = head.logits(np.concatenate([X, far])).argmax(axis=1)
    assert set(predicted) <= set(labels.tolist())
    if kind == "logistic":  # and it doesn't change the others
        missing = np.setdiff1d(np.arange(6), labels)
        proba = softmax(head.logits(X), axis=1)
        assert proba[:, missing].max() < 1e-8
        oracle = LogisticRegression(C=10, max_iter=1000).fit(X, labels)
        np.testing.assert_allclose(proba[:, oracle.classes_], oracle.predict_proba(X), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    "counts", [(1, 1), (2, 1), (1, 2), (2, 2), (1, 1, 1), (3, 1, 1), (2, 2, 1), (30, 1), (30, 1, 1)]
)
def test_few_rows_are_enough(kind: str, counts: tuple[int, ...]) -> None:
    """What is left of a small data set inside nested folds."""
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.random.default_rng(0).normal(size=(len(y), 10)).astype(np.float32)
    X -= X.mean(axis=0)
    for seed in range(1 if kind == "mlp" else 3):
        penalty = search_penalty(kind, X, targets_of(y), seed=seed)
        assert (penalty > 0) == (kind in SEARCHED)
        assert np.isfinite(fit_head(kind, X, targets_of(y), penalty).logits(X)).all()


@pytest.mark.parametrize("kind", HEADS)
def test_constant_features_predict_the_most_frequent_class(kind: str) -> None:
    X, y = np.zeros((40, 5), np.float32), np.array([0] * 30 + [1] * 10)
    penalty = search_penalty(kind, X, targets_of(y))
    assert (fit_head(kind, X, targets_of(y), penalty).logits(X).argmax(axis=1) == 0).all()


def circle(n: int, seed: int) -> tuple[Array, Array]:
    """Two informative columns; the inside of a circle against the outside."""
    X = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    return X / np.float32(np.sqrt(2)), (np.square(X).sum(axis=1) > 2 * np.log(2)).astype(np.intp)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_circle_is_learned_by_heads_that_are_not_linear(kind: str) -> None:
    X, y = circle(800, seed=0)
    others, truth = circle(400, seed=1)
    head = fit_head(kind, X, targets_of(y), search_penalty(kind, X, targets_of(y)))
    accuracy = (head.logits(others).argmax(axis=1) == truth).mean()
    assert accuracy < 0.7 if kind in LINEAR else accuracy > 0.85


def test_kernel_equals_kernel_ridge_in_closed_form() -> None:
    """With all rows as landmarks nothing is approximated: ``K (K + alpha)^-1 Y``, both centred."""
    X, y = problem(3)
    penalty = search_penalty("kernel", X, targets_of(y))
    head = fit_head("kernel", X, targets_of(y), penalty)
    distances = np.linalg.norm(X[:, None].astype(float) - X[None], axis=2)
    median = np.median(distances[np.triu_indices(len(X), 1)])
    centre = np.eye(len(X)) - 1 / len(X)
    K = centre @ np.exp(-(distances**2) / (2 * median**2)) @ centre
    Y = np.eye(3)[y]
    expected = Y.mean(axis=0) + K @ np.linalg.solve(K + penalty * np.eye(len(X)), centre @ Y)
    np.testing.assert_allclose(head.logits(X), expected, atol=2e-3)


@pytest.mark.slow
def test_kernel_with_fewer_landmarks_than_rows_is_near_the_exact_one() -> None:
    X, y = problem(3, n=2400, dim=6)
    head = fit_head("kernel", X, targets_of(y), 1.0)
    assert isinstance(head, KernelHead)
    assert head.landmarks.shape == (6, 2048)
    drawn = head.landmarks.T / head.scale
    assert (np.abs(drawn[:5, None] - X[None]).max(axis=2).min(axis=1) < 1e-5).all()
    oracle = KernelRidge(alpha=1.0, kernel="rbf", gamma=float(head.scale[0]) ** 2 / 2)
    Y = np.eye(3)[y] - np.eye(3)[y].mean(axis=0)
    expected = oracle.fit(X, Y).predict(X)
    difference = head.logits(X) - head.logits(X).mean(axis=0) - expected
    assert np.abs(difference).mean() < 0.01


@pytest.mark.slow
def test_mlp_is_two_hidden_layers() -> None:
    X, y = problem(3)
    head = fit_head("mlp", X, targets_of(y), 0.0)
    state = head.arrays()
    hidden = np.maximum(X @ state["weight.0"] + state["bias.0"], 0)
    hidden = np.maximum(hidden @ state["weight.1"] + state["bias.1"], 0)
    assert (state["weight.0"].shape, state["weight.1"].shape) == ((10, 1024), (1024, 256))
    expected = hidden @ state["weight.2"] + state["bias.2"]
    np.testing.assert_allclose(head.logits(X), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_the_seed_decides_and_the_users_random_state_stays(kind: str) -> None:
    import torch

    X, y = problem(2, n=2100 if kind == "kernel" else 60)  # kernel draws only where rows are many
    torch.manual_seed(5)
    before = torch.get_rng_state()
    known = np.random.get_state()[1].copy()  # noqa: NPY002  # the state that must stay
    one, same, other = (fit_head(kind, X, targets_of(y), 1.0, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.logits(X), same.logits(X))
    assert np.abs(one.logits(X) - other.logits(X)).max() > 1e-5
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], known)  # noqa: NPY002


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_arrays_there_and_back(kind: str) -> None:
    X, y = problem(3)
    head = fit_head(kind, X, targets_of(y), 0.5)
    saved = {name: array.copy() for name, array in head.arrays().items()}
    assert {array.dtype for array in saved.values()} == {np.dtype(np.float32)}
    again = load_head(kind, saved, head.penalty)
    assert (again.kind, again.penalty, again.shape) == (kind, head.penalty, (10, 3))
    np.testing.assert_array_equal(again.logits(X), head.logits(X))
    for name, array in saved.items():
        with pytest.raises(FormatError):
            load_head(kind, {key: value for key, value in saved.items() if key != name}, 0.5)
        for changed in (array[..., :-1], array[None], array.astype(np.float64)):
            with pytest.raises(FormatError):
                load_head(kind, {**saved, name: changed}, 0.5)
    with pytest.raises(FormatError, match=r"no use for the tensors \['more'\]"):
        load_head(kind, {**saved, "more": np.zeros(2, np.float32)}, 0.5)


def test_held_out_rows_are_stratified() -> None:
    y = np.repeat([0, 1, 2, 3], [600, 200, 9, 1])
    y = np.random.default_rng(0).permutation(y)
    held = held_out_rows(targets_of(y), seed=0)
    assert 0.1 <= len(held) / len(y) <= 0.15
    np.testing.assert_allclose(np.bincount(y[held], minlength=4)[:2], [75, 25], atol=1)
    for seed in range(20):
        assert not np.isin(np.flatnonzero(y == 3), held_out_rows(targets_of(y), seed)).any()
    assert not len(held_out_rows(targets_of(y[: MIN_ROWS_TO_HOLD_OUT - 1]), seed=0))


def test_training_rows_are_not_copied() -> None:
    X, _ = problem(2)
    assert np.shares_memory(as_tensor(X).numpy(), X)
    X.flags.writeable = False
    np.testing.assert_array_equal(as_tensor(X).numpy(), X)


def test_a_head_is_float32_and_its_logits_are_linear() -> None:
    X, y = problem(3)
    head = fit_head("logistic", X, targets_of(y), 1.0)
    assert isinstance(head, LinearHead)
    assert (head.coef.dtype, head.intercept.dtype) == (np.float32, np.float32)
    assert head.coef.flags.c_contiguous
    np.testing.assert_allclose(head.logits(X), X @ head.coef + head.intercept)
    again = LinearHead(head.coef.copy(), head.intercept.copy(), head.penalty)
    np.testing.assert_array_equal(again.logits(X), head.logits(X))


def test_the_search_is_the_same_for_the_same_seed() -> None:
    X, y = problem(3)
    assert search_penalty("logistic", X, targets_of(y), seed=3) == search_penalty(
        "logistic", X, targets_of(y), seed=3
    )


def test_an_unknown_head_is_refused() -> None:
    X, y = problem(2)
    with pytest.raises(
        ConfigError, match=r"'logistc'.*ridge, logistic, kernel, mlp\. Did you mean 'logistic'"
    ):
        fit_head("logistc", X, targets_of(y), 1.0)
    with pytest.raises(ConfigError, match="Unknown head 'svm'"):
        search_penalty("svm", X, targets_of(y))
    with pytest.raises(FormatError, match=r"Unknown head 'svm'"):
        load_head("svm", {}, 0.0)


def test_a_head_that_came_with_a_fusion_is_loaded_but_cannot_be_asked_for() -> None:
    saved = {"coef": np.eye(2, dtype=np.float32), "intercept": np.zeros(2, np.float32)}
    head = load_head("linear", saved, 0.0)
    assert (type(head), head.kind) == (LinearHead, "linear")
    with pytest.raises(ConfigError, match="Unknown head 'linear'"):
        fit_head("linear", np.eye(2, dtype=np.float32), targets_of(np.array([0, 1])), 1.0)


def test_all_are_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "how_it_works.md").read_text("utf-8")
    assert [name for name in HEADS if f"\n| `{name}` " not in page] == []


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("head", "kind"),
    [(head, kind) for head in ("ridge", "logistic") for kind in (2, 3, "labels")]
    + [("balanced_ridge", 2), ("balanced_ridge", 3)],
)
def test_rows_in_parts_are_as_all_of_them(head: str, kind: int | str, weighted: bool):
    rng = np.random.default_rng(0)
    y = np.minimum(np.arange(500) % 7, 2 if kind == "labels" else int(kind) - 1)
    X = (rng.normal(size=(500, 12)) + 0.5 * np.eye(12)[y] + 3).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=500).astype(np.float32) if weighted else None
    targets = targets_of(y, weights=weights)
    if kind == "labels":
        sets = [[f"c{code}", "even"] if code % 2 == 0 else [f"c{code}"] for code in y]
        targets = replace(Targets.from_labels(sets), weights=weights)
    whole = fit_head(head, X, targets, 20.0)
    order = rng.permutation(500)
    parts = (
        (order[start : start + 64], X[order[start : start + 64]]) for start in range(0, 500, 64)
    )
    plan = Plan((BlockRef("e", 0, "mean"),), head=head)
    found = train_parts(plan, parts, targets, 20.0).head
    tolerance = 2e-2 if head == "logistic" else 1e-5  # of solvers
    np.testing.assert_allclose(found.logits(X), whole.logits(X), atol=tolerance)


class TestManyClasses:
    """scikit-learn warns where classes are more than half of the rows; here warnings are errors."""

    def test_every_use_of_logistic_regression_is_silent(self):
        y = np.array([f"c{row // 2}" if row < 40 else f"d{row}" for row in range(60)])
        X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
        X[:40] += 3 * np.repeat(np.random.default_rng(1).normal(size=(20, 5)), 2, axis=0)
        targets = Targets.from_labels(y)
        HEADS["logistic"].fit(X, targets, 1.0, seed=0)
        HEADS["logistic"].search_penalty(X, targets, seed=0)
        score_blocks({BlockRef("e", 0, "mean"): X}, y, scorer="logistic")
        texts = [f"word{row // 2} other" for row in range(60)]
        found = targets.space.decide(tfidf_proba(texts, targets, texts))
        assert (found[:40] == targets.codes[:40]).all()

    @pytest.mark.filterwarnings("ignore:The number of unique classes")
    @pytest.mark.parametrize("weighted", [False, True])
    def test_the_model_is_that_of_the_rows_alone(self, weighted: bool):
        random = np.random.default_rng(0)
        X, codes = random.normal(size=(40, 6)), np.arange(40) % 25
        weights = random.uniform(0.5, 2, 40) if weighted else None
        plain = LogisticRegression(tol=1e-8).fit(X, codes, sample_weight=weights)
        found = fit_logistic(LogisticRegression(tol=1e-8), X, codes, weights)
        np.testing.assert_allclose(found.coef_, plain.coef_, atol=1e-5)
        sparse = fit_logistic(LogisticRegression(tol=1e-8), csr_array(X), codes, weights)
        np.testing.assert_allclose(sparse.coef_, plain.coef_, atol=1e-5)


def test_no_room_for_parts_is_a_storage_error() -> None:
    """A logistic head goes through them from a temporary file."""
    X, y = problem(3, n=300)
    plan = Plan((BlockRef("e", 0, "mean"),), head="logistic")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="no room"):
            train_parts(plan, [(np.arange(300), X)], targets_of(y), 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
