"""Stores, runs and bundles on URLs: what is safe when storage fails, lags and is shared."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import numpy as np
import pytest

from commandline import rows, run, succeed, write_csv
from families import TinyModels, save_model
from helpers import Notes, sentences
from layerfuse import EmbeddingStore, FrozenEncoder, extract, load, load_dataset
from layerfuse.commands.parts import PartFiles
from layerfuse.embeddings import jobs
from layerfuse.errors import FormatError, NotFoundError, StorageError
from layerfuse.files import cache_dir, digest
from layerfuse.objects import ObjectFolder, local_folder, upload_folder
from layerfuse.progress import SILENT
from layerfuse.serving.registry import load_models, named_runs
from object_server import URL, Machine, azure_server, google_server, object_server

TEXTS = sentences(40)


@pytest.fixture
def machines(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Machine, Machine]]:
    monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 10})
    fsspec.filesystem("memory").store.clear()  # that of the process
    model = tiny("bert")
    yield Machine(tmp_path / "a", model), Machine(tmp_path / "b", model)
    fsspec.filesystem("memory").store.clear()


def objects(suffix: str = ".safetensors") -> list[str]:
    return [name for name in fsspec.filesystem("memory").find("/bucket") if name.endswith(suffix)]


class TestStore:
    def test_another_machine_computes_nothing(self, machines: tuple[Machine, Machine]):
        one, other = machines
        first = one.extract(TEXTS)
        assert (first.n_computed, len(objects())) == (40, 4)
        second = other.extract(TEXTS[::-1])
        assert second.n_computed == 0
        for ref in first:
            np.testing.assert_array_equal(second[ref][::-1], first[ref])
        (info,) = other.store().sections()
        assert (info.encoder, info.shards, info.idle_s < 60) == ("tiny", 4, True)
        assert repr(other.store()) == f"EmbeddingStore({URL!r})"

    def test_new_texts_are_seen_by_both(self, machines: tuple[Machine, Machine]):
        one, other = machines
        one.extract(TEXTS[:20])
        assert other.extract(TEXTS).n_computed == 20
        assert one.extract(TEXTS).n_computed == 0

    def test_values_are_those_of_a_local_store(
        self, machines: tuple[Machine, Machine], tmp_path: Path
    ):
        one, other = machines
        one.extract(TEXTS)
        found, local = other.extract(TEXTS), one.extract(TEXTS, str(tmp_path / "local"))
        for ref in local:
            np.testing.assert_array_equal(found[ref], local[ref])
        names = sorted(path.name for path in (tmp_path / "local").glob("*/*.safetensors"))
        assert [name.rpartition("/")[2].partition("-")[0] for name in objects()] == [
            name.partition(".")[0] for name in names
        ]

    @pytest.mark.parametrize("keep", [0, 100, -1])
    def test_a_torn_object_is_computed_again(self, machines: tuple[Machine, Machine], keep: int):
        one, other = machines
        first = one.extract(TEXTS)
        memory, torn = fsspec.filesystem("memory"), objects()[1]
        whole = memory.cat(torn)
        memory.pipe_file(torn, whole[:keep])
        notes = Notes()
        found = other.extract(TEXTS, reporter=notes)
        assert found.n_computed == 10
        assert torn.rpartition("/")[2] in notes.about("a damaged object counts as missing")[0]
        for ref in first:
            np.testing.assert_array_equal(found[ref], first[ref])
        assert memory.cat(torn) == whole

    def test_verify_deletes_what_is_damaged(self, machines: tuple[Machine, Machine]):
        one, other = machines
        one.extract(TEXTS)
        memory, torn, left = fsspec.filesystem("memory"), objects()[0], objects()[1:]
        assert other.store().verify() == []
        memory.pipe_file(torn, memory.cat(torn)[::-1])
        (manifest,) = objects("manifest.json")
        assert [path.name for path in other.store().verify()] == [torn.rpartition("/")[2]]
        assert objects() == left
        memory.pipe_file(manifest, b"{")
        assert [path.name for path in other.store().verify()] == ["manifest.json"]
        assert other.extract(TEXTS).n_computed == 0
        assert one.store().verify() == []

    def test_a_damaged_copy_is_downloaded_again(self, machines: tuple[Machine, Machine]):
        _, other = machines
        expected = other.extract(TEXTS)
        values = {ref: expected[ref] for ref in expected}
        for copy in other.store().root.glob("*/*.safetensors"):
            copy.write_bytes(copy.read_bytes()[:-1])
        found = other.extract(TEXTS)
        assert found.n_computed == 0
        for ref, array in values.items():
            np.testing.assert_array_equal(found[ref], array)

    def test_prune(self, machines: tuple[Machine, Machine]):
        one, other = machines
        one.extract(TEXTS)
        assert other.store().prune(lambda info: info.idle_s > 60) == []
        assert len(objects()) == 4
        assert len(other.store().prune(lambda info: True)) == 1
        assert (objects(""), other.store().sections()) == ([], [])

    def test_a_shard_that_cannot_be_put_is_not_kept_here(
        self, machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
    ):
        """Else this machine would never put it."""
        one, _ = machines
        upload = ObjectFolder.upload

        def refuse(folder: ObjectFolder, file: Path, name: str) -> None:
            if name.endswith(".safetensors") and len(objects()) == 2:
                raise StorageError("refused")
            upload(folder, file, name)

        with monkeypatch.context() as patch:
            patch.setattr(ObjectFolder, "upload", refuse)
            with pytest.raises(StorageError, match="refused"):
                one.extract(TEXTS)
        assert len(list(one.store().root.glob("*/*.safetensors"))) == 2
        assert one.extract(TEXTS).n_computed == 20
        assert len(objects()) == 4

    def test_a_storage_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(StorageError, match="nowhere://bucket"):
            EmbeddingStore("nowhere://bucket").sections()


class TestFolders:
    @pytest.fixture(autouse=True)
    def _own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
        fsspec.filesystem("memory").store.clear()
        yield
        fsspec.filesystem("memory").store.clear()

    def folder(self, path: Path, text: str) -> Path:
        (path / "inside").mkdir(parents=True)
        (path / "inside" / "a.txt").write_text(text)
        (path / "b.txt").write_text(text)
        return path

    def test_what_is_uploaded_is_downloaded(self, tmp_path: Path):
        upload_folder(self.folder(tmp_path / "one", "1"), URL)
        for _ in range(2):
            found = local_folder(URL)
            assert (found / "inside" / "a.txt").read_text() == "1"
        assert local_folder(tmp_path) == tmp_path
        with pytest.raises(StorageError, match="exists already"):
            upload_folder(self.folder(tmp_path / "two", "2"), URL)
        with pytest.raises(NotFoundError, match="no run or bundle at memory://bucket/other"):
            local_folder("memory://bucket/other")

    def test_overwriting_never_leaves_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Stopped before any of its puts, it leaves the older version, and then the newer one."""
        upload_folder(self.folder(tmp_path / "one", "1"), URL)
        older = ObjectFolder(URL).read("CURRENT").decode()
        newer = self.folder(tmp_path / "two", "2")
        put: list[str] = []
        write, upload = ObjectFolder.write, ObjectFolder.upload
        seen = set()
        for limit in range(6):
            put.clear()

            def counted(put_one: object, limit: int = limit) -> object:
                def call(folder: ObjectFolder, *arguments: object) -> None:
                    if len(put) == limit:
                        raise StorageError("killed")
                    put.append(str(arguments))
                    put_one(folder, *arguments)  # type: ignore[operator]

                return call

            with monkeypatch.context() as patch:
                patch.setattr(ObjectFolder, "write", counted(write))
                patch.setattr(ObjectFolder, "upload", counted(upload))
                try:
                    upload_folder(newer, URL, overwrite=True)
                except StorageError:
                    assert limit < 4
            shutil.rmtree(cache_dir() / "objects", ignore_errors=True)
            found = local_folder(URL)
            text = (found / "b.txt").read_text()
            assert (found / "inside" / "a.txt").read_text() == text
            seen.add((limit < 4, text))
        assert seen == {(True, "1"), (False, "2")}
        assert not [name for name in ObjectFolder(URL).sizes() if name.startswith(older)]

    @pytest.mark.parametrize("name", ["b.txt", "SHA256SUMS", "CURRENT"])
    def test_a_damaged_one_is_refused(self, tmp_path: Path, name: str):
        upload_folder(self.folder(tmp_path / "one", "1"), URL)
        memory = fsspec.filesystem("memory")
        (place,) = (found for found in memory.find("/bucket") if found.endswith(name))
        memory.pipe_file(place, memory.cat(place) + b"x")
        with pytest.raises(FormatError):
            local_folder(URL)
        assert not list((tmp_path / "cache" / "objects").rglob("b.txt"))

    def test_names_that_lead_out_of_the_folder_are_refused(self, tmp_path: Path):
        text = f"{'0' * 64}  ../../escaped\n"
        place, version = ObjectFolder(URL), f"{digest(text)}-{0:08x}"
        place.write("CURRENT", version.encode())
        place.write(f"{version}/SHA256SUMS", text.encode())
        place.write("escaped", b"!")
        with pytest.raises(FormatError, match="SHA256SUMS is damaged"):
            local_folder(URL)
        assert not list(tmp_path.rglob("escaped"))


RUN = "memory://bucket/run"


@pytest.fixture(scope="class")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    fsspec.filesystem("memory").store.clear()
    folder = tmp_path_factory.mktemp("trained")
    write_csv(folder / "train.csv", rows(60))
    model = save_model("bert", folder / "bert")
    options = ("--cv", 2, "--fusion", "concat", "--head", "ridge")
    stores = ("--store", "memory://bucket/store")
    command = ("fit", folder / "train.csv", "-e", model, *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERFUSE_CACHE", str(folder / "cache"))
        succeed(*command, *stores, "--out", RUN)
        succeed(*command, *stores, "--no-report", "--out", folder / "run")
        yield folder
    fsspec.filesystem("memory").store.clear()


class TestRuns:
    """``fit --out URL``, and what is done with such a run."""

    @pytest.fixture(autouse=True)
    def _fresh(self, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another machine than the one that fitted."""
        monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        write_csv(tmp_path / "texts.csv", rows(30, seed=1))

    @pytest.mark.slow
    def test_commands(self, fitted: Path):
        for command in ("predict", "evaluate"):
            here = succeed(command, fitted / "run", "texts.csv", "--device", "cpu").out
            assert succeed(command, RUN, "texts.csv", "--device", "cpu").out == here
        against = ("--against", RUN, "--device", "cpu", "--json")
        compared = succeed("evaluate", fitted / "run", "texts.csv", *against).json["comparison"]
        assert (compared["against"], compared["changes"]) == (RUN, [])
        done = run("report", RUN)
        assert (done.code, "--out" in done.err) == (2, True)
        succeed("report", RUN, "--out", "page.html")
        assert (local_folder(RUN) / "report.html").is_file()
        done = run("predict", "memory://bucket/none", "texts.csv")
        assert (done.code, "no run or bundle at memory://bucket/none" in done.err) == (2, True)

    def test_a_run_is_not_replaced(self, fitted: Path):
        options = ("-e", fitted / "bert", "--out", RUN)
        done = run("fit", fitted / "train.csv", *options)
        assert (done.code, f"{RUN} exists already" in done.err) == (2, True)

    def test_serve(self):
        served = load_models(named_runs([RUN, f"b={RUN}"]), {}, "cpu", SILENT)
        assert list(served) == ["run", "b"]
        assert served["b"].info.verdict is not None

    def test_a_stopped_prediction_knows_the_bundle(self, monkeypatch: pytest.MonkeyPatch):
        command = ("predict", RUN, "texts.csv", "--part-rows", 7, "--out")
        succeed(*command, "whole.csv")
        write = PartFiles.write

        def write_some(files: PartFiles, number: int, data: bytes) -> None:
            if number == 2:
                raise KeyboardInterrupt
            write(files, number, data)

        with monkeypatch.context() as patch:
            patch.setattr(PartFiles, "write", write_some)
            assert run(*command, "out.csv").code == 130
        succeed(*command, "out.csv", "--resume")
        assert Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()

    def test_save_and_load(self, fitted: Path, monkeypatch: pytest.MonkeyPatch):
        def refuse(*_: object) -> None:
            raise StorageError("refused.")

        url = "memory://bucket/bundle"
        classifier = load(fitted / "run", device="cpu")
        texts = [text for text, _ in rows(30, seed=1)]
        classifier.save(url)
        with pytest.raises(StorageError, match="exists already"):
            classifier.save(url)
        with monkeypatch.context() as patch:
            patch.setattr(ObjectFolder, "write", refuse)
            with pytest.raises(StorageError, match=r"refused.* is kept in") as refused:
                classifier.save(url, overwrite=True)
        kept = Path(str(refused.value).rpartition(" ")[2].rstrip("."))
        classifier.save(url, overwrite=True)
        for place in (url, kept):
            found = load(place, device="cpu")
            assert found.store == "memory://bucket/store"
            np.testing.assert_array_equal(
                found.predict_proba(texts), classifier.predict_proba(texts)
            )
        shutil.rmtree(kept.parent)

    def test_a_store_is_filled_listed_and_pruned(self, fitted: Path):
        store = ("--store", "memory://bucket/store", "--json")
        done = succeed("extract", fitted / "train.csv", "-e", fitted / "bert", *store)
        assert (done.json["computed"], done.json["store"]) == (0, store[1])
        (section,) = succeed("store", "ls", *store).json["sections"]
        assert (section["shards"], section["folder"].startswith(store[1])) == (1, True)
        assert succeed("store", "verify", *store).json["damaged"] == []


def test_the_folders_of_a_file_url_are_made(tiny: TinyModels, tmp_path: Path):
    url = (tmp_path / "new" / "folder").as_uri()
    for n_computed in (len(TEXTS), 0):
        encoder = FrozenEncoder.from_pretrained(tiny("bert"))
        found = extract(TEXTS, encoder, store=EmbeddingStore(f"{url}/store"))
        assert found.n_computed == n_computed
    with pytest.raises(NotFoundError):
        local_folder(f"{url}/run")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["store"]


@pytest.mark.parametrize("server", [azure_server, google_server])
def test_other_storages(
    fitted: Path,
    server: Callable[[pytest.MonkeyPatch], AbstractContextManager[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Servers of Azure's and Google's protocols; skipped where they are not installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
    write_csv(tmp_path / "texts.csv", rows(30, seed=1))
    with server(monkeypatch) as url:
        for label in ("x y", "z"):
            ObjectFolder(url).upload(fitted / "train.csv", f"parts/key={label}/0.csv")
        options = ("--cv", 2, "--fusion", "concat", "--head", "ridge", "--store", f"{url}/store")
        train = f"{url}/parts/key=z/0.csv"
        succeed("fit", train, "-e", fitted / "bert", *options, "--out", f"{url}/run")
        monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "another"))
        done = succeed("extract", train, "-e", fitted / "bert", *options[-2:], "--json")
        assert done.json["computed"] == 0
        expected = succeed("predict", fitted / "run", "texts.csv").out
        assert succeed("predict", f"{url}/run", "texts.csv").out == expected
        succeed("predict", f"{url}/run", f"{url}/parts", "--out", f"{url}/labels.parquet")
        found = load_dataset(f"{url}/labels.parquet", labeled=False, columns=["key"]).train
        assert found.columns["key"] == ("x y",) * 60 + ("z",) * 60
        assert succeed("store", "verify", *options[-2:], "--json").json["damaged"] == []
        assert f"no {url}/none.csv" in run("predict", f"{url}/run", f"{url}/none.csv").err
        place = ObjectFolder(f"{url}/objects")
        place.write("a/ü %=.bin", b"1")
        place.write("a/ü %=.bin", b"22")
        assert (place.read("a/ü %=.bin"), place.sizes()) == (b"22", {"a/ü %=.bin": 2})
        assert 0 <= place.age_s("a/ü %=.bin") < 60
        place.delete("a/ü %=.bin", "none")
        assert place.sizes() == {}


@pytest.mark.slow
def test_runs_on_a_server_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It fails, hangs, tears uploads and lists late; so it does for stores in tests/soak."""
    with object_server(monkeypatch) as server:
        server.rate = 0.3
        for number in range(4):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "text").write_text(str(number))
            upload_folder(folder, "s3://bucket/run", overwrite=True)
            assert (local_folder("s3://bucket/run") / "text").read_text() == str(number)
        server.rate = 0.0
        assert len(fsspec.filesystem("s3").find("s3://bucket/run")) == 3
