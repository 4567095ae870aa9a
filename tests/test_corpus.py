"""Reading labeled texts: what is accepted, and how each fault is reported."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import asdict
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from fsspec.registry import _registry

from layerfuse import LayerFusionClassifier
from layerfuse.commands.diagnosis import find_near_duplicates
from layerfuse.data import Split, TextDataset, audit, find_languages, load_dataset, readers
from layerfuse.data.audit import Finding
from layerfuse.errors import (
    ConfigError,
    DataError,
    LayerfuseWarning,
    MissingExtraError,
    NotFoundError,
)
from layerfuse.report.tables import audit_notes
from layerfuse.targets import check_trainable

ROWS = [("good film", "pos"), ("a bad,\nlong one", "neg"), ('she said "no"', "neg")]
TEXTS, LABELS = zip(*ROWS, strict=True)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def jsonl(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_rows(path: Path) -> Path:
    """``ROWS`` in the format that the file's name says."""
    if ".json" in path.name or ".ndjson" in path.name:
        return write(path, jsonl([{"text": text, "label": label} for text, label in ROWS]))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), path)
        return path
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    with plain.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if ".tsv" in path.name else ",")
        writer.writerows([("text", "label"), *ROWS])
    return write(path, plain.read_bytes())


@pytest.mark.parametrize(
    "name",
    [
        "d.csv",
        "d.csv.gz",
        "D.CSV",
        "d.tsv",
        "d.tsv.gz",
        "d.jsonl",
        "d.jsonl.gz",
        "d.ndjson",
        "d.parquet",
    ],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    dataset = load_dataset(str(write_rows(tmp_path / name)))
    assert dataset == TextDataset(name[0], {"train": Split(TEXTS, LABELS)})
    assert dataset.train.labels == LABELS
    assert dataset.test is None
    assert dataset.test_name is None


@pytest.mark.slow
@pytest.mark.parametrize("delimiter", [";", ",", "\t", "|", ":"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "first",
    [
        "sep={0}",
        "\ufeffsep={0}",
        '"sep={0}"',
        "SEP={0}",
        "sep={0}{0}",
        "sep = {0} ",
        '\ufeff"sep={0}"',
    ],
)
def test_a_first_line_names_the_delimiter(
    tmp_path: Path, delimiter: str, ending: str, first: str
) -> None:
    lines = [first.format(delimiter), f"text{delimiter}label"]
    lines += [f'"one, two; {number}"{delimiter}{"ab"[number % 2]}' for number in range(6)]
    file = write(tmp_path / "a.csv", (ending.join(lines) + ending).encode())
    found = load_dataset(file)
    assert found.train.texts == tuple(f"one, two; {number}" for number in range(6))
    assert found.train.labels == tuple("ababab")


def test_lines_are_counted_from_the_one_that_names_the_delimiter(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "sep=;\ntext;label\none;a;b\n")
    with pytest.raises(DataError, match="line 3: 3 fields"):
        load_dataset(file)
    with pytest.raises(DataError, match="no rows"):
        load_dataset(write(tmp_path / "b.csv", "sep=;\n"))


def test_folder_of_splits(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl.gz")
    write_rows(tmp_path / "validation.csv")
    write(tmp_path / "README.md", "about")
    dataset = load_dataset(tmp_path)
    assert list(dataset.splits) == ["train", "validation"]
    assert dataset.name == tmp_path.name
    assert dataset.test_name == "validation"
    other = write(tmp_path / "other.csv", "text,label\nx,pos\n")
    dataset = load_dataset(tmp_path, test=str(other))
    assert dataset.test == Split(("x",), ("pos",))
    assert dataset.test_name == "test"


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("\ufefftext,label\na,1\n", ("a",)),
        ('text,label\r\n"a\r\nb",1\r\n', ("a\r\nb",)),
        ("text,label\n,1\n\n", ("",)),
        ("text;label\na,b;1\n", ("a,b",)),
        ("text,label\n" + "a" * 300_000 + ",1\n", ("a" * 300_000,)),
        (",text,label\n0,a,1\n", ("a",)),
        ("text,label\na\u2028b,1\n", ("a\u2028b",)),
    ],
    ids=["bom", "crlf", "empty text", "semicolons", "long field", "pandas index", "separator"],
)
def test_csv_as_it_is_found(tmp_path: Path, content: str, texts: tuple[str, ...]) -> None:
    split = load_dataset(write(tmp_path / "d.csv", content)).train
    assert split == Split(texts, ("1",))


def test_a_read_leaves_the_limit_of_the_process_alone(tmp_path: Path) -> None:
    """Another thread may read a longer field at that moment."""
    path = write(tmp_path / "d.csv", f"text,label\n{'a' * 300_000},1\n")
    seen = set()
    sys.setprofile(lambda *_: seen.add(csv.field_size_limit()))
    try:
        load_dataset(path)
    finally:
        sys.setprofile(None)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"open\t1\nand shut"\t1\n', ('"open', 'and shut"')),
        ('text\tlabel\n"say ""no"""\t1\nb\t1\n', ('say "no"', "b")),
        ('text\tlabel\n"two\nlines"\t1\nb\t1\n', ("two\nlines", "b")),
    ],
    ids=["plain", "quoted", "line break"],
)
def test_tsv_with_and_without_quoting(tmp_path: Path, content: str, texts: tuple[str, ...]) -> None:
    assert load_dataset(write(tmp_path / "d.tsv", content)).train.texts == texts


@pytest.mark.parametrize(
    ("header", "options", "text", "label"),
    [
        ("id,Text,Label", {}, "B", "C"),
        ("category,body,id", {}, "B", "A"),
        ("a,b,c", {"text_column": "c", "label_column": "a"}, "C", "A"),
        ("text,label,kind", {"label_column": "kind"}, "A", "C"),
    ],
)
def test_columns_by_name(
    tmp_path: Path, header: str, options: dict[str, str], text: str, label: str
) -> None:
    split = load_dataset(write(tmp_path / "d.csv", f"{header}\nA,B,C\n"), **options).train  # type: ignore[arg-type]
    assert split == Split((text,), (label,))


def test_of_two_columns_the_longer_is_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "kind,tweet\nx,a long text\nx,another one\n")
    assert load_dataset(path).train == Split(("a long text", "another one"), ("x", "x"))


def test_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "tweet\na\nb\n")
    assert load_dataset(path, labeled=False).train == Split(("a", "b"), None)
    path = write(tmp_path / "e.csv", "text,label\na,x\n")
    assert load_dataset(path, labeled=False).train.labels is None
    assert load_dataset(path, labeled=False, label_column="label").train.labels == ("x",)


def test_a_text_is_not_taken_for_the_name_of_the_only_column(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a great film\na bad one\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no header: its only column is named 'a great film'"):
        load_dataset(path, labeled=False)
    named = load_dataset(path, labeled=False, text_column="a great film")
    assert named.train.texts == ("a bad one",)
    path.write_text("customer review\na bad one\n", encoding="utf-8")
    assert load_dataset(path, labeled=False).train.texts == ("a bad one",)


@pytest.mark.parametrize("label", [3, True, 0.5])
def test_jsonl_labels_keep_their_kind(tmp_path: Path, label: object) -> None:
    path = write(tmp_path / "d.jsonl", jsonl([{"text": "a", "label": label}]))
    assert load_dataset(path).train.labels == (label,)
    assert type((load_dataset(path).train.labels or ())[0]) is type(label)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.txt", "a", "unsupported extension.*\\.csv, \\.tsv, \\.jsonl"),
        ("d.csv", "", "is empty"),
        ("d.csv", "text,label\n", "header line but no rows"),
        ("d.jsonl", "\n\n", "is empty"),
        ("d.csv", "a,b,c\n1,2,3\n", "no column that is plainly the text(.|\n)*a, b, c.*--text-col"),
        ("d.csv", "text,b,c\n1,2,3\n", "plainly the label(.|\n)*--label-column"),
        ("d.csv", "id,text\n1,a\n2,b\n", "plainly the label"),
        ("d.csv", "text\na\n", "plainly the label"),
        ("d.csv", "so good,pos\nso bad,neg\nso so,pos\n", "seems to have no header line"),
        ("d.csv", "text,text,label\na,b,c\n", "two columns named 'text'"),
        ("d.csv", "text,label\na,x\na,b,c\n", "line 3: 3 fields, where the header has 2"),
        ("d.csv", 'text,label\n"a\nb",x\na,b,c\n', "line 4: 3 fields"),
        ("d.csv", 'text,label\n"a" b,x\n', "line 2: the quotes do not close"),
        ("d.csv", 'text,label\na,x\n"b,x\n', "line 3: the quotes do not close"),
        ("d.csv", b"text,label\na,x\ncaf\xe9,x\n", "line 3 holds the byte 0xe9(.|\n)*WINDOWS-1252"),
        ("d.csv", "text,label\na,x\n".encode("utf-16"), "iconv -f UTF-16"),
        ("d.csv", b"\x7fELF\x00\xff\xfe,x\n", r"it is binary \(a byte 0x00 at offset 4\)"),
        ("d.csv", "text,label\na,\nb, \n", "'label' has no value in any row"),
        ("d.jsonl", '{"text": "a"}\n{"text":\n', "line 2 is not JSON"),
        ("d.jsonl", '[{"text": "a"}]\n', "line 1 holds a JSON list"),
        ("d.jsonl", jsonl([{"text": None, "label": 1}] * 7), "7 of 7 rows .row 0, 1, 2, 3, 4, …"),
        ("d.jsonl", jsonl([{"text": "a", "label": 1}, {"text": 5, "label": 1}]), "int in row 1"),
        ("d.jsonl", '{"text": "\\ud83d", "label": 1}\n', "unpaired surrogate"),
        ("d.jsonl", jsonl([{"text": "a", "label": {"x": 1}}]), "an object in row 0.*one class for"),
        (
            "d.jsonl",
            jsonl([{"text": "a", "label": 1}, {"text": "b", "label": "x"}]),
            "int in row 0, str in row 1",
        ),
        ("d.parquet", "no", "cannot be read as parquet"),
        ("d.csv", "text,label\na,x\n".encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("d.jsonl", '{"text": "a", "label": 1}\n'.encode("utf-16-be"), "iconv -f UTF-16BE"),
        ("d.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("d.parquet", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("d.csv", "\n<!DOCTYPE html><html><body>,</body></html>", "web page"),
        ("d.jsonl", "<html><head>", "web page"),
        ("d.csv", b"PK\x03\x04\x00\x00", "zip file or a spreadsheet"),
        ("d.csv", "# made by a tool\ntext,label\na,x\n", "begins with a comment"),
        ("d.csv", "# by x, on monday\ntext,label\na,x\n", "begins with a comment"),
        ("d.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("d.jsonl", '{"text": ' * 100_000 + "1", "line 1 is not JSON"),
        ("d.jsonl", '{"text": "a", "label": "\\ud800"}\n' * 2, "the label in row 0"),
        ("d.jsonl", '{"text": "a", "label": Infinity}\n' * 2, "the label in row 0"),
        ("d.tsv", "text,label\na,x\nb,y\n", "separated by ','(.|\n)*end in .csv"),
        ("d.tsv", 'subject;topic\n"a;b";x\n', "separated by ';'(.|\n)*end in .csv"),
    ],
)
def test_faults_in_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(write(tmp_path / name, content))
    assert str(caught.value).count("\n") < 5


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv.gz", "text,label\na,x\n" * 100)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be unpacked as gzip"):
        load_dataset(path)


def test_gzip_that_is_cut_and_holds_no_utf8(tmp_path: Path) -> None:
    packed = gzip.compress(b"text,label\n\xff,x\n")
    path = write(tmp_path / "d.csv.gz", "")
    path.write_bytes(packed[:-8])
    with pytest.raises(DataError, match="cannot be unpacked as gzip"):
        load_dataset(path)


def test_gzip_under_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", gzip.compress(b"text,label\na,x\n"))
    assert load_dataset(path).train.texts == ("a",)


def test_bars_between_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", "id|text|label\n1|a, b|x\n")
    assert load_dataset(path).train == Split(("a, b",), ("x",))


@pytest.mark.parametrize(
    ("place", "package"), [("https://host/d.csv", "aiohttp"), ("s3://bucket/d.parquet", "s3fs")]
)
def test_addresses_name_the_package_that_opens_them(
    tmp_path: Path, place: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    # What another test has used, fsspec would not import again.
    monkeypatch.delitem(_registry, place.partition(":")[0], raising=False)
    with pytest.raises(MissingExtraError, match=package):
        load_dataset(place)
    with pytest.raises(MissingExtraError, match=package):
        load_dataset(write_rows(tmp_path / "d.csv"), test=place)


def test_files_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_MOST_BYTES", 1000)
    packed = write(tmp_path / "d.csv.gz", "text,label\n" + "a,x\n" * 1000)
    with pytest.raises(DataError, match="holds more than"):
        load_dataset(packed)
    table = pyarrow.table({"text": ["a" * 50] * 100, "label": ["x"] * 100})
    parquet.write_table(table, tmp_path / "d.parquet", use_dictionary=False)
    with pytest.raises(DataError, match="of at most"):
        load_dataset(tmp_path / "d.parquet")


def test_many_columns_are_read_in_a_moment(tmp_path: Path) -> None:
    names = ",".join(f"c{number}" for number in range(50_000))
    values = ",".join("1" * 50_000)
    path = write(tmp_path / "d.csv", f"text,label,{names}\na,x,{values}\n")
    started = time.perf_counter()
    assert load_dataset(path).train.texts == ("a",)
    assert time.perf_counter() - started < 5


def test_values_of_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    days = pyarrow.array([10**9], type=pyarrow.date32())
    parquet.write_table(pyarrow.table({"text": days, "label": ["x"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "d.parquet")


@pytest.mark.parametrize("shape", ["texts", "list", "struct"])
def test_a_small_parquet_of_many_equal_texts_is_refused(tmp_path: Path, shape: str) -> None:
    """Of 10 GB unpacked, which would be taken before anything else is read."""
    indices = pyarrow.array([0] * 2000, pyarrow.int32())
    big = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * 5_000_000]))
    if shape == "list":
        big = pyarrow.ListArray.from_arrays(pyarrow.array(range(2001), pyarrow.int32()), big)
    elif shape == "struct":
        big = pyarrow.StructArray.from_arrays([big], ["inner"])
    path = tmp_path / "d.parquet"
    parquet.write_table(
        pyarrow.table({"text": ["a"] * 2000, "label": ["x", "y"] * 1000, "big": big}), path
    )
    assert path.stat().st_size < 1_000_000
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"10\.0 GB.*Take a part"):
        load_dataset(path)
    assert time.perf_counter() - started < 20


def test_a_packed_file_is_measured_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_MOST_BYTES", 20_000_000)
    path = tmp_path / "d.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"a,x\n" * 5_100_000, compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="holds more than"):
            load_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


NAMED = {
    b"huggingface": json.dumps(
        {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    ).encode()
}


@pytest.mark.parametrize("inner", ["", "data", "plain_text"])
@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_snapshot_of_the_hub(tmp_path: Path, inner: str, n_parts: int) -> None:
    (tmp_path / inner).mkdir(exist_ok=True)
    (tmp_path / "README.md").write_text("---")
    for split in ("train", "test"):
        for part in range(n_parts):
            table = pyarrow.table({"text": [f"{split} {part}", "b"], "label": [1, 0]})
            name = f"{split}-{part:05}-of-{n_parts:05}.parquet"
            parquet.write_table(table.replace_schema_metadata(NAMED), tmp_path / inner / name)
    found = load_dataset(tmp_path)
    assert list(found.splits) == ["train", "test"]
    texts = [text for part in range(n_parts) for text in (f"test {part}", "b")]
    assert found.splits["test"] == Split(tuple(texts), ("yes", "no") * n_parts)
    if n_parts == 2:
        (tmp_path / inner / "train-00001-of-00002.parquet").unlink()
        with pytest.raises(DataError, match="1 of 2 files"):
            load_dataset(tmp_path)


def test_several_configurations_are_named(tmp_path: Path) -> None:
    for name in ("de", "en"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "train.csv")
    with pytest.raises(DataError, match=r"several datasets: de, en"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path / "de").train)


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for part in range(2):
            table = pyarrow.table({"text": [f"{split} {part}"], "label": [part]})
            table = table.replace_schema_metadata(NAMED)
            file = tmp_path / split / f"data-{part:05}-of-00002.arrow"
            file.parent.mkdir(exist_ok=True)
            with pyarrow.ipc.new_stream(str(file), table.schema) as sink:
                sink.write_table(table)
    found = load_dataset(tmp_path)
    assert found.splits["test"] == Split(("test 0", "test 1"), ("no", "yes"))
    assert load_dataset(tmp_path / "train").train == found.train


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            for number in range(2):
                file = tmp_path / split / label / f"{number}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{split} {label} {number}\n")
    found = load_dataset(tmp_path)
    assert list(found.splits) == ["train", "test"]
    assert found.train.labels == ("neg", "neg", "pos", "pos")
    assert found.train.texts[0].strip() == "train neg 0"
    assert load_dataset(tmp_path / "train").train == found.train


def test_missing_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "reviews.csv")
    with pytest.raises(NotFoundError, match=r"Did you mean 'reviews\.csv'"):
        load_dataset(tmp_path / "review.csv")
    with pytest.raises(NotFoundError, match=r"the folder .*nowhere does not exist"):
        load_dataset(tmp_path / "nowhere" / "d.csv")
    with pytest.raises(NotFoundError, match="There is no file 'folder'"):
        load_dataset(tmp_path / "folder")


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no split files .it has: nothing"):
        load_dataset(tmp_path)
    write_rows(tmp_path / "train.csv")
    write_rows(tmp_path / "train.jsonl.gz")
    with pytest.raises(DataError, match=r"more than one file .*train\.csv, train\.jsonl\.gz"):
        load_dataset(tmp_path)


def test_wrong_columns(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.csv")
    with pytest.raises(DataError, match=r"no column 'texts'. Did you mean 'text'"):
        load_dataset(path, text_column="texts")
    with pytest.raises(DataError, match=r"no column 'y'(.|\n)*--label-column"):
        load_dataset(path, label_column="y")
    with pytest.raises(DataError, match="cannot be both"):
        load_dataset(path, text_column="text", label_column="text")
    test = write(tmp_path / "test.csv", "text,kind\na,pos\n")
    with pytest.raises(DataError, match=r"test\.csv has no column 'label'"):
        load_dataset(path, test=test)


def test_more_classes_than_fit_into_memory() -> None:
    with pytest.raises(DataError, match="6,000 classes"):
        check_trainable([f"{number % 6000}" for number in range(12_000)])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labeled rows"),
        ((), "no labeled rows"),
        (("x",) * 3, "All 3 rows have the same label 'x'"),
        (("x", "x", "y", "z"), "2 of 3 have only one: 'y', 'z'"),
        (tuple(range(9)), "0, 1, 2, 3, 4 and 4 more"),
    ],
)
def test_labels_that_cannot_be_learnt(labels: tuple[object, ...] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_trainable(labels)
    check_trainable(["x", "y", "y", "x"])


def test_nouns_refuse_what_does_not_fit() -> None:
    with pytest.raises(DataError, match="2 texts but 1 labels"):
        Split(("a", "b"), ("x",))
    with pytest.raises(DataError, match="d has no train split; its splits are test"):
        _ = TextDataset("d", {"test": Split(("a",))}).train
    with pytest.raises(ConfigError, match="0 rows"):
        TextDataset("d", {}).subsample(0, seed=0)


def skewed(sizes: dict[str, int]) -> Split:
    labels = tuple(label for label, size in sizes.items() for _ in range(size))
    return Split(tuple(f"{label} {row}" for row, label in enumerate(labels)), labels)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ((7, None, 8), (7, None, 8)),
        (("a", "b", ""), ("a", "b", "")),
        ((7, "b", None), ("7", "b", None)),
        ((date(2026, 3, 1), None, date(2026, 3, 2)), ("2026-03-01", None, "2026-03-02")),
        ((b"x", b"y", b"z"), ("b'x'", "b'y'", "b'z'")),
    ],
)
def test_ids_are_of_one_plain_kind(given: tuple[object, ...], ids: tuple[object, ...]):
    split = Split(("one", "two", "three"), columns={"name": given})
    assert tuple(split.ids("name")) == ids
    assert split.ids(None) == (None, None, None)


@pytest.mark.parametrize("seed", range(5))
def test_subsample_is_stratified_and_repeatable(seed: int) -> None:
    dataset = TextDataset(
        "d",
        {"train": skewed({"a": 70, "b": 25, "c": 4, "d": 1}), "test": skewed({"a": 30, "b": 3})},
    )
    part = dataset.subsample(20, seed)
    assert part == dataset.subsample(20, seed)
    assert part != dataset.subsample(20, seed + 1)
    assert Counter(part.train.labels) == {"a": 14, "b": 5, "c": 2, "d": 1}
    assert Counter(part.splits["test"].labels) == {"a": 18, "b": 2}
    rows = [dataset.train.texts.index(text) for text in part.train.texts]
    assert rows == sorted(set(rows))  # each row once, in the order they came
    assert all(
        text.startswith(str(label))
        for text, label in zip(part.train.texts, part.train.labels or (), strict=True)
    )


def test_subsample_at_its_limits() -> None:
    dataset = TextDataset("d", {"train": skewed({"a": 5, "b": 5, "c": 5})})
    assert Counter(dataset.subsample(3, 0).train.labels) == {"a": 2, "b": 2, "c": 2}
    assert dataset.subsample(15, 0) == dataset
    unlabeled = TextDataset("d", {"train": Split(tuple("abcdef"))})
    assert len(unlabeled.subsample(4, 0).train) == 4


def test_audit_finds_what_was_planted() -> None:
    train = Split(
        ("same", "same", "other", "same", "", "x" * 30, "The  Leak", "rare"),
        ("a", "b", "a", "a", "b", "b", "a", "c"),
    )
    test = Split(("fresh", "the leak", "", "rare\n"), ("a", "b", "d", "a"))
    found = audit(TextDataset("d", {"train": train, "test": test}), max_chars=20)
    split = found.splits["train"]
    assert (split.rows, split.classes) == (8, {"a": 4, "b": 3, "c": 1})
    assert (split.empty.count, split.empty.rows) == (1, (4,))
    assert (split.duplicates.count, split.duplicates.rows) == (2, (1, 3))
    assert (split.conflicts, split.conflict_rows) == (1, ((0, 1, 3),))
    assert split.over_long.rows == (5,)
    assert (found.leaks.count, found.leaks.rows) == (2, (1, 3))
    assert found.untested_classes == ("c",)
    assert found.unseen_classes == ("d",)
    assert found.small_classes == {"a": 4, "b": 3, "c": 1}
    assert json.loads(json.dumps(asdict(found)))["splits"]["test"]["rows"] == 4


def test_audit_names_every_row_and_labels_that_are_one() -> None:
    labels = ("positive", "positive ", "Negative", "negative", "nan", "other")
    found = audit(TextDataset("d", {"train": Split(("same",) * 30 + tuple("abcdef"), labels * 6)}))
    assert found.splits["train"].duplicates == Finding(29, tuple(range(1, 30)))
    assert found.splits["train"].conflict_rows == (tuple(range(30)),)
    assert found.alike_classes == (("positive", "positive "), ("Negative", "negative"))
    assert found.odd_classes == ("nan",)


def test_a_note_of_many_rare_classes_names_some_and_counts_the_rest() -> None:
    labels = tuple(f"class {number:03}" for number in range(400))
    notes = audit_notes(audit(TextDataset("d", {"train": Split(("a text",) * 400, labels)})))
    (rare,) = (note for note in notes if "fewer than 5" in note)
    assert rare.count("class ") == 10
    assert rare.endswith("and 390 more")


def test_audit_of_one_unlabeled_split() -> None:
    found = audit(TextDataset("d", {"train": Split(("a",) * 9)}))
    assert found.splits["train"].duplicates.count == 8
    assert len(found.splits["train"].duplicates.rows) == 8
    assert found.splits["train"].classes == {}
    assert (found.leaks.count, found.test_name, found.untested_classes) == (0, None, ())


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"layerfuse\[hub\]"):
        load_dataset("hub:owner/name")


def _german(n: int) -> list[str]:
    nouns = ["Rechnung", "Lieferung", "Bestellung", "Heizung", "Wohnung"]
    verbs = ["wurde nicht bezahlt", "kam wieder zu spät an", "ist seit gestern kaputt"]
    return [f"Die {nouns[i % 5]} Nummer {i} {verbs[i % 3]}, bitte helfen Sie." for i in range(n)]


def test_languages_of_the_training_texts() -> None:
    english = [f"Order number {i} arrived late again and the invoice was wrong." for i in range(10)]
    texts = tuple(_german(30) + english)
    split = Split(texts, tuple("ab"[i % 2] for i in range(40)))
    found = audit(TextDataset("mixed", {"train": split})).languages
    assert [own.code for own in found] == ["de", "en"]
    assert found[0].share == pytest.approx(0.75, abs=0.05)
    assert find_languages(()) == ()
    assert find_languages(["Wo?", "Wer ist da?", "Ja."] * 30)[0].code == "de"  # joined


@pytest.mark.index
def test_an_encoder_made_for_english_is_named_where_texts_are_not(tmp_path: Path) -> None:
    texts, labels = _german(60), list("ab" * 30)
    with pytest.warns(LayerfuseWarning, match=r"not English \(de 100%\).*minilm.*e5-small"):
        LayerFusionClassifier("minilm", store=None, cv=2).fit(texts, labels)


@pytest.mark.index
@pytest.mark.filterwarnings("error::layerfuse.errors.LayerfuseWarning")
@pytest.mark.parametrize("text", ["12 34 56 {}", "!!! ??? {}", "err 0x{}"])
def test_digits_and_codes_are_no_foreign_language(text: str) -> None:
    texts = [text.format(row % 7) for row in range(60)]
    LayerFusionClassifier("minilm", store=None, cv=2).fit(texts, list("ab" * 30))


def test_languages_without_case_have_letters() -> None:
    assert find_languages(["मेरा ऑर्डर अभी तक नहीं आया है, कृपया सहायता करें"] * 5)[0].code == "hi"
    assert find_languages(["คำสั่งซื้อของฉันยังไม่มาถึง กรุณาช่วยด้วย"] * 5)[0].code == "th"
    assert find_languages(["我的订单还没有到，请帮帮我。"] * 10)[0].code == "zh"


def test_the_audit_numbers_rows_as_in_the_file(tmp_path: Path) -> None:
    rows = "".join(
        f"{text},{label}\n"
        for text, label in (
            ("a", ""),
            ("b", "x"),
            ("c", ""),
            ("b", "y"),
            (" ", "x"),
            (" ", "y"),
            ("d", "x"),
        )
    )
    train = audit(load_dataset(write(tmp_path / "t.csv", f"text,label\n{rows}"))).splits["train"]
    assert (train.rows, train.unlabeled) == (5, 2)
    assert train.duplicates.rows == (3,)  # empty texts are no repeats
    assert (train.conflicts, train.conflict_rows) == (1, ((1, 3),))
    assert train.empty.rows == (4, 5)


def test_texts_that_differ_in_case_and_blanks_are_one() -> None:
    split = Split(("Good film", "good  film", "GOOD FILM", "bad"), ("a", "b", "a", "b"))
    found = audit(TextDataset("d", {"train": split})).splits["train"]
    assert (found.duplicates.rows, found.conflict_rows) == ((1, 2), ((0, 1, 2),))


def test_labels_of_near_duplicates_are_compared_as_in_a_file() -> None:
    long = " ".join(f"word{number}" for number in range(40))
    train = Split((long, f"{long} b"), (1, 0))
    test = Split((f"{long} a", f"{long} b c"), ("1", "1"))
    found = find_near_duplicates(TextDataset("d", {"train": train, "test": test}))
    assert found is not None
    assert (found.count, found.conflicts) == (2, 1)
