"""The verdict from predictions made by hand: its numbers, its wording, its recommendation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import f1_score

from layerfuse.blocks import BlockRef, BlockScore, BlockScores
from layerfuse.evaluation.baselines import Baseline
from layerfuse.evaluation.verdict import (
    BaselineComparison,
    Rows,
    Tradeoff,
    Verdict,
    compare_baselines,
    judge,
    measure_gap,
    signed,
    times,
    tradeoffs,
)
from layerfuse.metrics import Estimate, paired_difference
from layerfuse.pipeline import Plan
from layerfuse.resources import EncoderCost, PipelineCost, pipeline_cost
from layerfuse.targets import LabelSpace, Targets
from messages import check_message

Labels = npt.NDArray[np.intp]

N = 400
COSTS = {
    "small": EncoderCost("small", (1_000_000, 2_000_000, 3_000_000), 4, ms_per_text=4.0, dims=10),
    "large": EncoderCost("large", (5_000_000, 9_000_000, 13_000_000), 4, ms_per_text=12.0, dims=40),
}
FUSED = ("small:2:mean", "large:1:mean")


def refs(*texts: str) -> tuple[BlockRef, ...]:
    return tuple(BlockRef.parse(text) for text in texts)


def truth(n: int = N) -> Labels:
    return np.arange(n) % 2


def right(share: float, n: int = N, *, start: float = 0.0) -> Labels:
    """Predictions of which the given share is right: those from ``start`` on, in a circle."""
    place = (np.arange(n) / n - start) % 1.0
    return np.where(place < share, truth(n), 1 - truth(n))


def rows(share: float, n: int = N) -> Rows:
    return Rows(Targets(LabelSpace(np.arange(2)), truth(n)), right(share, n))


def scores(**accuracies: float) -> BlockScores:
    """Of blocks such as small_2."""
    return BlockScores(
        tuple(
            BlockScore(
                BlockRef(name[:-2], int(name[-1]), "mean"), accuracy, 0.01, accuracy,
                1 - accuracy, 0.01, 1.0,
            )
            for name, accuracy in accuracies.items()
        ),
        "ridge",
    )  # fmt: skip


SCORES = scores(small_1=0.6, small_2=0.7, large_1=0.8, large_2=0.65)


def baseline(name: str, *blocks: str, cv: float, test: float | None = None) -> Baseline:
    return Baseline(
        name,
        refs(*blocks)[0].encoder if blocks else None,
        Plan(refs(*blocks)) if blocks else None,
        right(cv),
        None if test is None else right(test),
    )


def usual(
    *, majority: float = 0.5, tfidf: float = 0.5, last: float = 0.6, best: float = 0.6,
    test: float | None = None,
) -> list[Baseline]:  # fmt: skip
    """What a run has; the better last layer is small's."""
    return [
        baseline("majority", cv=majority, test=test),
        baseline("tfidf", cv=tfidf, test=test),
        baseline("last_layer", "small:2:mean", cv=last, test=test),
        baseline("last_four", "small:0:mean", "small:1:mean", "small:2:mean", cv=last, test=test),
        baseline("last_layer", "large:2:mean", cv=0.5, test=test),
        baseline("last_matched", "small:1:mean", "small:2:mean", cv=last, test=test),
        baseline("best_block", "large:1:mean", cv=best, test=test),
    ]


def verdict(
    baselines: list[Baseline],
    own: float = 0.8,
    test: float | None = None,
    plan: tuple[str, ...] = FUSED,
) -> Verdict:
    tested = None if test is None else rows(test)
    return judge(baselines, rows(own), tested, Plan(refs(*plan)), SCORES, COSTS)


class TestComparison:
    def test_numbers_are_those_of_the_rows(self) -> None:
        (one,) = compare_baselines(
            [baseline("last_layer", "small:2:mean", cv=0.7, test=0.65)], rows(0.8), rows(0.9), COSTS
        )
        assert one.test is not None
        assert (one.cv.accuracy.value, one.test.accuracy.value) == pytest.approx((0.7, 0.65))
        assert one.cv.accuracy.low < 0.7 < one.cv.accuracy.high
        assert one.cv.macro_f1 == pytest.approx(f1_score(truth(), right(0.7), average="macro"))
        assert one.cv.gain.difference == pytest.approx(0.1)
        assert one.test.gain.difference == pytest.approx(0.25)
        correct = [right(share) == truth() for share in (0.8, 0.7)]
        assert one.cv.gain == paired_difference(*correct, seed=0)
        assert one.cost == pipeline_cost(refs("small:2:mean"), COSTS)

    def test_rows_are_paired(self) -> None:
        """Two baselines as good as each other, one of which errs on other rows."""
        same = baseline("tfidf", cv=0.7)
        other = replace(same, out_of_fold=right(0.7, start=0.4))
        near, far = compare_baselines([same, other], rows(0.7), None, COSTS)
        assert near.cv.gain.difference == far.cv.gain.difference == 0
        assert (near.cv.gain.low, near.cv.gain.high) == (0, 0)
        assert far.cv.gain.high - far.cv.gain.low > 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("test", [None, 0.7])
    def test_what_there_is_depends_on_the_baseline_and_on_test_rows(
        self, test: float | None
    ) -> None:
        tested = None if test is None else rows(0.8)
        found = compare_baselines(usual(test=test), rows(0.8), tested, COSTS)
        for one in found:
            assert (one.test is None) == (test is None)
            assert one.on("test") is (one.cv if test is None else one.test)
            assert (one.cost is None) == (one.blocks == ())
        assert list(map(str, found[3].blocks)) == ["small:0:mean", "small:1:mean", "small:2:mean"]
        assert found[3].cost is not None
        assert found[3].cost.dims == 30
        assert [one.label for one in found[:4]] == [
            "majority", "tfidf", "last_layer (small)", "last_four (small)",
        ]  # fmt: skip


class TestSentence:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("a gain", lambda: verdict(usual())),
            ("a loss", lambda: verdict(usual(last=0.8), own=0.6)),
            ("no significant gain", lambda: verdict(usual(last=0.795))),
            ("on test rows", lambda: verdict(usual(test=0.75), test=0.85)),
            ("one block", lambda: verdict(usual(), plan=("large:1:mean",))),
            ("the last layer", lambda: verdict(usual(last=0.8), plan=("small:2:mean",))),
        ],
        ids=lambda given: given if isinstance(given, str) else "",
    )
    def test_it_is_worded_as_ever(self, name: str, found: Callable[[], Verdict]) -> None:
        check_message(f"verdict: {name}", found().sentence)

    def test_it_begins_with_what_the_classifier_does(self) -> None:
        found = verdict(usual())
        interval = f"{100 * found.cv.accuracy.low:.1f} to {100 * found.cv.accuracy.high:.1f}"
        assert found.headline.startswith(
            f"fusion of 2 blocks gets 80 of 100 texts right: 80.0% (95% interval {interval})"
        )
        assert "400 training texts" in found.headline
        assert found.sentence.startswith(found.headline)
        assert found.cv.accuracy.low < 0.8 < found.cv.accuracy.high
        assert found.test is None

    def test_a_gain(self) -> None:
        found = verdict(usual())
        assert found.gained
        assert (found.rows, found.against) == ("cv", ("small:2:mean",))
        assert found.gain.difference == pytest.approx(0.2)
        low, high = 100 * found.gain.low, 100 * found.gain.high
        assert (
            "significantly better than small's last layer (60.0%): +20.0 points (95% interval "
            f"{low:+.1f} to {high:+.1f}), at 2.5x its time." in found.sentence
        )

    def test_a_loss(self) -> None:
        found = verdict(usual(last=0.8), own=0.6)
        assert not found.gained
        assert "significantly worse than small's last layer (80.0%): -20.0 points" in found.sentence

    def test_no_significant_gain(self) -> None:
        found = verdict(usual(last=0.795))
        assert not found.gained
        assert "not significantly better than small's last layer (79.5%): +0.5" in found.sentence
        assert "(95% interval +0.0 to +1.2), at 2.5x its time." in found.sentence

    def test_a_difference_that_may_be_chance_has_its_side(self) -> None:
        said = verdict(usual(last=0.805)).sentence
        assert "not significantly worse than small's last layer (80.5%): -0.5 points" in said

    @pytest.mark.slow
    def test_baselines_that_are_significantly_better_are_named(self) -> None:
        baselines = usual(test=0.75)
        baselines[1] = baseline("tfidf", cv=0.5, test=0.95)
        better = "Significantly better: TF-IDF with logistic regression (95.0%)"
        assert f"{better}." in verdict(baselines, test=0.8).headline
        baselines[6] = baseline("best_block", "large:1:mean", cv=0.6, test=0.9)
        assert f"{better} (and 1 more)." in verdict(baselines, test=0.8).headline
        assert "Significantly better: " not in verdict(usual()).sentence

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("own", "said"), [(1.0, "100 of 100"), (0.9975, "99 of 100"), (0.5, "50 of 100")]
    )
    def test_only_all_of_them_are_100_of_100(self, own: float, said: str) -> None:
        assert f"gets {said} texts right" in verdict(usual(), own).headline

    def test_one_block_is_called_by_its_name(self) -> None:
        found = verdict(usual(), plan=("large:1:mean",))
        assert found.sentence.startswith("block large:1:mean gets 80 of 100 texts right: 80.0%")

    def test_a_pipeline_that_is_the_last_layer_says_so(self) -> None:
        found = verdict(usual(last=0.8), plan=("small:2:mean",))
        assert "It is small's last layer alone: there is nothing to gain" in found.sentence
        balanced = Plan(refs("small:2:mean"), head="balanced_ridge")  # so are baselines then
        found = judge(usual(last=0.8), rows(0.8), None, balanced, SCORES, COSTS)
        assert "It is small's last layer alone: there is nothing to gain" in found.sentence
        plan = Plan(refs("small:2:mean"), head="logistic")
        found = judge(usual(), rows(0.8), None, plan, SCORES, COSTS)
        assert "It is small's last layer with a logistic head, significantly" in found.sentence
        assert "better than small's last layer with a ridge head (60.0%): +20.0" in found.sentence

    def test_the_highest_layer_that_was_read_need_not_be_the_last(self) -> None:
        costs = {name: replace(one, parameters=tuple(range(10))) for name, one in COSTS.items()}
        found = judge(usual(), rows(0.8), None, Plan(refs(*FUSED)), SCORES, costs)
        assert "than small's layer 2, the highest that was read (60.0%)" in found.sentence

    def test_on_test_rows_where_there_are_any(self) -> None:
        found = verdict(usual(test=0.75), test=0.85)
        assert (found.rows, found.gained) == ("test", True)
        assert found.gain.difference == pytest.approx(0.1)
        assert found.test is not None
        assert (found.cv.accuracy.value, found.test.accuracy.value) == (0.8, 0.85)
        assert "right: 85.0% (" in found.headline
        assert "of 400 test texts" in found.headline
        assert "than small's last layer (75.0%)" in found.sentence

    def test_the_last_layer_is_chosen_by_training_scores(self) -> None:
        """Not by whose last layer does better on the rows of the comparison."""
        baselines = usual(test=0.6)
        baselines[4] = baseline("last_layer", "large:2:mean", cv=0.9, test=0.9)
        assert verdict(baselines, test=0.8).against == ("small:2:mean",)

    def test_time_is_that_of_the_pipeline_over_the_last_layers(self) -> None:
        assert verdict(usual()).time_ratio == pytest.approx((4 + 6) / 4)
        assert verdict(usual(), plan=("small:1:mean",)).time_ratio == pytest.approx(2 / 4)

    def test_no_ratio_without_times(self) -> None:
        costs = {name: replace(cost, ms_per_text=0.0) for name, cost in COSTS.items()}
        found = judge(usual(), rows(0.8), None, Plan(refs(*FUSED)), SCORES, costs)
        assert found.time_ratio is None
        assert "its time" not in found.sentence


class TestGap:
    """Test accuracy against the nested estimate."""

    def coordinates(self, shift: float, n: int = N) -> list[tuple[Any, Any]]:
        rng = np.random.default_rng(0)
        train, test = rng.normal(size=(2, n, 20)).astype(np.float32)
        return [(train, test + np.float32(shift))]

    def skewed(self, share: float) -> Rows:
        """Test rows with one class at three times the other's share."""
        y = (np.arange(N) % 4 == 0).astype(np.intp)
        found = np.where(np.arange(N) / N < share, y, 1 - y)
        return Rows(Targets(LabelSpace(np.arange(2)), y), found)

    def test_alike_rows_say_nothing(self) -> None:
        gap = measure_gap(rows(0.8), rows(0.81), self.coordinates(0.0))
        assert gap.sentence == ""
        assert gap.difference.value == pytest.approx(0.01)
        assert gap.difference.low < 0 < gap.difference.high
        assert gap.class_shares_p == pytest.approx(1.0)
        assert gap.told_apart.low < 0.5 < gap.told_apart.high

    def test_a_gap_names_what_differs(self) -> None:
        gap = measure_gap(rows(0.9), self.skewed(0.7), self.coordinates(1.0))
        assert gap.class_shares_p < 0.001
        assert gap.told_apart.low > 0.8
        assert "Test accuracy is significantly lower than" in gap.sentence
        assert "class shares differ (p = " in gap.sentence
        assert "texts differ too: a probe tells" in gap.sentence

    def test_a_gap_between_rows_that_look_alike(self) -> None:
        gap = measure_gap(rows(0.7), rows(0.9), self.coordinates(0.0))
        assert "significantly higher" in gap.sentence
        assert "class shares do not differ" in gap.sentence
        assert "texts look alike" in gap.sentence

    def test_its_interval_is_that_of_newcombe(self) -> None:
        """Example (a) of his paper: 56 of 70 against 48 of 80."""
        gap = measure_gap(rows(0.6, 80), rows(0.8, 70), [(np.zeros((80, 2)), np.zeros((70, 2)))])
        assert gap.difference.value == pytest.approx(0.2)
        assert (gap.difference.low, gap.difference.high) == pytest.approx(
            (0.0524, 0.3339), abs=1e-4
        )

    def test_a_single_row_cannot_be_told_apart(self) -> None:
        gap = measure_gap(rows(0.8), rows(1.0, 1), [(np.zeros((N, 2)), np.zeros((1, 2)))])
        assert (gap.told_apart.value, gap.told_apart.low < 0.5 < gap.told_apart.high) == (0.5, True)

    @pytest.mark.parametrize("seed", range(5))
    def test_equal_rows_are_seldom_told_apart(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        pairs = [(rng.normal(size=(N, 60)), rng.normal(size=(N, 60)))]
        assert measure_gap(rows(0.8), rows(0.8), pairs).told_apart.low < 0.5


class TestRecommended:
    def test_the_pipeline_where_it_beats_all(self) -> None:
        found = verdict(usual())
        assert found.recommended == "pipeline"
        assert "Simpler" not in found.sentence
        assert found.advice == ""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "name", "advice"),
        [
            (
                {"majority": 0.8, "tfidf": 0.8, "last": 0.8, "best": 0.8}, "majority",
                "always the most frequent label (80.0%): the texts do not help.",
            ),
            ({"tfidf": 0.8, "last": 0.8}, "tfidf", "TF-IDF with logistic regression (80.0%)."),
            (
                {"last": 0.8, "best": 0.8}, "last_layer",
                "small:2:mean alone (80.0%; selection='last').",
            ),
            ({"best": 0.8}, "best_block", "large:1:mean alone (80.0%; selection='best')."),
        ],
    )  # fmt: skip
    def test_the_cheapest_that_is_not_significantly_worse(
        self, options: dict[str, float], name: str, advice: str
    ) -> None:
        found = verdict(usual(**options))
        assert found.recommended == name
        assert "not significantly worse than fusion of 2 blocks (80.0%): " in found.advice
        assert found.advice.endswith(advice)
        assert found.sentence.endswith(f" {found.advice}")

    @pytest.mark.parametrize(
        ("points", "said"), [(0.04, "+0.04"), (-0.04, "-0.04"), (0.06, "+0.1"), (0.0, "+0.0")]
    )
    def test_an_end_of_an_interval_shows_its_side(self, points: float, said: str) -> None:
        assert signed(points) == said

    def test_a_small_share_of_the_time_is_not_nothing(self) -> None:
        assert (times(0.001), times(0.06), times(7.14)) == ("less than 0.1x", "0.1x", "7.1x")

    def test_what_is_better_is_called_better(self) -> None:
        found = verdict(usual(tfidf=0.95))
        assert found.recommended == "tfidf"
        assert "significantly better than fusion of 2 blocks (80.0%): TF-IDF" in found.advice

    def test_the_last_layers_of_one_encoder(self) -> None:
        baselines = usual()
        baselines[5] = baseline("last_matched", "small:1:mean", "small:2:mean", cv=0.8)
        found = verdict(baselines)
        assert found.recommended == "last_matched"
        assert found.sentence.endswith("the last layers small:1:mean, small:2:mean (80.0%).")

    def test_the_last_four_layers(self) -> None:
        baselines = usual()
        baselines[3] = baseline("last_four", "small:1:mean", "small:2:mean", cv=0.8)
        assert verdict(baselines).recommended == "last_four"

    def test_what_costs_more_than_the_pipeline_is_not_recommended(self) -> None:
        """A lower layer is chosen; the last layer does as well, but takes more time."""
        found = verdict(usual(last=0.8, best=0.8), plan=("small:1:mean",))
        assert found.recommended == "pipeline"
        assert "Simpler" not in found.sentence

    def test_the_pipeline_itself_is_no_simpler_way(self) -> None:
        found = verdict(usual(best=0.8), plan=("large:1:mean",))
        assert found.recommended == "pipeline"

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"best": 0.8}, {"tfidf": 0.8}, {"majority": 0.8}])
    def test_test_rows_decide_nothing(self, options: dict[str, Any]) -> None:
        expected = verdict(usual(**options)).recommended
        for test, own in ((0.2, 0.9), (0.9, 0.2)):
            found = verdict(usual(**options, test=test), test=own)
            assert found.recommended == expected
            assert found.against == ("small:2:mean",)
            assert found.rows == "test"

    def test_majority_where_nothing_predicts(self) -> None:
        rng = np.random.default_rng(0)
        y = rng.permutation(truth())
        guesses = [rng.integers(2, size=N) for _ in range(7)]
        baselines = [
            replace(one, out_of_fold=guess) for one, guess in zip(usual(), guesses, strict=True)
        ]
        baselines[0] = replace(baselines[0], out_of_fold=np.zeros(N, dtype=np.intp))
        own = Rows(Targets(LabelSpace(np.arange(2)), y), rng.integers(2, size=N))
        found = judge(baselines, own, None, Plan(refs(*FUSED)), SCORES, COSTS)
        assert found.recommended == "majority"
        assert not found.gained
        assert "no better than always predicting the most frequent label" in found.sentence
        assert found.sentence.endswith("the texts do not help.")


class TestTradeoffs:
    def points(self, own: float = 0.8, plan: tuple[str, ...] = FUSED) -> list[Tradeoff]:
        compared = compare_baselines(usual(best=0.75), rows(own), None, COSTS)
        chosen = Plan(refs(*plan))
        share = Estimate(own, own - 0.1, own + 0.1)
        return tradeoffs(compared, chosen, pipeline_cost(chosen.blocks, COSTS), share)

    def test_they_fall_in_accuracy_and_have_their_cost(self) -> None:
        points = self.points()
        assert [point.name for point in points] == [
            "pipeline", "best_block", "last_layer (small)", "last_four (small)",
            "last_matched (small)", "last_layer (large)",
        ]  # fmt: skip
        assert points[0].accuracy == Estimate(0.8, 0.8 - 0.1, 0.8 + 0.1)
        assert all(p.accuracy.low <= p.accuracy.value <= p.accuracy.high for p in points)
        assert points[0].blocks == refs(*FUSED)
        assert points[0].cost == pipeline_cost(refs(*FUSED), COSTS)

    def test_the_front_is_what_no_other_beats(self) -> None:
        """Against the definition: nowhere worse, somewhere better."""
        points = self.points()

        def goods(point: Tradeoff) -> tuple[float, ...]:
            cost = point.cost
            return (point.accuracy.value, -cost.ms_per_text, -cost.memory_mb, -cost.dims)

        for point in points:
            mine = goods(point)
            beaten = any(
                goods(other) != mine
                and all(a >= b for a, b in zip(goods(other), mine, strict=True))
                for other in points
            )
            assert point.on_front == (not beaten)
        front = {point.name for point in points if point.on_front}
        assert front == {"pipeline", "best_block", "last_layer (small)"}

    def test_a_pipeline_that_is_a_baseline_appears_once(self) -> None:
        points = self.points(0.75, ("large:1:mean",))
        names = [point.name for point in points]
        assert "best_block" not in names
        assert names.count("pipeline") == 1
        assert len({point.blocks for point in points}) == len(points)

    def test_a_bad_pipeline_is_not_on_the_front(self) -> None:
        points = {point.name: point for point in self.points(0.3)}
        assert not points["pipeline"].on_front
        lowest = min(points.values(), key=lambda point: point.accuracy.value)
        assert lowest.name == "pipeline"


def test_a_comparison_without_an_encoder_has_no_cost() -> None:
    (one,) = compare_baselines([baseline("tfidf", cv=0.7)], rows(0.8), None, COSTS)
    assert isinstance(one, BaselineComparison)
    assert one.cost is None
    assert isinstance(pipeline_cost(refs("small:0:mean"), COSTS), PipelineCost)
