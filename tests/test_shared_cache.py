"""A cache in which other users may write: what they may have made is not used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from families import TinyModels, save_model
from layerfuse import EmbeddingStore, FrozenEncoder, extract
from layerfuse.data import encoder_path
from layerfuse.encoders.architecture import TraitsFile
from layerfuse.errors import StorageError
from layerfuse.files import cache_dir, fingerprint_file, write_checksums

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="of POSIX systems")

NOBODY = 65534
TEXTS = ["good film", "bad story"]


def _give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, NOBODY, NOBODY)


def _open_to_all(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o002)


def _link(path: Path) -> None:
    """Another user's link to a file of ours."""
    if os.geteuid() != 0:
        pytest.skip("only root gives links away")
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))
    os.lchown(path, NOBODY, NOBODY)


@pytest.fixture(params=[_give_away, _open_to_all, _link])
def spoil(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    change: Callable[[Path], None] = request.param
    return change


def _opened(folder: Path) -> FrozenEncoder:
    return FrozenEncoder.from_pretrained(folder, name="tiny", device="cpu", dtype="float32")


@pytest.mark.parametrize("part", ["", "model.safetensors"])
def test_a_models_folder(spoil: Callable[[Path], None], part: str):
    folder = cache_dir() / "models" / "minilm"
    save_model("bert", folder)
    write_checksums(folder)
    assert encoder_path("minilm") == folder
    spoil(folder / part)
    with pytest.raises(StorageError, match=r"minilm.* cannot be trusted\. Remove it"):
        encoder_path("minilm")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "manifest.json", "shard"])
def test_a_section_of_the_store(tiny: TinyModels, spoil: Callable[[Path], None], part: str):
    store, encoder = EmbeddingStore(), _opened(tiny("bert"))
    extract(TEXTS, encoder, store=store)
    assert extract(TEXTS, encoder, store=store).n_computed == 0
    (folder,) = store.root.iterdir()
    spoil(next(folder.glob("*.safetensors")) if part == "shard" else folder / part)
    with pytest.raises(StorageError, match=r"cannot be trusted.*--store"):
        extract(TEXTS, encoder, store=store)


def test_a_store_that_was_named_may_be_its_owners(tiny: TinyModels, tmp_path: Path):
    store, encoder = EmbeddingStore(tmp_path / "theirs"), _opened(tiny("bert"))
    extract(TEXTS, encoder, store=store)
    for path in (store.root, *store.root.rglob("*")):
        _give_away(path)
    assert extract(TEXTS, encoder, store=store).n_computed == 0
    store.root.chmod(0o777)  # so that anyone may have made the sections
    with pytest.raises(StorageError, match="cannot be trusted"):
        extract(TEXTS, encoder, store=store)


def test_a_remembered_fingerprint(
    tmp_path: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
):
    weights = tmp_path / "m.safetensors"
    weights.write_bytes(np.arange(1 << 18).tobytes())
    monkeypatch.setattr("layerfuse.files._CLOCK_TICK_NS", 0)
    true = fingerprint_file(weights)
    (memo,) = (cache_dir() / "fingerprints").iterdir()
    memo.write_text(json.dumps({**json.loads(memo.read_text()), "sha256": "0"}))
    assert fingerprint_file(weights) == "0"  # while it is believed
    spoil(memo)
    assert fingerprint_file(weights) == true


def test_what_is_known_of_a_model(tiny: TinyModels, spoil: Callable[[Path], None]):
    assert _opened(tiny("bert")).n_layers == 3
    (traits,) = (cache_dir() / "traits").iterdir()
    known = TraitsFile.model_validate_json(traits.read_text()).traits
    changed = TraitsFile.of(known.model_copy(update={"n_layers": 2}))
    traits.write_text(changed.model_dump_json())
    assert _opened(tiny("bert")).n_layers == 2
    spoil(traits)
    assert _opened(tiny("bert")).n_layers == 3
