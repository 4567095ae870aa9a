"""Real tables: several text columns, ids, groups, HTML, rows without a label."""

from __future__ import annotations

import csv
import json
from datetime import date, datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from commandline import rows, run, succeed, write_csv, write_text
from families import TinyModels
from layerfuse import load
from layerfuse.bundle import load_bundle
from layerfuse.commands.output import Share, encode
from layerfuse.data import load_dataset
from layerfuse.data.columns import strip_html
from layerfuse.data.dataset import plain_ids
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
    dataset = load_dataset(
        path, **ALL, id_column="ticket", group_column="customer", strip_html=True
    )
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
    dataset = load_dataset(write_text(tmp_path / "t.csv", TICKETS), **ALL)
    assert dataset.train.texts[0] == "Parcel\n<p>Where is <b>it</b>?</p>"
    assert dataset.train.columns == {}


def test_a_column_with_a_comma_in_its_name_is_one(tmp_path: Path):
    table = pyarrow.table({"a,b": ["x y", "z"], "a": ["1", "2"], "label": ["p", "q"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert load_dataset(tmp_path / "t.parquet", text_column="a,b").train.texts == ("x y", "z")
    both = load_dataset(tmp_path / "t.parquet", text_column="a,a,b".replace(",b", ""))
    assert both.train.texts == ("1\n1", "2\n2")


def test_one_column_cannot_be_text_and_label(tmp_path: Path):
    path = write_text(tmp_path / "t.csv", TICKETS)
    with pytest.raises(DataError, match="cannot be both"):
        load_dataset(path, text_column="subject,topic", label_column="topic")


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
    assert (facts.text_column, facts.strip_html) == ("subject,body", True)
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
    some = {"text": "a\rb", "n": 1.23456789, "share": Share(0.5)}
    made = [some | {"labels": ["x", "ü"], "is": True, "none": None}]
    written = encode(made, ".csv").decode()
    head, _, rest = written.partition("\n")
    assert head == "text,n,share,labels,is,none"
    assert rest == '"a\rb","1.23456789","0.5000","[""x"", ""ü""]","true",""\n'
    assert encode(made, ".csv", header=False).decode().count("\n") == 1
    assert json.loads(encode(made, ".jsonl")) == made[0]
    assert encode(made, ".tsv.gz")[:2] == b"\x1f\x8b"
    (tmp_path / "t.parquet").write_bytes(encode(made, ".parquet"))
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == made


def test_times_among_dates_are_not_cut(tmp_path: Path):
    days = [date(2026, 8, 31), datetime(2026, 8, 31, 12, 30)]  # noqa: DTZ001
    (tmp_path / "t.parquet").write_bytes(encode([{"day": day} for day in days], ".parquet"))
    found = pyarrow.parquet.read_table(tmp_path / "t.parquet")["day"].to_pylist()
    assert found == ["2026-08-31", "2026-08-31 12:30:00"]


@pytest.fixture(scope="module")
def runs(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``sure``, ``unsure``, which abstains, and ``poor``."""
    folder = tmp_path_factory.mktemp("runs")
    write_csv(folder / "train.csv", rows(120), ("body", "label"))
    write_csv(folder / "few.csv", rows(12, seed=5), ("body", "label"))
    options = ["--text-column", "body", "-e", tiny("bert"), "--cv", 2, "--head", "ridge"]
    options += ["--fusion", "concat", "--store", folder / "store", "--no-report"]
    shares = ["--target-accuracy", 0.9, "--coverage", 0.9]
    for name, more in (("sure", []), ("unsure", shares), ("poor", [])):
        data = folder / ("few.csv" if name == "poor" else "train.csv")
        succeed("fit", data, *options, *more, "--out", folder / name)
    return folder


@pytest.mark.slow
class TestTablesOut:
    def table(self, folder: Path) -> Path:
        lines = ['t1,"very, good film",4.25,x', "t2,oil and trade,,y"]
        return write_text(folder / "new.csv", "\n".join(["id,body,price,label", *lines, ""]))

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_columns_are_kept_beside_predictions(self, runs: Path, tmp_path: Path, suffix: str):
        out = tmp_path / f"out{suffix}"
        new = self.table(tmp_path)
        succeed("predict", runs / "unsure", new, "--out", out, "--probabilities")
        classifier = load(runs / "unsure")
        texts = ["very, good film", "oil and trade"]
        proba = classifier.predict_proba(texts)
        if suffix == ".parquet":
            found = pyarrow.parquet.read_table(out).to_pylist()
        elif suffix == ".csv":
            found = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
        else:
            found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        names = [f"probability_{name}" for name in classifier.classes_]
        ours = ["label", "probability", "abstain", "labels", *names]
        assert list(found[0]) == ["id", "body", "price", "given_label", *ours]
        assert [row["id"] for row in found] == ["t1", "t2"]
        assert [row["body"] for row in found] == texts
        assert [row["price"] for row in found] == ["4.25", ""]
        assert [row["given_label"] for row in found] == ["x", "y"]
        assert [row["label"] for row in found] == classifier.predict(texts).tolist()
        for row, own in zip(found, proba, strict=True):
            assert [float(row[name]) for name in names] == pytest.approx(own, abs=1e-4)
        unsure = classifier.abstention_.abstains(proba).tolist()
        sets = [classifier.classes_[own].tolist() for own in classifier.predict_set(texts)]
        if suffix == ".csv":
            assert [row["abstain"] for row in found] == [str(own).lower() for own in unsure]
            assert [json.loads(row["labels"]) for row in found] == sets
        else:
            assert [row["abstain"] for row in found] == unsure
            assert [row["labels"] for row in found] == sets

    def test_a_classifier_that_never_abstains_says_nothing_of_it(self, runs: Path, tmp_path: Path):
        done = succeed("predict", runs / "sure", self.table(tmp_path))
        assert done.out.startswith("id,body,price,given_label,label,probability\n")

    def test_a_text_of_the_command_line(self, runs: Path):
        done = succeed("predict", runs / "sure", "--text", "very good", "--text", "-- oil")
        (first, second) = csv.DictReader(done.out.splitlines())
        assert (first["text"], second["text"]) == ("very good", "-- oil")
        value = succeed("predict", runs / "unsure", "--text", "good", "--json", "--probabilities")
        (only,) = value.json["predictions"]
        assert only["probabilities"][only["label"]] == only["probability"]
        assert isinstance(only["abstain"], bool)
        for words in ([], ["new.csv", "--text", "a"], ["--text", "a", "--out", "x.csv"]):
            assert run("predict", runs / "sure", *words).code == 2

    def test_html_of_the_command_line_is_read_as_in_training(self, runs: Path, tmp_path: Path):
        """And a run that reads texts otherwise cannot be compared with it."""
        words = [runs / "train.csv", "--text-column", "body", "--strip-html", "--cv", 2]
        words += ["--store", runs / "store", "--no-report", "--head", "ridge", "--fusion", "concat"]
        encoder = read_run_report(runs / "sure").encoders[0].source
        succeed("fit", *words, "-e", encoder, "--out", tmp_path / "html")
        plain, tagged = "very good", "<b title='awful bad'>very</b> good"
        one, two = succeed(
            *("predict", tmp_path / "html", "--text", plain, "--text", tagged, "--json")
        ).json["predictions"]
        assert one["text"] == two["text"] == plain
        assert one["probability"] == two["probability"]
        done = run("evaluate", runs / "sure", runs / "train.csv", "--against", tmp_path / "html")
        assert done.code == 2
        assert "with --strip-html" in done.err

    def test_a_run_that_reads_another_column_is_not_compared(self, runs: Path, tmp_path: Path):
        table = write_csv(tmp_path / "t.csv", rows(60))
        words = ["--cv", 2, "--store", runs / "store", "--no-report", "--head", "ridge"]
        encoder = read_run_report(runs / "sure").encoders[0].source
        words += ["-e", encoder, "--fusion", "concat", "--out", tmp_path / "r"]
        succeed("fit", table, *words)
        done = run("evaluate", runs / "sure", runs / "train.csv", "--against", tmp_path / "r")
        assert done.code == 2
        assert "'body'" in done.err
        assert "Say with --text-column" in done.err
        words = [runs / "train.csv", "--text-column", "body", "--against", tmp_path / "r"]
        assert "120 rows" in succeed("evaluate", runs / "sure", *words).out

    def test_evaluate_shows_classes_and_another_run(self, runs: Path):
        files = [runs / "train.csv", "--against", runs / "poor"]
        value = succeed("evaluate", runs / "unsure", *files, "--json").json
        assert sum(cell["count"] for cell in value["confusion"]) == 120
        hits = sum(c["count"] for c in value["confusion"] if c["truth"] == c["predicted"])
        accuracy = value["metrics"]["accuracy"]["value"]
        assert hits / 120 == pytest.approx(accuracy)
        own = value["comparison"]
        assert own["metric"] == "accuracy"
        gain = accuracy - own["headline"]["value"]
        assert own["gain"]["difference"] == pytest.approx(gain)
        one, other = load(runs / "unsure"), load(runs / "poor")
        texts = load_dataset(runs / "train.csv", text_column="body").train.texts
        pairs = zip(one.predict(texts), other.predict(texts), strict=True)
        changed = [row for row, pair in enumerate(pairs) if pair[0] != pair[1]]
        assert [change["row"] for change in own["changes"]] == changed != []
        assert value["abstention"]["n"] == 120
        done = succeed("evaluate", runs / "unsure", *files)
        assert "recall" in done.out
        assert "go to a person" in done.out
        assert f"{len(changed)} labels differ" in done.out

    def test_equal_runs_do_not_differ(self, runs: Path):
        done = succeed(
            "evaluate", runs / "sure", runs / "few.csv", "--against", runs / "sure", "--json"
        )
        own = done.json["comparison"]
        assert own["changes"] == []
        assert (own["gain"]["low"], own["gain"]["high"]) == (0, 0)


def test_an_empty_first_line_is_named(tmp_path: Path):
    path = write_text(tmp_path / "t.csv", ",\ntext,label\ngood,a\n")
    with pytest.raises(DataError, match="the first line names no column"):
        load_dataset(path)


@pytest.mark.parametrize("first", ['"Text, subject, body";label', '\n"Text";label'])
def test_separators_in_quotes_or_below_empty_lines(tmp_path: Path, first: str):
    path = write_text(tmp_path / "t.csv", f"{first}\ngood;a\nbad;b\n")
    assert load_dataset(path, label_column="label").train.texts == ("good", "bad")


def test_ids_that_no_column_of_parquet_holds_are_text():
    assert plain_ids([7, 2**63]) == ["7", str(2**63)]
    assert plain_ids([1.0, float("nan")]) == [1.0, None]


def test_the_exact_name_of_a_column_goes_first(tmp_path: Path):
    path = write_text(tmp_path / "t.csv", "text,Text,label\ngood,no,a\nbad,no,b\n")
    assert load_dataset(path).train.texts == ("good", "bad")


def test_blanks_among_labels_are_none(tmp_path: Path):
    lines = ['{"text": "a", "label": [""]}', '{"text": "b", "label": ["x", " "]}']
    path = write_text(tmp_path / "t.jsonl", "\n".join(lines) + "\n")
    assert list(map(set, load_dataset(path).train.labels)) == [set(), {"x"}]


def test_an_audit_of_a_sample(tmp_path: Path):
    path = write_csv(tmp_path / "t.csv", rows(60))
    done = succeed("audit", path, "--sample", 20, "--json")
    assert done.json["splits"]["train"]["rows"] < 25


def test_groups_on_both_sides_are_noted(tiny: TinyModels, tmp_path: Path):
    for name, n, seed in (("train.csv", 40, 0), ("test.csv", 10, 1)):
        table = [
            (text, label, "" if row % 2 else "ann")
            for row, (text, label) in enumerate(rows(n, seed=seed))
        ]
        write_csv(tmp_path / name, table, ("text", "label", "who"))
    words = ("-e", tiny("bert"), "--group-column", "who", "--store", tmp_path / "store")
    done = succeed("curve", tmp_path / "train.csv", "--test", tmp_path / "test.csv", *words)
    assert "5 of 10 test rows are of a group that training rows are of, too (who)" in done.err
