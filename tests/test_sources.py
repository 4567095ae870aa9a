"""Partitioned folders, here and at URLs, and datasets of Hugging Face."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import pytest

from commandline import rows, run, succeed, write_csv, write_jsonl
from families import save_model
from layerfuse import load, load_dataset
from layerfuse.commands.parts import PartFiles
from layerfuse.data import ReadOptions, Split, TextDataset, readers, stream_texts
from layerfuse.errors import DataError, NotFoundError
from layerfuse.labels import LabelSet

EVERYTHING = ReadOptions(labeled=False, keep=True)
PART = 7


def write(folder: Path, name: str, **columns: Sequence[Any]) -> Path:
    """A parquet file below the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
    return path


def write_partitions(folder: Path, n: int = 40, *, kind: str = "parquet") -> pyarrow.Table:
    """Rows by label and year, as pyarrow writes them; gives them back as pyarrow reads them."""
    data = [(text, label, number) for number, (text, label) in enumerate(rows(n))]
    texts, labels, numbers = zip(*data, strict=True)
    years = [2020 + number % 3 for number in numbers]
    table = pyarrow.table({"text": texts, "topic": labels, "year": years, "number": numbers})
    keys = ["topic", "year"]
    pyarrow.dataset.write_dataset(
        table, folder, format=kind, partitioning=keys, partitioning_flavor="hive"
    )
    return pyarrow.dataset.dataset(folder, format=kind, partitioning="hive").to_table()


def upload(folder: Path, url: str) -> str:
    system, path = fsspec.url_to_fs(url)
    system.put(str(folder), path, recursive=True)
    return url


def columns_of(split: Split) -> dict[str, list[object]]:
    return {name: list(values) for name, values in split.columns.items()}


class TestPartitions:
    @pytest.mark.parametrize("kind", ["parquet", "csv"])
    @pytest.mark.parametrize("place", ["here", "memory"])
    def test_rows_and_keys_are_those_of_pyarrow(self, tmp_path: Path, kind: str, place: str):
        expected = write_partitions(tmp_path / "d", kind=kind)
        here = place == "here"
        source = tmp_path / "d" if here else upload(tmp_path / "d", f"memory://{tmp_path.name}/d")
        found = load_dataset(source, label_column="topic", columns=["year", "number"])
        assert found.columns[:2] == ("text", "number")
        assert set(found.columns[2:]) == {"topic", "year"}
        assert list(found.train.texts) == expected["text"].to_pylist()
        assert list(found.train.labels or ()) == expected["topic"].to_pylist()
        assert list(found.train.columns["year"]) == expected["year"].to_pylist()
        numbers = map(int, found.train.columns["number"])
        assert list(numbers) == expected["number"].to_pylist()

    def test_a_key_that_a_path_names_twice_is_refused(self, tmp_path: Path):
        (tmp_path / "a=1/b=2/a=3").mkdir(parents=True)
        (tmp_path / "a=1/b=2/a=3/x.csv").write_text("text,label\ngood,1\nbad,0\n")
        with pytest.raises(DataError, match=r"a=1/b=2/a=3/x\.csv names a key twice"):
            load_dataset(tmp_path)

    @pytest.mark.parametrize("part_rows", [1, PART, 1000])
    def test_parts_hold_the_rows_in_order(self, tmp_path: Path, part_rows: int):
        expected = write_partitions(tmp_path)
        parts = list(stream_texts(tmp_path, part_rows, EVERYTHING).splits["train"])
        assert max(map(len, parts)) <= part_rows
        assert all(len(one) + len(two) > part_rows for one, two in pairwise(parts))
        assert [row for part in parts for row in part.rows] == list(range(40))
        for name in ("text", "topic", "year", "number"):
            values = [value for part in parts for value in part.columns[name]]
            assert values == expected[name].to_pylist()

    def test_what_is_hidden_or_empty_is_left_out(self, tmp_path: Path):
        expected = write_partitions(tmp_path)
        (tmp_path / "_SUCCESS").touch()
        (tmp_path / "_metadata").write_bytes(b"no parquet")
        (tmp_path / "year=2020").mkdir()
        (tmp_path / "year=2020" / "empty.parquet").touch()
        write(tmp_path, "_temporary/0/part-0.parquet", other=[1])
        write(tmp_path, ".staging/part-0.parquet", other=[1])
        none = {"text": pyarrow.array([], "string"), "number": pyarrow.array([], "int64")}
        write(tmp_path, "topic=aa/year=1999/none.parquet", **none)
        write(tmp_path, "topic=zz/year=2999/none.parquet", **none)
        for part_rows in (None, PART):
            parts = stream_texts(tmp_path, part_rows, EVERYTHING).splits["train"]
            texts = [text for part in parts for text in part.texts]
            assert texts == expected["text"].to_pylist()

    def test_values_are_decoded(self, tmp_path: Path):
        for number, name in enumerate(
            ("a%2Fb%20c", "größe", "__HIVE_DEFAULT_PARTITION__", "x=y", "+", "%E2%82%AC")
        ):
            write(tmp_path, f"sm%C3%BCrk={name}/part-0.parquet", text=[str(number)])
        found = load_dataset(tmp_path, labeled=False, columns=["smürk"]).train
        values = dict(zip(found.texts, found.columns["smürk"], strict=True))
        assert values == {"0": "a/b c", "1": "größe", "2": None, "3": "x=y", "4": "+", "5": "€"}

    def test_a_value_that_is_no_utf8_is_refused(self, tmp_path: Path):
        write(tmp_path, "label=%FF/part-0.parquet", text=["a"])
        with pytest.raises(DataError, match="cannot be saved"):
            load_dataset(tmp_path)

    def test_rows_without_a_label(self, tmp_path: Path):
        write(tmp_path, "label=x/0.parquet", text=["a", "b"])
        write(tmp_path, "label=__HIVE_DEFAULT_PARTITION__/0.parquet", text=["c"])
        write(tmp_path, "stray.parquet", text=["d"])
        found = load_dataset(tmp_path).train
        assert (found.texts, found.n_unlabeled) == (("a", "b"), 2)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (("0", "1", "-7"), {0, 1, -7}),
            (("9", "05"), {"9", "05"}),  # whose text would be lost
            (("1", "other"), {"1", "other"}),
            (("1", "__HIVE_DEFAULT_PARTITION__"), {1, None}),
            (("1", ""), {1, None}),
            (("1.5", "2"), {"1.5", "2"}),
            (("9" * 18, "9" * 40), {"9" * 18, "9" * 40}),
            (("٣", "4"), {"٣", "4"}),
        ],
    )
    def test_whole_numbers(self, tmp_path: Path, values: Sequence[str], expected: set[object]):
        for value in values:
            write(tmp_path, f"key={value}/0.parquet", text=["a"])
        found = load_dataset(tmp_path, labeled=False, columns=["key"]).train
        assert set(found.columns["key"]) == expected
        assert {type(value) for value in found.columns["key"]} == set(map(type, expected))

    def test_a_key_is_never_the_text_unless_named(self, tmp_path: Path):
        for name in ("a very long name of a class", "another name that is quite as long"):
            write(tmp_path / "one", f"topic={name}/0.parquet", story=["a", "b"])
            write(tmp_path / "two", f"text={name}/0.parquet", body=["a", "b"], label=["x", "y"])
            write(
                tmp_path / "three", f"text={name}/0.parquet", a=["a", "b"], c=["d", "e"], f=[1, 2]
            )
        found = load_dataset(tmp_path / "one")
        assert (found.text_column, found.label_column) == ("story", "topic")
        found = load_dataset(tmp_path / "two")
        assert (found.text_column, found.label_column) == ("body", "label")
        with pytest.raises(DataError, match="no column that is plainly the text"):
            load_dataset(tmp_path / "three")
        named = load_dataset(tmp_path / "three", text_column="text", labeled=False)
        assert named.train.texts[0] == "a very long name of a class"

    def test_a_column_with_the_name_of_a_key(self, tmp_path: Path):
        write(tmp_path, "label=x/year=2020/0.parquet", text=["a"], label=["x"], year=[2020])
        write(tmp_path, "label=y/year=2021/0.parquet", text=["b"])
        found = load_dataset(tmp_path, columns=["year"]).train
        assert found.labels == ("x", "y")
        assert found.columns["year"] == (2020, 2021)
        write(tmp_path, "label=z/year=2021/0.parquet", text=["b"], label=["x"])
        with pytest.raises(DataError, match=r"label=z.*holds 'x', but its folder is named label=z"):
            load_dataset(tmp_path)


class TestSchemas:
    def test_columns_of_some_files(self, tmp_path: Path):
        write(tmp_path, "year=2020/0.parquet", text=["a"], label=["x"], gone=[1.5])
        write(tmp_path, "year=2021/0.parquet", label=["y"], text=["b"], new=[True])
        found = load_dataset(tmp_path, columns=["gone", "new", "year"]).train
        assert found.texts == ("a", "b")
        assert columns_of(found) == {
            "gone": [1.5, None], "new": [None, True], "year": [2020, 2021]
        }  # fmt: skip

    def test_numbers_of_two_kinds_are_one(self, tmp_path: Path):
        write(tmp_path, "part-0.parquet", text=["a"], n=[1], none=pyarrow.nulls(1))
        write(tmp_path, "part-1.parquet", text=["b"], n=[2.5], none=["x"])
        found = load_dataset(tmp_path, labeled=False, columns=["n", "none"]).train
        assert columns_of(found) == {"n": [1, 2.5], "none": [None, "x"]}

    def test_categories_are_texts(self, tmp_path: Path):
        plain = pyarrow.array(["x"])
        write(tmp_path, "part-0.parquet", text=["a"], label=plain.dictionary_encode())
        write(tmp_path, "part-1.parquet", text=["b"], label=plain)
        assert load_dataset(tmp_path).train.labels == ("x", "x")

    @pytest.mark.parametrize("part_rows", [None, 1])
    def test_types_that_disagree_name_both_files(self, tmp_path: Path, part_rows: int | None):
        write(tmp_path, "year=2020/0.parquet", text=["a"], n=[1])
        write(tmp_path, "year=2021/0.parquet", text=["b"], n=[2])
        write(tmp_path, "year=2022/0.parquet", text=["c"], n=["3"])
        with pytest.raises(
            DataError, match=r"2022/0.*'n' is of type string.*2020/0.*of type int64"
        ):
            stream_texts(tmp_path, part_rows, EVERYTHING)

    def test_csv_files_with_other_columns_name_both_files(self, tmp_path: Path):
        for year, header in ((2020, ("text", "label")), (2021, ("text", "topic"))):
            (tmp_path / f"year={year}").mkdir()
            write_csv(tmp_path / f"year={year}" / "0.csv", rows(3), header=header)
        with pytest.raises(
            DataError, match=r"2021.0\.csv has the columns text, topic.*2020.0\.csv"
        ):
            load_dataset(tmp_path)

    def test_a_file_that_is_damaged_is_named(self, tmp_path: Path):
        write_partitions(tmp_path)
        bad = tmp_path / "topic=news" / "bad.parquet"
        bad.write_bytes(b"PAR1")
        with pytest.raises(DataError, match=r"bad\.parquet cannot be read as parquet"):
            load_dataset(tmp_path, label_column="topic")


class TestSplits:
    @pytest.mark.parametrize("names", [("train", "test"), ("split=train", "split=test")])
    @pytest.mark.parametrize("place", ["here", "memory"])
    def test_folders_of_splits(self, tmp_path: Path, names: Sequence[str], place: str):
        for name in names:
            for label in ("x", "y"):
                write(tmp_path / "d", f"{name}/label={label}/0.parquet", text=[name + label])
        here = place == "here"
        source = tmp_path / "d" if here else upload(tmp_path / "d", f"memory://{tmp_path.name}/d")
        found = load_dataset(source)
        assert list(found.splits) == ["train", "test"]
        assert found.splits["test"] == Split((names[1] + "x", names[1] + "y"), ("x", "y"))

    def test_a_dataset_is_shown_without_its_texts(self):
        split = Split(("a secret",) * 1200, (0, 1) * 600)
        shown = repr(TextDataset("own", {"train": split, "test": Split(("b",))}))
        assert "secret" not in shown
        assert "1,200 texts" in shown
        assert "no labels" in shown

    def test_splits_deeper_or_half_named_are_refused(self, tmp_path: Path):
        for number, names in enumerate(
            [("lang=de/split=train/0", "lang=de/split=test/0"), ("train_set", "TEST_set"),
             ("a/b/train/0", "a/b/val/0")]
        ):  # fmt: skip
            for name in names:
                write(tmp_path / str(number), f"{name}.parquet", text=["a"], label=["x"])
            with pytest.raises(
                DataError, match=r"files of several splits \(test, train\)|\(train, val\)"
            ):
                load_dataset(tmp_path / str(number))

    def test_other_values_of_a_key_named_split_are_values(self, tmp_path: Path):
        for value in "AB":
            write(tmp_path, f"split={value}/0.parquet", text=["a"], label=["x"])
        assert load_dataset(tmp_path, columns=["split"]).train.columns["split"] == ("A", "B")

    def test_a_flat_folder_is_one_split(self, tmp_path: Path):
        for name in ("train", "test"):
            write(tmp_path / "both" / f"{name}.parquet", "0.parquet", text=[name], label=["x"])
        assert load_dataset(tmp_path / "both").splits["test"].texts == ("test",)
        spark = tmp_path / "tickets.parquet"
        write(spark, "part-00000-c000.snappy.parquet", text=["a"], label=["x"])
        write(spark, "part-00001-c000.snappy.parquet", text=["b"], label=["y"])
        (spark / "_SUCCESS").touch()
        found = load_dataset(spark)
        assert found.name == "tickets"
        assert found.train == Split(("a", "b"), ("x", "y"))
        url = upload(spark, f"memory://{tmp_path.name}/tickets.parquet")
        assert load_dataset(url).train == found.train

    def test_a_flat_folder_of_csv_is_refused(self, tmp_path: Path):
        for name in ("reviews.csv", "more.csv"):
            write_csv(tmp_path / name, rows(3))
        with pytest.raises(DataError, match=r"no split files .it has: more\.csv, reviews\.csv"):
            load_dataset(tmp_path)

    def test_a_folder_of_test_rows(self, tmp_path: Path):
        write_partitions(tmp_path / "train")
        write_partitions(tmp_path / "new", 12)
        found = load_dataset(tmp_path / "train", test=tmp_path / "new", label_column="topic")
        assert {name: len(split) for name, split in found.splits.items()} == {
            "train": 40, "test": 12
        }  # fmt: skip
        (tmp_path / "both").mkdir()
        for name in ("train", "test"):
            write_csv(tmp_path / "both" / f"{name}.csv", rows(3))
        with pytest.raises(DataError, match="has the splits train, test"):
            load_dataset(tmp_path / "train", test=tmp_path / "both", label_column="topic")

    def test_a_folder_at_a_url_that_is_not_there(self):
        with pytest.raises(NotFoundError, match=r"There is no memory://nowhere/d\.parquet"):
            load_dataset("memory://nowhere/d.parquet")


def test_small_files_share_parts(tmp_path: Path):
    write(tmp_path, "part-0.parquet", text=["a text"] * 3, label=["x", "y", "x"])
    for number in range(1, 300):
        os.link(tmp_path / "part-0.parquet", tmp_path / f"part-{number}.parquet")
    parts = list(stream_texts(tmp_path, 100, EVERYTHING).splits["train"])
    assert [len(part) for part in parts] == [99] * 9 + [9]


@pytest.mark.slow
def test_memory_is_that_of_a_part(tmp_path: Path):
    write(tmp_path, "day=1/0.parquet", text=[f"{row} " + "word " * 100 for row in range(5000)])
    for day in range(2, 9):
        (tmp_path / f"day={day}").mkdir()
        os.link(tmp_path / "day=1" / "0.parquet", tmp_path / f"day={day}" / "0.parquet")
    tracemalloc.start()
    try:
        n_rows = sum(map(len, stream_texts(tmp_path, 500, EVERYTHING).splits["train"]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_rows == 40_000
    assert peak < 5_000_000  # of 20 MB of texts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_partitions(folder / "train", 60)
    model = save_model("bert", folder / "bert")
    succeed(
        *("fit", folder / "train", "-e", model, "--out", folder / "run", "--no-report"),
        *("--cv", 2, "--fusion", "concat", "--head", "ridge", "--store", folder / "store"),
        *("--label-column", "topic"),
    )
    return folder / "run"


class TestCommands:
    @pytest.fixture(autouse=True)
    def texts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pyarrow.Table:
        monkeypatch.chdir(tmp_path)
        return write_partitions(tmp_path / "texts")

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
    def test_a_stopped_run_goes_on(
        self, bundle: Path, texts: pyarrow.Table, suffix: str, monkeypatch: pytest.MonkeyPatch
    ):
        command = ("predict", bundle, "texts", "--part-rows", PART, "--out")
        succeed(*command, f"whole{suffix}")
        write_part = PartFiles.write

        def write_some(files: PartFiles, number: int, data: bytes) -> None:
            if number == 3:
                raise KeyboardInterrupt
            write_part(files, number, data)

        with monkeypatch.context() as patch:
            patch.setattr(PartFiles, "write", write_some)
            assert run(*command, f"out{suffix}").code == 130
        done = succeed(*command, f"out{suffix}", "--resume")
        assert "3 of " in done.err
        assert Path(f"out{suffix}").read_bytes() == Path(f"whole{suffix}").read_bytes()
        found = load_dataset(f"out{suffix}", label_column="label", columns=["topic", "year"]).train
        assert list(found.texts) == texts["text"].to_pylist()
        assert list(found.columns["topic"]) == texts["topic"].to_pylist()
        years = map(int, found.columns["year"])
        assert list(years) == texts["year"].to_pylist()

    def test_a_run_does_not_go_on_with_other_files(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ):
        command = ("predict", bundle, "texts", "--part-rows", PART, "--out", "out.csv")

        def stop(files: PartFiles, n_parts: int) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(PartFiles, "join", stop)
            assert run(*command).code == 130
        write(Path("texts"), "topic=news/year=2020/more.parquet", text=["a"], number=[1])
        assert "different content of the data" in run(*command, "--resume").err

    def test_output_is_not_written_among_the_texts(self, bundle: Path):
        done = run("predict", bundle, "texts", "--out", "texts/labels.parquet")
        assert done.code == 2
        assert "is in the folder of the texts" in done.err

    def test_texts_at_a_url_are_predicted_alike(self, bundle: Path, tmp_path: Path):
        url = upload(tmp_path / "texts", f"memory://{tmp_path.name}/texts")
        assert succeed("predict", bundle, url).out == succeed("predict", bundle, "texts").out

    def test_evaluate_audit_and_profile(self, bundle: Path):
        done = succeed("evaluate", bundle, "texts", "--json").json
        assert done["metrics"]["n_rows" if "n_rows" in done["metrics"] else "accuracy"]
        assert done["split"] is None
        audited = succeed("audit", "texts", "--label-column", "topic", "--json").json
        assert audited["splits"]["train"]["rows"] == 40
        options = ("--label-column", "topic", "--store", "store", "-e", bundle.parent / "bert")
        assert "texts: 40 train rows" in succeed("profile", "texts", *options).err

    def test_labels_of_numbers_match_between_train_and_test(self, bundle: Path):
        for name in ("train", "test"):
            for number, (text, label) in enumerate(rows(30, seed=len(name))):
                code = ("good, very", "schlecht ü", "news").index(label)
                write(Path("numbers", name), f"label={code}/{number}.parquet", text=[text])
        shutil.rmtree(Path("numbers", "test", "label=2"))
        write_jsonl(Path("one.jsonl"), [(text, 1) for text, _ in rows(3)])
        fitted = succeed(
            *("fit", "numbers", "-e", bundle.parent / "bert", "--out", "run", "--no-report"),
            *("--cv", 2, "--fusion", "concat", "--head", "ridge", "--store", "store", "--json"),
        )
        assert fitted.json["test"] is not None
        assert succeed("evaluate", "run", "numbers", "--json").json["classes"] == ["0", "1", "2"]
        assert succeed("evaluate", "run", "one.jsonl").code == 0

    def test_one_class_is_refused(self, bundle: Path):
        write(Path("one"), "label=x/0.parquet", text=["a", "b", "c"])
        done = run("fit", "one", "-e", bundle.parent / "bert", "--out", "run")
        assert done.code == 2
        assert "All 3 rows have the same label 'x'" in done.err


class TestHuggingFace:
    """Datasets of the package datasets; skipped where it is not installed."""

    @pytest.fixture
    def hub(self) -> Any:
        return pytest.importorskip("datasets", reason="pip install 'layerfuse[hub]'")

    def named(self, hub: Any, labels: Sequence[int]) -> Any:
        features = hub.Features(text=hub.Value("string"), label=hub.ClassLabel(names=["no", "yes"]))
        texts = [f"text {row}" for row in range(len(labels))]
        return hub.Dataset.from_dict({"text": texts, "label": list(labels)}, features=features)

    def test_a_dataset_has_the_names_of_its_classes(self, hub: Any):
        data = self.named(hub, [0, 1, -1, 1])
        found = load_dataset(data, test=data.select([3, 0]))
        assert found.train == Split(("text 0", "text 1", "text 3"), ("no", "yes", "yes"))
        assert found.test == Split(("text 3", "text 0"), ("yes", "no"))

    def test_a_transform_is_refused(self, hub: Any):
        data = self.named(hub, [0, 1]).with_transform(lambda batch: batch)
        with pytest.raises(DataError, match=r"has a transform.*Use map"):
            load_dataset(data)

    def test_splits_without_labels_are_left_out(self, hub: Any):
        splits = {"train": self.named(hub, [0, 1]), "test": self.named(hub, [-1, -1])}
        assert list(load_dataset(hub.DatasetDict(splits)).splits) == ["train"]
        unlabeled = load_dataset(hub.DatasetDict(splits), labeled=False)
        assert [len(split) for split in unlabeled.splits.values()] == [2, 2]
        with pytest.raises(DataError, match="no split with labels"):
            load_dataset(splits["test"])

    @pytest.mark.parametrize("part_rows", [1, 3, 100])
    def test_parts_of_a_dataset(self, hub: Any, part_rows: int):
        data = self.named(hub, [0, 1] * 5)
        whole = load_dataset(data).train
        for own in (data, data.to_iterable_dataset(num_shards=3)):
            parts = list(stream_texts(own, part_rows).splits["train"])
            assert max(map(len, parts)) <= part_rows
            assert sum((part.texts for part in parts), ()) == whole.texts
            assert sum((part.labels or () for part in parts), ()) == whole.labels

    def test_an_iterable_dataset_is_read_as_far_as_it_is_asked_for(self, hub: Any):
        read = []

        def generate(shards: Sequence[str]) -> Iterator[dict[str, object]]:
            for shard in shards:
                for row in range(10**9):
                    read.append(row)
                    yield {"text": f"{shard} {row}", "label": "xy"[row % 2], "n": row or None}

        endless = hub.IterableDataset.from_generator(generate, gen_kwargs={"shards": ["a", "b"]})
        parts = stream_texts(endless, 10, EVERYTHING).splits["train"]
        found = [next(parts) for _ in range(20)]
        assert found[19].texts == tuple(f"a {row}" for row in range(190, 200))
        assert found[0].columns["n"][:2] == (None, 1)
        assert tuple(found[19].rows) == tuple(range(190, 200))
        assert len(read) < 1000
        some = load_dataset(endless.take(30)).train
        assert (len(some), set(some.labels or ())) == (30, {"x", "y"})

    def test_rows_of_no_known_type(self, hub: Any):
        def generate() -> Iterator[dict[str, object]]:
            yield {"text": "a", "label": "x", "n": 1}
            yield {"text": "b", "label": "y"}
            yield {"label": "x", "text": "c", "more": 2, "n": "three"}

        data = hub.IterableDataset.from_generator(generate)
        parts = list(stream_texts(data, 1, EVERYTHING).splits["train"])
        assert [part.columns["n"] for part in parts] == [(1,), (None,), ("three",)]
        known = {"text", "label", "n"}
        assert [set(part.columns) for part in parts] == [known, known, known | {"more"}]

    @pytest.mark.slow
    def test_an_endless_dataset_is_not_read_whole(self, hub: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(readers, "_MOST_ROWS", 5_000)
        endless = self.named(hub, [0, 1]).to_iterable_dataset().repeat(None)
        with pytest.raises(DataError, match=r"of at most 5,000 .*Take a part"):
            load_dataset(endless)

    def test_a_folder_of_save_to_disk_comes_in_parts(self, hub: Any, tmp_path: Path):
        data = hub.DatasetDict(train=self.named(hub, [0, 1] * 8), test=self.named(hub, [1, 0]))
        data.save_to_disk(tmp_path / "d", num_shards={"train": 3, "test": 1})
        whole = load_dataset(tmp_path / "d")
        assert whole.splits == load_dataset(data).splits
        url = upload(tmp_path / "d", f"memory://{tmp_path.name}/d")
        for source in (tmp_path / "d", url):
            parts = list(stream_texts(source, 4).splits["train"])
            assert sum((part.texts for part in parts), ()) == whole.train.texts
            assert max(map(len, parts)) <= 4

    def test_a_classifier_takes_its_columns(self, hub: Any, bundle: Path):
        texts = [text for text, _ in rows(9)]
        data = hub.Dataset.from_dict({"text": texts})
        classifier = load(bundle)
        expected = classifier.predict_proba(texts)
        for own in (data, data.to_iterable_dataset(num_shards=2)):
            assert (classifier.predict_proba(own["text"]) == expected).all()
            parts = stream_texts(own, 4, ReadOptions(labeled=False)).splits["train"]
            found = [label for part in parts for label in classifier.predict(part.texts)]
            assert found == classifier.predict(texts).tolist()

    def test_what_the_package_loads_comes_in_parts(
        self, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "d").mkdir()
        for name in ("train", "test"):
            write_csv(tmp_path / "d" / f"{name}.csv", rows(9))
        whole = load_dataset(f"hub:{tmp_path}/d")
        assert (whole.name, list(whole.splits)) == ("d", ["train", "test"])
        parts = list(stream_texts(f"hub:{tmp_path}/d", 4).splits["test"])
        assert [len(part) for part in parts] == [4, 4, 1]
        assert sum((part.texts for part in parts), ()) == whole.splits["test"].texts

    @pytest.mark.parametrize("given", [["a"], 3, {"train": ["a"]}])
    def test_what_is_no_dataset_is_refused(self, given: Any):
        with pytest.raises(DataError, match=r"Got a (list|int) where"):
            load_dataset(given)

    def test_a_dataset_without_rows(self, hub: Any):
        nothing = hub.IterableDataset.from_generator(lambda: iter(()))
        for data in (self.named(hub, []), nothing):
            with pytest.raises(DataError, match="has no rows"):
                load_dataset(data)


def test_links_to_folders_around_are_not_followed(tmp_path: Path):
    write(tmp_path / "d", "y=1/x.parquet", text=["good", "bad"], label=["a", "b"])
    (tmp_path / "d" / "y=1" / "up").symlink_to("..")
    (tmp_path / "d" / "y=1" / "top").symlink_to(tmp_path)
    (tmp_path / "d" / "y=2").symlink_to("y=1")
    assert list(load_dataset(tmp_path / "d", columns=["y"]).train.columns["y"]) == [1, 1, 2, 2]


@pytest.mark.parametrize("name", ["test/x.parquet", "test.parquet"])
def test_partitions_beside_a_split_are_not_left_out(tmp_path: Path, name: str):
    write(tmp_path, "label=a/x.parquet", text=["good", "bad"])
    write(tmp_path, name, text=["good"], label=["a"])
    with pytest.raises(DataError, match=r"'test' beside partitions such as label=a"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("folder", "value"),
    [
        ("k=1", "0"),
        ("k=1", 0.0),
        ("k=05", "6"),
        ("k=2024-01-02", date(2024, 1, 3)),
    ],
)
def test_a_column_that_differs_from_its_folder_is_refused(
    tmp_path: Path, folder: str, value: object
):
    write(tmp_path, f"{folder}/x.parquet", text=["good"], label=["a"], k=[value])
    with pytest.raises(DataError, match="but its folder is named"):
        load_dataset(tmp_path, columns=["k"])


def test_a_column_without_values_takes_those_of_its_folders(tmp_path: Path):
    for label in ("a", "b"):
        write(tmp_path, f"label={label}/x.parquet", text=["good", "bad"], label=[label, None])
    assert load_dataset(tmp_path).train.labels == ("a", "a", "b", "b")


def test_lists_of_classes_are_read_by_their_names():
    datasets = pytest.importorskip("datasets", reason="pip install 'layerfuse[hub]'")
    names = datasets.ClassLabel(names=["angry", "glad"])
    features = datasets.Features(text=datasets.Value("string"), label=datasets.List(names))
    own = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [[1], [0, 1]]}, features)
    assert load_dataset(own).train.labels == (LabelSet(["glad"]), LabelSet(["angry", "glad"]))


def test_partitions_of_several_formats_are_refused_as_such(tmp_path: Path):
    for name in ("y=1/a.jsonl", "y=2/a.ndjson"):  # one format
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"text": "good", "label": "a"}\n')
    assert len(load_dataset(tmp_path).train.texts) == 2
    write(tmp_path, "y=2/b.parquet", text=["good"], label=["a"])
    with pytest.raises(DataError, match=r"several formats \(\.jsonl, \.parquet\)"):
        load_dataset(tmp_path)
