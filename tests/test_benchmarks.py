"""The benchmark of predictors on planted blocks: what it measures, not what it finds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from benchmarks import complementarity, tables
from benchmarks.gpu import command as gpu
from benchmarks.packaged import read_sets
from benchmarks.pairs import (
    MEASURES,
    OUTCOMES,
    correlate,
    halves,
    measure_predictors,
    spearman,
    summarize,
    top_picks,
)
from commandline import rows, write_jsonl, write_text
from families import save_model
from layerfuse.blocks import BlockRef
from layerfuse.complementarity import compare
from layerfuse.embeddings.extraction import BlockView
from layerfuse.embeddings.shard import Key
from layerfuse.probing import probe_blocks
from layerfuse.probing.ridge import standardization
from layerfuse.targets import Targets

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model("bert", folder / "bert")
    save_model("llama", folder / "llama", seed=1)
    return folder


@dataclass
class Stored:
    """A block in memory."""

    array: Array
    n_computed = 0
    cost = None

    def __post_init__(self) -> None:
        self.truncated = np.zeros(len(self.array), dtype=bool)

    def read(self, key: Key, rows: npt.NDArray[np.intp]) -> Array:
        return self.array[rows]


def planted(n: int = 400) -> tuple[BlockView, Targets]:
    """Blocks that know the first, the second or no half of the signal, more or less well."""
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(2, n))
    y = (halves.sum(axis=0) > 0).astype(np.intp)
    blocks = {}
    for number in range(9):
        array = rng.normal(size=(n, 6)).astype(np.float32)
        if number % 3 < 2:
            array[:, 0] = halves[number % 3] + (0.2 + 0.1 * number) * rng.normal(size=n)
        blocks[BlockRef("xyz"[number // 3], number % 3, "mean")] = Stored(array)
    return BlockView(blocks, np.arange(n)), Targets.from_labels(y)


def test_halves_are_of_equal_classes() -> None:
    y = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 3, 2]))
    first, second = halves(y, seed=0)
    assert sorted([*first, *second]) == list(range(len(y)))
    assert list(np.bincount(y[first])) == [25, 2, 1]
    assert list(np.bincount(y[second])) == [25, 1, 1]


def test_predictors_see_one_half_and_gains_come_from_the_other() -> None:
    blocks, targets = planted()
    y = targets.codes
    found = measure_predictors(blocks, targets)
    first, second = halves(y, seed=0)
    on_first = compare(blocks.take(first), y[first], pairs="blocks", blocks=list(blocks))
    pairs = {frozenset((pair.a, pair.b)): pair for pair in on_first.pairs}
    assert len(found.members) == len(pairs) == 36

    def head(names: list[BlockRef], penalty: float) -> Array:
        """Predictions on the second half by scikit-learn's ridge on whole blocks."""
        train, test = [], []
        for name in names:
            mean, scale = standardization(blocks[name][first])
            train.append((blocks[name][first] - mean) * scale)
            test.append((blocks[name][second] - mean) * scale)
        model = Ridge(alpha=penalty).fit(np.concatenate(train, 1), np.eye(2)[y[first]])
        return np.asarray(model.predict(np.concatenate(test, 1)))

    alone = {
        score.block: score.penalty
        for score in probe_blocks(blocks.take(first), targets[first]).scores
    }
    for row, (a, b) in enumerate(found.members):
        pair = pairs[frozenset((found.blocks[a], found.blocks[b]))]
        for name, measure in MEASURES.items():
            assert found.predictors[name][row] == pytest.approx(measure(pair), abs=1e-5)
        fused = head([pair.a, pair.b], pair.penalty)
        baseline = head([pair.better], alone[pair.better])
        right, before = (
            (predicted.argmax(axis=1) == y[second]).mean() for predicted in (fused, baseline)
        )
        assert found.realized["accuracy_gain"][row] == pytest.approx(right - before, abs=0.006)
        loss, loss_before = (
            ((np.eye(2)[y[second]] - predicted) ** 2).sum(axis=1).mean()
            for predicted in (fused, baseline)
        )
        assert found.realized["loss_gain"][row] == pytest.approx(loss_before - loss, abs=1e-4)


def test_correlations_are_spearmans_with_intervals() -> None:
    found = measure_predictors(*planted())
    correlations = correlate(found, n_resamples=50)
    summary = summarize([correlations, correlations])
    assert list(summary) == ["all", "two encoders", "with the best block"]
    for group, mask in found.groups().items():
        for outcome in OUTCOMES:
            for name in MEASURES:
                entry = summary[group][outcome][name]
                expected = spearmanr(found.predictors[name][mask], found.realized[outcome][mask])
                assert entry["value"] == pytest.approx(expected.statistic)
                assert -1 <= entry["low"] <= entry["high"] <= 1
    assert [mask.sum() for mask in found.groups().values()] == [36, 27, 8]
    assert summary["all"]["loss_gain"]["loss_gain"]["value"] > 0.5
    constant = pd.DataFrame({"a": np.ones(5)})
    assert spearman(constant, pd.DataFrame({"b": np.arange(5)})) == 0
    picks = top_picks(found)
    assert picks["all"]["loss_gain"]["most"] == found.realized["loss_gain"].max()
    assert picks["all"]["loss_gain"]["loss_gain"] <= picks["all"]["loss_gain"]["most"]
    json.dumps([summary, picks], allow_nan=False)


@pytest.mark.slow
def test_a_whole_run_writes_its_raw_numbers(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        write_jsonl(tmp_path / "data" / "mr" / f"{split}.jsonl.gz", rows(60))
    monkeypatch.setenv("LAYERFUSE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(complementarity, "RESULTS", tmp_path)
    monkeypatch.setattr(complementarity, "ENCODERS", (models / "bert", models / "llama"))
    monkeypatch.setattr(complementarity, "POOLINGS", ("mean",))
    monkeypatch.setattr(complementarity, "DATASETS", ("mr", "nowhere"))
    results = complementarity.run()
    assert [result["dataset"] for result in results] == ["mr", "median"]
    assert (results[0]["rows"], results[0]["blocks"], results[0]["pairs"]) == (60, 8, 28)
    assert results[1]["correlations"] == results[0]["correlations"]
    json.dumps(results, allow_nan=False)
    with np.load(tmp_path / "raw" / "complementarity-mr.npz") as raw:
        assert raw["members"].shape == (28, 2)
        assert {f"predictor_{name}" for name in MEASURES} < set(raw.files)


def test_a_part_of_the_pairs() -> None:
    found = measure_predictors(*planted(), max_pairs=5)
    with_best = (found.members == found.best).any(axis=1)
    assert (found.drawn.sum(), with_best.sum()) == (5, 8)  # of 36 pairs of 9 blocks
    assert (found.drawn | with_best).all()
    assert [mask.sum() for mask in found.groups().values()][::2] == [5, 8]
    assert len(found.predictors) == len(found.realized) == len(found.members)


def test_rows_of_a_class_with_one_row_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFUSE_DATA", str(tmp_path))
    lines = [(f"t{i}", "ab"[i % 2]) for i in range(8)]
    write_jsonl(tmp_path / "r52" / "train.jsonl.gz", [*lines, ("alone", "once")])
    write_jsonl(tmp_path / "r52" / "test.jsonl.gz", [("new", "once"), lines[1]])
    [texts] = read_sets(["r52"])
    assert list(texts.train) == [f"t{i}" for i in range(8)]
    assert list(texts.targets.codes) == [0, 1] * 4
    assert list(texts.y_test) == [2, 1]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    records = gpu.run("cpu", tiny=True, out=out)
    assert json.loads(out.read_text())["results"][0]["device"] == "cpu"
    assert [record["section"] for record in records] == ["machine", *gpu.SECTIONS]
    assert [record["section"] for record in records if "error" in record] == []
    assert all(record["ok"] for record in records)
    found = {record["section"]: record.get("results", {}) for record in records}
    assert len(found["parity"]["cases"]) == 3 * 3
    assert found["batches"]["largest"] < 1e-4
    assert found["threads"]["llama"]["wrong"] == 0
    assert found["llama_7b"]["plain_difference"] < 1e-4
    assert all(way["tokens_per_s"] > 0 for way in found["llama_7b"]["times"].values())


def test_a_section_that_fails_or_overruns_leaves_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: gpu.Context, out: dict[str, Any]) -> None:
        out["before"] = 1
        raise ValueError("broken")

    def overrun(context: gpu.Context, out: dict[str, Any]) -> None:
        context.deadline = 0
        context.check_time()

    monkeypatch.setattr(gpu, "SECTIONS", {"a": (fail, 50), "b": (overrun, 50), "c": (fail, 0)})
    _, a, b, c = gpu.run("cpu", tiny=True, out=tmp_path / "gpu.json")
    assert (a["ok"], a["results"]) == (False, {"before": 1})
    assert "ValueError: broken" in a["error"]
    assert (b["ok"], b["note"]) == (True, "cut: its time is used up")
    assert (c["ok"], c["note"]) == (None, "skipped: the time is used up")
    assert len(json.loads((tmp_path / "gpu.json").read_text())["results"]) == 4


def test_tables_follow_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table accuracy -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tables, "_HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(tables, "_PAGES", (page,))
    write_text(
        tmp_path / "benchmarks" / "results" / "accuracy.json",
        json.dumps({"results": [], "date": "2020-01-02", "hardware": {"cpu": "x", "cores": 3}}),
    )
    assert tables.main(["--check"]) == 1
    assert "old" in page.read_text()
    assert "python -m benchmarks.tables" in capsys.readouterr().err
    assert tables.main([]) == 0
    assert page.read_text().startswith("before\n<!-- table accuracy -->\n| data |")
    assert page.read_text().endswith("(x, 3 cores, 2020-01-02)\n<!-- end -->\nafter\n")
    assert tables.main(["--check"]) == 0
