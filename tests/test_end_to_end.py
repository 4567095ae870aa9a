"""Real encoders and real texts from the package index, through the command line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

import layerfuse
from commandline import run, succeed, write_csv

pytestmark = pytest.mark.index

REVIEWS = (
    ("A warm, funny and moving film.", "good"),
    ("I was bored from the first minute to the last.", "bad"),
    ("The best performances of the year.", "good"),
    ("A dull story, badly told.", "bad"),
    ("Every scene is a joy to watch.", "good"),
    ("It wastes a fine cast on a poor script.", "bad"),
    ("Clever, tender and beautifully shot.", "good"),
    ("Lifeless dialogue and a predictable ending.", "bad"),
    ("You will leave the cinema happy.", "good"),
    ("Two hours that I want back.", "bad"),
    ("A triumph.", "good"),
    ("A mess.", "bad"),
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and datasets come from the user's cache; everything written stays here."""
    monkeypatch.delenv("LAYERFUSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def test_minilm_is_read_as_it_should():
    done = run("models", "check", "minilm", "--dtype", "float32")
    assert done.code == 0, done.out
    for line in ("name: minilm", "dtype: float32", "layers: 6", "dim: 384", "ok: yes"):
        assert line in done.out.splitlines()


def test_bbc_news_from_fit_to_predictions():
    data = ("bbc-news", "--sample", 100)
    fitted = succeed("fit", *data, "-e", "minilm", "--store", "kept", "--out", "run", "--json").json
    assert 95 <= fitted["data"]["train_rows"] <= 105  # each class in its share
    assert len(fitted["profile"]["scores"]) == 7
    majority = next(entry for entry in fitted["baselines"] if entry["name"] == "majority")
    assert majority["cv"]["accuracy"]["value"] < 0.3
    assert fitted["cv"]["accuracy"]["value"] > 0.85  # 0.93 to 0.95 when this was written
    assert 0 < fitted["data"]["truncated_share"] < 0.5  # some articles are longer than 512 tokens

    texts = [
        ("Shares fell after the bank cut its profit forecast.", "business"),
        ("The striker scored twice as United won the cup final.", "sports"),
        ("The minister told MPs that the election would be in May.", "politics"),
        ("The new phone runs software from Microsoft.", "tech"),
        ("The actress won an Oscar for her role in the film.", "entertainment"),
    ]
    write_csv(Path("new.csv"), texts)
    printed = list(csv.DictReader(io.StringIO(succeed("predict", "run", "new.csv").out)))
    assert sum(row["label"] == label for row, (_, label) in zip(printed, texts, strict=True)) >= 4
    assert layerfuse.load("run").predict([texts[1][0]]).tolist() == [printed[1]["label"]]
    measured = succeed("evaluate", "run", "new.csv", "--json").json["metrics"]
    assert measured["n"] == 5
    assert measured["accuracy"]["value"] >= 0.8


def test_a_gguf_model_reads_texts_in_a_template():
    pytest.importorskip("gguf")
    data = write_csv(Path("reviews.csv"), REVIEWS)
    template = "smollm2-135m=Review: {text}\nIs this review good or bad? It is"
    command = ("profile", data, "-e", "smollm2-135m", "--pooling", "last", "--prompt", template)
    report = succeed(*command, "--store", "kept", "--json").json
    accuracies = [row["accuracy"] for row in report["profile"]["scores"]]
    assert len(accuracies) == 31
    # layer 0 is the template's last token, which has read nothing yet
    assert accuracies[0] == 0
    assert max(accuracies) > 0.5
