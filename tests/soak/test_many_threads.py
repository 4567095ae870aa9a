"""Eight threads share encoders, a classifier and a store: what they get is what one thread gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from budget import Soak

import layerfuse
from families import TinyModels
from helpers import build, planted

pytestmark = pytest.mark.slow

_CALLS = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch
import layerfuse
from layerfuse import EmbeddingStore, FrozenEncoder, extract

sys.setswitchinterval(1e-5)
seed, n_calls, texts, model, bundle, place = json.loads(sys.argv[1])
parts = [texts[start : start + 3] for start in range(0, len(texts), 3)]

def opened(store):
    encoder = FrozenEncoder.from_pretrained(model, device="cpu", dtype="float32")
    classifier, store = layerfuse.load(bundle, device="cpu"), EmbeddingStore(place + store)
    def stored(part):
        view = extract(part, encoder, store=store)
        return [view[block] for block in view]
    return [
        classifier.predict_proba,
        lambda part: list(encoder.read(encoder.tokenize(part).ids, "all", ("mean", "last")).values()),
        stored,
        classifier.predict,
    ]

shared, errors, start = opened("/shared"), [], threading.Barrier(8)
order = np.random.default_rng(seed).integers((4, len(parts)), size=(n_calls, 2))

def work(number):
    torch.set_num_threads(1)
    start.wait()
    found = []
    for kind, part in order[number::8]:
        try:
            found.append((kind, part, shared[kind](parts[part])))
        except BaseException as error:
            errors.append(repr(error))
    return found

with ThreadPoolExecutor(8) as threads:
    found = [call for calls in threads.map(work, range(8)) for call in calls]
def alone(_):
    torch.set_num_threads(1)
    single = opened("/single")
    return {(kind, part): single[kind](parts[part]) for kind, part in {(k, p) for k, p, _ in found}}
with ThreadPoolExecutor(1) as thread:
    (expected,) = thread.map(alone, [0])
different = sum(
    not all(map(np.array_equal, value, expected[kind, part])) for kind, part, value in found
)
print(json.dumps([len(found), different, errors[:3]]))
"""


def test_fresh_processes(soak: Soak, tiny: TinyModels, tmp_path: Path) -> None:
    """Cold: nothing is imported or loaded, and the store is empty, when the threads begin."""
    texts, labels = planted(60)
    model = build(tiny, "bert", selection="top_k", fusion="concat", head="ridge", store=None, cv=2)
    model.fit(texts, labels).save(tmp_path / "bundle")
    n_calls = 10_000 if soak.seconds else 400

    def case(random: np.random.Generator) -> str:
        number = int(random.integers(2**32))
        place = str(tmp_path / str(number))
        given = [number, n_calls, texts, str(tiny("bert")), str(tmp_path / "bundle"), place]
        done = subprocess.run(
            [sys.executable, "-c", _CALLS, json.dumps(given)],
            capture_output=True, text=True, check=False,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "LAYERFUSE_CACHE": f"{place}/cache",
                "PYTHONPATH": str(Path(layerfuse.__file__).parents[1]),
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [n_calls, 0, []]
        return f"processes of {n_calls} calls"

    soak.run(case, count=1, limit_s=1200)
