"""SIGKILL at random moments; the same command then ends with the bytes of a run left alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import Soak

import layerfuse
from commandline import rows, write_csv
from families import TinyModels
from processes import fork

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Random = np.random.Generator
Files = dict[str, bytes]


def _child(folder: Path, cache: Path, work: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["LAYERFUSE_CACHE"] = str(cache)
    os.chdir(folder)
    with Path("log").open("a", buffering=1) as log:
        sys.stdout = sys.stderr = log
        code = work(*arguments)
    os._exit(code)


def _command(*words: str) -> int:
    from layerfuse.cli import main
    from layerfuse.embeddings import jobs

    jobs.SHARD_ROWS = {"cpu": 10}
    sys.argv = ["layerfuse", *words]
    return main()


def _save_both(one: str, other: str) -> int:
    """Save two classifiers to one folder in turn, for ever."""
    models = [layerfuse.load(path, device="cpu") for path in (one, other)]
    for turn in range(100_000):
        models[turn % 2].save("saved", overwrite=True)
    return 0


def start(folder: Path, work: Callable[..., int], *arguments: str) -> BaseProcess:
    """A process of its own, which writes to ``log``."""
    return fork(_child, folder, Path(os.environ["LAYERFUSE_CACHE"]), work, arguments)


def finish(folder: Path, *words: str) -> float:
    """Run a command to its end; the seconds that it took."""
    started = time.perf_counter()
    process = start(folder, _command, *words)
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    return time.perf_counter() - started


def kill(process: BaseProcess, after_s: float) -> bool:
    """SIGKILL; False when it had ended before."""
    process.join(after_s)
    process.kill()
    process.join()
    return process.exitcode == -9


_MEASURED = {"created", "cost", "costs", "timings", "ms", "pareto", "environment", "notes"}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(own) for k, own in value.items() if k not in _MEASURED}
    return [_without_times(own) for own in value] if isinstance(value, list) else value


def contents(folder: Path, *patterns: str) -> Files:
    """Bytes of the files; of a run report all but what was timed."""
    found = {}
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        data = path.read_bytes()
        if path.name == "report.json":
            data = json.dumps(_without_times(json.loads(data))).encode()
        found[str(path.relative_to(folder))] = data
    return found


def complete(folder: Path, pattern: str) -> dict[str, int]:
    """Finished parts, and the numbers of their files, which writing them again changes."""
    return {path.name: path.stat().st_ino for path in folder.glob(pattern)}


_FIT = ("fit", "data.csv", "-e", "../bert", "--store", "store", "--out", "run", "--cv", "2")
_FIT += ("--selection", "last", "--fusion", "concat", "--head", "ridge")


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a store and a run, beside the model."""
    folder = tmp_path_factory.mktemp("kills") / "whole"
    write_csv(folder / "data.csv", rows(60))
    shutil.copytree(tiny("bert"), folder.parent / "bert")
    finish(folder, *_FIT)
    return folder


@pytest.fixture
def place(fitted: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(fitted.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / fitted.name


def test_fit(soak: Soak, place: Path) -> None:
    shutil.rmtree(place / "run")
    shutil.rmtree(place / "store")
    seconds = finish(place, *_FIT)
    kept = ("run/*", "run/bundle/*", "store/*/*.safetensors")
    expected = contents(place, "run/report.json", "run/rows.parquet", *kept[1:])
    assert len(expected) == 11

    def case(random: Random) -> None:
        folder = place.parent / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(place / "data.csv", folder)
        for _ in range(random.integers(1, 9)):
            before = complete(folder, "store/*/*.safetensors")
            process = start(folder, _command, *_FIT)
            killed = kill(process, random.uniform(0, 1.1 * seconds))
            now = complete(folder, "store/*/*.safetensors")
            assert before.items() <= now.items(), "a shard was lost or computed again"
            soak.outcomes["killed" if killed else "ended"] += 1
            if (folder / "run" / "report.html").exists():
                break
            assert killed, (process.exitcode, (folder / "log").read_text())
        else:
            finish(folder, *_FIT)
        found = contents(folder, "run/report.json", "run/rows.parquet", *kept[1:])
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        assert (folder / "run" / "report.html").read_bytes().endswith(b"</html>")

    soak.run(case, count=1, limit_s=300)


def test_predict(soak: Soak, place: Path) -> None:
    write_csv(place / "new.csv", rows(400, seed=1))
    words = ("predict", "../whole/run", "../whole/new.csv", "--part-rows", "10", "--out", "out.csv")
    seconds = finish(place, *words)
    expected = (place / "out.csv").read_bytes()

    def case(random: Random) -> None:
        folder = place.parent / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for _ in range(random.integers(1, 9)):
            before = complete(folder, ".out.csv.parts/part.*")
            process = start(folder, _command, *words, "--resume")
            killed = kill(process, random.uniform(0, 1.1 * seconds))
            now = complete(folder, ".out.csv.parts/part.*")
            is_whole = (folder / "out.csv").exists()
            assert is_whole or before.items() <= now.items(), "a part was lost or computed again"
            soak.outcomes["killed" if killed else "ended"] += 1
            if is_whole:
                break
            assert killed, (process.exitcode, (folder / "log").read_text())
        else:
            finish(folder, *words, "--resume")
        assert (folder / "out.csv").read_bytes() == expected

    soak.run(case, count=1, limit_s=300)


def test_save(soak: Soak, place: Path) -> None:
    """One bundle replaces another: there is always a whole one."""
    other = {"run": "other", "last": "best"}
    finish(place, *(other.get(word, word) for word in _FIT), "--no-report")
    for run in ("run", "other"):
        layerfuse.load(place / run, device="cpu").save(place / "again" / run)
    bundles = [contents(place / "again" / run, "*") for run in ("run", "other")]
    assert bundles[0] != bundles[1]

    def case(random: Random) -> str:
        process = start(place, _save_both, "run", "other")
        while not (place / "saved").exists():
            time.sleep(0.01)
        assert kill(process, random.uniform(0, 0.1))
        assert contents(place / "saved", "*") in bundles
        for leftover in place.glob(".saved.*"):
            shutil.rmtree(leftover)
        return "killed"

    soak.run(case, count=3)


def test_report(soak: Soak, place: Path) -> None:
    seconds = finish(place, "report", "run")
    page = place / "run" / "report.html"
    expected = page.read_bytes()

    def case(random: Random) -> str:
        killed = kill(start(place, _command, "report", "run"), random.uniform(0, 1.1 * seconds))
        assert page.read_bytes() == expected
        return "killed" if killed else "ended"

    soak.run(case, count=3)
