"""What Python users hand over and look at: columns of any library, labels of any kind, objects."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.exceptions import NotFittedError

import layerfuse
from families import TinyModels
from helpers import Notes, planted
from helpers import build as build_on
from layerfuse import FrozenEncoder, LayerFusionClassifier, compare, extract, score_blocks
from layerfuse.embeddings.extraction import check_texts
from layerfuse.errors import ConfigError, DataError, MissingExtraError, NotAvailableError
from layerfuse.labels import find_classes
from layerfuse.progress import reporting_to
from layerfuse.report import plot_scores, plot_verdict

TEXTS, LABELS = planted(80)
TEST_TEXTS, _ = planted(40, seed=1)


class Mood(enum.Enum):
    GOOD = 1
    BAD = 2


class Tone(enum.StrEnum):
    GOOD = "g"
    BAD = "b"


def build(tiny: TinyModels, **options: Any) -> LayerFusionClassifier:
    return build_on(tiny, "bert", **{"cv": 2, "head": "ridge", "store": None, **options})


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels) -> LayerFusionClassifier:
    return build(tiny).fit(TEXTS, LABELS)


COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "tuple": tuple,
    "generator": iter,
    "str array": np.array,
    "object array": lambda values: np.array(values, dtype=object),
    "pandas object": lambda values: pd.Series(
        values, dtype=object, index=range(7, 7 + len(values))
    ),
    "pandas str": lambda values: pd.Series(values, dtype="str"),
    "pandas arrow": lambda values: pd.Series(values, dtype="string[pyarrow]"),
    "pandas categorical": lambda values: pd.Series(pd.Categorical(values)),
    "pandas index": pd.Index,
    "polars": lambda values: pl.Series("text", values),
    "polars categorical": lambda values: pl.Series(values, dtype=pl.Categorical),
    "arrow": pa.array,
    "arrow dictionary": lambda values: pa.array(values).dictionary_encode(),
    "arrow chunked": lambda values: pa.chunked_array([values[:30], values[30:]]),
    "arrow scalars": lambda values: [pa.scalar(value) for value in values],
    "numpy scalars": lambda values: [np.str_(value) for value in values],
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_texts_and_labels_may_come_in_any_column(column: Callable[[list[str]], Any]):
    texts = check_texts(column(TEXTS))
    assert [(type(text), text) for text in texts] == [(str, text) for text in TEXTS]
    classes, codes = find_classes(column(LABELS))
    assert [classes.tolist()[code] for code in codes] == LABELS
    assert {type(label) for label in classes.tolist()} == {str}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuple", "pandas categorical", "polars", "arrow chunked"])
def test_every_function_takes_them(tiny: TinyModels, fitted: LayerFusionClassifier, name: str):
    column = COLUMNS[name]
    found = build(tiny).fit(column(TEXTS), column(LABELS))
    proba = found.predict_proba(column(TEST_TEXTS))
    np.testing.assert_array_equal(proba, fitted.predict_proba(TEST_TEXTS))
    assert found.classes_.tolist() == ["bad", "good"]
    encoder = found.encoders_[0]
    blocks = extract(column(TEXTS), encoder, layers=[0, 1])
    expected = extract(TEXTS, encoder, layers=[0, 1])
    assert score_blocks(blocks, column(LABELS)) == score_blocks(expected, LABELS)
    assert layerfuse.select_blocks(blocks, column(LABELS), max_blocks=1).blocks
    ours = compare(blocks, column(LABELS), pairs="blocks")
    assert ours.best.loss == compare(expected, LABELS, pairs="blocks").best.loss


LABEL_KINDS: dict[str, tuple[Any, Any]] = {
    "str": ("b", "a"),
    "str that ends in NUL": ("a\0", "a"),
    "int": (7, -3),
    "int above 64 bits": (2**70, 1),
    "bool": (True, False),
    "float": (0.5, 1.0),
    "str and int": ("1", 1),
    "int and float": (1, 2.5),
    "tuple": (("a", 1), ("b", 2)),
    "enum": (Mood.GOOD, Mood.BAD),
    "str enum": (Tone.GOOD, Tone.BAD),
    "bytes": (b"a", b"b"),
    "time": (pd.Timestamp("2020-01-01"), pd.Timestamp("2021-01-01")),
}


@pytest.mark.slow
@pytest.mark.parametrize("labels", LABEL_KINDS.values(), ids=LABEL_KINDS)
def test_labels_of_any_kind_come_back_as_they_were(tiny: TinyModels, labels: tuple[Any, Any]):
    y = [labels[label == "good"] for label in LABELS]
    predicted = build(tiny, layers=[0]).fit(TEXTS, y).predict(TEST_TEXTS).tolist()
    assert {(type(label), label) for label in predicted} == {(type(own), own) for own in labels}


def test_numpy_and_arrow_kinds_are_the_plain_ones():
    for column in (np.array([3, 1, 3]), pa.array([3, 1, 3]), pd.Series([3, 1, 3], dtype="Int64")):
        classes, codes = find_classes(column)
        assert [type(label) for label in classes.tolist()] == [int, int]
        assert (classes.tolist(), codes.tolist()) == ([1, 3], [1, 0, 1])
    classes, _ = find_classes([np.bool_(True), np.bool_(False)])
    assert classes.tolist() == [False, True]
    times = np.array(["2021-01-01", "2020-01-01"], dtype="datetime64[ns]")
    assert find_classes(times)[0].tolist() == sorted(times)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["a", None], "Row 1 has no label .None."),
        (["a", float("nan")], "Row 1 has no label .nan."),
        (pd.Series(["a", pd.NA], dtype="string"), "Row 1 has no label .<NA>."),
        (pd.Series([pd.Timestamp(0), pd.NaT]), "Row 1 has no label .NaT."),
        (pa.array(["a", None]), "Row 1 has no label .None."),
        (pl.Series(["a", None]), "Row 1 has no label .None."),
        (np.ma.masked_array([1, 2], [0, 1]), "Row 1 has no label .None."),
        ([["a", "b"], ["a"]], r"row 0 is \['a', 'b'\] .list., which cannot be hashed. Give one"),
        ([{"a": 1}], "cannot be hashed"),
        ([1, 0, True], "1 .int. and True .bool, row 2. are equal to Python. Give labels of one"),
        ([1, 1.0], "of one kind"),
        ({"a", "b"}, "Got a set where a column of labels is expected"),
        (pd.DataFrame({"one": [1], "two": [2]}), "Give one column of it.*it holds: one, two"),
        (pl.DataFrame({"one": [1]}), "Give one column of it.*it holds: one"),
        (pa.table({"one": [1]}), "Give one column of it.*it holds: one"),
        (np.zeros((2, 1)), r"shape \(2, 1\).*values\[:, 0\]"),
        (np.array(5), r"shape \(\)"),
        (None, "Got nothing where labels are expected"),
        ("abc", "Got one string where labels are expected"),
        (5, "Got 5 .int. where labels are expected"),
    ],
)
def test_what_is_no_column_of_labels_is_refused(y: Any, message: str):
    with pytest.raises(DataError, match=message):
        find_classes(y)


class TestSavedLabels:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "kind", ["str", "int", "bool", "float", "str and int", "int and float"]
    )
    def test_plain_kinds_come_back_exactly(self, tiny: TinyModels, tmp_path: Path, kind: str):
        labels = LABEL_KINDS[kind]
        y = [labels[label == "good"] for label in LABELS]
        model = build(tiny, layers=[0]).fit(TEXTS, y)
        model.save(tmp_path / "bundle")
        predicted = layerfuse.load(tmp_path / "bundle").predict(TEST_TEXTS).tolist()
        expected = model.predict(TEST_TEXTS).tolist()
        assert [(type(a), a) for a in predicted] == [(type(b), b) for b in expected]

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["tuple", "enum", "str enum", "bytes", "time"])
    def test_others_are_told_at_fit_and_refused_at_save_and_can_be_renamed(
        self, tiny: TinyModels, tmp_path: Path, kind: str
    ):
        bad, good = LABEL_KINDS[kind]
        y = [good if label == "good" else bad for label in LABELS]
        notes = Notes()
        with reporting_to(notes):
            model = build(tiny, layers=[0]).fit(TEXTS, y)
        assert any(f"labels of type {type(good).__name__} cannot" in line for line in notes.lines)
        with pytest.raises(ConfigError, match=r"Nothing is lost.*save\(path, labels="):
            model.save(tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()
        model.save(tmp_path / "bundle", labels={good: "good", bad: 0})
        loaded = layerfuse.load(tmp_path / "bundle").predict(TEST_TEXTS).tolist()
        expected = ["good" if label == good else 0 for label in model.predict(TEST_TEXTS).tolist()]
        assert loaded == expected

    def test_names_that_do_not_fit(self, fitted: LayerFusionClassifier, tmp_path: Path):
        with pytest.raises(ConfigError, match="'god', which is not a label"):
            fitted.save(tmp_path / "bundle", labels={"god": 1})
        with pytest.raises(ConfigError, match="two classes one name"):
            fitted.save(tmp_path / "bundle", labels={"good": "bad"})

    def test_a_number_without_end(self, tiny: TinyModels, tmp_path: Path):
        y = [float("inf") if label == "good" else 0.0 for label in LABELS]
        with pytest.raises(ConfigError, match="type inf cannot be saved"):
            build(tiny).fit(TEXTS, y).save(tmp_path / "bundle")


class TestRareClasses:
    def test_a_class_with_one_row_is_learned_and_noted(self, tiny: TinyModels):
        texts, labels = [*TEXTS, "oil price oil"], [*LABELS, "only"]
        notes = Notes()
        with reporting_to(notes):
            model = build(tiny).fit(texts, labels)
        assert model.classes_.tolist() == ["bad", "good", "only"]
        assert model.predict(["oil price oil"]).tolist() == ["only"]
        assert model.cv_.n == 81
        record = model.fit_record_
        (only,) = np.flatnonzero(record.sample.targets.labels == "only")
        assert record.proba[only].argmax() != 2
        assert any("1 of 3 classes has only one row ('only')" in line for line in notes.lines)

    @pytest.mark.slow
    @pytest.mark.parametrize("fusion", ["voting", "stacking", "gated", "bilinear", "tensor"])
    def test_with_every_kind_of_fusion(self, tiny: TinyModels, fusion: str):
        texts, labels = [*TEXTS, "oil price oil"], [*LABELS, "only"]
        model = build(tiny, fusion=fusion, max_blocks=2, cv=3).fit(texts, labels)
        assert np.isfinite(model.predict_proba(texts)).all()
        assert model.verdict_.cv.accuracy == model.cv_.accuracy

    @pytest.mark.slow
    def test_the_logistic_scorer_takes_it(self, tiny: TinyModels):
        texts, labels = [*TEXTS, "oil price oil"], [*LABELS, "only"]
        encoder = FrozenEncoder.from_pretrained(tiny("bert"), device="cpu", dtype="float32")
        scores = score_blocks(extract(texts, encoder), labels, "logistic")
        assert 0.5 < scores.best.accuracy <= 80 / 81


class TestProfile:
    def test_repr_is_one_line(self, fitted: LayerFusionClassifier):
        text = repr(fitted.profile_)
        assert text.startswith("BlockScores(4 blocks by ridge; best bert:")
        best = fitted.profile_.best
        assert f"{best.block}: accuracy {best.accuracy:.3f} ± {best.accuracy_se:.3f}" in text
        assert repr(best).removeprefix("BlockScore") in text.replace("best ", "(")
        assert "\n" not in text
        assert repr(fitted.profile_.of("none")) == "BlockScores(no blocks, by ridge)"

    def test_html_escapes_what_it_shows(self, fitted: LayerFusionClassifier):
        html = fitted.profile_._repr_html_()
        assert html.count("<tr>") == 5
        assert "leave-one-out ridge" in html
        score = fitted.profile_.best
        odd = layerfuse.BlockScores(
            (type(score)(layerfuse.BlockRef("<b>&", 0, "mean"), *[0.5] * 6),), "ridge"
        )
        assert "&lt;b&gt;&amp;" in odd._repr_html_()
        assert "<b>" not in odd._repr_html_()

    def test_frame_holds_every_number(self, fitted: LayerFusionClassifier):
        frame = fitted.profile_.to_frame()
        assert frame["layer"].tolist() == [0, 1, 2, 3]
        assert frame.columns[:3].tolist() == ["encoder", "layer", "pooling"]
        assert frame["loss"].tolist() == [score.loss for score in fitted.profile_]
        assert frame["accuracy"].dtype == float


class TestVerdict:
    @pytest.mark.slow
    def test_it_is_made_when_asked_for_and_once(self, tiny: TinyModels):
        model = build(tiny).fit(TEXTS, LABELS)
        assert model.verdict_ is model.verdict_
        first = model.verdict_
        flipped = ["bad" if label == "good" else "good" for label in LABELS]
        assert model.fit(TEXTS, flipped).verdict_ is not first

    def test_it_rests_on_nested_rows(self, fitted: LayerFusionClassifier):
        verdict = fitted.verdict_
        assert verdict.rows == "cv"
        assert verdict.cv.accuracy == fitted.cv_.accuracy
        assert repr(verdict) == f"Verdict: {verdict.sentence}"
        names = [item.name for item in verdict.comparisons]
        assert {"majority", "tfidf", "last_layer", "best_block"} <= set(names)

    def test_frame_and_html(self, fitted: LayerFusionClassifier):
        frame = fitted.verdict_.to_frame()
        assert frame["name"].tolist()[0] == "pipeline"
        assert len(frame) == 1 + len(fitted.verdict_.comparisons)
        own = frame["accuracy"][0]
        gains = (own - frame["accuracy"][1:]).tolist()
        np.testing.assert_allclose(frame["gain"][1:].astype(float), gains, atol=1e-12)
        html = fitted.verdict_._repr_html_()
        assert fitted.verdict_.sentence.split(" (")[0] in html
        assert html.count("<tr>") == 2 + len(fitted.verdict_.comparisons)

    def test_a_classifier_without_rows_has_none(
        self, fitted: LayerFusionClassifier, tiny: TinyModels, tmp_path: Path
    ):
        assert not hasattr(build(tiny), "verdict_")
        fitted.save(tmp_path / "bundle")
        loaded = layerfuse.load(tmp_path / "bundle")
        assert not hasattr(loaded, "verdict_")
        with pytest.raises(NotAvailableError, match="training rows are not available"):
            _ = loaded.verdict_
        with pytest.raises(NotFittedError):
            _ = build(tiny).verdict_

    def test_what_only_fit_leaves_is_not_on_a_loaded_one(
        self, fitted: LayerFusionClassifier, tmp_path: Path
    ):
        fitted.save(tmp_path / "bundle")
        loaded = layerfuse.load(tmp_path / "bundle")
        for name in ("profile_", "selection_", "trials_", "costs_", "timings_", "fit_record_"):
            assert hasattr(fitted, name)
            assert not hasattr(loaded, name)
        assert loaded.cv_ == fitted.cv_


class TestPlots:
    @pytest.mark.slow
    def test_layers_are_drawn_and_chosen_blocks_marked(
        self, fitted: LayerFusionClassifier, tmp_path: Path
    ):
        chart = plot_scores(fitted.profile_, fitted.plan_.blocks)
        spec = chart.to_dict(validate=True)
        assert [panel["title"] for panel in spec["vconcat"]] == ["bert"]
        rows = [row for own in _values(spec) for row in own]
        assert {row["layer"] for row in rows} == {0, 1, 2, 3}
        marked = {row["layer"] for row in rows if row["selected"]}
        assert marked == {block.layer for block in fitted.plan_.blocks}
        chart.save(str(tmp_path / "layers.png"))
        assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
        assert "vegaEmbed" in chart._repr_mimebundle_()["text/html"]

    @pytest.mark.slow
    def test_gains_are_drawn(self, fitted: LayerFusionClassifier, tmp_path: Path):
        chart = plot_verdict(fitted.verdict_)
        spec = chart.to_dict(validate=True)
        assert "training rows, out of fold" in spec["vconcat"][0]["title"]
        rows = next(own for own in _values(spec) if "name" in own[0])
        by_name = {row["name"]: row["value"] for row in rows}
        assert "majority" not in by_name
        item = next(i for i in fitted.verdict_.comparisons if i.name == "tfidf")
        assert by_name["TF-IDF + logistic"] == pytest.approx(100 * item.cv.gain.difference)
        chart.save(str(tmp_path / "gains.svg"))
        assert "TF-IDF" in (tmp_path / "gains.svg").read_text(encoding="utf-8")

    def test_nothing_to_draw(self, fitted: LayerFusionClassifier):
        with pytest.raises(ConfigError, match="no scores"):
            plot_scores(fitted.profile_.of("none"))
        with pytest.raises(ConfigError, match="no comparisons"):
            plot_verdict(replace(fitted.verdict_, comparisons=()))

    def test_the_extra_is_named(
        self, fitted: LayerFusionClassifier, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setitem(sys.modules, "altair", None)
        for plot, result in ((plot_scores, fitted.profile_), (plot_verdict, fitted.verdict_)):
            with pytest.raises(MissingExtraError, match=r"pip install 'layerfuse\[report\]'"):
                plot(result)


def _values(part: Any) -> Iterator[list[dict[str, Any]]]:
    """The rows of each data set inside a Vega-Lite object."""
    if isinstance(part, dict):
        values = part.get("values")
        if isinstance(values, list) and values and isinstance(values[0], dict):
            yield values
        yield from (own for inner in part.values() for own in _values(inner))
    elif isinstance(part, list):
        yield from (own for inner in part for own in _values(inner))


def test_frames_name_the_extra(fitted: LayerFusionClassifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'layerfuse\[pandas\]'"):
        fitted.profile_.to_frame()


_SCRIPT = """\
import layerfuse
import numpy as np
import pandas as pd

model = layerfuse.LayerFusionClassifier(["minilm"], budget={"ms_per_text": 20.0})
model.fit(pd.Series(["a"]), np.array([1])).predict(("b", "c"))
model.fit(["a"], [("x", 1)])
frame = model.verdict_.to_frame()
best: layerfuse.BlockRef = model.profile_.best.block
encoder = layerfuse.FrozenEncoder.from_pretrained("minilm")
blocks = layerfuse.extract(["a"], encoder, layers=[0, -1], pooling="mean")
accuracy: float = layerfuse.score_blocks(blocks, ["x"]).best.accuracy
model.fit(3, ["x"])  # wrong: no column
model.save(1)  # wrong: no path
layerfuse.extract(["a"], "minilm")  # wrong: a name is no encoder
"""


@pytest.mark.slow
def test_a_users_script_is_checked_against_our_types(tmp_path: Path):
    """py.typed is there, so mypy reads our annotations: good calls pass, wrong ones do not."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    # Reading torch takes most of a minute, and the annotations of our front do not need it.
    packages = "torch.*,transformers.*,peft.*,sklearn.*,pandas.*"
    skipped = f"[mypy]\n[mypy-{packages}]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(skipped, encoding="utf-8")
    source = Path(layerfuse.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "--no-incremental",
         "--config-file=mypy.ini", "script.py"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"PATH": "", "MYPYPATH": str(source)},
    )  # fmt: skip
    faults = [line for line in done.stdout.splitlines() if line.startswith("script.py:")]
    faults = [line for line in faults if ": error:" in line]
    wrong = [n for n, line in enumerate(_SCRIPT.splitlines(), 1) if "# wrong" in line]
    assert [int(line.split(":")[1]) for line in faults] == wrong, done.stdout
    assert (source / "layerfuse" / "py.typed").is_file()
