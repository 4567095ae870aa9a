"""What `report` writes and refuses, and what `fit` leaves for it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from benchmarks.report import make_run
from commandline import Done, rows, run, succeed, write_csv
from families import TinyModels
from layerfuse import load, load_dataset
from layerfuse.report import render_scores
from layerfuse.report.details import read_details, read_rows
from layerfuse.report.parts import readable

QUICK = ["--cv", 2, "--fusion", "concat", "--head", "ridge", "--pooling", "mean,last"]


@pytest.fixture(scope="module")
def place(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A folder with the run of a fit, and what the fit said."""
    root = tmp_path_factory.mktemp("report")
    data = [*rows(60), *rows(5)]
    write_csv(root / "train.csv", data)
    write_csv(root / "test.csv", [*rows(40, seed=1), *rows(4)])
    files = [root / "train.csv", "--test", root / "test.csv", "--store", root / "store"]
    return root, succeed("fit", *files, "-e", tiny("bert"), *QUICK, "--out", root / "run")


def test_a_fit_writes_the_page_and_says_where(place: tuple[Path, Done]):
    root, done = place
    assert (root / "run" / "report.html").stat().st_size < 6e6
    assert f"report: {root / 'run' / 'report.html'}" in done.err


@pytest.mark.parametrize("how", ["option", "file"])
def test_a_fit_without_a_report(
    tiny: TinyModels, place: tuple[Path, Done], tmp_path: Path, how: str
):
    root, _ = place
    (tmp_path / "fit.toml").write_text("report = false\n", encoding="utf-8")
    refused = ["--no-report"] if how == "option" else ["--config", tmp_path / "fit.toml"]
    files = [root / "train.csv", "--store", root / "store", "--out", tmp_path / "run"]
    done = succeed("fit", *files, "-e", tiny("bert"), *QUICK, *refused)
    assert not (tmp_path / "run" / "report.html").exists()
    assert "report.html" not in done.err
    assert succeed("report", tmp_path / "run").code == 0


def test_without_the_extra_a_fit_goes_on_and_says_how_to_have_it(
    tiny: TinyModels,
    place: tuple[Path, Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    root, _ = place
    monkeypatch.setitem(sys.modules, "altair", None)  # as if it were not installed
    files = [root / "train.csv", "--store", root / "store", "--out", tmp_path / "run"]
    done = succeed("fit", *files, "-e", tiny("bert"), *QUICK)
    (line,) = [line for line in done.err.splitlines() if "report" in line]
    assert "pip install 'layerfuse[report]'" in line
    assert not (tmp_path / "run" / "report.html").exists()
    alone = run("report", root / "run", "--out", tmp_path / "x.html")
    assert alone.code == 2
    assert "pip install 'layerfuse[report]'" in alone.err


def test_report_with_figures_as_json(place: tuple[Path, Done], tmp_path: Path):
    root, _ = place
    options = ["--out", tmp_path / "page.html", "--figures", tmp_path / "figures", "--json"]
    made = succeed("report", root / "run", *options).json
    assert made["report"] == str(tmp_path / "page.html")
    assert made["n_bytes"] == (tmp_path / "page.html").stat().st_size
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {Path(name).name for name in made["figures"]}
    assert {"gains.svg", "gains.png", "curve-0.svg", "confusion.png"} <= names


def test_people_are_told_where_the_page_is(place: tuple[Path, Done], tmp_path: Path):
    done = succeed("report", place[0] / "run", "--out", tmp_path / "page.html")
    assert done.out.startswith(str(tmp_path / "page.html"))


def test_rows_are_what_the_saved_classifier_predicts(place: tuple[Path, Done]):
    root, _ = place
    classifier = load(root / "run" / "bundle")
    test = load_dataset(str(root / "test.csv"), labeled=True).splits["train"]
    proba = classifier.predict_proba(test.texts)
    found = read_rows(root / "run", len(classifier.classes_))["test"]
    assert classifier.classes_[found.predicted].tolist() == classifier.predict(test.texts).tolist()
    assert classifier.classes_[found.truth].tolist() == list(test.labels or ())
    np.testing.assert_allclose(
        found.confidence, proba.max(axis=1), atol=0.02
    )  # the store keeps float16
    np.testing.assert_allclose(
        found.own, proba[np.arange(len(proba)), found.truth], atol=0.02
    )  # the store keeps float16


def test_rows_agree_with_the_report(place: tuple[Path, Done]):
    folder = place[0] / "run"
    result = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, found in read_rows(folder, 3).items():
        assert len(found) == result[name]["n"]
        assert found.right.mean() == pytest.approx(result[name]["accuracy"])


def test_details_say_what_is_hard_doubled_and_measured(place: tuple[Path, Done]):
    root, _ = place
    details, found = read_details(root / "run"), read_rows(root / "run", 3)["cv"]
    train = load_dataset(str(root / "train.csv"), labeled=True).splits["train"]
    own = {int(row): float(value) for row, value in zip(found.rows, found.own, strict=True)}
    hardest = details["hardest"]["texts"]
    assert [text["own"] for text in hardest] == sorted(own.values())[: len(hardest)]
    for text in hardest:
        assert train.texts[text["row"]] == text["text"]
        assert train.labels is not None
        assert train.labels[text["row"]] == text["label"]
    assert details["hardest"]["wrong"] == int((~found.right).sum())
    assert details["audit"]["leaks"]["count"] == 4
    chosen = {f"{b['encoder']}:{b['layer']}:{b['pooling']}" for b in _chosen(root / "run")}
    assert chosen <= set(details["complementarity"]["blocks"])
    count = len(details["complementarity"]["blocks"])
    assert len(details["complementarity"]["pairs"]) == count * (count - 1) // 2


def _chosen(folder: Path) -> list[dict[str, str]]:
    result = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return list(result["selection"]["blocks"])


def test_the_page_says_apart_what_is_simpler(tmp_path: Path):
    make_run(tmp_path, rows=200)
    succeed("report", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<p class="advice">Simpler, and as good: one:24:mean alone.</p>' in page
    assert '<p class="verdict gained">Fusion adds 2.0 points.</p>' in page


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("report.json", None, "no report.json"),
        ("report.json", "{", "cannot be read"),
        ("report.json", "[]", "one object"),
        ("details.json", None, "no details.json"),
        ("details.json", '{"format": "other"}', "should be"),
        ("rows.parquet", None, "fit"),
        ("rows.parquet", "PAR1", "damaged"),
        ("curve.json", "no", "cannot be read"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, damage: str | None, says: str):
    make_run(tmp_path, rows=200)
    (tmp_path / name).unlink(missing_ok=True)
    if damage is not None:
        (tmp_path / name).write_text(damage, encoding="utf-8")
    done = run("report", tmp_path)
    assert done.code == 2, done.err
    assert says in done.err
    assert len(done.err.splitlines()) <= 5


def test_rows_of_other_classes_are_refused(tmp_path: Path):
    make_run(tmp_path, rows=200)
    details = json.loads((tmp_path / "details.json").read_text(encoding="utf-8"))
    details["classes"] = details["classes"][:5]
    (tmp_path / "details.json").write_text(json.dumps(details), encoding="utf-8")
    done = run("report", tmp_path)
    assert done.code == 2
    assert "classes" in done.err


@pytest.mark.parametrize("path", ["gone", "file"])
def test_what_is_no_run_folder_is_refused(tmp_path: Path, path: str):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run("report", tmp_path / path)
    assert done.code == 2
    assert "run folder" in done.err


def test_the_page_of_many_rows_is_small_and_the_rows_file_too(tmp_path: Path):
    make_run(tmp_path)
    made = succeed("report", tmp_path, "--json").json
    assert made["n_bytes"] < 6e6
    assert (tmp_path / "rows.parquet").stat().st_size < 2e6
    assert pq.read_metadata(tmp_path / "rows.parquet").num_rows == 70_000


def profile_of(layers: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of one encoder; the higher a layer, the better."""
    numbers = {"accuracy_se": 0.01, "macro_f1": 0.5, "loss_se": 0.1, "penalty": 1.0}
    return [
        {"encoder": "e", "layer": layer, "pooling": "mean", "accuracy": layer / 100}
        | {"loss": 1 - layer / 100, **numbers}
        for layer in layers
    ]


def printed(layers: Sequence[int]) -> list[str]:
    out = Console(file=io.StringIO(), width=80)
    render_scores({"profile": profile_of(layers)}, out)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("layers", "said"), [(range(4, 31), "4 to 30"), ((8, 16, 24, 30), "8, 16, 24, 30")]
)
def test_the_chart_names_the_layers_that_it_shows(layers: Sequence[int], said: str):
    assert any(line.startswith(f"layers {said}: ") for line in printed(layers))


@pytest.mark.parametrize(("layers", "shown"), [(range(31), "12 of 31"), (range(12), "all")])
def test_the_table_says_how_it_is_sorted_and_what_it_leaves_out(layers: Sequence[int], shown: str):
    lines = printed(layers)
    title = f"Blocks by loss, leave-one-out on training rows ({shown})"
    assert title in " ".join(lines)  # it may be wrapped
    names = [line.split()[0] for line in lines if line.strip().startswith("e:")]
    assert names == [f"e:{layer}:mean" for layer in reversed(layers)][:12]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("first_3", "first 3 chosen"),
        ("last_layer (my_model)", "last layer (my_model)"),
        ("tfidf", "TF-IDF + logistic"),
    ],
)
def test_names_that_people_read(name: str, said: str):
    assert readable(name) == said
