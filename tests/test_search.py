"""The search for blocks, fusion and head: what it tries, what it takes, what it must not see."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from layerfuse.blocks import BlockRef
from layerfuse.errors import ConfigError
from layerfuse.model_selection import AUTO, Recipe, check_recipe, held_out_errors, search
from layerfuse.pipeline import Plan, Task
from layerfuse.probing import Probed, probe_blocks, probe_rows
from layerfuse.resources import Budget
from layerfuse.selection import Allowance
from layerfuse.targets import stratified_folds

Array = npt.NDArray[Any]
Problem = tuple[dict[BlockRef, Array], Array]

PRODUCTS = {f"{name}+residual" for name in ("hadamard", "tensor", "matmul", "quaternion")}
PRODUCTS |= {"bilinear+residual"}


def named(arrays: list[Array]) -> dict[BlockRef, Array]:
    return {
        BlockRef("e", layer, "mean"): array.astype(np.float32) for layer, array in enumerate(arrays)
    }


def recipe(fusion: str = AUTO, head: str = AUTO, *, blocks: int = 2, n_classes: int = 2) -> Recipe:
    """All of the best blocks, so that what is tried does not hang on the selection."""
    return Recipe("top_k", Allowance(Budget(blocks=blocks), {}), fusion, head, Task(n_classes))


def product(n: int, seed: int) -> Problem:
    """The label is the sign of a * b; one block holds a, the other b."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 2))
    arrays = []
    for j in range(2):
        X = rng.normal(size=(n, 8))
        X[:, :4] = hidden[:, j : j + 1] + 0.3 * X[:, :4]
        arrays.append(X)
    return named(arrays), (hidden[:, 0] * hidden[:, 1] > 0).astype(np.intp)


def linear(n: int, seed: int) -> Problem:
    """Each block holds a half of twelve directions whose weighted sum, with noise, is the label."""
    rng = np.random.default_rng(seed)
    hidden, weights = rng.normal(size=(n, 12)), rng.normal(size=12)
    noise = 0.5 * np.linalg.norm(weights) * rng.normal(size=n)
    arrays = [
        part @ rng.normal(size=(6, 24)) + rng.normal(size=(n, 24))
        for part in np.split(hidden, 2, axis=1)
    ]
    return named(arrays), (hidden @ weights + noise > 0).astype(np.intp)


class TestWhatIsTried:
    def test_nothing_when_fusion_and_head_are_given(self) -> None:
        embeddings, y = product(400, seed=0)
        found = search(probe_blocks(embeddings, y), y, recipe("sum", "logistic"))
        assert found.plan == Plan(found.selection.blocks, "sum", "logistic")
        assert found.trials == ()

    def test_only_heads_for_one_block(self) -> None:
        embeddings, y = linear(400, seed=0)
        found = search(probe_blocks(embeddings, y), y, recipe(blocks=1))
        assert len(found.plan.blocks) == 1
        assert {(trial.fusion, trial.head) for trial in found.trials} == {
            ("concat", "logistic"),
        }  # fmt: skip

    def test_only_fusions_beside_a_given_head(self) -> None:
        embeddings, y = product(400, seed=0)
        found = search(probe_blocks(embeddings, y), y, recipe(head="logistic"))
        assert {trial.head for trial in found.trials} == {found.plan.head} == {"logistic"}
        assert {trial.fusion for trial in found.trials} > PRODUCTS

    def test_only_heads_beside_a_given_fusion(self) -> None:
        embeddings, y = product(400, seed=0)
        found = search(probe_blocks(embeddings, y), y, recipe("mean"))
        assert {trial.fusion for trial in found.trials} == {found.plan.fusion} == {"mean"}
        assert {trial.head for trial in found.trials} == {"logistic"}

    def test_nothing_below_300_rows(self) -> None:
        embeddings, y = product(300, seed=0)
        few = {block: X[:299] for block, X in embeddings.items()}
        found = search(probe_blocks(few, y[:299]), y[:299], recipe())
        assert (found.plan.fusion, found.plan.head, found.trials) == ("concat", "ridge", ())
        assert search(probe_blocks(embeddings, y), y, recipe()).trials

    @pytest.mark.parametrize(
        ("fusion", "head", "message"),
        [("autos", "auto", "'autos'"), ("auto", "rigde", "Did you mean 'ridge'")],
    )
    def test_unknown_names_are_refused(self, fusion: str, head: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_recipe(fusion, head)

    def test_auto_is_among_the_choices_named(self) -> None:
        for fusion, head in (("atuo", AUTO), (AUTO, "atuo")):
            with pytest.raises(ConfigError, match=r"Choose from auto, .*Did you mean 'auto'"):
                check_recipe(fusion, head)

    def test_a_residual_form_may_be_meant(self) -> None:
        with pytest.raises(ConfigError, match=r"Did you mean 'mean\+residual'"):
            check_recipe("mean+residul", AUTO)

    def test_known_names_and_auto_pass(self) -> None:
        for fusion, head in ((AUTO, AUTO), ("tensor+residual", AUTO), (AUTO, "mlp")):
            check_recipe(fusion, head)


class TestWhatIsTaken:
    def test_a_product_where_the_label_is_one(self) -> None:
        won = Counter[str]()
        for seed in range(5):
            embeddings, y = product(500, seed)
            found = search(probe_blocks(embeddings, y), y, recipe())
            won[found.plan.fusion] += 1
            sure = {trial.fusion: trial for trial in found.trials if trial.is_sure}
            assert len(PRODUCTS & set(sure)) >= 2
            assert max(trial.gain for trial in found.trials) > 0.1
        assert sum(won[fusion] for fusion in PRODUCTS) >= 4

    def test_concatenation_with_a_ridge_head_where_the_label_is_a_sum(self) -> None:
        kept = 0
        for seed in range(6):
            embeddings, y = linear(1000, seed)
            found = search(probe_blocks(embeddings, y), y, recipe())
            kept += (found.plan.fusion, found.plan.head) == ("concat", "ridge")
            assert max(trial.gain for trial in found.trials) < 0.05
        assert kept >= 4

    @pytest.mark.parametrize("seed", [0, 2])
    def test_a_rival_that_is_better_but_not_surely_so_is_left(self, seed: int) -> None:
        """What is taken is the largest sure gain of the last comparison, if there is one."""
        embeddings, y = linear(450, seed)
        found = search(probe_blocks(embeddings, y), y, recipe())
        assert any(trial.gain > 0 and not trial.is_sure for trial in found.trials)
        sure = [trial for trial in found.trials if trial.is_sure]
        winner = max(sure, key=lambda trial: trial.gain, default=None)
        expected = ("concat", "ridge") if winner is None else (winner.fusion, winner.head)
        assert (found.plan.fusion, found.plan.head) == expected

    def test_rivals_drop_out_from_rung_to_rung(self) -> None:
        embeddings, y = product(1000, seed=0)
        found = search(probe_blocks(embeddings, y), y, recipe())
        first = [trial for trial in found.trials if trial.n_rows == 900]
        second = [trial for trial in found.trials if trial.n_rows == 1000]
        assert (len(first), len(second)) == (11, 2)
        assert len(first) + len(second) == len(found.trials)
        names = [(trial.fusion, trial.head) for trial in sorted(first, key=lambda t: -t.gain)]
        assert [(trial.fusion, trial.head) for trial in second] == names[:2]
        winner = max((trial for trial in second if trial.is_sure), key=lambda trial: trial.gain)
        assert (found.plan.fusion, found.plan.head) == (winner.fusion, winner.head)

    def test_trials_have_sane_numbers(self) -> None:
        embeddings, y = product(450, seed=1)
        trials = search(probe_blocks(embeddings, y), y, recipe()).trials
        assert len({(trial.fusion, trial.head) for trial in trials}) == len(trials) == 11
        for trial in trials:
            assert trial.n_rows == 450
            assert -2 <= trial.gain <= 2
            assert -1 <= trial.accuracy_gain <= 1
            assert 0 < trial.gain_se < 0.2
            assert trial.is_sure == (trial.gain > 2 * trial.gain_se and trial.accuracy_gain >= 0)
            assert set(trial.to_dict()) == {
                "fusion", "head", "n_rows", "gain", "gain_se", "accuracy_gain",
            }  # fmt: skip

    def test_the_search_is_the_same_for_the_same_rows(self) -> None:
        embeddings, y = product(350, seed=2)
        probed = probe_blocks(embeddings, y)
        assert search(probed, y, recipe()) == search(probed, y, recipe())


class TestWhatItSees:
    def test_rows_outside_a_fold_change_nothing(self) -> None:
        """Their labels and, but for the axes, their features play no part."""
        embeddings, y = product(500, seed=0)
        rows = np.flatnonzero(np.random.default_rng(0).random(500) < 0.7)
        others = np.setdiff1d(np.arange(500), rows)
        probed = probe_blocks(embeddings, y)
        found = search(probe_rows(probed, rows, y[rows]), y[rows], recipe())
        changed = y.copy()
        changed[others] = 1 - y[others]
        spoilt = {block: Z.copy() for block, Z in probed.coordinates.items()}
        for Z in spoilt.values():
            Z[others] = 1e3
        fold = Probed(probe_blocks(embeddings, changed).scores, spoilt, probed.axes)
        again = search(probe_rows(fold, rows, changed[rows]), changed[rows], recipe())
        assert again == found
        assert found.trials

    @pytest.mark.parametrize(("fusion", "head"), [("concat", "ridge"), ("stacking", "logistic")])
    def test_errors_of_held_out_rows_are_those_of_a_model_without_them(
        self, fusion: str, head: str
    ) -> None:
        """Another label for a held-out row changes no logits, so its 0/1 error turns over."""
        embeddings, y = linear(240, seed=0)
        probed = probe_blocks(embeddings, y)
        plan = Plan(tuple(embeddings), fusion, head)
        rows, held = stratified_folds(y, 3, seed=0)[0]
        parts = [(rows, held)]
        errors = held_out_errors(plan, probed.coordinates, y, Task(2), parts)
        assert errors.shape == (len(held), 2)
        assert set(errors[:, 1]) <= {0, 1}
        assert 0 <= errors[:, 0].min() < errors[:, 0].max() <= 2
        changed = y.copy()
        changed[held] = 1 - y[held]
        turned = held_out_errors(plan, probed.coordinates, changed, Task(2), parts)
        np.testing.assert_array_equal(turned[:, 1], 1 - errors[:, 1])

    def test_a_class_that_a_fold_lacks(self) -> None:
        """A rare class may be missing from the rows that a rival is fitted on."""
        embeddings, y = linear(330, seed=1)
        y = y.copy()
        y[:2] = 2
        found = search(probe_blocks(embeddings, y), y, recipe(n_classes=3))
        assert len(found.trials) == 11
        assert all(np.isfinite(trial.gain) for trial in found.trials)
