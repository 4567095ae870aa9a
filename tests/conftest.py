"""What every test gets: a cache of its own, one thread, and tiny models that are built once."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

# Read by libraries when they are loaded. For arrays this small, threads that wait for a busy
# machine cost a hundredfold.
os.environ["OMP_NUM_THREADS"] = "1"

from threadpoolctl import threadpool_limits

from families import TinyModels, save_model
from layerfuse.files import cache_dir

_CACHE = "LAYERFUSE_CACHE"
_USERS_CACHE = cache_dir()
_NUMBERS = count()


def pytest_collection_finish() -> None:
    """Spare each later collection of garbage the modules, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for caches, with one for fixtures that are made once for many tests."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_CACHE, str(folder / "wider"))
        yield folder


@pytest.fixture(autouse=True)
def _own_cache(
    request: pytest.FixtureRequest, _caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty cache folder; tests that need the package index use the user's own."""
    if request.node.get_closest_marker("index") is None:
        folder = _caches / str(next(_NUMBERS))
        folder.mkdir()
        monkeypatch.setenv(_CACHE, str(folder))
    else:
        monkeypatch.setenv(_CACHE, str(_USERS_CACHE))


@pytest.fixture(scope="session")
def users_cache() -> Path:
    """The user's own cache."""
    return _USERS_CACHE


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Also of libraries that were loaded before the environment said so."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Folders of tiny random models, shared by all tests: never write into them."""
    made: dict[str, Path] = {}

    def model(family: str, *, seed: int = 0, **tokenizer: bool) -> Path:
        name = "-".join([family, str(seed), *(f"{k}={v}" for k, v in sorted(tokenizer.items()))])
        if name not in made:
            folder = tmp_path_factory.mktemp("models") / family
            made[name] = save_model(family, folder, seed=seed, **tokenizer)
        return made[name]

    return model
