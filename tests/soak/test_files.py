"""Data files, labels, texts and parameters of every kind: read right, or refused with a reason."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from budget import Soak
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_mutants import CHANGES

import layerfuse
from commandline import run
from families import TinyModels
from helpers import planted
from layerfuse import FrozenEncoder, LayerFusionClassifier
from layerfuse.data import read_dataset
from layerfuse.data.readers import stream_dataset
from layerfuse.errors import LayerfuseError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

T = TypeVar("T")
Rows = list[tuple[str, str]]
Written = tuple[str, bytes, Rows]
"""The file's suffix, its bytes and what they say."""


def examples(
    soak: Soak, strategy: st.SearchStrategy[T], check: Callable[[T], str], *, each: int, **more: Any
) -> None:
    """Cases of ``each`` examples of the strategy; hypothesis shrinks what it finds."""

    def case(random: np.random.Generator) -> None:
        @seed(int(random.integers(2**32)))
        @settings(
            max_examples=each,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(value: T) -> None:
            try:
                outcome = check(value)
            except LayerfuseError:
                outcome = "refused"
            soak.outcomes[outcome] += 1

        one()

    soak.run(case, **more)


_PIECES = ["", " ", "nan", "NULL", "0", "true", "=1+1", '"', '""', "'", "a,b", "a;b", "a\tb"]
_PIECES += ["\r", "\n", "\r\n", "\0", "\x1b[31m", "\u2028", "\x85", "\ufeff", "ü", "🚢", "#", "sep=;"]
texts = st.lists(st.sampled_from(_PIECES) | st.text(max_size=8), max_size=4).map(" ".join)
labels = st.sampled_from(["good", "bad", "a,b", 'q"q', "ü", "x\ny", " pad ", "nan", "1", ""])
tables: st.SearchStrategy[Rows] = st.lists(st.tuples(texts, labels), min_size=1, max_size=12)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=3), own, max_size=3),
    max_leaves=8,
)


def _separated(draw: st.DrawFn, rows: Rows, delimiter: str) -> bytes:
    table = io.StringIO()
    ending = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    writer = csv.writer(table, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=ending)
    more = draw(st.sampled_from([0, 0, 2, 300]))
    writer.writerow(["text", "label", *(f"c{number}" for number in range(more))])
    writer.writerows([text, label, *["x"] * more] for text, label in rows)
    return draw(st.sampled_from(["", "\ufeff"])).encode() + table.getvalue().encode()


@st.composite
def written(draw: st.DrawFn) -> Written:
    rows, kind = draw(tables), draw(st.sampled_from([".csv", ".tsv", "plain", ".jsonl", ".parquet"]))
    if kind == ".csv":
        data = _separated(draw, rows, draw(st.sampled_from(",;\t|")))
    elif kind == ".tsv":  # a tab and a line break in one text: two records, or one in quotes
        data = _separated(draw, rows := [(t.replace("\t", " "), l) for t, l in rows], "\t")
    elif kind == "plain":  # a quote at the start may be the text's or the format's
        clean = str.maketrans({"\t": " ", "\r": " ", "\n": " ", '"': "'"})
        rows = [(text.translate(clean), label.translate(clean)) for text, label in rows]
        data = "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]).encode()
        kind = ".tsv"
    elif kind == ".jsonl":
        ascii_only = draw(st.booleans())
        lines = [
            json.dumps({"text": t, "label": l, "more": draw(jsons)}, ensure_ascii=ascii_only)
            for t, l in rows
        ]
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    else:
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        sink = pyarrow.BufferOutputStream()
        size = draw(st.integers(1, 12))
        pyarrow.parquet.write_table(pyarrow.table(columns), sink, row_group_size=size)
        return kind, sink.getvalue().to_pybytes(), rows
    if not draw(st.integers(0, 3)):
        return f"{kind}.gz", gzip.compress(data, mtime=0), rows
    return kind, data, rows


def pairs(texts: Any, labels: Any) -> list[tuple[str, Any]]:
    return list(zip(texts, labels, strict=True))


def test_files_as_they_were_written(soak: Soak, tmp_path: Path) -> None:
    def check(file: Written) -> str:
        suffix, data, rows = file
        path = tmp_path / f"data{suffix}"
        path.write_bytes(data)
        found = read_dataset(path).train
        assert pairs(found.texts, found.labels) == [row for row in rows if row[1].strip()]
        return "right"

    examples(soak, written(), check, each=50, count=4)
    assert soak.outcomes["right"] > soak.outcomes["refused"]


_STRANGE = [
    b"", b"\0" * 500, b"[" * 100_000, b'{"a":' * 100_000, b",".join(b"c%d" % n for n in range(50_000)),
    b"text,label\n" + b"x," * 10_000, b"\x1f\x8b", b"PAR1" * 3, b"<!DOCTYPE html>", b"\xff\xfe" * 40,
    b'text,label\n"' + b"a" * 300_000, b"\r" * 1000, b'{"text": 1e999, "label": -0}\n',
    b'{"text": "\\ud800", "label": "x"}\n', b'{"text": "a", "label": 1' + b"0" * 5000 + b"}\n",
    gzip.compress(gzip.compress(b"text,label\na,b\n", mtime=0), mtime=0),
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    suffix, data, _ = draw(written())
    chance = draw(st.integers(0, 9))
    if chance == 0:
        return suffix, draw(st.sampled_from(_STRANGE) | st.binary(max_size=200))
    if chance == 1 and suffix in (".csv", ".tsv", ".jsonl"):
        encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]))
        return suffix, data.decode().encode(encoding, "replace")
    if chance == 2:
        return draw(st.sampled_from([".csv", ".tsv", ".jsonl.gz", ".parquet", ".ndjson"])), data
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 3))):
        change = draw(st.sampled_from(CHANGES[:3]))
        data = change(data, random) if data else data
    return suffix, data


def test_damaged_files(soak: Soak, tmp_path: Path) -> None:
    """Read as a whole and in parts: the same; told by the command line in one message."""

    def check(file: tuple[str, bytes]) -> str:
        suffix, data = file
        path = tmp_path / f"data{suffix}"
        path.write_bytes(data)
        if sum(data[:50]) % 5 == 0:
            done = run("audit", path)
            assert done.code in (0, 2), done.err
            assert "\x1b" not in done.err + done.out
            return "command refused" if done.code else "command right"
        whole = read_dataset(path).train
        if ".jsonl" in suffix or ".ndjson" in suffix:
            plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            values = [json.loads(line) for line in plain.decode("utf-8-sig").split("\n") if line.strip()]
            kept = [row for row in values if row.get("label") not in (None, "") ]
            assert [row["text"] for row in kept if str(row["label"]).strip()] == list(whole.texts)
        parts = list(stream_dataset(path, part_rows=3).splits["train"])
        found = [pair for part in parts for pair in pairs(part.texts, part.labels)]
        assert found == pairs(whole.texts, whole.labels)
        return "same"

    examples(soak, damaged(), check, each=50, count=4)
    assert soak.outcomes["refused"]
    assert soak.outcomes["same"]


_KINDS: list[list[Any]] = [
    ["a", "b"], ["a", "b", "c"], [0, 1], [True, False], [0.5, 1.5], ["1", 1], [None, "a"], ["a"], [],
    [math.nan, 1.0], [math.inf, 1.0], [b"x", b"y"], [(1,), (2,)], [[1], [2]], [{}, {}], [1j, 2j],
    [np.int64(3), np.int64(4)], [np.float32(1), np.float32(2)], [10**30, 1], ["\ud800", "b"],
    [dt.date(2020, 1, 1), dt.date(2021, 1, 1)], ["", " "], ["\x1b[31m", "\0"], [np.str_("a"), "b"],
]  # fmt: skip
_PARAMETERS: dict[str, list[Any]] = {
    "selection": ["greedy", "top_k", "best", "last", "x", None, 1],
    "max_blocks": [1, 2, 0, -1, 10**20, 1.5, "3", None, True],
    "fusion": ["auto", "concat", "tensor", "x", None, ["concat"]],
    "head": ["auto", "ridge", "logistic", "kernel", "mlp", "x", None],
    "class_weight": [None, "balanced", "x", {"a": 2.0}, {"a": -1}, {"a": math.nan}, {0: 1e308}, [1]],
    "fragments": ["drop", "keep", "x", None],
    "calibration": ["temperature", None, "x", 1],
    "target_accuracy": [None, 0.5, 0.0, 1.0, 2, -1, math.nan, "x"],
    "coverage": [None, 0.5, 0.0, 1.0, 2, -1, math.nan, "x"],
    "cv": [2, 3, 1, 0, -2, 100, 2.5, "x", None, [], [([0], [1])], [([0, 1], [99])]],
    "sample_size": [10_000, 4, 1, 0, -1, 1.5, "x", None],
    "n_jobs": [None, 1, 2, 0, -1, -100, "x", 1.5],
    "random_state": [0, 1, -1, 2**40, "x", 1.5, np.random.RandomState(0)],
    "budget": [None, {"dims": 40}, {"dims": 0}, {"x": 1}, {"ms_per_text": math.nan}, 3, {"blocks": "x"}],
    "verbose": [0, 1, -1, "x", None],
}  # fmt: skip
_SHAPES: list[Callable[[list[Any]], Any]] = [
    list, list, tuple, iter, lambda own: [own], lambda own: pd.Series(own, dtype=object),
    lambda own: np.array(own, dtype=object),
]  # fmt: skip


@st.composite
def fits(draw: st.DrawFn) -> tuple[Any, Any, dict[str, Any]]:
    n = draw(st.sampled_from([0, 1, 3, 12, 12, 24, 24]))
    kind = draw(st.sampled_from(_KINDS[:5]) | st.sampled_from(_KINDS))
    own = [kind[row % len(kind)] for row in range(n)] if kind else []
    words: list[Any] = list(planted(max(n, 2))[0][:n])
    for row in draw(st.lists(st.integers(0, max(0, n - 1)), max_size=3)) if n else []:
        words[row] = draw(texts | st.sampled_from([None, 1, b"x", "\ud800", "", math.nan, np.str_("a")]))
    names = draw(st.lists(st.sampled_from(sorted(_PARAMETERS)), max_size=3, unique=True))
    chosen = {name: draw(st.sampled_from(_PARAMETERS[name])) for name in names}
    if draw(st.booleans()) and n:
        own = own[:-1]
    shapes = [draw(st.sampled_from(_SHAPES)) for _ in range(2)]
    return shapes[0](words), shapes[1](own), chosen


def test_fit(soak: Soak, tiny: TinyModels, tmp_path: Path) -> None:
    encoder = FrozenEncoder.from_pretrained(tiny("bert"), device="cpu", dtype="float32")
    options = {"cv": 2, "store": None, "selection": "last", "fusion": "concat", "head": "ridge"}

    def check(given: tuple[Any, Any, dict[str, Any]]) -> str:
        X, y, chosen = given
        model = LayerFusionClassifier([encoder], **{**options, **chosen}).fit(X, y)
        new = planted(4, seed=1)[0]
        proba = model.predict_proba(new)
        np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
        assert np.isin(model.predict(new), model.classes_).all()
        model.save(tmp_path / "bundle", overwrite=True)
        again = layerfuse.load(tmp_path / "bundle", device="cpu")
        np.testing.assert_array_equal(again.predict_proba(new), proba)
        return "fitted"

    examples(soak, fits(), check, each=10, count=3, limit_s=120)
    assert soak.outcomes["refused"]
