"""Learning curves: planted gains are found, and each draw sees its own labels alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from commandline import rows, run, succeed, write_csv
from families import save_model
from helpers import Notes
from layerfuse.blocks import BlockRef
from layerfuse.commands.analyze import _curve_summary as curve_sentence
from layerfuse.errors import ConfigError, DataError
from layerfuse.evaluation.learning_curve import (
    METHODS,
    CurvePoint,
    LearningCurve,
    check_draws,
    learning_curve,
)
from layerfuse.metrics import Estimate
from layerfuse.targets import Targets

Array = npt.NDArray[Any]
Blocks = dict[BlockRef, Array]

A, B = BlockRef("a", 1, "mean"), BlockRef("b", 1, "mean")
SHARES = (0.02, 0.1, 0.4, 1.0)


def planted(n: int, seed: int = 0, n_classes: int = 2) -> tuple[Blocks, Array]:
    """Each of two encoders shows one half of what tells the label, best at layer 1 of 0 to 2."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    turn = np.random.default_rng(99)
    blocks = {}
    for name in "ab":
        half = np.eye(n_classes)[y] + 0.9 * rng.normal(size=(n, n_classes))
        for layer, noise in enumerate((4.0, 0.3, 1.5)):
            shown = half @ turn.normal(size=(n_classes, 12)) + noise * rng.normal(size=(n, 12))
            blocks[BlockRef(name, layer, "mean")] = shown.astype(np.float32)
    return blocks, y


@pytest.fixture(scope="module")
def data() -> tuple[Blocks, Array, Blocks, Array]:
    return *planted(600), *planted(400, seed=1)


@pytest.fixture(scope="module")
def found(data: tuple[Blocks, Array, Blocks, Array]) -> LearningCurve:
    return learning_curve(*data, shares=SHARES, repeats=3)


class TestCurve:
    def test_a_planted_gain_is_found(self, found: LearningCurve):
        last = found.points[-1]
        assert last.gain.low > 0.03
        assert {A, B} <= set(last.draws[0].plans["fusion"].blocks)
        assert last.draws[0].plans["best_block"].blocks[0] in (A, B)
        assert last.draws[0].plans["last_layer"].blocks[0].layer == 2
        assert last.last_layer.value < last.best_block.value < last.fusion.value

    def test_more_labels_are_better(self, found: LearningCurve):
        for method in METHODS:
            values = [getattr(point, method).value for point in found.points]
            assert values[0] < values[-1]
            assert min(np.diff(values)) > -0.03

    def test_points_say_how_many_rows_there_were(self, found: LearningCurve):
        assert [point.n_rows for point in found.points] == [12, 60, 240, 600]
        assert [point.share for point in found.points] == list(SHARES)
        assert [len(point.draws) for point in found.points] == [3, 3, 3, 1]
        assert (found.n_train, found.n_test) == (600, 400)

    def test_estimates_are_means_over_draws_inside_their_intervals(self, found: LearningCurve):
        for point in found.points:
            for method in METHODS:
                estimate = getattr(point, method)
                mean = np.mean([draw.accuracy[method] for draw in point.draws])
                assert estimate.value == pytest.approx(mean)
                assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            gain = point.fusion.value - point.last_layer.value
            assert point.gain.value == pytest.approx(gain)
            assert point.gain.low <= gain <= point.gain.high

    def test_with_one_draw_the_interval_is_that_of_test_rows(self, found: LearningCurve):
        point = found.points[-1].fusion
        half = 1.96 * np.sqrt(point.value * (1 - point.value) / 400)
        assert point.high - point.low == pytest.approx(2 * half, rel=0.15)

    def test_a_seed_gives_the_same_again_and_another_other_draws(
        self, data: tuple[Blocks, Array, Blocks, Array], found: LearningCurve
    ):
        assert learning_curve(*data, shares=SHARES[::-1], repeats=3) == found
        other = learning_curve(*data, shares=SHARES, repeats=3, seed=1)
        assert other.points[0].draws != found.points[0].draws

    @pytest.mark.parametrize(("fusion", "head"), [("voting", "ridge"), ("concat", "auto")])
    def test_fusion_and_head_can_be_chosen(
        self, data: tuple[Blocks, Array, Blocks, Array], fusion: str, head: str
    ):
        curve = learning_curve(*data, shares=[0.1, 0.6], repeats=1, fusion=fusion, head=head)
        assert curve.points[-1].gain.value > 0
        assert curve.points[0].draws[0].plans["fusion"].fusion == fusion
        assert curve.points[0].draws[0].plans["last_layer"].fusion == "concat"

    def test_class_weights_are_those_of_the_pipeline(
        self, data: tuple[Blocks, Array, Blocks, Array], found: LearningCurve
    ):
        heavy = learning_curve(*data, shares=SHARES, repeats=3, class_weight={0: 30.0})
        assert heavy.points[-1].fusion.value < found.points[-1].fusion.value
        with pytest.raises(ConfigError, match="class_weight"):
            learning_curve(*data, shares=SHARES, repeats=3, class_weight="x")

    @pytest.mark.parametrize("head", ["mlp", "balanced_ridge"])
    def test_what_does_not_go_with_several_labels_is_named(
        self, data: tuple[Blocks, Array, Blocks, Array], head: str
    ):
        train, y, test, y_test = data
        some, others = ([["a"] if own else ["a", "b"] for own in part] for part in (y, y_test))
        with pytest.raises(ConfigError, match=f"head='{head}'.*multilabel"):
            learning_curve(train, some, test, others, shares=SHARES, repeats=1, head=head)

    def test_labels_may_be_of_any_kind_and_classes_rare(self):
        blocks, y = planted(120, n_classes=3)
        names = np.array(["x", "y", "z"])[y]
        names[:2] = "rare"
        curve = learning_curve(blocks, names, blocks, names, shares=[0.01, 0.02, 1], repeats=2)
        assert [point.n_rows for point in curve.points] == [14, 120]  # 2 + 3 x 4, and all
        assert curve.points[0].share == 0.01

    def test_a_constant_block_does_no_harm(self):
        blocks, y = planted(60)
        blocks[BlockRef("dead", 0, "mean")] = np.ones((60, 5), dtype=np.float32)
        curve = learning_curve(blocks, y, blocks, y, shares=[0.2, 1], repeats=1)
        assert curve.points[-1].fusion.value > 0.7

    def test_it_tells_how_far_it_is(self, data: tuple[Blocks, Array, Blocks, Array]):
        notes = Notes()
        learning_curve(*data, shares=[0.02, 1], repeats=2, reporter=notes)
        assert len(notes.advanced) >= 6 + 3 + 3


class TestWhatIsSeen:
    def test_labels_that_were_not_drawn_change_nothing(
        self, data: tuple[Blocks, Array, Blocks, Array], monkeypatch: pytest.MonkeyPatch
    ):
        blocks, y, *test = data
        drawn = Targets.from_labels(y).sample(60, 0)
        monkeypatch.setattr(Targets, "sample", lambda *_: drawn)
        before = learning_curve(blocks, y, *test, shares=[0.1], repeats=1, selection="greedy")
        others = np.setdiff1d(np.arange(len(y)), drawn)
        changed = y.copy()
        changed[others] = np.random.default_rng(0).permutation(y[others])
        assert (changed != y).sum() > 100
        after = learning_curve(blocks, changed, *test, shares=[0.1], repeats=1, selection="greedy")
        assert after == before

    def test_test_labels_are_for_counting_alone(
        self, data: tuple[Blocks, Array, Blocks, Array], found: LearningCurve
    ):
        blocks, y, test, y_test = data
        flipped = learning_curve(blocks, y, test, 1 - y_test, shares=SHARES, repeats=3)
        for point, other in zip(found.points, flipped.points, strict=True):
            for draw, opposite in zip(point.draws, other.draws, strict=True):
                assert opposite.plans == draw.plans
                for method in METHODS:
                    assert opposite.accuracy[method] == pytest.approx(1 - draw.accuracy[method])

    def test_blocks_are_read_for_all_draws_at_once(self, data: tuple[Blocks, Array, Blocks, Array]):
        class Counted(Mapping[BlockRef, Array]):
            def __init__(self, blocks: Blocks) -> None:
                self.blocks, self.reads = blocks, dict.fromkeys(blocks, 0)

            def __getitem__(self, block: BlockRef) -> Array:
                self.reads[block] += 1
                return self.blocks[block]

            def __iter__(self) -> Iterator[BlockRef]:
                return iter(self.blocks)

            def __len__(self) -> int:
                return len(self.blocks)

        blocks, test = Counted(data[0]), Counted(data[2])
        learning_curve(blocks, data[1], test, data[3], shares=SHARES, repeats=3)
        assert set(blocks.reads.values()) <= {1, 2}
        assert set(test.reads.values()) <= {0, 1}


class TestDraws:
    def test_each_class_has_its_share_and_at_least_four_rows(self):
        targets = Targets.from_labels(np.repeat([0, 1, 2], [200, 20, 3]))
        counts = [targets[targets.sample(n, (0, 0), 4)].counts for n in (2, 112, 223)]
        np.testing.assert_array_equal(counts, [[4, 4, 3], [100, 10, 3], [200, 20, 3]])

    def test_draws_of_one_repeat_are_nested_and_others_differ(self):
        targets = Targets.from_labels(np.arange(300) % 3)
        small, large, other = (
            targets.sample(n, (0, repeat), 4) for n, repeat in ((30, 0), (120, 0), (30, 1))
        )
        assert set(small) < set(large)
        assert len(small) == len(other) == 30
        assert set(small) != set(other)

    def test_shares_are_sorted_and_each_is_drawn_once(self):
        assert check_draws([1, 0.1, 0.1], 1) == (0.1, 1)

    @pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
    def test_shares_that_cannot_be_drawn(self, share: float):
        with pytest.raises(ConfigError, match=r"above 0 and at most 100%"):
            check_draws([0.5, share], 1)

    def test_nothing_to_draw(self):
        with pytest.raises(ConfigError, match="No share"):
            check_draws([], 1)
        with pytest.raises(ConfigError, match="repeats=0"):
            check_draws([1], 0)


def curve_of(*points: tuple[int, float, float]) -> LearningCurve:
    """From rows, last layer and fusion."""

    def sure(value: float) -> Estimate:
        return Estimate(value, value, value)

    made = (
        CurvePoint(rows / 1000, rows, sure(last), sure(last), sure(own), sure(own - last), ())
        for rows, last, own in points
    )
    return LearningCurve(tuple(made), 1000, 100)


class TestReading:
    def test_rows_to_match_grow_with_the_logarithm(self):
        found = curve_of((10, 0.5, 0.5), (100, 0.6, 0.7), (1000, 0.8, 0.9))
        assert found.rows_to_match == pytest.approx(10**2.5)
        assert found.largest_gain.n_rows == 100

    def test_a_first_point_that_suffices_stands_for_itself(self):
        assert curve_of((10, 0.5, 0.9), (1000, 0.8, 0.9)).rows_to_match == 10

    @pytest.mark.parametrize(
        ("last", "said"),
        [
            (0.8, "With about 320 labels it reaches"),
            (0.9, "as many labels to reach"),
            (0.95, "Fusion does not reach"),
            (0.4, "With 10 or fewer labels it reaches"),
        ],
    )
    def test_what_it_saves_is_said_where_it_saves_any(self, last: float, said: str):
        found = curve_of((10, 0.4, 0.5), (100, 0.5, 0.7), (1000, last, 0.9))
        assert said in curve_sentence(found)

    def test_it_may_never_be_reached(self):
        assert curve_of((10, 0.5, 0.4), (1000, 0.8, 0.7)).rows_to_match is None


class TestBadInput:
    def test_what_does_not_fit_is_refused(self, data: tuple[Blocks, Array, Blocks, Array]):
        blocks, y, test, y_test = data
        with pytest.raises(DataError, match="600 rows, but there are 599 labels"):
            learning_curve(blocks, y[1:], test, y_test)
        with pytest.raises(DataError, match="400 rows, but there are 399 labels"):
            learning_curve(blocks, y, test, y_test[1:])
        with pytest.raises(DataError, match="do not occur in training: 7"):
            learning_curve(blocks, y, test, np.where(y_test == 1, 7, 0))
        with pytest.raises(DataError, match="same"):
            learning_curve(blocks, 0 * y, test, y_test)
        with pytest.raises(DataError, match="no test rows"):
            learning_curve(blocks, y, {b: X[:0] for b, X in test.items()}, y_test[:0])
        with pytest.raises(DataError, match="no blocks"):
            learning_curve({}, y, {}, y_test)
        with pytest.raises(DataError, match="lack"):
            learning_curve(blocks, y, {A: test[A]}, y_test)
        with pytest.raises(ConfigError, match="'concat'"):
            learning_curve(blocks, y, test, y_test, fusion="conct")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Options that name two tiny encoders."""
    folder = tmp_path_factory.mktemp("models")
    save_model("bert", folder / "bert")
    save_model("llama", folder / "llama", seed=1)
    return ("-e", f"tiny={folder / 'bert'}", "-e", folder / "llama")


class TestCommand:
    @pytest.fixture(autouse=True)
    def _own_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LAYERFUSE_DATA", raising=False)
        monkeypatch.chdir(tmp_path)
        write_csv(Path("train.csv"), rows(90))
        write_csv(Path("test.csv"), rows(60, seed=1))

    def test_json_has_every_point(self, models: tuple[object, ...]):
        asked = ("--test", "test.csv", "--shares", "1, 5,30%,100", "--repeats", 2, "--json")
        report = succeed("curve", "train.csv", *asked, *models).json
        assert report["measured_on"] == "test"
        curve = report["curve"]
        assert (curve["n_train"], curve["n_test"]) == (90, 60)
        assert (report["fusion"], report["head"]) == ("concat", "ridge")
        # 1 and 5 % would both draw four rows of each of three classes
        assert [point["n_rows"] for point in curve["points"]] == [12, 27, 90]
        assert [point["share"] for point in curve["points"]] == [0.01, 0.3, 1]
        assert [len(point["draws"]) for point in curve["points"]] == [2, 2, 1]
        for point in curve["points"]:
            assert point["gain"]["low"] <= point["gain"]["value"] <= point["gain"]["high"]
            for draw in point["draws"]:
                assert len(draw["plans"]["last_layer"]["blocks"]) == 1
                assert 0 <= draw["accuracy"]["fusion"] <= 1
        assert report["verdict"].endswith(".")

    def test_without_test_rows_a_part_of_the_training_rows_is_held_out(
        self, models: tuple[object, ...]
    ):
        done = succeed("curve", "train.csv", *models, "--shares", "100", "--json")
        report = done.json
        assert report["measured_on"] == "held-out training rows"
        n_train, n_test = report["curve"]["n_train"], report["curve"]["n_test"]
        assert n_train + n_test == report["data"]["train_rows"] == 90
        assert abs(n_test - 90 / 4) <= 3  # of the 30 rows of each class
        assert f"· no test split: {n_test} training rows are held out to measure on\n" in done.err

    def test_a_class_of_one_row_is_not_measured_on(self, models: tuple[object, ...]):
        write_csv(Path("rare.csv"), [*rows(90), ("the only one", "rare")])
        for seed in range(4):  # of which some hold the row out
            asked = ("--shares", "100", "--repeats", 1, "--seed", seed)
            succeed("curve", "rare.csv", *models, *asked)

    def test_people_get_a_table_of_80_columns_at_most(self, models: tuple[object, ...]):
        done = succeed("curve", "train.csv", "--test", "test.csv", *models, "--repeats", 2)
        assert done.out.startswith("Verdict: ")
        assert max(len(line) for line in done.out.splitlines()) <= 80
        assert "Accuracy on 60 test rows" in done.out
        shown = [line.split()[:2] for line in done.out.splitlines() if "%" in line]
        assert ["12", "13.3%"] in shown
        assert ["90", "100%"] in shown

    def test_many_rows_are_measured_on_a_part_of_them(
        self, models: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("layerfuse.commands.analyze._MOST_ROWS", 45)
        done = succeed(
            "curve", "train.csv", "--test", "test.csv", *models, "--shares", 100, "--json"
        )
        curve = done.json["curve"]
        assert (curve["n_train"], curve["n_test"]) == (45, 45)
        assert "· 45 of 90 training rows are used\n" in done.err
        assert "· 45 of 60 test rows are used\n" in done.err

    @pytest.mark.slow
    def test_class_weights_come_from_an_option_or_a_settings_file(self, models: tuple[object, ...]):
        data = [
            (text, "rare" if row % 7 == 0 else "often") for row, (text, _) in enumerate(rows(90))
        ]
        write_csv(Path("skewed.csv"), data)
        Path("fit.toml").write_text('class_weight = "balanced"\n', encoding="utf-8")
        command = ("curve", "skewed.csv", *models, "--shares", "100", "--repeats", 1, "--json")
        plain, option, file = (
            succeed(*command, *more).json["curve"]
            for more in ((), ("--class-weight", "balanced"), ("--config", "fit.toml"))
        )
        assert option == file != plain

    def test_a_settings_file_may_choose_the_fusion(self, models: tuple[object, ...]):
        Path("fit.toml").write_text('fusion = "voting"\nmax_blocks = 2\n', encoding="utf-8")
        asked = ("--config", "fit.toml", "--shares", "50", "--repeats", 1, "--json")
        report = succeed("curve", "train.csv", *models, *asked).json
        assert (report["fusion"], report["head"]) == ("voting", "ridge")
        (draw,) = report["curve"]["points"][0]["draws"]
        assert len(draw["plans"]["fusion"]["blocks"]) <= 2

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ("--shares 0", ("0.0", "--shares", "> 0")),
            ("--shares 10,101", ("101.0", "--shares", "<= 100")),
            ("--shares -5", ("-5.0", "--shares", "> 0")),
            ("--shares nan", ("nan", "--shares", "<= 100")),
            ("--shares ten", ("'ten' is not a percentage", "--shares")),
            ("--shares 1,,5", ("'' is not a percentage", "--shares")),
            ("--repeats 0", ("0", "--repeats", ">= 1")),
            ("--repeats two", ("'two' is not an integer", "--repeats")),
            ("--fusion conct", ("'conct'", "Did you mean 'concat'?")),
            ("--selection greed", ("greed", "--selection", "Did you mean")),
            ("--max-blocks 0", ("0", "--max-blocks", ">= 1")),
            ("--test nothing.csv", ("nothing.csv",)),
        ],
    )
    def test_a_mistake_ends_with_2(
        self, models: tuple[object, ...], arguments: str, says: tuple[str, ...]
    ):
        done = run("curve", "train.csv", *models, *arguments.split())
        assert done.code == 2
        assert done.out == ""
        for part in says:
            assert part in done.err

    def test_too_few_rows_to_hold_any_out(self, models: tuple[object, ...]):
        write_csv(Path("few.csv"), rows(6))
        done = run("curve", "few.csv", *models)
        assert done.code == 2
        assert "6 training rows are too few to hold any out" in done.err


@pytest.mark.parametrize(("best", "same"), [(0.8, True), (0.7, False)])
def test_where_the_best_block_does_as_well_the_verdict_says_so(best: float, same: bool) -> None:
    values = {"last_layer": 0.6, "best_block": best, "fusion": 0.8, "gain": 0.2}
    estimates = {name: Estimate(value, value - 0.1, value + 0.1) for name, value in values.items()}
    point = CurvePoint(share=1.0, n_rows=50, draws=(), **estimates)
    said = curve_sentence(LearningCurve((point,), n_train=50, n_test=30))
    assert said.startswith("fusion gains most over the last layer with 50 labels: +20.0 points")
    assert ("The best block alone reaches as much there." in said) == same
