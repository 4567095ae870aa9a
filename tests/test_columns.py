"""Columns of a table beside the texts: amounts, dates and categories as one more block."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from commandline import run, succeed
from families import TinyModels
from helpers import planted
from layerfuse import LayerFusionClassifier, load, load_dataset
from layerfuse.blocks import COLUMNS_BLOCK, BlockRef
from layerfuse.encoders.tabular import ColumnEncoder, NumberColumn, take_columns
from layerfuse.errors import ConfigError, DataError, FormatError

OTHERS = ("amount", "plan", "opened")


def table_of(n: int, *, seed: int = 0, noise: bool = False) -> tuple[pd.DataFrame, list[str]]:
    """Labels of two halves: the texts tell the first, the columns the second; noise tells none."""
    random = np.random.default_rng(seed)
    texts, first = planted(n, seed=seed)
    second = random.integers(2, size=n)
    told = random.integers(2, size=n) if noise else second
    frame = pd.DataFrame(
        {
            "text": texts,
            "amount": np.where(told, 90, 40) + random.normal(0, 12, size=n),
            "plan": random.choice(["free", "pro", "team"], size=n),
            "opened": [f"2026-{1 + 6 * t + random.integers(6):02d}-01T09:30:00" for t in told],
            "ignored": np.arange(n),
        }
    )
    labels = first if noise else [f"{a} {b}" for a, b in zip(first, second, strict=True)]
    return frame, labels


def classifier(tiny: TinyModels, **more: Any) -> LayerFusionClassifier:
    return LayerFusionClassifier([tiny("bert")], columns=OTHERS, store=None, **more)


def test_kinds_are_told_by_the_values() -> None:
    found = ColumnEncoder.fit(
        {
            "price": ["1.5", "20", "n/a", "7"],
            "decimal": [Decimal("1.5"), None, 3, math.nan],
            "day": ["2026-01-05", None, date(2026, 2, 1), datetime(2026, 3, 1, 8, tzinfo=UTC)],
            "plan": ["free", "pro", "free", " pro "],
            "flag": [True, False, None, True],
            "code": ["7", "x", "7", "x"],
        }
    )
    assert [own.kind for own in found.columns] == (
        ["number", "number", "date", "category", "category", "category"]
    )
    again = ColumnEncoder.model_validate_json(found.model_dump_json())
    assert again == found
    new = {"price": [3], "decimal": ["2"], "day": ["2030-12-31 23:00"], "plan": ["new"]}
    assert np.isfinite(again.transform({**new, "flag": ["True"], "code": [7]})).all()


@pytest.mark.parametrize("value", [Decimal("sNaN"), "x\ud800"], ids=["sNaN", "surrogate"])
@pytest.mark.parametrize("others", [("x", "y", "x", "y"), (1.0, 2.0, 3.0, 4.0)])
def test_what_no_file_can_hold_is_refused_by_its_place(
    value: object, others: tuple[object, ...]
) -> None:
    values = [*others[:2], value, *others[2:]]
    with pytest.raises(DataError, match=r"'plan' holds .* in row 7 \(counted from 0\)"):
        ColumnEncoder.fit({"plan": values}, rows=[3, 5, 7, 9, 11])


def test_a_surrogate_in_a_file_is_refused_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = '{"text": "a", "label": "x", "plan": "%s"}\n'
    path.write_text(row % "free" + row % "\\ud800")
    with pytest.raises(DataError, match=r"'plan' holds '\\ud800' in row 1"):
        load_dataset(path, columns=("plan",))


def test_a_number_is_standardized_and_placed_among_the_training_values() -> None:
    column = NumberColumn.fit("n", np.array([0.0, 1, 2, 3, 4, np.nan]))
    features = column.transform([2.0, 4, None, -1e9])
    scale = np.std([0, 1, 2, 3, 4])
    np.testing.assert_allclose(features[:, 0], [0, 2 / scale, 0, -5], rtol=1e-6)
    assert features[:, 1:-1].sum(axis=1).tolist() == [1, 1, 0, 1]
    assert features[:, -1].tolist() == [0, 0, 1, 0]
    assert features[1, -2] == 1  # the highest tenth


def test_a_category_that_training_did_not_have_is_another_one() -> None:
    encoder = ColumnEncoder.fit({"plan": ["a", "a", "b", "b", "rare"]})
    assert encoder.transform({"plan": ["a", "b", "rare", None]}).tolist() == (
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    )


def test_a_category_is_the_same_in_csv_and_in_pandas() -> None:
    encoder = ColumnEncoder.fit({"code": ["7", "x"] * 2, "flag": ["true", "FALSE"] * 2})
    spelled = [7, 7.0, "7", np.float64(7)], [True, "True", "true", np.True_]
    found = encoder.transform(dict(zip(("code", "flag"), spelled, strict=True)))
    assert found.tolist() == [[1, 0, 0, 0, 1, 0]] * 4


def test_what_no_date_or_number_can_hold_is_named() -> None:
    encoder = ColumnEncoder.fit({"day": ["2026-01-05", "2026-01-06"], "n": [1, 2]})
    for day, n in (("9999-12-31T23:59:59-05:00", 1), ("2026-01-05", 10**400)):
        with pytest.raises(DataError, match="is expected, as in other rows"):
            encoder.transform({"day": [day], "n": [n]})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([None, "", math.nan], "no value"),
        ([f"ticket {number}" for number in range(300)], "ids or free text"),
        (["1.5"] * 20 + ["about 3"] * 3, "'about 3' in row 20 .*a number"),
        (["2026-01-31"] * 20 + ["31.01.2026"], r"'31\.01\.2026' in row 20 .*a date"),
        ([f"{number},50" for number in range(300)], r"1748\.20"),
    ],
)
def test_columns_that_say_nothing_are_refused(values: Sequence[object], told: str) -> None:
    with pytest.raises(DataError, match=f"'c'.*{told}"):
        ColumnEncoder.fit({"c": values})


@pytest.mark.parametrize("value", ["many", "inf", [1], True])
def test_a_value_of_another_kind_is_named(value: object) -> None:
    encoder = ColumnEncoder.fit({"n": [1, 2, 3]})
    with pytest.raises(DataError, match=r"'n' holds .* in row 1 .*a number"):
        encoder.transform({"n": [1, value]})


@pytest.mark.slow
def test_texts_and_columns_together_beat_each_alone(tiny: TinyModels, tmp_path: Path) -> None:
    frame, labels = table_of(160)
    new, truth = table_of(160, seed=1)
    model = classifier(tiny).fit(frame, labels)
    assert COLUMNS_BLOCK in model.plan_.blocks
    assert len({block.encoder for block in model.plan_.blocks}) == 2
    texts = LayerFusionClassifier([tiny("bert")], store=None).fit(frame["text"], labels)
    both, alone = model.score(new, truth), texts.score(new["text"], truth)
    (columns,) = (own for own in model.profile_ if own.block == COLUMNS_BLOCK)
    assert both > max(alone, columns.accuracy) + 0.2
    assert abs(model.cv_.accuracy.value - both) < 0.12  # what was estimated holds
    model.save(tmp_path / "bundle")
    loaded = load(tmp_path / "bundle")
    expected = model.predict_proba(new)
    for table in (new, new.to_dict("list"), pa.Table.from_pandas(new)):
        np.testing.assert_array_equal(loaded.predict_proba(table), expected)
    np.testing.assert_array_equal(  # equal texts may differ in columns, and order changes nothing
        loaded.predict_proba(new[::-1]), expected[::-1]
    )
    assert loaded.get_params()["columns"] == OTHERS
    again = loaded.set_params(store=None).fit(frame, labels)
    np.testing.assert_array_equal(again.predict_proba(new), expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_columns_of_noise_do_no_harm(tiny: TinyModels, seed: int) -> None:
    frame, labels = table_of(200, seed=seed, noise=True)
    new, truth = table_of(200, seed=seed + 10, noise=True)
    model = classifier(tiny).fit(frame, labels)
    texts = LayerFusionClassifier([tiny("bert")], store=None).fit(frame["text"], labels)
    assert model.score(new, truth) >= texts.score(new["text"], truth) - 0.03
    if COLUMNS_BLOCK not in model.plan_.blocks:  # then it takes texts alone, too
        np.testing.assert_array_equal(model.predict(new["text"]), model.predict(new))


@pytest.mark.slow
def test_rows_beyond_the_sample_have_their_columns(tiny: TinyModels) -> None:
    frame, labels = table_of(240)
    new, truth = table_of(100, seed=1)
    for head in ("ridge", "logistic"):
        model = classifier(tiny, sample_size=100, head=head).fit(frame, labels)
        assert COLUMNS_BLOCK in model.plan_.blocks
        assert model.score(new, truth) > 0.75


def test_what_is_not_a_table_is_refused(tiny: TinyModels) -> None:
    frame, labels = table_of(60)
    model = classifier(tiny)
    for X, told in (
        (list(frame["text"]), "Give a table"),
        (frame.drop(columns="plan"), "no column 'plan'"),
        (frame.rename(columns={"text": "words"}), "plainly the text"),
    ):
        with pytest.raises(DataError, match=told):
            model.fit(X, labels)
    for n in (59, 61):
        with pytest.raises(DataError, match=rf"60 texts but {n} values of 'plan'"):
            model.fit({**frame.to_dict("list"), "plan": ["free"] * n}, labels)
    model.fit(frame, labels)
    with pytest.raises(DataError, match="no column 'amount'"):
        model.predict(frame.drop(columns="amount"))
    for columns in ("amount", [1], None, pd.Index(["amount"])):
        with pytest.raises(ConfigError, match=r"columns=.*no list of names"):
            LayerFusionClassifier([tiny("bert")], columns=columns, store=None).fit(frame, labels)
    with pytest.raises(ConfigError, match="'columns'"):
        LayerFusionClassifier(f"columns={tiny('bert')}", store=None).fit(frame["text"], labels)
    texts, others = take_columns({"story": ["a"], "n": [1]}, ["n"])
    assert (texts, others) == (["a"], {"n": [1]})
    assert BlockRef.parse(str(COLUMNS_BLOCK)) == COLUMNS_BLOCK


def test_a_bundle_without_its_columns_is_damaged(tiny: TinyModels, tmp_path: Path) -> None:
    frame, labels = table_of(80)
    classifier(tiny).fit(frame, labels).save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "bundle.json"
    value = json.loads(path.read_text())
    value["facts"]["columns"] = None
    path.write_text(json.dumps(value))
    with pytest.raises(FormatError, match="columns"):
        load(tmp_path / "bundle")


@pytest.mark.slow
def test_the_command_line_reads_columns(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("train", 0), ("later", 1)):
        frame, labels = table_of(160, seed=seed)
        frame.assign(label=labels).to_csv(f"{name}.csv", index=False)
    fitted = succeed(
        *("fit", "train.csv", "-e", f"tiny={tiny('bert')}", "--columns", "amount,plan,opened"),
        *("--test", "later.csv", "--cv", 3, "--head", "ridge", "--fusion", "concat"),
        *("--out", "run", "--no-report", "--json"),
    ).json
    assert {"encoder": "columns", "layer": 0, "pooling": "table"} in fitted["selection"]["blocks"]
    assert fitted["data"]["columns"]["others"] == list(OTHERS)
    succeed("predict", "run", "later.csv", "--out", "found.csv")
    with Path("found.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    right = np.mean([row["label"] == row["given_label"] for row in rows])
    # embeddings of the cache are float16, those of predict are not: a row may lie between
    assert right == pytest.approx(fitted["test"]["accuracy"]["value"], abs=0.02)
    assert right > 0.75
    measured = succeed("evaluate", "run", "later.csv", "--json").json
    assert measured["metrics"]["accuracy"]["value"] == right
    later = pd.read_csv("later.csv", dtype=str)
    later.drop(columns="plan").to_csv("less.csv", index=False)
    later.loc[7, "amount"] = "many"
    later.to_csv("odd.csv", index=False)
    later.loc[:4, "label"] = ""
    later.to_csv("odd_train.csv", index=False)
    for command, told in (
        (("predict", "run", "less.csv"), "plan"),
        (
            ("predict", "run", "odd.csv", "--part-rows", 3, "--out", "odd_found.csv"),
            "'many' in row 7",
        ),
        (("evaluate", "run", "odd.csv"), "'many' in row 7"),
        (("fit", "train.csv", "--columns", "amount", "--test", "odd.csv"), "'many' in row 7"),
        (("fit", "odd_train.csv", "--columns", "amount"), "'many' in row 7"),
        (("predict", "run", "--text", "a good film"), "amount"),
        (("export", "run", "--format", "onnx", "--out", "onnx"), "--columns"),
        (("serve", "run", "--port", 0), "--columns"),
        (("fit", "train.csv", "--columns", "label", "--label-column", "label"), "label"),
        (("fit", "train.csv", "--columns", "amuont"), "amount"),
    ):
        refused = run(*command)
        assert refused.code == 2, command
        assert told in refused.err


def test_the_last_moment_and_huge_numbers() -> None:
    moments = ["9999-12-31 23:59:59.9999999", "2026-08-31", "1970-01-01 00:00:00.5"]
    encoder = ColumnEncoder.fit({"until": moments})
    assert encoder.transform({"until": moments}).shape[0] == 3
    with pytest.raises(DataError, match=r"holds 1e\+308 in row 1 .* where a number"):
        ColumnEncoder.fit({"amount": [1.0, 1e308, 2.0]})


def test_columns_are_found_by_names_that_are_no_text() -> None:
    frame = pd.DataFrame({0: ["a", "b"], 1: [1.5, 2.5]})
    texts, table = take_columns(frame, ["1"])
    assert (texts, table) == (["a", "b"], {"1": [1.5, 2.5]})
