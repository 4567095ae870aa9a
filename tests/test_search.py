"""The search for blocks, fusion and head: what it tries, what it takes, what it must not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from layerfuse.blocks import BlockRef
from layerfuse.errors import ConfigError
from layerfuse.model_selection import (
    AUTO,
    SearchResult,
    SearchSpace,
    Trial,
    check_search,
    held_out_errors,
    search,
)
from layerfuse.pipeline import Plan
from layerfuse.probing import ProbeResults, probe_blocks, probe_rows
from layerfuse.resources import Budget
from layerfuse.selection import CostBudget
from layerfuse.targets import Targets

pytestmark = pytest.mark.slow

Array = npt.NDArray[Any]
Problem = tuple[dict[BlockRef, Array], Array]


def named(arrays: list[Array]) -> dict[BlockRef, Array]:
    return {
        BlockRef("e", layer, "mean"): array.astype(np.float32) for layer, array in enumerate(arrays)
    }


def space(fusion: str = AUTO, head: str = AUTO, *, blocks: int = 2) -> SearchSpace:
    """All of the best blocks, so that what is compared does not hang on the selection."""
    return SearchSpace("top_k", CostBudget(Budget(blocks=blocks), {}), fusion, head)


def find(embeddings: dict[BlockRef, Array], y: Array, own: SearchSpace) -> SearchResult:
    targets = Targets.from_labels(y)
    return search(probe_blocks(embeddings, targets), targets, own)


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


def classes_on_a_line(n: int, seed: int) -> Problem:
    """Five classes, far apart in one direction."""
    rng = np.random.default_rng(seed)
    y = rng.integers(5, size=n)
    X = rng.normal(size=(n, 4))
    X[:, 0] += 5 * y
    return named([X]), y


class TestWhatIsTried:
    def test_nothing_when_fusion_and_head_are_given(self) -> None:
        embeddings, y = product(400, seed=0)
        found = find(embeddings, y, space("sum", "logistic"))
        assert found.plan == Plan(found.selection.blocks, "sum", "logistic")
        assert found.trials == ()

    @pytest.mark.parametrize("fusion", [AUTO, "mean"])
    def test_heads_over_one_fusion(self, fusion: str) -> None:
        embeddings, y = product(400, seed=0)
        found = find(embeddings, y, space(fusion))
        assert {trial.head for trial in found.trials} == {"logistic"}
        assert found.plan.fusion == ("concat" if fusion == AUTO else fusion)

    def test_nothing_below_300_rows(self) -> None:
        embeddings, y = product(300, seed=0)
        few = {block: X[:299] for block, X in embeddings.items()}
        found = find(few, y[:299], space())
        assert (found.plan.fusion, found.plan.head, found.trials) == ("concat", "ridge", ())
        assert find(embeddings, y, space()).trials

    @pytest.mark.parametrize(
        ("fusion", "head", "message"),
        [("autos", "auto", "'autos'"), ("auto", "rigde", "Did you mean 'ridge'")],
    )
    def test_unknown_names_are_refused(self, fusion: str, head: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_search(fusion, head)

    def test_auto_is_among_the_choices_named(self) -> None:
        for fusion, head in (("atuo", AUTO), (AUTO, "atuo")):
            with pytest.raises(ConfigError, match=r"Choose from auto, .*Did you mean 'auto'"):
                check_search(fusion, head)

    def test_a_residual_form_may_be_meant(self) -> None:
        with pytest.raises(ConfigError, match=r"Did you mean 'mean\+residual'"):
            check_search("mean+residul", AUTO)

    def test_known_names_and_auto_pass(self) -> None:
        for fusion, head in ((AUTO, AUTO), ("tensor+residual", AUTO), (AUTO, "mlp")):
            check_search(fusion, head)


class TestWhatIsTaken:
    def test_a_product_where_the_label_is_one(self) -> None:
        for seed in range(5):
            embeddings, y = product(500, seed)
            own = SearchSpace("greedy", CostBudget(Budget(blocks=2), {}))
            found = find(embeddings, y, own)
            assert (found.plan.fusion, found.plan.head) == ("tensor+residual", "ridge")
            assert set(found.plan.blocks) == set(embeddings)
            assert found.trials == ()

    def test_a_logistic_head_where_many_classes_are_far_apart(self) -> None:
        """Squared errors mask the classes in the middle of a line (Hastie et al., section 4.2)."""
        won = 0
        for seed in range(4):
            embeddings, y = classes_on_a_line(800, seed)
            found = find(embeddings, y, space(blocks=1))
            won += (found.plan.fusion, found.plan.head) == ("concat", "logistic")
        assert won == 4

    def test_concatenation_with_a_ridge_head_where_the_label_is_a_sum(self) -> None:
        kept = 0
        for seed in range(6):
            embeddings, y = linear(1000, seed)
            found = find(embeddings, y, space())
            kept += (found.plan.fusion, found.plan.head) == ("concat", "ridge")
            assert max(trial.gain for trial in found.trials) < 0.05
        assert kept >= 5

    def test_promising_heads_go_on_to_more_rows(self) -> None:
        embeddings, y = classes_on_a_line(1900, seed=0)
        found = find(embeddings, y, space(blocks=1))
        assert [(trial.head, trial.n_rows) for trial in found.trials] == [
            ("logistic", 900),
            ("logistic", 1900),
        ]
        assert found.trials[-1].is_significant
        assert (found.plan.fusion, found.plan.head) == ("concat", "logistic")

    def test_trials_have_sane_numbers(self) -> None:
        embeddings, y = linear(450, seed=1)
        y = y + (embeddings[next(iter(embeddings))][:, 0] > 2)  # a rare class
        trials = find(embeddings, y, space()).trials
        assert {trial.head for trial in trials} == {"logistic", "balanced_ridge"}
        for trial in trials:
            assert (trial.n_rows, trial.n_candidates) == (450, 2)
            assert -2 <= trial.gain <= 2
            assert -1 <= trial.accuracy_gain <= 1
            assert 0 < trial.gain_se < 0.2


class TestSignificance:
    @pytest.mark.parametrize(("n_candidates", "least"), [(1, 1.645), (3, 2.128), (5, 2.326)])
    def test_the_bound_grows_with_the_number_of_candidates(
        self, n_candidates: int, least: float
    ) -> None:
        """Normal quantiles of 5% over the number of candidates, from a table."""
        for gain, expected in ((least - 0.002, False), (least + 0.002, True)):
            trial = Trial("logistic", 900, gain, 1.0, 0.0, n_candidates)
            assert trial.is_significant == expected
        assert trial.p_value == pytest.approx(0.05, rel=0.01)

    def test_a_gain_that_costs_accuracy_is_none(self) -> None:
        assert Trial("logistic", 900, 1.0, 0.1, 0.0).is_significant
        assert not Trial("logistic", 900, 1.0, 0.1, -0.001).is_significant
        assert not Trial("logistic", 900, -1.0, 0.1, 0.1).is_significant
        assert not Trial("logistic", 900, 0.0, 0.0, 0.0).is_significant

    def test_of_candidates_without_a_gain_one_in_twenty_searches_takes_one(self) -> None:
        """The best of five, each with a gain of zero on average."""
        rng = np.random.default_rng(0)
        wins, searches = 0, 2000
        for _ in range(searches):
            gains = rng.normal(size=(5, 200))
            wins += any(
                Trial("h", 200, own.mean(), own.std() / 200**0.5, 0.0, 5).is_significant
                for own in gains
            )
        assert 0.035 < wins / searches < 0.065

    @pytest.mark.parametrize("kind", ["noise", "linear"])
    def test_false_wins_are_rare(self, kind: str) -> None:
        """Where no candidate can be better, on average, than concatenation with a ridge head."""
        wins, seeds = 0, 100
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            y, noise = rng.integers(2, size=330), rng.normal(size=(2, 330, 6))
            if kind == "linear":
                noise[:, :, 0] += 0.7 * y
            found = find(named(list(noise)), y, space())
            wins += (found.plan.fusion, found.plan.head) != ("concat", "ridge")
        assert wins <= 10  # 5% of 100 are 5; more than 10 come by chance once in a hundred


class TestWhatItSees:
    def test_the_search_is_the_same_for_the_same_rows_and_any_number_of_threads(self) -> None:
        embeddings, y = product(350, seed=2)
        targets = Targets.from_labels(y)
        probed = probe_blocks(embeddings, targets)
        found = [search(probed, targets, space(), n_jobs=n_jobs) for n_jobs in (None, 1, 3)]
        assert found[0] == found[1] == found[2]

    def test_rows_outside_a_fold_change_nothing(self) -> None:
        """Their labels and, but for the axes, their features play no part."""
        embeddings, y = product(500, seed=0)
        rows = np.flatnonzero(np.random.default_rng(0).random(500) < 0.7)
        others = np.setdiff1d(np.arange(500), rows)
        targets = Targets.from_labels(y)
        probed = probe_blocks(embeddings, targets)
        found = search(probe_rows(probed, rows, targets[rows]), targets[rows], space())
        changed = y.copy()
        changed[others] = 1 - y[others]
        spoilt = {block: Z.copy() for block, Z in probed.coordinates.items()}
        for Z in spoilt.values():
            Z[others] = 1e3
        others_changed = Targets(targets.space, changed)
        scores = probe_blocks(embeddings, others_changed).scores
        fold = ProbeResults(scores, spoilt, probed.axes)
        part = others_changed[rows]
        again = search(probe_rows(fold, rows, part), part, space())
        assert again == found
        assert found.trials

    @pytest.mark.parametrize(("fusion", "head"), [("concat", "ridge"), ("stacking", "logistic")])
    def test_errors_of_held_out_rows_are_those_of_a_model_without_them(
        self, fusion: str, head: str
    ) -> None:
        """Another label for a held-out row changes no logits, so its 0/1 error turns over."""
        embeddings, y = linear(240, seed=0)
        targets = Targets.from_labels(y)
        probed = probe_blocks(embeddings, targets)
        plan = Plan(tuple(embeddings), fusion, head)
        rows, held = targets.folds(3, seed=0)[0]
        errors = held_out_errors(plan, probed.coordinates, targets, [(rows, held)])
        assert errors.shape == (len(held), 2)
        assert set(errors[:, 1]) <= {0, 1}
        assert 0 <= errors[:, 0].min() < errors[:, 0].max() <= 2
        changed = y.copy()
        changed[held] = 1 - y[held]
        turned = held_out_errors(
            plan, probed.coordinates, Targets(targets.space, changed), [(rows, held)]
        )
        np.testing.assert_array_equal(turned[:, 1], 1 - errors[:, 1])

    def test_a_class_that_a_fold_lacks(self) -> None:
        """A rare class may be missing from the rows that a candidate is fitted on."""
        embeddings, y = linear(330, seed=1)
        y = y.copy()
        y[:2] = 2
        found = find(embeddings, y, space())
        assert [trial.head for trial in found.trials] == ["logistic", "balanced_ridge"]
        assert all(np.isfinite(trial.gain) for trial in found.trials)
