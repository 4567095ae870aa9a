"""Real tables: several text columns, ids, groups, HTML, rows without a label."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from commandline import rows, run, succeed, write_text
from families import TinyModels
from layerfuse.bundle import load_bundle
from layerfuse.commands.tables import encode
from layerfuse.data import ReadOptions, read_dataset
from layerfuse.data.columns import strip_html
from layerfuse.errors import DataError
from layerfuse.report.run_report import read_run_report

TICKETS = """\
ticket,subject,body,topic,customer
t1,Parcel,"<p>Where is <b>it</b>?</p>",post,ann
t2,,Late again,post,bob
t3,Bill,Too high &amp; wrong,money,ann
t4,Hello,unlabeled,,
t5,Refund,,money,cem
"""
ALL = {"text_column": "subject, body", "label_column": "topic"}


def test_columns_are_joined_and_unlabeled_rows_skipped(tmp_path: Path):
    path = write_text(tmp_path / "tickets.csv", TICKETS)
    options = ReadOptions(id_column="ticket", group_column="customer", strip_html=True)
    dataset = read_dataset(path, **ALL, options=options)
    split = dataset.train
    assert split.texts == (
        "Parcel\nWhere is it?", "Late again", "Bill\nToo high & wrong", "Refund"
    )  # fmt: skip
    assert split.labels == ("post", "post", "money", "money")
    assert split.columns == {
        "ticket": ("t1", "t2", "t3", "t5"),
        "customer": ("ann", "bob", "ann", "cem"),
    }
    assert (tuple(split.rows), split.n_unlabeled) == ((0, 1, 2, 4), 1)
    part = split.take([3, 0])
    assert (tuple(part.rows), part.column("ticket")) == ((4, 0), ("t5", "t1"))


def test_html_stays_unless_asked(tmp_path: Path):
    dataset = read_dataset(write_text(tmp_path / "t.csv", TICKETS), **ALL)
    assert dataset.train.texts[0] == "Parcel\n<p>Where is <b>it</b>?</p>"
    assert dataset.train.columns == {}


def test_a_column_with_a_comma_in_its_name_is_one(tmp_path: Path):
    table = pyarrow.table({"a,b": ["x y", "z"], "a": ["1", "2"], "label": ["p", "q"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert read_dataset(tmp_path / "t.parquet", text_column="a,b").train.texts == ("x y", "z")
    both = read_dataset(tmp_path / "t.parquet", text_column="a,a,b".replace(",b", ""))
    assert both.train.texts == ("1\n1", "2\n2")


def test_one_column_cannot_be_text_and_label(tmp_path: Path):
    path = write_text(tmp_path / "t.csv", TICKETS)
    with pytest.raises(DataError, match="cannot be both"):
        read_dataset(path, text_column="subject,topic", label_column="topic")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("a < b and c > d", "a < b and c > d"),
        ("plain  text", "plain  text"),
        ("<div>one</div><div>two<br>three</div>", "one two three"),
        ("caf&eacute; &lt;tag&gt; &#8364;5", "café <tag> €5"),
        ("<head><title>x</title><style>p {}</style></head>hi<script>if (a<b) x()</script>", "hi"),
        ("<p>never closed <b>bo<i>ld", "never closed bold"),
        ("</script>text", "text"),
    ],
)
def test_html_as_a_reader_sees_it(html: str, text: str):
    assert strip_html(html) == text


@pytest.mark.slow
def test_fit_says_and_saves_which_columns_it_read(tiny: TinyModels, tmp_path: Path):
    made = [
        f"{number},<b>{text.split()[0]}</b>,{' '.join(text.split()[1:])},{label!r},{number // 2}"
        for number, (text, label) in enumerate(rows(60, labels=["news", "schlecht ü"]))
    ]
    lines = ["id,subject,body,topic,who", *made, "60,x,y,,7", ""]
    write_text(tmp_path / "train.csv", "\n".join(lines))
    named = ["--text-column", "subject,body", "--label-column", "topic", "--id-column", "id"]
    done = succeed(
        *("fit", tmp_path / "train.csv", *named, "--group-column", "who", "--strip-html"),
        *("-e", tiny("bert"), "--cv", 2, "--head", "ridge", "--fusion", "concat"),
        *("--store", tmp_path / "store", "--out", tmp_path / "run"),
    )
    report = read_run_report(tmp_path / "run")
    columns = report.data.columns
    assert (columns.texts, columns.label, columns.id) == (("subject", "body"), "topic", "id")
    assert (columns.group, columns.strip_html, columns.separator) == ("who", True, "\n")
    assert columns.sentence in done.err
    assert "1 train rows have no label" in done.err
    assert report.data.train_rows == 60
    assert any("held out together" in note for note in report.notes)
    facts = load_bundle(tmp_path / "run" / "bundle").facts
    assert (facts.text_column, facts.strip_html, facts.separator) == ("subject,body", True, "\n")
    new = write_text(tmp_path / "new.csv", 'subject,body\n"<i>oil</i>",trade &amp; oil\n')
    (found,) = succeed("predict", tmp_path / "run", new, "--json").json["predictions"]
    assert found["text"] == "oil\ntrade & oil"
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "subject, body (HTML stripped)" in page
    json.dumps(report.model_dump(mode="json"))


@pytest.mark.slow
def test_planted_label_errors_come_first(tiny: TinyModels, tmp_path: Path):
    data = rows(120, labels=["news", "schlecht ü"])
    planted = {7, 30, 53, 96}
    swapped = {"news": "schlecht ü", "schlecht ü": "news"}
    lines = [
        f"{row},{text},{swapped[label] if row in planted else label},n{row}"
        for row, (text, label) in enumerate(data)
    ]
    write_text(tmp_path / "t.csv", "\n".join(["nr,text,label,id", *lines, "120,x,,n120"]))
    done = succeed(
        *("audit", tmp_path / "t.csv", "--labels", "--id-column", "id", "-e", tiny("bert")),
        *("--store", tmp_path / "store", "--out", tmp_path / "doubts.jsonl", "--json"),
    )
    written = (tmp_path / "doubts.jsonl").read_text(encoding="utf-8")
    ranked = [json.loads(line) for line in written.splitlines()]
    assert sorted(own["row"] for own in ranked) == list(range(120))  # all, but for the unlabeled
    assert {own["row"] for own in ranked[:4]} == planted
    assert all(own["id"] == f"n{own['row']}" for own in ranked)
    assert all(own["suggested"] == swapped[own["label"]] for own in ranked[:4])
    assert [own["score"] for own in ranked] == sorted(own["score"] for own in ranked)
    assert done.json["suspects"] == len(done.json["doubts"]) >= 3
    assert done.json["rows"] == 120
    shown = succeed(
        *("audit", tmp_path / "t.csv", "--labels", "-e", tiny("bert")),
        *("--store", tmp_path / "store"),
    )
    assert "of 120 labels look wrong" in shown.out


def test_a_ranking_is_only_written_where_labels_are_ranked(tmp_path: Path):
    write_text(tmp_path / "t.csv", "text,label\na,x\nb,y\n")
    done = run("audit", tmp_path / "t.csv", "--out", tmp_path / "doubts.csv")
    assert done.code == 2
    assert "--labels" in done.err


def test_rows_are_written_as_they_were(tmp_path: Path):
    made = [{"text": "a\rb", "n": 1.23456789, "share": 0.5, "labels": ["x", "ü"], "none": None}]
    csv = encode(made, ".csv", ("share",)).decode()
    assert csv == 'text,n,share,labels,none\n"a\rb","1.23456789","0.5000","[""x"", ""ü""]",""\n'
    assert encode(made, ".csv", header=False).decode().count("\n") == 1
    assert json.loads(encode(made, ".jsonl")) == made[0]
    assert encode(made, ".tsv.gz")[:2] == b"\x1f\x8b"
    (tmp_path / "t.parquet").write_bytes(encode(made, ".parquet"))
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == made
