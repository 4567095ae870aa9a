"""Why a text is predicted as it is: the nearest training texts, kept only where asked for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import layerfuse
from commandline import rows, run, succeed, write_csv
from families import TinyModels
from helpers import build, planted
from layerfuse.errors import ConfigError, FormatError, NotAvailableError
from layerfuse.neighbors import TrainingExamples
from layerfuse.report.run_report import read_run_report
from layerfuse.targets import LabelSpace

SPACE = LabelSpace(np.array(["a", "b"]))


@pytest.fixture
def examples() -> TrainingExamples:
    rng = np.random.default_rng(0)
    texts = tuple(f"ü text {number}" * (number % 3) for number in range(40))
    features = rng.normal(size=(40, 5)).astype(np.float16)
    return TrainingExamples(texts, np.arange(40) % 2, features)


def test_neighbors_are_the_nearest_and_a_random_pair_is_1_apart(examples: TrainingExamples):
    known = examples.features.astype(np.float64)
    apart = np.linalg.norm(known[:, None] - known, axis=2)
    scale = np.sqrt((apart**2).mean())
    asked = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    found = examples.nearest(asked, SPACE, 4)
    assert len(found) == 300
    for row, neighbors in zip(asked, found, strict=True):
        distances = np.linalg.norm(known - row, axis=1) / scale
        order = np.argsort(distances)[:4]
        assert [one.text for one in neighbors] == [examples.texts[at] for at in order]
        assert [one.label for one in neighbors] == ["ab"[at % 2] for at in order]
        np.testing.assert_allclose([one.distance for one in neighbors], distances[order], atol=1e-3)


def test_arrays_hold_all_of_it(examples: TrainingExamples):
    again = TrainingExamples.from_arrays(examples.arrays(), 5, SPACE)
    assert again.texts == examples.texts
    np.testing.assert_array_equal(again.codes, examples.codes)
    np.testing.assert_array_equal(again.features, examples.features)


@pytest.mark.parametrize(
    "changed",
    [
        {"codes": np.full(40, 2)},
        {"codes": np.full(40, -1)},
        {"codes": np.zeros(39, np.int64)},
        {"features": np.zeros((40, 4), np.float16)},
        {"ends": np.arange(40)},
        {"ends": np.zeros(40, np.int64)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    examples: TrainingExamples, changed: dict[str, np.ndarray]
):
    with pytest.raises(FormatError):
        TrainingExamples.from_arrays(examples.arrays() | changed, 5, SPACE)


def test_a_training_text_is_its_own_neighbor(tiny: TinyModels, tmp_path: Path):
    texts, labels = planted(60)
    classifier = build(tiny, "bert").fit(texts, labels)
    found = classifier.explain([*texts[:5], texts[0]], n_neighbors=2)
    np.testing.assert_array_equal(found.proba, classifier.predict_proba([*texts[:5], texts[0]]))
    for text, label, neighbors in zip(texts[:5], labels, found.neighbors, strict=False):
        assert (neighbors[0].text, neighbors[0].label) == (text, label)
        assert neighbors[0].distance < 0.05 < neighbors[1].distance
    assert found.neighbors[5] == found.neighbors[0]
    assert len(found.neighbors[0]) == 2
    with pytest.raises(ConfigError, match="n_neighbors"):
        classifier.explain(texts, n_neighbors=0)


def test_a_bundle_keeps_texts_only_where_asked_for(tiny: TinyModels, tmp_path: Path):
    texts, labels = planted(60)
    classifier = build(tiny, "bert").fit(texts, labels)
    classifier.save(tmp_path / "plain")
    classifier.save(tmp_path / "kept", explain=True, labels={"good": "fine"})
    for path in (tmp_path / "plain").iterdir():
        assert not any(text.encode() in path.read_bytes() for text in texts if len(text) > 10)
    with pytest.raises(NotAvailableError, match="explain=True"):
        layerfuse.load(tmp_path / "plain").explain(texts)
    own = classifier.explain(texts[:3]).neighbors
    again = layerfuse.load(tmp_path / "kept").explain(texts[:3]).neighbors
    assert [[one.text for one in row] for row in again] == [
        [one.text for one in row] for row in own
    ]
    names = {one.label for row in again for one in row}
    assert names <= {"fine", "bad"}


@pytest.mark.slow
def test_fit_and_predict_explain(tiny: TinyModels, tmp_path: Path):
    table = write_csv(tmp_path / "train.csv", rows(40))
    few = ["-e", f"bert={tiny('bert')}", "--layers", 1, "--cv", 2, "--head", "ridge"]
    few += ["--fusion", "concat", "--no-report", "--store", tmp_path / "store"]
    succeed("fit", table, *few, "--explain", "--out", tmp_path / "run")
    succeed("fit", table, *few, "--out", tmp_path / "plain")
    given = dict(rows(40))
    done = succeed("predict", tmp_path / "run", table, "--explain")
    for row in csv.DictReader(io.StringIO(done.out)):
        nearest, *others = json.loads(row["neighbors"])
        assert (nearest["text"], nearest["label"]) == (row["text"], given[row["text"]])
        assert len(others) == 2
        assert all(given[one["text"]] == one["label"] for one in others)
    text = next(iter(given))
    (one,) = succeed("predict", tmp_path / "run", "--text", text, "--explain", "--json").json[
        "predictions"
    ]
    assert one["neighbors"][0]["text"] == text
    out = tmp_path / "out.csv"
    refused = run("predict", tmp_path / "plain", table, "--explain", "--out", out)
    assert (refused.code, out.exists()) == (2, False)
    assert "--explain" in refused.err


@pytest.mark.slow
def test_a_class_that_is_never_right_has_no_typical_text(tiny: TinyModels, tmp_path: Path):
    alone = ("a film of the film", "alone")  # whenever it is held out, its class is unknown
    table = write_csv(tmp_path / "train.csv", [*rows(60), alone])
    few = ["-e", f"bert={tiny('bert')}", "--cv", 2, "--no-report", "--store", tmp_path / "store"]
    succeed("fit", table, *few, "--out", tmp_path / "run")
    found = read_run_report(tmp_path / "run").diagnosis.class_texts
    assert [text.typical for text in found if text.label == "alone"] == [False]


@pytest.mark.slow
def test_the_report_names_typical_and_doubtful_texts(tiny: TinyModels, tmp_path: Path):
    table = write_csv(tmp_path / "train.csv", rows(60))
    few = ["-e", f"bert={tiny('bert')}", "--cv", 2, "--no-report", "--store", tmp_path / "store"]
    succeed("fit", table, *few, "--out", tmp_path / "run")
    given, found = dict(rows(60)), read_run_report(tmp_path / "run").diagnosis.class_texts
    for label in set(given.values()):
        own = [text for text in found if text.label == label]
        assert len({text.row for text in own}) == len(own)
        typical, doubtful = ([t for t in own if t.typical is kind] for kind in (True, False))
        assert len(doubtful) == 3
        assert 1 <= len(typical) <= 3
        assert all(given[text.text] == label for text in own)
        assert list(given)[own[0].row] == own[0].text
        lowest = [text.label_probability for text in doubtful]
        assert lowest == sorted(lowest)
        assert min(text.label_probability for text in typical) >= lowest[0]
