"""Damaged and changed files: refused, repaired, or read to exactly the same values."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import Soak

import layerfuse
from commandline import run, succeed, write_csv
from families import TinyModels, save_gguf
from helpers import build, planted, sentences
from layerfuse import EmbeddingStore, FrozenEncoder, extract
from layerfuse.embeddings import jobs
from layerfuse.errors import LayerfuseError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXTS, LABELS = planted(60)
Random = np.random.Generator


def _place(data: bytes, random: Random) -> int:
    """A position, as often near the start, where formats say what follows."""
    return int(random.integers(min(len(data), 600) if random.random() < 0.5 else len(data)))


def _flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 9)):
        changed[_place(data, random)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _cut(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _splice(data: bytes, random: Random) -> bytes:
    """A stretch is replaced by noise, zeros or another stretch; it may be of another length."""
    at, start, size = _place(data, random), _place(data, random), int(random.integers(1, 200))
    stretch = [random.bytes(size), bytes(size), data[start : start + size], b""]
    return data[:at] + stretch[random.integers(4)] + data[at + int(random.integers(size + 1)) :]


_ODD = [
    None, True, -1, 0, 1, 2, 100_000, 10**7, 10**30, 0.5, 1e308, "", "x", "\x1b[31m\0",
    "../x", "/etc/passwd", [], {}, [1], [[]], {"x": 1}, ["a", "b"], "float16", "bert", "model.bin",
]  # fmt: skip


def _change_json(value: Any, random: Random) -> Any:
    """One field is removed, renamed, or gets another value."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.1:
        if isinstance(value, (int, float)) and random.random() < 0.5:
            return value + type(value)(random.integers(-2, 3))
        return _ODD[random.integers(len(_ODD))]
    value = value.copy()
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key: Any = keys[random.integers(len(keys))]
    chance = random.random()
    if chance < 0.15:
        del value[key]
    elif chance < 0.25 and isinstance(value, dict):
        value[f"{key}x"] = value.pop(key)
    elif chance < 0.3 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _change_json(value[key], random)
    return value


def _change_fields(data: bytes, random: Random) -> bytes:
    """Of a JSON file, or of the header of a safetensors file."""
    if data[:1] in b"{[":
        if random.random() < 0.1:
            return b"[" * 100_000
        return json.dumps(_change_json(json.loads(data), random)).encode()
    size = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{":
        return _flip(data, random)
    header = json.dumps(_change_json(json.loads(data[8 : 8 + size]), random)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


CHANGES: list[Callable[[bytes, Random], bytes]] = [_flip, _cut, _splice, _change_fields]


def mutate(folder: Path, random: Random) -> str:
    """Change one file of a folder, or swap two; returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = (files[random.integers(len(files))] for _ in range(2))
    chance = random.random()
    if chance < 0.05:
        path.unlink()
        return f"{path.name} removed"
    if chance < 0.15:
        own = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(own)
        return f"{path.name} and {other.name} swapped"
    change = CHANGES[random.integers(len(CHANGES))]
    path.write_bytes(change(path.read_bytes(), random))
    return f"{change.__name__} of {path.name}"


def copied(folder: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place))


def sign(bundle: Path) -> None:
    """Give a changed bundle the checksum that fits it, as an attacker would."""
    path = bundle / "bundle.json"
    try:
        value = json.loads(path.read_bytes())
        fields = {name: own for name, own in value.items() if name != "sha256"}
        tensors = (bundle / "tensors.safetensors").read_bytes()
    except (ValueError, AttributeError, OSError, RecursionError):
        return
    text = json.dumps(fields, sort_keys=True).encode()
    path.write_text(json.dumps({**fields, "sha256": hashlib.sha256(text + tensors).hexdigest()}))


def test_bundles(soak: Soak, tiny: TinyModels, tmp_path: Path) -> None:
    options = {"selection": "top_k", "max_blocks": 2, "store": None, "cv": 2}
    build(tiny, "bert", fusion="concat", head="ridge", **options).fit(TEXTS, LABELS).save(
        tmp_path / "bundle"
    )
    expected = layerfuse.load(tmp_path / "bundle", device="cpu").predict_proba(TEXTS[:4])

    def case(random: Random) -> str:
        bundle = copied(tmp_path / "bundle", tmp_path / "copy")
        done = mutate(bundle, random)
        signed = random.random() < 0.4
        if signed:
            sign(bundle)
        found = layerfuse.load(bundle, device="cpu").predict_proba(TEXTS[:4])
        if signed:
            assert np.isfinite(found).all(), done
            return "signed, read"
        assert np.array_equal(found, expected), done
        return "same"

    soak.run(case, count=40)
    assert soak.outcomes["refused"]


def test_stores(
    soak: Soak, tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 8})
    texts = sentences(32)
    encoders = [
        FrozenEncoder.from_pretrained(tiny("bert"), device="cpu", dtype="float32", pooling=pooling)
        for pooling in ("mean", "last")
    ]
    extract(texts, encoders[0], store=EmbeddingStore(tmp_path / "store"))
    extract(texts, encoders[1], store=EmbeddingStore(tmp_path / "store"))

    def read(root: Path) -> list[Any]:
        views = [extract(texts, encoder, store=EmbeddingStore(root)) for encoder in encoders]
        return [view[block] for view in views for block in view]

    expected = read(tmp_path / "store")

    def case(random: Random) -> str:
        root = copied(tmp_path / "store", tmp_path / "copy")
        done = mutate(root, random)
        if random.random() < 0.5:
            EmbeddingStore(root).verify()
        for one, other in zip(read(root), expected, strict=True):
            assert np.array_equal(one, other), done
        return "same"

    soak.run(case, count=40)
    assert soak.outcomes["same"]


@pytest.fixture(params=["bert", "shards", "qwen2", "gguf"])
def model(request: pytest.FixtureRequest, tiny: TinyModels, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    if request.param == "gguf":
        folder.mkdir()
        save_gguf("llama", folder / "model.gguf")
    elif request.param == "shards":
        from transformers import AutoModel

        shutil.copytree(tiny("llama"), folder)
        (folder / "model.safetensors").unlink()
        AutoModel.from_pretrained(tiny("llama")).save_pretrained(folder, max_shard_size="40KB")
        assert (folder / "model.safetensors.index.json").exists()
    else:
        shutil.copytree(tiny(request.param), folder)
    return folder


def test_models(soak: Soak, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed model has another fingerprint, so that no store and no bundle believes it."""

    def read(folder: Path) -> tuple[dict[str, str], dict[int, Any]]:
        place = next(folder.glob("*.gguf"), folder)
        encoder = FrozenEncoder.from_pretrained(place, device="cpu", dtype="float32")
        found = encoder.read(encoder.tokenize(TEXTS[:3]).ids, "all", ("mean",))
        return encoder.fingerprints, found

    prints, expected = read(copied(model, tmp_path / "copy"))

    def case(random: Random) -> str:
        folder = copied(model, tmp_path / "copy")
        done = mutate(folder, random)
        found_prints, found = read(folder)
        if found_prints != prints:
            return "other fingerprint"
        assert found.keys() == expected.keys(), done
        assert all(np.array_equal(found[layer], expected[layer]) for layer in found), done
        return "same"

    soak.run(case, count=20)
    assert soak.outcomes["refused"]


def test_the_cache_of_gguf_models(soak: Soak, tmp_path: Path) -> None:
    from layerfuse.files import cache_dir

    save_gguf("llama", tmp_path / "model.gguf")

    def read() -> dict[int, Any]:
        encoder = FrozenEncoder.from_pretrained(
            tmp_path / "model.gguf", device="cpu", dtype="float32"
        )
        return encoder.read(encoder.tokenize(TEXTS[:3]).ids, "all", ("mean",))

    expected = read()
    whole = copied(cache_dir(), tmp_path / "whole")
    assert list(whole.rglob("*.safetensors"))

    def case(random: Random) -> str:
        done = mutate(copied(whole, cache_dir()), random)
        try:
            found = read()
        except LayerfuseError as error:  # a cache is made again
            raise AssertionError(done) from error
        assert all(np.array_equal(found[layer], expected[layer]) for layer in expected), done
        return "same"

    soak.run(case, count=10)
    assert soak.outcomes["same"]


def test_runs(
    soak: Soak, tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(Path("data.csv"), list(zip(TEXTS, LABELS, strict=True)))
    succeed(
        *("fit", "data.csv", "-e", tiny("bert"), "--out", "run", "--no-report", "--cv", 2),
        *("--selection", "last", "--fusion", "concat", "--head", "ridge"),
    )

    def case(random: Random) -> str:
        folder = copied(Path("run"), Path("copy"))
        done = mutate(folder, random)
        found = run("report", folder)
        assert found.code in (0, 2), (done, found.err)
        assert "\x1b" not in found.err
        return "refused" if found.code else "written"

    soak.run(case, count=8)
