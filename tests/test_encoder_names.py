"""What an encoder is called: by what was typed, whole, wherever its files are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from families import TinyModels
from layerfuse import FrozenEncoder, extract
from layerfuse.classifier.validation import open_encoders
from layerfuse.encoders.frozen import find_source
from layerfuse.errors import ConfigError
from layerfuse.progress import SILENT

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def place(tiny: TinyModels, folder: Path) -> Path:
    shutil.copytree(tiny("bert"), folder)
    return folder


def in_hub_cache(tiny: TinyModels, cache: Path, owner: str, name: str) -> Path:
    """A snapshot as huggingface_hub lays it out."""
    repository = cache / f"models--{owner}--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return place(tiny, repository / "snapshots" / COMMIT)


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "Qwen2.5-0.5B", "v1.", ".hidden", "lr=1e-5"])
def test_a_folders_name_is_kept_whole(tiny: TinyModels, tmp_path: Path, name: str):
    folder = place(tiny, tmp_path / name)
    for typed in (str(folder), f"{folder}/", os.path.relpath(folder)):
        assert find_source(typed).name == name
        (opened,) = open_encoders(typed, SILENT)
        assert opened.name == name


def test_a_gguf_file_loses_its_suffix_alone(tmp_path: Path):
    file = tmp_path / "Qwen2.5-0.5B.Q4_1.GGUF"
    file.touch()
    assert find_source(str(file)).name == "Qwen2.5-0.5B.Q4_1"


def test_a_link_is_called_as_it_was_typed(tiny: TinyModels, tmp_path: Path):
    folder = place(tiny, tmp_path / "v1.5")
    (tmp_path / "linked.now").symlink_to(folder)
    source = find_source(str(tmp_path / "linked.now"))
    assert (source.name, source.origin) == ("linked.now", str(folder))


def test_dots_for_folders(tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = place(tiny, tmp_path / "v1.5")
    (folder / "sub").mkdir()
    monkeypatch.chdir(folder / "sub")
    assert find_source("..").name == "v1.5"
    monkeypatch.chdir(folder)
    assert find_source(".").name == "v1.5"


def test_a_folder_of_the_hubs_cache_is_called_by_its_model(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = in_hub_cache(tiny, tmp_path, "acme", "bge-tiny-v1.5")
    assert find_source(str(folder)).name == "bge-tiny-v1.5"
    monkeypatch.chdir(folder)
    assert find_source(".").name == "bge-tiny-v1.5"


def test_hub_names_are_kept_whole(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = in_hub_cache(tiny, tmp_path, "acme", "bge-tiny-v1.5")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (opened,) = open_encoders("acme/bge-tiny-v1.5", SILENT)
    assert (opened.name, opened.source.revision, opened.path.name) == (
        "bge-tiny-v1.5", COMMIT, folder.name,
    )  # fmt: skip


def test_an_alias_ends_at_the_first_equals_sign_before_what_exists(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    place(tiny, Path("lr=1e-5/best"))
    for typed, name in (
        ("x=lr=1e-5/best", "x"),
        ("lr=1e-5/best", "best"),
        ("a=b=lr=1e-5/best", "a=b"),
        (f"x={tmp_path}/lr=1e-5/best", "x"),
    ):
        (opened,) = open_encoders(typed, SILENT)
        assert (opened.name, opened.source.origin) == (name, str(Path("lr=1e-5/best").resolve()))


def test_two_versions_of_a_model_are_two_encoders(tiny: TinyModels, tmp_path: Path):
    names = ["bge-small-v1.5", "bge-small-v1.6"]
    folders = [place(tiny, tmp_path / name) for name in names]
    assert [encoder.name for encoder in open_encoders(folders, SILENT)] == names
    twin = place(tiny, tmp_path / "other" / names[0])
    with pytest.raises(ConfigError, match=r"Two encoders are called 'bge-small-v1\.5'"):
        open_encoders([folders[0], twin], SILENT)


def test_a_prompt_by_a_dotted_name_reaches_the_encoder(tiny: TinyModels, tmp_path: Path):
    from layerfuse.cli_options import FitConfig
    from layerfuse.commands.fit import make_encoders

    folder = place(tiny, tmp_path / "bge-tiny-v1.5")
    options = {"data": "a.csv", "encoders": (str(folder),), "dtype": "float32", "device": "cpu"}
    prompt = {"bge-tiny-v1.5": "the film is {text}"}
    plain, prompted = (
        make_encoders(FitConfig(**options, prompts=prompts), SILENT) for prompts in ({}, prompt)
    )
    by_hand = FrozenEncoder.from_pretrained(folder, dtype="float32", device="cpu")
    (own,) = by_hand.tokenize(["the film is good"]).ids
    assert prompted[0].tokenize(["good"]).ids == [own]
    found = [next(iter(extract(["good"], one[0], [3]).values())) for one in (plain, prompted)]
    assert np.abs(found[0] - found[1]).max() > 1e-3
