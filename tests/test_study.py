"""The study: its statistics, its data, a whole run on tiny models, and going on after a kill."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from sklearn.linear_model import Ridge

from browser import colours, open_browser, open_page
from commandline import Row, rows, run, start, succeed, write_jsonl, write_text
from families import save_model
from helpers import Notes
from layerfuse.blocks import BlockRef
from layerfuse.embeddings import EmbeddingStore
from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.devices import count_weights, quantisation
from layerfuse.errors import ConfigError, DataError, LayerfuseError, MissingExtraError
from layerfuse.probing import standardization
from layerfuse.study import PARTS, PRESETS, make_settings
from layerfuse.study.combinations import Choice, encoder_groups, fusion_names
from layerfuse.study.corrections import holm, over_seeds, verdict_of
from layerfuse.study.costs import Timed, measure_cost, timed_choices
from layerfuse.study.data import StudyData, count_shared, prepare
from layerfuse.study.evidence import Evidence
from layerfuse.study.page import claims_of
from layerfuse.study.precision import fit_precision
from layerfuse.study.profiles import profile_blocks
from layerfuse.study.publishing import page_of, publish
from layerfuse.study.reading import EmbeddedData, read_all
from layerfuse.study.results import Results, write_compact
from layerfuse.study.wording import CONFIRMED, REFINED, REFUTED, UNTESTED

SETS = ("alpha", "beta")
POOLINGS = "mean"


class TestCorrections:
    def test_holm_is_the_plain_formula(self):
        rng = np.random.default_rng(0)
        for n in (1, 2, 7, 51):
            p = rng.uniform(size=n) ** 3
            expected = []
            for own in p:
                smaller = sorted(value for value in p if value <= own)
                terms = [(n - place) * value for place, value in enumerate(smaller)]
                expected.append(min(1.0, max(terms)))
            np.testing.assert_allclose(holm(p), expected)

    def test_holm_of_a_known_case_and_of_nothing(self):
        np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
        assert holm([]).shape == (0,)

    def test_seeds_are_averaged_and_p_values_doubled_at_the_median(self):
        rows = [
            {"difference": value, "low": value - 1, "high": value + 2, "p_value": p}
            for value, p in ((0.1, 0.01), (0.3, 0.2), (0.2, 0.04))
        ]
        found = over_seeds(rows)
        assert found["difference"] == pytest.approx(0.2)
        assert (found["low"], found["high"]) == pytest.approx((-0.8, 2.2))
        assert found["sd"] == pytest.approx(0.1)
        assert found["p_value"] == pytest.approx(0.08)
        assert over_seeds(rows[:1])["p_value"] == 0.01
        assert over_seeds(rows[:1])["sd"] is None

    def test_a_verdict_needs_a_small_p_value(self):
        assert verdict_of(0.1, 0.01) == "better"
        assert verdict_of(-0.1, 0.01) == "worse"
        assert verdict_of(0.1, 0.2) == "unclear"


class TestSettings:
    def test_presets_bring_their_encoders(self):
        assert make_settings(Path("x")).encoders == ("minilm", "mpnet", "smollm2-135m")
        paper = make_settings(Path("x"), preset="paper")
        assert len(paper.encoders) == 7
        assert paper.needs_code == PRESETS["paper"].needs_code == {"nvidia/NV-Embed-v2"}

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"preset": "papr"}, "Did you mean 'paper'"),
            ({"parts": ["profile"]}, "Did you mean 'profiles'"),
            ({"seeds": 0}, "seeds=0"),
            ({"sample": 0}, "sample=0"),
            ({"datasets": []}, "no dataset"),
            ({"encoders": []}, "no encoder"),
            ({"poolings": ["men"]}, "'men'"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, given: dict[str, Any], says: str):
        with pytest.raises(ConfigError, match=says):
            make_settings(Path("x"), **given)


class TestPrecision:
    def test_the_largest_that_fits_is_taken(self):
        seven = 7e9
        found = [
            fit_precision(seven, free, "bfloat16", quantised=True)
            for free in (None, 80e9, 12e9, 6e9, 2e9)
        ]
        assert found == ["bfloat16", "bfloat16", "int8", "nf4", None]

    def test_quantised_weights_need_cuda_and_their_package(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with pytest.raises(ConfigError, match="'nf4' needs a CUDA device"):
            FrozenEncoder.from_pretrained(place / "bert", dtype="nf4", device="cpu")
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(MissingExtraError, match=r"layerfuse\[quantised\]"):
            quantisation("int8", "cuda")

    def test_packed_weights_count_as_what_they_stand_for(self):
        packed = torch.nn.Parameter(torch.zeros(8, 1), requires_grad=False)
        assert count_weights(packed) == 8
        packed.quant_state = SimpleNamespace(shape=torch.Size([4, 4]))
        assert count_weights(packed) == 16

    def test_without_a_gpu_nothing_is_quantised(self):
        assert fit_precision(7e9, 12e9, "float32", quantised=False) is None
        assert fit_precision(1e8, 12e9, "float32", quantised=False) == "float32"


class TestData:
    def test_rare_classes_leaks_and_unseen_labels_are_named(self, tmp_path: Path):
        lines = rows(12)
        write_jsonl(tmp_path / "x" / "train.jsonl.gz", [*lines, lines[0], ("only me", "once")])
        write_jsonl(tmp_path / "x" / "test.jsonl.gz", [lines[1], ("new", "once"), ("n", "other")])
        notes = Notes()
        data = prepare(str(tmp_path / "x"), None, notes)
        assert notes.about("one training row: once")
        assert data.name == "x"
        assert data.facts["single_row_classes"] == ["once"]
        assert (data.facts["train_rows"], data.facts["learned_rows"]) == (14, 13)
        assert (data.facts["duplicates_train"], data.facts["leaks"]) == (1, 1)
        assert data.facts["test_rows_of_unlearned_classes"] == 2
        assert (data.y_test[1:] >= data.n_classes).all()
        assert data.y_test[0] == data.y[1]

    def test_a_part_can_be_taken(self, tmp_path: Path):
        for split in ("train", "test"):
            write_jsonl(tmp_path / "x" / f"{split}.jsonl.gz", rows(60))
        data = prepare(str(tmp_path / "x"), 15, Notes())
        assert (len(data.train), len(data.test)) == (15, 15)

    def test_texts_shared_between_sets_are_counted(self, tmp_path: Path):
        lines = rows(20)
        write_jsonl(tmp_path / "x" / "train.jsonl.gz", lines[:10])
        write_jsonl(tmp_path / "x" / "test.jsonl.gz", lines[10:14])
        write_jsonl(tmp_path / "y" / "train.jsonl.gz", lines[12:])
        write_jsonl(tmp_path / "y" / "test.jsonl.gz", [(lines[0][0].upper() + " !", lines[0][1])])
        sets = [prepare(str(tmp_path / name), None, Notes()) for name in "xy"]
        assert count_shared(sets) == [
            {"test_of": "x", "train_of": "y", "rows": 2, "fraction": 0.5},
            {"test_of": "y", "train_of": "x", "rows": 1, "fraction": 1.0},
        ]

    def test_test_rows_are_needed(self, tmp_path: Path):
        write_jsonl(tmp_path / "x" / "train.jsonl.gz", rows(12))
        with pytest.raises(DataError, match="no test rows"):
            prepare(str(tmp_path / "x"), None, Notes())


class TestUnits:
    def test_a_unit_is_made_once_for_the_same_settings(self, tmp_path: Path):
        made: list[int] = []

        def make() -> dict[str, Any]:
            made.append(1)
            return {"value": 1 / 3, "rows": [{"a": 1.0, "b": None}]}

        results = Results(tmp_path, Notes())
        first = results.unit("x", {"seed": 0}, make)
        assert first == results.unit("x", {"seed": 0}, make) == {
            "value": 0.333333, "rows": [{"a": 1.0, "b": None}]
        }  # fmt: skip
        assert len(made) == 1
        results.unit("x", {"seed": 1}, make)
        assert len(made) == 2
        write_text(tmp_path / "raw" / "x.json", '{"format": "layerfuse-study-unit", "form')
        results.unit("x", {"seed": 1}, make)
        assert len(made) == 3

    def test_files_are_json_with_a_row_on_each_line(self, tmp_path: Path):
        value = {"rows": [{"name": f"n{i}", "x": i / 7} for i in range(30)], "deep": {"a": [[]]}}
        write_compact(tmp_path / "x.json", value)
        text = (tmp_path / "x.json").read_text()
        assert len(text.splitlines()) == 35
        assert json.loads(text)["rows"][3] == {"name": "n3", "x": 0.428571}
        assert json.loads(text)["deep"] == {"a": [[]]}


class TestPlans:
    def test_every_fusion_comes_plain_and_with_a_residual(self):
        names = list(fusion_names())
        assert len(names) == len(set(names)) == 23
        assert {"concat", "tensor+residual", "stacking"} <= set(names)
        assert "concat+residual" not in names

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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny encoders and two sets."""
    root = tmp_path_factory.mktemp("study")
    save_model("bert", root / "bert")
    save_model("llama", root / "llama", seed=1)
    for seed, name in enumerate(SETS):
        write_jsonl(root / name / "train.jsonl.gz", _noisy(90, seed))
        write_jsonl(root / name / "test.jsonl.gz", _noisy(60, seed + 10))
    return root


def _noisy(n: int, seed: int) -> list[Row]:
    """One label in five is another one: nothing reaches 100 %, so that ways differ."""
    lines, rng = rows(n, seed=seed), np.random.default_rng(seed)
    names = sorted({label for _, label in lines})
    return [
        (text, names[rng.integers(len(names))] if rng.random() < 0.2 else label)
        for text, label in lines
    ]


def arguments(place: Path, out: Path, *more: object) -> list[object]:
    return [
        "reproduce", "--datasets", ",".join(str(place / name) for name in SETS),
        "--encoders", f"{place / 'bert'},nowhere/such,{place / 'llama'}",
        "--only", "profiles,fusions,complementarity,curves", "--pooling", POOLINGS,
        "--store", place / "store", "--out", out, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[Path, dict[str, Any]]:
    """A whole run and what it printed."""
    done = succeed(*arguments(place, place / "out", "--json"))
    return place / "out", done.json


@pytest.fixture
def evidence(whole: tuple[Path, dict[str, Any]]) -> Evidence:
    """A copy that a test may change."""
    found = Evidence.read(whole[0])
    return Evidence(copy.deepcopy(found.index), copy.deepcopy(found.units))


class TestWhole:
    def test_everything_is_measured_and_what_is_missing_is_named(
        self, whole: tuple[Path, dict[str, Any]]
    ):
        out, result = whole
        assert list(result["skipped"]) == ["nowhere/such"]
        assert list(result["encoders"]) == ["bert", "llama"]
        kinds = ("data", "profile", "fusions-seed0", "complementarity", "curve")
        assert result["units"] == [f"{name}-{kind}" for name in SETS for kind in kinds]
        assert {path.stem for path in (out / "raw").iterdir()} == set(result["units"])
        assert [claim["outcome"] for claim in result["claims"]][3] == UNTESTED
        assert "nowhere/such" in (out / "summary.md").read_text()
        figures = {path.name for path in (out / "figures").iterdir()}
        assert {"layers.svg", "layers.png", "group_gains.svg", "curves.png"} <= figures
        assert "resources.svg" not in figures
        assert (out / "report.html").stat().st_size < 6e6

    def test_a_profile_has_every_block_and_corrected_comparisons(self, evidence: Evidence):
        profile = evidence.result("alpha", "profile")
        assert profile is not None
        assert len(profile["blocks"]) == 2 * 4
        for name in ("bert", "llama"):
            own = [row for row in profile["blocks"] if row["encoder"] == name]
            compared = [row for row in own if "p" in row]
            assert [row["layer"] for row in compared] == [0, 1, 2]
            corrected = holm([row["p"] for row in compared])
            np.testing.assert_allclose([row["p_holm"] for row in compared], corrected, rtol=1e-4)
            assert all(row["low"] <= row["accuracy"] <= row["high"] for row in own)

    def test_every_choice_and_fusion_is_there(self, evidence: Evidence):
        ways = [(row["group"], row["way"]) for row in evidence.selections]
        assert ("bert+llama", "search") in ways
        assert ways.count(("bert", "last_four")) == len(SETS)
        for row in evidence.selections:
            for name in ("accuracy", "macro_f1"):
                assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
            assert ("member" in row) == ("+" in row["group"])
        greedy = [r for r in evidence.fusions if r["way"] == "greedy" and r["dataset"] == "beta"]
        assert [r["fusion"] for r in greedy] == [*fusion_names(), "concat", "concat"]

    def test_tables_hold_what_the_page_says(self, whole: tuple[Path, dict[str, Any]]):
        out, _ = whole
        with (out / "tables" / "layers.csv").open(encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        assert len(table) == len(SETS) * 8
        found = Evidence.read(out).result("alpha", "profile")
        assert found is not None
        assert float(table[0]["accuracy"]) == found["blocks"][0]["accuracy"]

    def test_a_second_run_measures_nothing_and_writes_the_same(
        self, place: Path, whole: tuple[Path, dict[str, Any]]
    ):
        out, first = whole
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        again = succeed(*arguments(place, out, "--json")).json
        assert again["reused_units"] == len(first["units"])
        assert {path: path.read_bytes() for path in before} == before

    def test_people_read_the_claims(self, place: Path, whole: tuple[Path, dict[str, Any]]):
        done = succeed(*arguments(place, whole[0], "--no-figures"))
        assert "1. Layers differ in how well they classify" in done.out
        assert "skipped: nowhere/such" in done.out
        assert "0 units measured and 10 found" in done.out
        assert max(map(len, done.out.splitlines()[:-1])) <= 80

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.browser
    def test_the_page_opens_in_a_browser(self, whole: tuple[Path, dict[str, Any]], scheme: str):
        path = whole[0] / "report.html"
        with open_browser() as browser:
            opened = open_page(browser, path, scheme=scheme, drawn=False)
            page = opened.page
            titles = page.locator("main h2").all_inner_texts()
            assert titles == ["Findings", "Details"]
            links = page.locator("nav a")
            assert links.count() == page.locator("main h2, main h3").count() > 10
            for place in links.evaluate_all("all => all.map(one => one.getAttribute('href'))"):
                assert page.locator(f"main {place}").count() == 1
            images = page.locator("main img")
            drawn = "all => all.every(one => one.complete && one.naturalWidth > 300 && one.alt)"
            assert images.count() == 4
            assert images.evaluate_all(drawn)
            assert colours(images.first) > 20
            assert page.locator(".scroll").count() == page.locator("table").count() > 5
            assert (opened.said, opened.asked) == ([], [])
            found = Axe().run(page).response["violations"]
            assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []

    def test_the_page_is_made_from_the_raw_results_alone(
        self, whole: tuple[Path, dict[str, Any]], tmp_path: Path
    ):
        out = shutil.copytree(whole[0], tmp_path / "copy")
        before = page_of(out, ".")
        path = out / "raw" / "alpha-profile.json"
        value = json.loads(path.read_text())
        value["result"]["encoders"]["bert"]["accuracy_best"] += 0.1
        path.write_text(json.dumps(value))
        assert page_of(out, ".") != before
        publish(out, figures=False)
        assert (out / "summary.md").read_text() == page_of(out, ".")


class TestGoingOn:
    def test_a_killed_run_goes_on_to_the_same_numbers(
        self, place: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
    ):
        out = tmp_path / "out"
        process = start(*arguments(place, out, "--no-figures"), cwd=tmp_path)
        done = out / "raw" / "alpha-fusions-seed0.json"
        deadline = time.monotonic() + 300
        while not done.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        kept = {path: path.stat().st_mtime_ns for path in (out / "raw").glob("*.json")}
        assert 3 <= len(kept) < 10
        assert not (out / "study.json").exists()
        again = succeed(*arguments(place, out, "--no-figures", "--json")).json
        assert again["reused_units"] == len(kept)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        for path in (out / "raw").glob("*.json"):
            assert _numbers(path) == _numbers(whole[0] / "raw" / path.name)

    def test_a_folder_of_something_else_is_left_alone(self, place: Path, tmp_path: Path):
        (tmp_path / "mine.txt").write_text("x")
        done = run(*arguments(place, tmp_path))
        assert done.code == 2
        assert "no study's" in done.err


def _numbers(path: Path) -> Any:
    """A unit's result without what a clock said."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "seconds"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads(path.read_text())["result"])


def alpha_read_by_bert(place: Path) -> tuple[StudyData, EmbeddedData, Any]:
    settings = make_settings(
        place, datasets=[str(place / "alpha")], encoders=[str(place / "bert")], poolings=["mean"]
    )
    data = prepare(settings.datasets[0], None, Notes())
    [own], encoders, _ = read_all([data], settings, EmbeddingStore(place / "store"), Notes())
    return data, own, encoders


class TestProfiles:
    def test_test_accuracy_is_that_of_a_ridge_regression(self, place: Path):
        data, own, _ = alpha_read_by_bert(place)
        found = profile_blocks(own, Notes())
        for score in found.probed.scores:
            mean, scale = standardization(own.train[score.block])
            model = Ridge(alpha=score.penalty).fit(
                (own.train[score.block] - mean) * scale, np.eye(data.n_classes)[data.y]
            )
            other = (own.test[score.block] - mean) * scale
            expected = model.predict(other).argmax(axis=1)
            assert (found.predicted[score.block] == expected).mean() > 0.98


class TestCosts:
    def test_a_cut_pipeline_runs_fewer_parameters(self, place: Path):
        data, own, encoders = alpha_read_by_bert(place)
        probed = profile_blocks(own, Notes()).probed
        choice = Choice(("bert",), "best", (BlockRef("bert", 1, "mean"),))
        whole, cut = (
            measure_cost(Timed(choice, is_cut), own, probed, encoders, data.test[:4], np.arange(90))
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
        from layerfuse.study.costs import _in_a_process

        with pytest.raises(LayerfuseError, match=r"bundle\.json"):
            _in_a_process({"bundle": str(place), "texts": ["x"], "cut": True, "device": "cpu"})


def _set_profiles(evidence: Evidence, difference: float, p: float, depth: float) -> None:
    """Every best layer, and every layer against the last and a borrowed one, differ by this."""
    for number, name in enumerate(SETS):
        profile = evidence.units[f"{name}-profile"]["result"]
        for encoder, found in profile["encoders"].items():
            found |= {"best": f"{encoder}:{number}:mean", "best_depth": depth}
            found |= {"difference": difference, "low": difference, "high": difference}
            found["p_value"] = p
        for row in profile["blocks"]:
            if "p" in row:
                row |= {"diff": difference, "p": p, "p_holm": p}
            row |= {"best_diff": -difference, "best_diff_low": 0.0, "best_diff_high": 0.0}
            row["best_p"] = p


class TestClaims:
    def outcomes(self, evidence: Evidence) -> list[str]:
        found = Evidence(evidence.index, evidence.units)  # without what was worked out before
        return [claim.outcome for claim in claims_of(found)]

    def test_layers_that_differ_clearly_confirm(self, evidence: Evidence):
        _set_profiles(evidence, 0.1, 1e-9, depth=0.7)
        assert self.outcomes(evidence)[:2] == [CONFIRMED, CONFIRMED]

    def test_layers_that_do_not_differ_refute(self, evidence: Evidence):
        _set_profiles(evidence, 0.0, 1.0, depth=0.7)
        assert self.outcomes(evidence)[:2] == [REFUTED, REFUTED]
        claims = claims_of(evidence)
        assert "not borne out" in " ".join(claims[0].sentences)
        assert "No case shows" in " ".join(claims[1].sentences)

    def test_early_layers_that_win_are_no_middle_layers(self, evidence: Evidence):
        _set_profiles(evidence, 0.1, 1e-9, depth=0.1)
        assert self.outcomes(evidence)[1] == REFUTED

    def test_one_case_refines(self, evidence: Evidence):
        _set_profiles(evidence, 0.0, 1.0, depth=0.7)
        profile = evidence.units["alpha-profile"]["result"]
        profile["encoders"]["bert"] |= {"difference": 0.1, "p_value": 1e-9}
        assert self.outcomes(evidence)[1] == REFINED

    def _set_fusion(self, evidence: Evidence, difference: float, p: float, low: float) -> None:
        for name in SETS:
            for row in evidence.units[f"{name}-fusions-seed0"]["result"]["selections"]:
                if "member_difference" in row:
                    row |= {"member_difference": difference, "member_p_value": p}
            found = evidence.units[f"{name}-complementarity"]["result"]
            own = found["correlations"]["two encoders"][found["headline"]]
            own |= {"value": low + 0.1, "low": low, "high": low + 0.2}

    @pytest.mark.parametrize(
        ("difference", "p", "low", "outcome"),
        [
            (0.05, 1e-9, 0.3, CONFIRMED),
            (0.05, 1e-9, -0.3, REFINED),
            (-0.05, 1e-9, 0.3, REFUTED),
            (0.05, 0.5, 0.3, REFUTED),
        ],
    )
    def test_fusion(
        self, evidence: Evidence, difference: float, p: float, low: float, outcome: str
    ):
        self._set_fusion(evidence, difference, p, low)
        assert self.outcomes(evidence)[2] == outcome

    @pytest.mark.parametrize(
        ("times", "outcome"), [((3, 3), CONFIRMED), ((3, 0.5), REFINED), ((0.5, 0.5), REFUTED)]
    )
    def test_costs(self, evidence: Evidence, times: tuple[float, float], outcome: str):
        def measured(group: str, way: str, cut: bool, latency: float, peak: float) -> None:
            name = f"alpha-resources-{group}-{way}-{cut}"
            evidence.units[name] = {
                "date": "2020-01-02",
                "result": {
                    "group": group, "way": way, "cut": cut, "parameters": 10, "peak_mb": peak,
                    "base_mb": 100.0, "latency_ms": latency, "texts_per_s": 5.0, "device": "cpu",
                    "load_s": 1.0, "embedding_bytes": 1, "bundle_bytes": 1,
                },
            }  # fmt: skip

        measured("bert", "last", False, 10.0, 200.0)
        measured("bert+llama", "greedy", True, 10.0 * times[0], 100 + 100 * times[1])
        measured("bert+llama", "greedy", False, 99.0, 999.0)
        assert self.outcomes(evidence)[3] == outcome

    def test_labels(self, evidence: Evidence):
        for name in SETS:
            own = evidence.units[f"{name}-curve"]["result"]["points"]
            own[0]["gain"]["value"], own[-1]["gain"]["value"] = 0.3, 0.1
        assert self.outcomes(evidence)[4] == CONFIRMED
        evidence.units["beta-curve"]["result"]["points"][0]["gain"]["value"] = 0.0
        assert self.outcomes(evidence)[4] == REFINED

    def test_a_part_that_was_not_run_is_not_tested(self, evidence: Evidence):
        bare = Evidence(
            evidence.index, {k: v for k, v in evidence.units.items() if k.endswith("-data")}
        )
        assert [claim.outcome for claim in claims_of(bare)] == [UNTESTED] * 5
        assert len(PARTS) == 5


def test_groups_are_single_pairs_and_the_best_triple(evidence: Evidence):
    from layerfuse.blocks import BlockScore, BlockScores

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


def test_make_check_notices_a_changed_number(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    from benchmarks import tables

    shutil.copytree(whole[0], tmp_path / "results" / "packaged")
    monkeypatch.setattr(tables, "_HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(tables, "_PAGES", ())
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    page = tmp_path / "docs" / "study.md"
    text = page.read_text()
    digit = next(place for place, sign in enumerate(text) if sign.isdigit())
    page.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    assert tables.main(["--check"]) == 1
    page.write_text(text)
    table = tmp_path / "results" / "packaged" / "tables" / "layers.csv"
    table.write_text(table.read_text().replace("0.", "1.", 1))
    assert tables.main(["--check"]) == 1
