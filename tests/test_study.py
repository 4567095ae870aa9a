"""The study: a whole run on tiny models, resuming it, its statistics, and planted claims."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from benchmarks import tables
from benchmarks.packaged import Texts
from benchmarks.study import command
from benchmarks.study.claims import (
    CONFIRMED,
    NOT_ENOUGH,
    PARTLY,
    REFUTED,
    UNTESTED,
    Claim,
    claims_of,
)
from benchmarks.study.costs import Timed, measure_cost, run_process, timed_choices
from benchmarks.study.evidence import Evidence, holm, over_seeds, with_verdicts
from benchmarks.study.fusions import Choice, encoder_groups
from benchmarks.study.inputs import (
    EmbeddedData,
    StudySettings,
    choose_precision,
    count_shared,
    read_encoder,
)
from benchmarks.study.page import page_of, write_html
from benchmarks.study.profiles import describe_profile, profile_blocks
from benchmarks.study.results import Results, read_json, write_json
from browser import colours, faults, open_browser, open_page
from commandline import Row, rows, write_jsonl, write_text
from families import save_model
from helpers import Notes
from layerfuse import BlockRef, BlockScores, EmbeddingStore, FrozenEncoder
from layerfuse.blocks import BlockScore
from layerfuse.errors import DataError, LayerfuseError
from layerfuse.fusion import FUSIONS
from layerfuse.probing.ridge import standardization
from processes import Child

pytestmark = pytest.mark.slow

SETS = ("alpha", "beta")
ROOT = Path(__file__).parents[1]
PARTS = ("profiles", "fusions", "complementarity", "curves")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny encoders and two datasets in which one label in five is another one."""
    root = tmp_path_factory.mktemp("study")
    save_model("bert", root / "bert")
    save_model("llama", root / "llama", seed=1)
    for seed, name in enumerate(SETS):
        for split, n, own in (("train", 90, seed), ("test", 60, seed + 10)):
            write_jsonl(root / name / f"{split}.jsonl.gz", _noisy(n, own))
    return root


def _noisy(n: int, seed: int) -> list[Row]:
    lines, rng = rows(n, seed=seed), np.random.default_rng(seed)
    names = sorted({label for _, label in lines})
    return [
        (text, names[rng.integers(len(names))] if rng.random() < 0.2 else label)
        for text, label in lines
    ]


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    return [
        "--datasets", *(str(place / name) for name in SETS),
        "--encoders", str(place / "bert"), "nowhere/such", str(place / "llama"),
        "--poolings", "mean", "--only", *PARTS,
        "--store", str(place / "store"), "--out", str(out), *more,
    ]  # fmt: skip


def _study(*words: str) -> int:
    return command.main(list(words))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    assert command.main(arguments(place, place / "out")) == 0
    return place / "out"


@pytest.fixture
def evidence(whole: Path) -> Evidence:
    """A copy that a test may change before it reads a table."""
    found = Evidence.read(whole)
    return Evidence(copy.deepcopy(found.index), copy.deepcopy(found.units))


class TestWhole:
    def test_everything_is_measured_and_what_is_missing_is_named(self, place: Path, whole: Path):
        index = read_json(whole / "study.json")
        kinds = ("data", "profile", "fusions-seed0", "complementarity", "curve")
        assert index["units"] == [f"{name}-{kind}" for name in SETS for kind in kinds]
        assert {path.stem for path in (whole / "raw").iterdir()} == set(index["units"])
        assert list(index["skipped"]) == ["nowhere/such"]
        assert list(index["encoders"]) == ["bert", "llama"]
        figures = {path.name for path in (whole / "figures").iterdir()}
        assert {"layers.svg", "layers.png", "group_gains.svg", "curves.png"} <= figures
        assert "resources.svg" not in figures

    def test_the_page_names_the_command_that_was_run(self, place: Path, whole: Path):
        run = " ".join(["python -m benchmarks study", *arguments(place, whole)])
        page = (whole / "summary.md").read_text()
        assert f"`{run}`" in page
        assert "nowhere/such" in page

    def test_a_profile_has_every_block_and_corrected_comparisons(self, evidence: Evidence):
        blocks = evidence.blocks
        assert len(blocks) == 2 * 2 * 4
        assert blocks["accuracy"].between(blocks["low"], blocks["high"]).all()
        for _, own in blocks.groupby(["dataset", "encoder"]):
            compared = own.dropna(subset="p")
            assert list(compared["layer"]) == [0, 1, 2]
            np.testing.assert_allclose(compared["p_holm"], holm(compared["p"]), rtol=1e-4)

    def test_every_choice_and_fusion_is_there(self, evidence: Evidence):
        chosen = evidence.selections
        assert list(chosen["way"]).count("search") == len(SETS)
        assert len(chosen[(chosen["way"] == "last_four") & (chosen["group"] == "bert")]) == 2
        assert chosen["macro_f1"].between(chosen["macro_f1_low"], chosen["macro_f1_high"]).all()
        several = chosen["group"].str.contains("+", regex=False)
        assert (chosen["member_group"].notna() == several).all()
        fusions = evidence.fusions
        greedy = fusions[(fusions["way"] == "greedy") & (fusions["dataset"] == "beta")]
        assert list(greedy["fusion"]) == [*FUSIONS, "concat", "concat"]

    def test_tables_hold_the_raw_numbers(self, whole: Path, evidence: Evidence):
        table = pd.read_csv(whole / "tables" / "layers.csv")
        raw = evidence.units["alpha-profile"]["result"]["blocks"]
        assert list(table["accuracy"])[: len(raw)] == [row["accuracy"] for row in raw]

    def test_a_second_run_measures_nothing_and_writes_the_same(
        self, place: Path, whole: Path, capsys: pytest.CaptureFixture[str]
    ):
        before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        assert command.main(arguments(place, whole)) == 0
        assert "0 units measured, 10 reused" in capsys.readouterr().out
        assert {path: path.read_bytes() for path in before} == before

    def test_a_killed_run_is_resumed_to_the_same_numbers(
        self, place: Path, whole: Path, tmp_path: Path
    ):
        given = arguments(place, tmp_path, "--no-figures")
        process = Child(_study, *given, cwd=ROOT)
        deadline = time.monotonic() + 300
        while not (tmp_path / "raw" / "alpha-fusions-seed0.json").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").glob("*.json")}
        assert 3 <= len(kept) < 10
        assert not (tmp_path / "study.json").exists()
        assert command.main(given) == 0
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        for path in (tmp_path / "raw").glob("*.json"):
            assert _numbers(path) == _numbers(whole / "raw" / path.name)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.browser
    def test_the_page_opens_in_a_browser(self, whole: Path, scheme: str):
        with open_browser() as browser:
            opened = open_page(browser, whole / "report.html", scheme=scheme, drawn=False)
            page = opened.page
            assert page.locator("main h2").all_inner_texts() == ["Findings", "Details"]
            links = page.locator("nav a")
            assert links.count() == page.locator("main h2, main h3").count() > 10
            for link in links.evaluate_all("all => all.map(one => one.getAttribute('href'))"):
                assert page.locator(f"main {link}").count() == 1
            images = page.locator("main img")
            drawn = "all => all.every(one => one.complete && one.naturalWidth > 300 && one.alt)"
            assert images.count() == 4
            assert images.evaluate_all(drawn)
            assert colours(images.first) > 20
            assert page.locator(".scroll").count() == page.locator("table").count() > 5
            assert (opened.said, opened.asked) == ([], [])
            assert faults(page, "serious", "critical") == []

    def test_the_html_page_holds_everything(self, whole: Path):
        html = (whole / "report.html").read_text()
        assert html.count("data:image/svg+xml;base64,") == 4
        assert html.count("<table>") == html.count('class="scroll"') > 5

    @pytest.mark.parametrize("place", ["{root}/own.txt", "../own.txt", "../own.svg", "here.txt"])
    def test_a_name_that_is_markdown_brings_no_file_into_the_page(self, tmp_path: Path, place: str):
        (tmp_path / "page").mkdir()
        for name in ("own.txt", "own.svg", "page/here.txt"):
            (tmp_path / name).write_text("secret")
        page = tmp_path / "page" / "summary.md"
        page.write_text(f"Encoders: ![x]({place.format(root=tmp_path)}), bert\n")
        write_html(page, page.with_suffix(".html"))
        html = page.with_suffix(".html").read_text()
        assert base64.b64encode(b"secret").decode() not in html
        assert "bert" in html

    def test_make_check_notices_a_changed_number(
        self, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        shutil.copytree(whole, tmp_path / "results" / "packaged")
        monkeypatch.setattr(tables, "_HERE", tmp_path / "benchmarks")
        monkeypatch.setattr(tables, "_PAGES", ())
        assert tables.main(["--check"]) == 1
        assert tables.main([]) == 0
        assert tables.main(["--check"]) == 0
        path = tmp_path / "results" / "packaged" / "raw" / "alpha-profile.json"
        unit = json.loads(path.read_text())
        unit["result"]["encoders"]["bert"]["accuracy_best"] += 0.1
        path.write_text(json.dumps(unit))
        assert tables.main(["--check"]) == 1


def _numbers(path: Path) -> Any:
    """A unit's result without what a clock said."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "seconds"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads(path.read_text())["result"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--preset", "papr"], "'papr'"),
        (["--only", "profile"], "'profile'"),
        (["--seeds", "0"], "at least 1"),
        (["--sample", "none"], "--sample"),
        (["--poolings", "men"], "'men'"),
    ],
)
def test_unusable_options_are_refused(
    given: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        command.main(given)
    assert says in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.txt").write_text("x")
    assert command.main(arguments(place, tmp_path)) == 2
    assert "--out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class TestStatistics:
    def test_holm_of_a_known_case_and_of_nothing(self):
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
        assert holm([]).shape == (0,)

    def test_verdicts_need_a_small_corrected_p_value_and_an_interval(self):
        difference = np.array([0.1, -0.1, 0.1])
        rows = pd.DataFrame({"difference": difference, "p_value": [0.01, 0.01, 0.04]})
        rows = rows.assign(low=difference - 0.05, high=difference + 0.05)
        assert list(with_verdicts(rows[:2])["verdict"]) == ["better", "worse"]
        assert list(with_verdicts(rows[[True, False, True]])["verdict"]) == ["better", "better"]
        assert list(with_verdicts(rows.assign(p_value=0.02))["verdict"]) == ["unclear"] * 3
        assert with_verdicts(rows[:1].assign(low=-0.01))["verdict"][0] == "unclear"

    def test_equal_needs_an_interval_within_the_margin(self):
        rows = pd.DataFrame({"difference": [0.0, 0.0], "p_value": [1.0, 1.0]})
        rows = rows.assign(low=[-0.009, -0.02], high=[0.009, 0.001])
        assert list(with_verdicts(rows)["verdict"]) == ["equal", "unclear"]

    def test_seeds_are_averaged_and_p_values_doubled_at_the_median(self):
        rows = pd.DataFrame(
            [("x", own, own - 1, p) for own, p in ((0.1, 0.01), (0.3, 0.2), (0.2, 0.04))],
            columns=["group", "difference", "low", "p_value"],
        )
        (row,) = over_seeds(rows, ["group"]).itertuples()
        assert (row.difference, row.low, row.seeds) == (pytest.approx(0.2), pytest.approx(-0.8), 3)
        assert (row.difference_sd, row.p_value) == (pytest.approx(0.1), pytest.approx(0.08))
        (row,) = over_seeds(rows[:1], ["group"]).itertuples()
        assert row.p_value == 0.01
        assert np.isnan(row.difference_sd)


class TestData:
    def test_rare_classes_leaks_and_unseen_labels_are_named(self, tmp_path: Path):
        lines = rows(12)
        write_jsonl(tmp_path / "x" / "train.jsonl.gz", [*lines, lines[0], ("only me", "once")])
        write_jsonl(tmp_path / "x" / "test.jsonl.gz", [lines[1], ("new", "once"), ("n", "other")])
        notes = Notes()
        data = Texts.read(str(tmp_path / "x"), None, notes)
        assert notes.about("one training row: once")
        assert data.facts["single_row_classes"] == ["once"]
        assert (data.facts["train_rows"], data.facts["learned_rows"]) == (14, 13)
        assert (data.facts["duplicates_train"], data.facts["leaks"]) == (1, 1)
        assert data.facts["test_rows_of_unlearned_classes"] == 2
        assert (data.y_test[1:] >= data.targets.space.n_outputs).all()
        assert data.y_test[0] == data.targets.codes[1]

    def test_texts_shared_between_datasets_are_counted(self, tmp_path: Path):
        lines = rows(20)
        write_jsonl(tmp_path / "x" / "train.jsonl.gz", lines[:10])
        write_jsonl(tmp_path / "x" / "test.jsonl.gz", lines[10:14])
        write_jsonl(tmp_path / "y" / "train.jsonl.gz", lines[12:])
        write_jsonl(tmp_path / "y" / "test.jsonl.gz", [(lines[0][0].upper() + " !", lines[0][1])])
        assert count_shared([Texts.read(str(tmp_path / name)) for name in "xy"]) == [
            {"test_of": "x", "train_of": "y", "rows": 2, "fraction": 0.5},
            {"test_of": "y", "train_of": "x", "rows": 1, "fraction": 1.0},
        ]

    def test_a_part_can_be_taken_and_test_rows_are_needed(self, tmp_path: Path):
        write_jsonl(tmp_path / "x" / "train.jsonl.gz", rows(60))
        with pytest.raises(DataError, match="no test rows"):
            Texts.read(str(tmp_path / "x"))
        write_jsonl(tmp_path / "x" / "test.jsonl.gz", rows(60))
        data = Texts.read(str(tmp_path / "x"), 15)
        assert (len(data.train), len(data.test)) == (15, 15)


def test_the_largest_precision_that_fits_is_taken():
    stored = 14e9  # of 7e9 parameters
    for free, expected in ((80e9, "bfloat16"), (12e9, "int8"), (6e9, "nf4"), (2e9, None)):
        assert choose_precision(stored, free, "bfloat16", on_cuda=True) == expected
    assert choose_precision(stored, 12e9, "float32", on_cuda=False) is None


class TestResults:
    def test_a_unit_is_made_once_for_the_same_settings(self, tmp_path: Path):
        made: list[int] = []

        def make() -> dict[str, Any]:
            made.append(1)
            return {"value": 1 / 3, "rows": [{"a": 1.0, "b": None}]}

        results = Results(tmp_path, Notes())
        first = results.unit("x", {"seed": 0}, make)
        assert first == results.unit("x", {"seed": 0}, make)
        assert first == {"value": 0.333333, "rows": [{"a": 1.0, "b": None}]}
        assert len(made) == 1
        results.unit("x", {"seed": 1}, make)
        assert len(made) == 2
        write_text(tmp_path / "raw" / "x.json", '{"format": "layerfuse-study-unit", "form')
        results.unit("x", {"seed": 1}, make)
        assert len(made) == 3

    def test_files_are_json_with_a_row_on_each_line(self, tmp_path: Path):
        table = [{"name": f"n{i}", "x": i / 7} for i in range(30)]
        write_json(tmp_path / "x.json", {"rows": table, "deep": {"a": [[]], "b": "n [a  {b] }"}})
        assert len((tmp_path / "x.json").read_text().splitlines()) < 45
        value = read_json(tmp_path / "x.json")
        assert value["rows"][3] == {"name": "n3", "x": 0.428571}
        assert value["deep"] == {"a": [[]], "b": "n [a  {b] }"}


@pytest.fixture(scope="module")
def alpha(place: Path) -> tuple[EmbeddedData, FrozenEncoder]:
    """The first dataset as one encoder reads it."""
    data, settings = Texts.read(str(place / "alpha")), StudySettings(poolings=("mean", "cls"))
    store = EmbeddingStore(place / "store")
    read = read_encoder(str(place / "bert"), [data], settings, store, "cpu", Notes())
    return EmbeddedData(data, *read.blocks[0]), read.encoder


class TestProfiles:
    def test_test_accuracy_is_that_of_a_ridge_regression(
        self, alpha: tuple[EmbeddedData, FrozenEncoder]
    ):
        own, _ = alpha
        profile = profile_blocks(own, Notes())
        for score in profile.probed.scores:
            mean, scale = standardization(own.train[score.block])
            model = Ridge(alpha=score.penalty).fit(
                (own.train[score.block] - mean) * scale, own.data.targets.matrix
            )
            expected = model.predict((own.test[score.block] - mean) * scale).argmax(axis=1)
            assert (profile.predicted[score.block] == expected).mean() > 0.98

    def test_a_layer_that_is_the_same_for_every_text_is_no_evidence(
        self, alpha: tuple[EmbeddedData, FrozenEncoder], evidence: Evidence
    ):
        own, _ = alpha
        result = describe_profile(profile_blocks(own, Notes()), own.data.y_test)
        by_name = {row["block"]: row for row in result["blocks"]}
        assert [name for name, row in by_name.items() if row["constant"]] == ["bert:0:cls"]
        assert "p" not in by_name["bert:0:cls"]
        assert result["encoders"]["bert"]["compared"] == 5  # of 2 poolings x 3 lower layers
        # at the pooling of the last layer it does not widen the spread either
        profile = evidence.units["alpha-profile"]["result"]
        for row in profile["blocks"]:
            row["constant"] = row["layer"] == 0
            row["accuracy"] = 0.01 if row["constant"] else 0.5
        cases = Evidence(evidence.index, evidence.units).cases.set_index("dataset")
        assert (cases.loc["alpha", "spread"] == 0).all()


class TestCosts:
    def test_costs_are_measured_whole_and_cut(self):
        block = BlockRef("a", 1, "mean")
        every = [
            Choice(group, way, (block,))
            for group in (("a",), ("b",), ("a", "b"))
            for way in ("last", "best", "greedy")
        ]
        assert [timed.name for timed in timed_choices(every)] == [
            "a-last-whole", "a-best-cut", "b-last-whole", "b-best-cut", "a+b-greedy-cut",
            "a+b-greedy-whole",
        ]  # fmt: skip

    def test_a_cut_pipeline_runs_fewer_parameters(
        self,
        alpha: tuple[EmbeddedData, FrozenEncoder],
        place: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        for name in ("statistics", "layerfuse", "torch"):  # of the user's, not to be imported
            write_text(tmp_path / f"{name}.py", "raise SystemExit('imported')")
        monkeypatch.chdir(tmp_path)
        own, encoder = alpha
        probed = profile_blocks(own, Notes()).probed
        choice = Choice(("bert",), "best", (BlockRef("bert", 1, "mean"),))
        texts, every = own.data.test[:4], np.arange(90)
        whole, cut = (
            measure_cost(Timed(choice, is_cut), own, probed, {"bert": encoder}, texts, every)
            for is_cut in (False, True)
        )
        parameters = FrozenEncoder.from_pretrained(place / "bert").layer_parameters
        assert (whole["parameters"], cut["parameters"]) == (parameters[-1], parameters[1])
        for found in (whole, cut):
            assert found["peak_mb"] >= found["resident_mb"] > found["base_mb"] > 0
            assert min(found[name] for name in ("load_s", "latency_ms", "texts_per_s")) > 0
            assert found["embedding_bytes"] == 4 * 32
            assert found["bundle_bytes"] > 0

    def test_a_process_that_fails_says_why(self, place: Path):
        with pytest.raises(LayerfuseError, match=r"bundle\.json"):
            run_process(place, ["x"], cut=True, device="cpu")


@pytest.fixture
def three(evidence: Evidence) -> Evidence:
    """The first two datasets, and the first again as a third that shares no text with them."""
    units = {name: copy.deepcopy(unit) for name, unit in evidence.units.items()}
    for name in [name for name in units if name.startswith("alpha-")]:
        units[name.replace("alpha", "gamma")] = copy.deepcopy(units[name])
    index = {**evidence.index, "datasets": [*SETS, "gamma"], "shared_texts": []}
    return Evidence(index, units)


def _plant_profiles(evidence: Evidence, difference: float, p: float, width: float) -> None:
    """Every layer differs from the last, and a borrowed best one from the own, by this."""
    low, high = difference - width, difference + width
    for number, name in enumerate(evidence.datasets):
        profile = evidence.units[f"{name}-profile"]["result"]
        for encoder, row in profile["encoders"].items():
            row["best"] = f"{encoder}:{number}:mean"
        for row in profile["blocks"]:
            if "p" in row:
                row |= {"diff": difference, "diff_low": low, "diff_high": high}
                row |= {"p": p, "p_holm": p}
            row |= {"best_diff": -difference, "best_diff_low": -high, "best_diff_high": -low}
            row["best_p"] = p


def _plant_gains(evidence: Evidence, few: float, width: float) -> None:
    """The gain of fusion is ``few`` with the fewest labels and 0.1 with all of them."""
    for name in evidence.datasets:
        points = evidence.units[f"{name}-curve"]["result"]["points"]
        for point, value in ((points[0], few), (points[-1], 0.1)):
            point["gain"] = {"value": value, "low": value - width, "high": value + width}


def _plant_cost(evidence: Evidence, dataset: str, time: float, memory: float) -> None:
    def measured(group: str, way: str, cut: bool, latency: float, peak: float) -> None:
        result = {
            "group": group, "way": way, "cut": cut, "parameters": 10, "peak_mb": peak,
            "base_mb": 100.0, "latency_ms": latency, "texts_per_s": 5.0, "device": "cpu",
            "load_s": 1.0, "embedding_bytes": 1, "bundle_bytes": 1,
        }  # fmt: skip
        name = f"{dataset}-resources-{group}-{way}-{cut}"
        evidence.units[name] = {"date": "2020-01-02", "result": result}  # type: ignore[index]

    measured("bert", "last", False, 10.0, 200.0)
    measured("bert+llama", "greedy", True, 10.0 * time, 100 + 100 * memory)
    measured("bert+llama", "greedy", False, 99.0, 999.0)


def claim(evidence: Evidence, number: int) -> Claim:
    return claims_of(evidence)[number - 1]


def outcomes(evidence: Evidence) -> list[str]:
    return [claim.outcome for claim in claims_of(evidence)]


class TestClaims:
    @pytest.mark.parametrize(
        ("difference", "p", "width", "expected"),
        [
            (0.1, 1e-9, 0.01, [CONFIRMED, CONFIRMED]),
            (-0.1, 1e-9, 0.01, [PARTLY, REFUTED]),
            (0.0, 1.0, 0.005, [REFUTED, REFUTED]),
            (0.0, 1.0, 0.05, [NOT_ENOUGH, NOT_ENOUGH]),  # of too few rows to tell
        ],
    )
    def test_layers(
        self, three: Evidence, difference: float, p: float, width: float, expected: list[str]
    ):
        _plant_profiles(three, difference, p, width)
        assert outcomes(three)[:2] == expected

    def test_two_datasets_are_not_enough(self, evidence: Evidence):
        _plant_profiles(evidence, 0.1, 1e-9, 0.01)
        assert outcomes(evidence)[:2] == [NOT_ENOUGH] * 2
        assert "3 independent datasets" in claim(evidence, 2).needs

    def test_datasets_that_share_texts_count_once(self, three: Evidence):
        _plant_profiles(three, 0.1, 1e-9, 0.01)
        shared = {"test_of": "alpha", "train_of": "gamma", "rows": 50, "fraction": 0.8}
        index = {**three.index, "shared_texts": [shared]}
        assert outcomes(Evidence(index, three.units))[1] == NOT_ENOUGH
        index["shared_texts"] = [{**shared, "fraction": 0.01}]
        assert outcomes(Evidence(index, three.units))[1] == CONFIRMED

    def test_what_it_would_take_grows_with_the_square_of_the_interval(self, three: Evidence):
        """60 test rows and a half-width of 5 points, for 1 point: 25 times as many."""
        _plant_profiles(three, 0.0, 1.0, 0.05)
        assert "about 1,500 test rows" in claim(three, 2).needs

    def test_early_layers_and_constant_ones_are_no_evidence(self, three: Evidence):
        _plant_profiles(three, 0.0, 1.0, 0.005)
        for name in three.datasets:
            for row in three.units[f"{name}-profile"]["result"]["blocks"]:
                if row["depth"] < 0.5 or row["layer"] == 2:
                    row |= {"diff": 0.1, "diff_low": 0.09, "diff_high": 0.11, "p": 1e-9}
                row |= {"constant": row["layer"] == 2, "loss": -row["layer"]}
        assert claim(three, 2).outcome == UNTESTED  # layer 2 alone is in the upper half
        assert not (three.layers["layer"] == 2).any()

    def test_one_dataset_against_the_others_leaves_it_open(self, three: Evidence):
        _plant_profiles(three, 0.0, 1.0, 0.005)
        for name, expected in (("alpha", NOT_ENOUGH), ("gamma", PARTLY)):
            for row in three.units[f"{name}-profile"]["result"]["blocks"]:
                if "p" in row and row["encoder"] == "bert":
                    row |= {"diff": 0.1, "diff_low": 0.09, "diff_high": 0.11, "p": 1e-9}
            assert outcomes(Evidence(three.index, three.units))[1] == expected

    @pytest.mark.parametrize(
        ("difference", "p", "width", "low", "expected"),
        [
            (0.05, 1e-9, 0.01, 0.3, CONFIRMED),
            (0.05, 1e-9, 0.01, -0.1, PARTLY),
            (-0.05, 1e-9, 0.01, -0.3, REFUTED),
            (0.0, 1.0, 0.005, -0.3, REFUTED),
            (0.05, 0.5, 0.1, -0.1, NOT_ENOUGH),
        ],
    )
    def test_fusion(
        self, three: Evidence, difference: float, p: float, width: float, low: float, expected: str
    ):
        interval = {"member_low": difference - width, "member_high": difference + width}
        for name in three.datasets:
            for row in three.units[f"{name}-fusions-seed0"]["result"]["selections"]:
                if "member_difference" in row:
                    row |= {"member_difference": difference, "member_p_value": p, **interval}
            result = three.units[f"{name}-complementarity"]["result"]
            estimate = result["correlations"]["two encoders"][result["headline"]]
            estimate |= {"value": low + 0.1, "low": low, "high": low + 0.2}
        assert claim(three, 3).outcome == expected

    @pytest.mark.parametrize(
        ("times", "expected"), [((3, 3), CONFIRMED), ((3, 0.5), PARTLY), ((0.5, 0.5), REFUTED)]
    )
    def test_costs(
        self, three: Evidence, times: tuple[float, float], expected: str, tmp_path: Path
    ):
        _plant_cost(three, "alpha", *times)
        assert claim(three, 4).outcome == NOT_ENOUGH
        for name in ("beta", "gamma"):
            _plant_cost(three, name, *times)
        planted = Evidence(three.index, three.units)
        assert claim(planted, 4).outcome == expected
        for name, unit in three.units.items():
            write_json(tmp_path / "raw" / f"{name}.json", unit)
        write_json(tmp_path / "study.json", {**three.index, "units": list(three.units)})
        assert f"take {times[0]:.1f} times as long" in page_of(tmp_path, ".")

    @pytest.mark.parametrize(
        ("few", "width", "expected"),
        [
            (0.3, 0.02, CONFIRMED),
            (0.0, 0.02, REFUTED),
            (0.1, 0.002, REFUTED),
            (0.12, 0.1, NOT_ENOUGH),
        ],
    )
    def test_labels(self, three: Evidence, few: float, width: float, expected: str):
        _plant_gains(three, few, width)
        assert claim(three, 5).outcome == expected

    def test_an_outcome_without_evidence_says_on_the_page_what_it_would_take(self, whole: Path):
        found = claims_of(Evidence.read(whole))
        assert {claim.outcome for claim in found[:3]} <= {NOT_ENOUGH, PARTLY}
        page = page_of(whole, ".")
        assert page.count("It would take at least 3") == sum(bool(claim.needs) for claim in found)

    def test_a_part_that_was_not_run_is_not_tested(self, whole: Path, tmp_path: Path):
        index = read_json(whole / "study.json")
        index["units"] = [name for name in index["units"] if name.endswith("-data")]
        shutil.copytree(whole / "raw", tmp_path / "raw")
        write_json(tmp_path / "study.json", index)
        assert outcomes(Evidence.read(tmp_path)) == [UNTESTED] * 5
        assert page_of(tmp_path, ".").count("Not tested.") == 5
        command.publish(tmp_path)


def test_groups_are_single_pairs_and_the_best_triple():
    scores = BlockScores(
        tuple(
            BlockScore(BlockRef(name, 0, "mean"), 0.5, 0.0, 0.5, loss, 0.0, 1.0)
            for name, loss in zip("abcd", (0.4, 0.1, 0.3, 0.2), strict=True)
        ),
        "ridge",
    )
    groups = encoder_groups(scores)
    assert len(groups) == 4 + 6 + 1
    assert groups[-1] == ("b", "c", "d")
