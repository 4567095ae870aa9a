"""``profile --out`` and ``compare --out``: tables and figures for a paper."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from commandline import rows, run, succeed, write_csv
from families import TinyModels
from layerfuse import FrozenEncoder, extract
from layerfuse.commands.output import encode
from layerfuse.report.run_report import read_run_report


@pytest.fixture
def given(tiny: TinyModels, tmp_path: Path) -> list[object]:
    table = write_csv(tmp_path / "train.csv", rows(40))
    return [table, "-e", f"bert={tiny('bert')}", "--store", tmp_path / "store"]


def test_a_profile_as_a_table(given: list[object], tmp_path: Path):
    done = succeed("profile", *given, "--out", tmp_path / "scores.csv", "--json")
    succeed("profile", *given, "--out", tmp_path / "scores.parquet")
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    scores = done.json["profile"]["scores"]
    assert [int(row["layer"]) for row in found] == [score["block"]["layer"] for score in scores]
    assert [float(row["loss"]) for row in found] == [score["loss"] for score in scores]
    same = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [row["accuracy"] for row in same] == [score["accuracy"] for score in scores]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_a_profile_as_a_figure(given: list[object], tmp_path: Path, suffix: str, start: bytes):
    succeed("profile", *given, "--out", tmp_path / f"layers.{suffix}")
    assert (tmp_path / f"layers.{suffix}").read_bytes().startswith(start)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["ridge", "logistic"])
def test_predictions_of_every_block_by_row(given: list[object], tmp_path: Path, scorer: str):
    path = tmp_path / "predictions.parquet"
    options = ("--scorer", scorer, "--predictions", path, "--out", tmp_path / "s.csv")
    done = succeed("profile", *given, *options, "--json")
    table = pq.read_table(path)
    scores = done.json["profile"]["scores"]
    blocks = ["bert:{layer}:{pooling}".format(**score["block"]) for score in scores]
    assert table.column_names == ["row", "label", *blocks]
    assert table["row"].to_pylist() == list(range(40))
    labels = [label for _, label in rows(40)]
    assert table["label"].to_pylist() == labels
    for block, score in zip(blocks, scores, strict=True):
        own = np.array(table[block].to_pylist())
        assert (own == labels).mean() == pytest.approx(score["accuracy"])
    assert 0 < np.mean([score["accuracy"] for score in scores]) < 1


def test_predictions_of_a_block_are_of_fits_without_the_row(
    given: list[object], tmp_path: Path, tiny: TinyModels
):
    """By scikit-learn, fitted 40 times."""
    from sklearn.linear_model import RidgeClassifier

    path = tmp_path / "p.parquet"
    done = succeed("profile", *given, "--predictions", path, "--id-column", "text", "--json")
    texts, labels = zip(*rows(40), strict=True)
    table = pq.read_table(path)
    assert table["id"].to_pylist() == list(texts)
    (score,) = (s for s in done.json["profile"]["scores"] if s["block"]["layer"] == 2)
    encoder = FrozenEncoder.from_pretrained(tiny("bert"), name="bert")
    X = extract(texts, encoder, layers=[2], pooling=("mean",))["bert:2:mean"].astype(float)
    Z = (X - X.mean(axis=0)) / X.std(axis=0) / X.shape[1] ** 0.5
    Z, y, found = np.nan_to_num(Z), np.array(labels), []
    for row in range(40):
        others = np.array([other for other in range(40) if texts[other] != texts[row]])
        fitted = RidgeClassifier(alpha=score["penalty"]).fit(Z[others], y[others])
        found.append(fitted.predict(Z[[row]])[0])
    same = np.array(table["bert:2:mean"].to_pylist()) == found
    assert same.mean() > 0.95  # the store keeps float16, and centering is of all rows
    assert (np.array(found) != y).any()


def test_pairs_as_a_table(given: list[object], tmp_path: Path):
    done = succeed(
        *("compare", *given, "--pairs", "blocks", "--out", tmp_path / "pairs.jsonl", "--json")
    )
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(done.json["pairs"]) == 6
    first = done.json["pairs"][0]
    assert f'"gain_low": {first["gain"]["low"]}' in lines[0]
    assert f'"cka": {first["cka"]}' in lines[0]


def test_other_suffixes_are_refused_before_the_work(given: list[object], tmp_path: Path):
    for command, name in (("profile", "a.xlsx"), ("compare", "a.svg")):
        done = run(command, *given, "--out", tmp_path / name)
        assert done.code == 2
        assert ".tex" in done.err
        assert not (tmp_path / "store").exists()


def test_latex_is_escaped_and_aligned():
    table = encode([{"a_b": "50% & {x}\\y", "n": 0.5, "k": 3}], ".tex").decode()
    assert r"\begin{tabular}{lrr}" in table
    assert r"a\_b & n & k \\" in table
    assert r"50\% \& \{x\}\textbackslash{}y & 0.5000 & 3 \\" in table


def test_embeddings_as_a_file(given: list[object], tmp_path: Path):
    data = [*given, "--layers", "0,2", "--label-column", "label"]
    succeed("extract", *data, "--out", tmp_path / "e.npz")
    succeed("extract", *data, "--out", tmp_path / "e.parquet")
    texts, labels = zip(*rows(40), strict=True)
    with np.load(tmp_path / "e.npz") as found:
        assert set(found) == {"train/label", "train/bert:0:mean", "train/bert:2:mean"}
        assert found["train/label"].tolist() == list(labels)
        arrays = dict(found)
    encoder = FrozenEncoder.from_pretrained(str(given[2]).partition("=")[2], name="bert")
    blocks = extract(texts, encoder, layers=[0, 2], pooling=("mean",))
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["split"].to_pylist() == ["train"] * 40
    for layer in (0, 2):
        own = arrays[f"train/bert:{layer}:mean"]
        np.testing.assert_allclose(own, blocks[f"bert:{layer}:mean"], atol=2e-2)  # float16
        same = np.array(table[f"bert:{layer}:mean"].to_pylist(), dtype=np.float32)
        np.testing.assert_array_equal(same, own)


@pytest.mark.slow
def test_extract_reads_html_as_fit_does(given: list[object], tmp_path: Path):
    write_csv(tmp_path / "train.csv", [(f"<p>{text}</p>", label) for text, label in rows(40)])
    succeed("extract", *given, "--strip-html")
    done = succeed("fit", *given, "--strip-html", "--cv", 2, "--no-report", "--out", tmp_path / "r")
    assert "40 of 40 distinct texts are in the store" in done.err


@pytest.mark.slow
def test_fits_with_several_seeds_are_beside_the_one_that_is_saved(
    tiny: TinyModels, tmp_path: Path
) -> None:
    table = write_csv(tmp_path / "train.csv", rows(90))
    later = write_csv(tmp_path / "later.csv", rows(60))
    few = ["-e", f"bert={tiny('bert')}", "--cv", 2, "--no-report", "--store", tmp_path / "store"]
    few += ["--test", later]
    done = succeed("fit", table, *few, "--seeds", 3, "--seed", 4, "--out", tmp_path / "run")
    report = read_run_report(tmp_path / "run")
    assert [run.seed for run in report.seeds] == [4, 5, 6]
    first = report.seeds[0]
    assert report.test is not None
    assert (first.cv, first.test) == (report.cv.accuracy.value, report.test.accuracy.value)
    assert first.blocks == report.selection.blocks
    succeed("fit", table, *few, "--seed", 5, "--out", tmp_path / "other")
    other = read_run_report(tmp_path / "other")
    assert other.test is not None
    assert (report.seeds[1].cv, report.seeds[1].test) == (
        (other.cv.accuracy.value, other.test.accuracy.value)
    )
    assert other.seeds == ()
    assert "3 seeds: nested" in done.out
