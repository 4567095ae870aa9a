"""Rows in parts: streams in and out, runs that go on after a kill, and a Ray cluster."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from filelock import FileLock

from benchmarks.cluster import Cluster, running_cluster
from commandline import rows, run, start, succeed, write_csv, write_jsonl, write_text
from families import save_model
from layerfuse.cli_options import EvaluateConfig
from layerfuse.cluster import RayCluster
from layerfuse.commands.parts import PartFiles
from layerfuse.commands.predict import evaluate
from layerfuse.data import TABLE_SUFFIXES, load_dataset, stream_texts
from layerfuse.errors import DataError
from layerfuse.progress import SILENT
from object_server import object_server
from processes import Child

PART = 7
N_ROWS = 40
FORMATS = [".csv", ".tsv.gz", ".jsonl", ".csv.gz", ".parquet"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_csv(folder / "train.csv", rows(60))
    model = save_model("bert", folder / "bert")
    succeed(
        *("fit", folder / "train.csv", "-e", model, "--out", folder / "run", "--no-report"),
        *("--cv", 2, "--fusion", "concat", "--head", "ridge", "--store", folder / "store"),
    )
    return folder / "run"


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_csv(tmp_path / "texts.csv", rows(N_ROWS, seed=1))


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Let this be standard input."""
    stream = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdin", stream)


class TestReading:
    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
    @pytest.mark.parametrize("part_rows", [1, PART, N_ROWS, 1000])
    def test_parts_hold_the_rows_in_order(self, bundle: Path, suffix: str, part_rows: int):
        name = f"same{suffix}"
        if suffix == ".parquet":
            table = pyarrow.Table.from_pylist([{"text": t, "label": x} for t, x in rows(N_ROWS)])
            pyarrow.parquet.write_table(table, name, row_group_size=3)
        elif "json" in suffix:
            write_jsonl(Path(name), rows(N_ROWS))
        else:
            lines = [f"{text}\t{label.partition(',')[0]}" for text, label in rows(N_ROWS)]
            text = "\n".join(["text\tlabel", *lines]) + "\n"
            if ".csv" in suffix:
                text = text.replace("\t", ";")
            write_text(Path(name), text)
        whole = load_dataset(name).train
        parts = list(stream_texts(name, part_rows).splits["train"])
        assert [len(part) for part in parts[:-1]] == [part_rows] * (len(parts) - 1)
        assert sum((part.texts for part in parts), ()) == whole.texts
        assert sum((part.labels or () for part in parts), ()) == whole.labels

    def test_faults_are_told_by_the_row_of_the_file(self, bundle: Path):
        lines = [json.dumps({"text": "a film"})] * 20 + [json.dumps({"text": 3})]
        Path("x.jsonl").write_text("\n".join(lines))
        done = run("predict", bundle, "x.jsonl", "--part-rows", PART, "--out", "y.csv")
        assert done.code == 2
        assert "int in row 20" in done.err
        assert not list(Path().glob("*y.csv*"))  # found before the work

    @pytest.mark.slow
    def test_a_file_that_is_there_is_said_to_be_replaced(self, bundle: Path):
        asked = ("predict", bundle, "texts.csv", "--out", "again.csv")
        assert "replaced" not in succeed(*asked).err
        assert "again.csv is there already, and will be replaced" in succeed(*asked).err

    def test_empty_texts_are_counted(self, bundle: Path):
        write_csv(Path("some.csv"), [*rows(20), ("", "news"), (" ", "news")])
        assert "2 of 22 texts are empty" in succeed("predict", bundle, "some.csv").err
        assert "are empty" not in succeed("predict", bundle, "texts.csv").err
        write_csv(Path("train.csv"), [*rows(30), ("", "news"), (" ", "news")])
        few = ("-e", bundle.parent / "bert", "--cv", 2, "--no-report", "--store", "store")
        fitted = succeed("fit", "train.csv", *few, "--out", "run")
        assert "2 of 32 training texts are empty" in fitted.err

    def test_empty_texts_of_standard_input_are_counted(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ):
        give(monkeypatch, b'text\na film\n\' \'\n" "\n""\noil\n')
        done = succeed("predict", bundle, "-", "--part-rows", 2)
        assert len(done.out.splitlines()) == 6
        assert "2 of 5 texts are empty" in done.err

    @pytest.mark.slow
    @pytest.mark.parametrize("packed", [False, True])
    def test_standard_input(
        self, bundle: Path, texts: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
    ):
        expected = succeed("predict", bundle, texts, "--part-rows", PART).out
        assert len(expected.splitlines()) == N_ROWS + 1
        write_jsonl(Path("x.jsonl"), rows(N_ROWS, seed=1))
        for name in (texts, Path("x.jsonl")):
            data = name.read_bytes()
            give(monkeypatch, gzip.compress(data) if packed and name == texts else data)
            done = succeed("predict", bundle, "-", "--out", "-", "--part-rows", PART)
            assert done.out == expected

    def test_standard_input_cannot_be_read_twice(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ):
        done = run("predict", bundle, "-", "--out", "x.csv", "--resume")
        assert done.code == 2
        assert "Give the name of a file" in done.err
        give(monkeypatch, b"PAR1....")
        done = run("predict", bundle, "-")
        assert done.code == 2
        assert "Parquet cannot be read from standard input" in done.err

    @pytest.mark.slow
    def test_url(self, bundle: Path, texts: Path):
        memory = fsspec.filesystem("memory")
        memory.pipe("/bucket/texts.csv", texts.read_bytes())
        for suffix in FORMATS:
            here, there = f"here{suffix}", f"memory://bucket/there{suffix}"
            options = ("--part-rows", PART, "--out")
            succeed("predict", bundle, texts, *options, here)
            succeed("predict", bundle, "memory://bucket/texts.csv", *options, there)
            assert memory.cat(there) == Path(here).read_bytes()
        done = run("predict", bundle, "memory://bucket/other.csv")
        assert done.code == 2
        assert "There is no memory://bucket/other.csv" in done.err

    @pytest.mark.slow
    def test_object_storage(self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch):
        with object_server(monkeypatch):
            bucket = fsspec.filesystem("s3")
            bucket.put_file(str(texts), "bucket/texts.csv")
            for suffix in FORMATS:
                out = ("--part-rows", PART, "--out", f"s3://bucket/out{suffix}")
                succeed("predict", bundle, "s3://bucket/texts.csv", *out)
                succeed("predict", bundle, texts, *out[:3], f"here{suffix}")
                assert bucket.cat(f"bucket/out{suffix}") == Path(f"here{suffix}").read_bytes()
            done = run("predict", bundle, "s3://bucket/no.csv")
            assert (done.code, "There is no s3://bucket/no.csv" in done.err) == (2, True)

    def test_evaluation_does_not_depend_on_the_parts(self, bundle: Path, texts: Path):
        whole, parts = (
            evaluate(EvaluateConfig(bundle, str(texts), device="cpu"), SILENT, part_rows=size)
            for size in (1000, PART)
        )
        assert parts.metrics.accuracy == whole.metrics.accuracy
        assert parts.metrics.log_loss.value == pytest.approx(whole.metrics.log_loss.value, rel=1e-4)


class TestOutput:
    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_parts_make_the_file_that_one_part_makes(self, bundle: Path, texts: Path, suffix: str):
        succeed("predict", bundle, texts, "--out", f"whole{suffix}")
        succeed("predict", bundle, texts, "--out", f"parts{suffix}", "--part-rows", PART)
        whole, parts = (
            load_dataset(f"{name}{suffix}", label_column="label").train
            for name in ("whole", "parts")
        )
        assert parts == whole
        assert sorted(path.name for path in Path().glob("*parts*")) == [f"parts{suffix}"]

    def test_a_stopped_run_goes_on(
        self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
    ):
        command = ("predict", bundle, texts, "--part-rows", PART, "--out")
        succeed(*command, "whole.csv")
        write, finished = PartFiles.write, []

        def write_some(files: PartFiles, number: int, data: bytes) -> None:
            if len(finished) == 3:
                raise KeyboardInterrupt
            write(files, number, data)
            finished.append(number)

        with monkeypatch.context() as patch:
            patch.setattr(PartFiles, "write", write_some)
            done = run(*command, "out.csv")
        assert done.code == 130
        assert "Finished parts are kept" in done.err
        assert done.err.endswith("--resume\n")
        assert not Path("out.csv").exists()
        done = run(*command, "out.csv")
        assert done.code == 2
        assert "left 3 finished parts" in done.err
        done = run(*command[:-3], "--part-rows", 8, "--out", "out.csv", "--resume")
        assert done.code == 2
        assert "different number of rows per part" in done.err
        written = []
        with monkeypatch.context() as patch:
            patch.setattr(
                PartFiles, "write", lambda f, n, data: (written.append(n), write(f, n, data))
            )
            done = succeed(*command, "out.csv", "--resume")
        assert written == [3, 4, 5]
        assert "3 of 6 parts are finished" in done.err
        assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()

    @pytest.mark.slow
    def test_a_killed_run_goes_on(self, bundle: Path):
        write_csv(Path("many.csv"), rows(2000, seed=2))
        command = ("predict", bundle, "many.csv", "--part-rows", 50, "--out")
        succeed(*command, "whole.csv.gz")
        for _ in range(2):
            before = len(list(Path(".out.csv.gz.parts").glob("part.*")))
            process = start(*command, "out.csv.gz", "--resume", cwd=Path.cwd())
            while process.poll() is None:
                if len(list(Path(".out.csv.gz.parts").glob("part.*"))) >= before + 3:
                    os.kill(process.pid, signal.SIGKILL)
                    break
                time.sleep(0.002)
            process.communicate()
        succeed(*command, "out.csv.gz", "--resume")
        assert Path("out.csv.gz").read_bytes() == Path("whole.csv.gz").read_bytes()


class TestColumns:
    """The table's own columns, beside the predictions."""

    def test_one_that_occurs_late_is_kept(self, bundle: Path, monkeypatch: pytest.MonkeyPatch):
        lines = [json.dumps({"text": text}) for text, _ in rows(20)]
        lines += [json.dumps({"text": "late", "agent": "ann"})]
        late = write_text(Path("late.jsonl"), "\n".join(lines) + "\n")
        for suffix in (".csv", ".jsonl", ".parquet"):
            succeed("predict", bundle, late, "--part-rows", PART, "--out", f"out{suffix}")
            succeed("predict", bundle, late, "--out", f"whole{suffix}")
            read = pyarrow.parquet.read_table if suffix == ".parquet" else Path.read_bytes
            assert read(Path(f"out{suffix}")) == read(Path(f"whole{suffix}"))
        assert Path("out.csv").read_text(encoding="utf-8").startswith("text,agent,label,prob")
        assert ",ann," in Path("out.csv").read_text(encoding="utf-8").splitlines()[-1]
        give(monkeypatch, late.read_bytes())
        done = run("predict", bundle, "-", "--part-rows", PART)
        assert done.code == 2
        assert "'agent' does not occur before row 14" in done.err

    def test_splits_with_other_columns_stay_in_line(self, bundle: Path):
        Path("both").mkdir()
        write_text(Path("both/train.csv"), "text,label\nbad,no\n")
        write_text(Path("both/test.csv"), "id,text,region\n7,good,EU\n")
        lines = succeed("predict", bundle, "both").out.splitlines()
        assert lines[0] == "text,given_label,id,region,label,probability"
        assert [line.split(",")[:4] for line in lines[1:]] == [
            ["bad", "no", "", ""], ["good", "", "7", "EU"],
        ]  # fmt: skip

    def test_a_second_prediction_keeps_what_the_first_kept(self, bundle: Path):
        table = write_text(Path("once.csv"), "text,label\ngood,MINE\nbad,YOURS\n")
        succeed("predict", bundle, table, "--out", "twice.csv")
        lines = succeed("predict", bundle, "twice.csv").out.splitlines()
        assert lines[0].startswith("text,given_label,given_given_label,given_probability,label,")
        assert [line.split(",")[1] for line in lines[1:]] == ["MINE", "YOURS"]

    def test_parquet_keeps_its_types(self, bundle: Path):
        kinds = {
            "hash": pyarrow.array([2**64 - 1, 1], pyarrow.uint64()),
            "at": pyarrow.array([1_700_000_000_123_456_789, None], pyarrow.timestamp("ns")),
            "small": pyarrow.array([1, 2], pyarrow.int8()),
            "pairs": pyarrow.array([[("a", 1)], None], pyarrow.map_("string", "int32")),
            "label": pyarrow.array([0.5, 1.5], pyarrow.float32()),
        }
        table = pyarrow.table({"text": ["good", "bad"], **kinds})
        pyarrow.parquet.write_table(table, "kinds.parquet")
        for part_rows in (1, 10):
            options = ("--out", "out.parquet", "--part-rows", part_rows)
            succeed("predict", bundle, "kinds.parquet", *options)
            found = pyarrow.parquet.read_table("out.parquet").rename_columns(
                ["text", *kinds, "found", "probability"]
            )
            assert found.select(table.column_names).equals(table)

    @pytest.mark.parametrize("part_rows", [1, 10])
    def test_types_of_several_files_are_unified(self, bundle: Path, part_rows: int):
        kinds = {"year=1": pyarrow.int32(), "year=2": pyarrow.float64()}
        for folder, kind in kinds.items():
            Path("many", folder).mkdir(parents=True)
            prices = pyarrow.array([1 if folder == "year=1" else 1.5], kind)
            table = pyarrow.table({"text": [folder], "price": prices, "day": ["a"]})
            unit = "us" if folder == "year=1" else "ns"
            at = pyarrow.array([1_000_000_001], pyarrow.timestamp(unit))
            table = table.append_column("at", at)
            if folder == "year=2":
                hashes = pyarrow.array([2**64 - 1], pyarrow.uint64())
                table = table.set_column(2, "hash", hashes)
            pyarrow.parquet.write_table(table, Path("many", folder, "a.parquet"))
        options = ("--out", "out.parquet", "--part-rows", part_rows)
        succeed("predict", bundle, "many", *options)
        found = pyarrow.parquet.read_table("out.parquet")
        assert found["price"].to_pylist() == [1.0, 1.5]
        assert found.schema.field("at").type == pyarrow.timestamp("ns")
        assert found["at"].cast(pyarrow.int64()).to_pylist()[1] == 1_000_000_001
        assert found["day"].to_pylist() == ["a", None]
        assert found["hash"].to_pylist() == [None, 2**64 - 1]

    def test_several_files_of_lines_may_lack_columns(self, bundle: Path):
        Path("lines").mkdir()
        for number in range(2):
            lines = [json.dumps({"text": text}) for text, _ in rows(10, seed=number)]
            lines.append(json.dumps({"text": "last", f"more{number}": number, "agent": "ann"}))
            name = f"lines/train-0000{number}-of-00002.jsonl"
            write_text(Path(name), "\n".join(lines) + "\n")
        for part_rows in (3, 100):
            succeed("predict", bundle, "lines", "--part-rows", part_rows, "--out", "out.jsonl")
            lines = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
            found = list(map(json.loads, lines))
            assert [row["agent"] for row in found] == [*[None] * 10, "ann"] * 2
            assert (found[10]["more0"], found[21]["more1"]) == (0, 1)

    @pytest.mark.parametrize("part_rows", [1, 10])
    def test_values_of_several_kinds_are_text_in_parquet(self, bundle: Path, part_rows: int):
        lines = ['{"text": "good", "id": 1}', '{"text": "bad", "id": "T-2"}']
        write_text(Path("mixed.jsonl"), "\n".join([*lines, '{"text": "bad", "id": null}', ""]))
        options = ("--out", "out.parquet", "--part-rows", part_rows)
        done = succeed("predict", bundle, "mixed.jsonl", *options)
        assert "are written as text: column id" in done.err
        assert pyarrow.parquet.read_table("out.parquet")["id"].to_pylist() == ["1", "T-2", None]


class TestOneWriter:
    def test_a_second_run_on_the_same_file_is_refused(self, bundle: Path, texts: Path):
        with PartFiles("out.csv", resume=False):
            done = run("predict", bundle, texts, "--out", "out.csv")
            assert done.code == 2
            assert "Another run is writing out.csv" in done.err
        succeed("predict", bundle, texts, "--out", "out.csv")
        assert sorted(Path().glob(".out*")) == []

    def test_parts_of_other_rows_are_refused(
        self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Those behind a URL, too, where no time of a file tells."""
        command = ("predict", bundle, f"file://{texts.resolve()}", "--part-rows", PART)
        command += ("--out", "out.csv")
        with monkeypatch.context() as patch:
            patch.setattr(PartFiles, "join", lambda *_: 1 / 0)
            assert run(*command).code == 1
        write_csv(texts, rows(N_ROWS, seed=2))
        done = run(*command, "--resume")
        assert done.code == 2
        assert "different content of the data" in done.err
        write_csv(texts, rows(N_ROWS, seed=1))
        assert "6 of 6 parts are finished" in succeed(*command, "--resume").err

    def test_parts_of_standard_input_are_of_no_use(
        self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        for interrupted in (True, False):
            give(monkeypatch, texts.read_bytes())
            with monkeypatch.context() as patch:
                if interrupted:
                    patch.setattr(PartFiles, "join", stop)
                done = run("predict", bundle, "-", "--out", "out.csv", "--part-rows", PART)
            assert done.code == 130 * interrupted
            assert ("To start again:" in done.err) == interrupted
        succeed("predict", bundle, texts, "--out", "whole.csv")
        assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()

    @pytest.mark.parametrize("url", [(True, True), (False, True), (True, False)])
    def test_the_texts_are_not_written_over(
        self, bundle: Path, texts: Path, url: tuple[bool, bool]
    ):
        place = f"file://{texts.resolve()}"
        data, out = (place if own else str(texts) for own in url)
        done = run("predict", bundle, data, "--out", out)
        assert done.code == 2
        assert "holds the texts" in done.err

    def test_parts_of_a_file_are_not_deleted_for_standard_input(
        self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with monkeypatch.context() as patch:
            patch.setattr(PartFiles, "join", lambda *_: 1 / 0)
            assert run("predict", bundle, texts, "--out", "out.csv").code == 1
        give(monkeypatch, texts.read_bytes())
        done = run("predict", bundle, "-", "--out", "out.csv")
        assert done.code == 2
        assert "left 1 finished parts" in done.err

    def test_a_file_system_without_locks(
        self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(FileLock, "acquire", refuse)
        succeed("predict", bundle, texts, "--out", "out.csv")

    def test_a_bundle_that_is_replaced_meanwhile_does_no_harm(
        self, bundle: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """It is read once, before rows are looked at."""
        succeed("predict", bundle, texts, "--out", "whole.csv")
        shutil.copytree(bundle, "run")
        check = PartFiles.check

        def replaced(files: PartFiles, facts: Mapping[str, object]) -> None:
            check(files, facts)
            shutil.rmtree("run", ignore_errors=True)

        monkeypatch.setattr(PartFiles, "check", replaced)
        succeed("predict", "run", texts, "--out", "out.csv")
        assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_evaluate_finds_labels_behind_the_first_part(bundle: Path):
    unlabeled = [(text, "") for text, _ in rows(PART)]
    write_csv(Path("late.csv"), unlabeled + rows(N_ROWS))
    config = EvaluateConfig(str(bundle), "late.csv")
    assert evaluate(config, SILENT, part_rows=PART) == evaluate(config, SILENT)
    write_csv(Path("none.csv"), unlabeled * 2)
    with pytest.raises(DataError, match="has no value in any row"):
        evaluate(EvaluateConfig(str(bundle), "none.csv"), SILENT, part_rows=PART)


def test_extract_writes_several_labels_as_text(bundle: Path):
    write_text(Path("many.csv"), "text,label\ngood,a;b\nbad,b\nfine,a\nplain,\n")
    options = ("-e", bundle.parent / "bert", "--label-column", "label", "--label-separator", ";")
    for out in ("out.npz", "out.parquet"):
        succeed("extract", "many.csv", *options, "--store", "store", "--out", out)
    with np.load("out.npz", allow_pickle=False) as found:
        assert found["train/label"].tolist() == ["a; b", "b", "a", ""]
    table = pyarrow.parquet.read_table("out.parquet")
    assert table["label"].to_pylist() == ["a; b", "b", "a", ""]


def test_extract_fills_the_store_that_fit_reads(bundle: Path, texts: Path):
    options = ("-e", bundle.parent / "bert", "--store", "store")
    done = succeed("extract", texts, *options, "--part-rows", PART, "--json")
    assert (done.json["rows"], done.json["computed"]) == (N_ROWS, N_ROWS)
    assert succeed("extract", texts, *options, "--json").json["computed"] == 0
    fitted = succeed("profile", texts, *options)
    assert f"{N_ROWS} of {N_ROWS} distinct texts are in the store" in fitted.err


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'layerfuse[ray]'")
    with running_cluster() as found:
        yield found


@pytest.mark.slow
class TestRay:
    """A cluster of three nodes on this machine; skipped where ray is not installed."""

    @pytest.fixture
    def command(self, bundle: Path, cluster: Cluster) -> tuple[object, ...]:
        write_csv(Path("many.csv"), rows(3000, seed=2))
        return ("predict", bundle, Path("many.csv").resolve(), "--part-rows", 20)

    def on_ray(self, cluster: Cluster, *command: object) -> Child:
        return start(*command, "--engine", "ray", "--address", cluster.address, cwd=Path.cwd())

    def test_output_is_that_of_the_local_engine(
        self, cluster: Cluster, command: tuple[object, ...]
    ):
        expected = succeed(*command).out
        process = self.on_ray(cluster, *command)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out == expected

    def test_a_partitioned_folder(self, cluster: Cluster, bundle: Path):
        for day in range(30):
            Path(f"days/day={day}").mkdir(parents=True)
            write_csv(Path(f"days/day={day}/0.csv"), rows(30, seed=day))
        command = ("predict", bundle, Path("days").resolve(), "--part-rows", 50)
        expected = succeed(*command).out
        process = self.on_ray(cluster, *command)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out == expected
        assert len(out.splitlines()) == 901

    def test_a_node_that_dies_costs_nothing(self, cluster: Cluster, command: tuple[object, ...]):
        succeed(*command, "--out", "whole.csv")
        process = self.on_ray(cluster, *command, "--out", "out.csv", "--json")
        done = 0
        while process.poll() is None and done < 30:
            done = len(list(Path(".out.csv.parts").glob("part.*")))
            time.sleep(0.01)
        assert process.poll() is None
        cluster.kill_node()
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["rows"] == 3000
        assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray about itself
    @pytest.mark.parametrize("n_read", [1, 9])
    def test_settings_of_ray_are_as_they_were(self, cluster: Cluster, n_read: int):
        from ray.data import DataContext

        def settings() -> tuple[object, ...]:
            context, log = DataContext.get_current(), logging.getLogger("ray.data")
            return context.target_max_block_size, context.enable_progress_bars, log.level

        before = settings()
        work = RayCluster(cluster.address).map(lambda: abs, lambda: range(9), gpu=False)
        with contextlib.closing(work) as results:
            read = list(itertools.islice(results, n_read))
            assert settings() != before
        assert settings() == before
        assert set(read) <= set(range(9))

    def test_a_store_is_filled(self, cluster: Cluster, bundle: Path, texts: Path):
        options = ("-e", bundle.parent / "bert", "--store", Path("store").resolve(), "--json")
        process = self.on_ray(cluster, "extract", texts.resolve(), *options, "--part-rows", PART)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["computed"] == N_ROWS
        assert succeed("extract", texts, *options).json["computed"] == 0

    def test_fit_reads_there(self, cluster: Cluster, bundle: Path):
        train = write_csv(Path("train.csv"), rows(60)).resolve()
        command = ("fit", train, "-e", bundle.parent / "bert", "--no-report", "--cv", 2, "--json")
        here = succeed(*command, "--out", "here", "--store", "here-store").json
        options = ("--out", "there", "--store", Path("there-store").resolve())
        out, err = (process := self.on_ray(cluster, *command, *options)).communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["cv"] == here["cv"]
        written, expected = (
            {path.name: path.read_bytes() for path in Path(store).rglob("*.safetensors")}
            for store in ("there-store", "here-store")
        )
        assert written
        assert written == expected
