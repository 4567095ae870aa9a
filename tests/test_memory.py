"""What a process is told of its own memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from layerfuse.parallel import limit_kernel_cache, peak_mb

pytestmark = pytest.mark.slow

_CHILD = """
import numpy as np
import psutil
from layerfuse.parallel import peak_mb
before = peak_mb()
np.ones(10_000_000)  # given back at once
print(before, peak_mb(), psutil.Process().memory_info().rss / 1e6)
"""


def test_a_child_does_not_inherit_the_peak_of_its_parent():
    held = np.ones(60_000_000)  # 480 MB
    assert (peak_mb() or 0) > held.nbytes / 1e6
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True
    )
    before, after, now = map(float, done.stdout.split())
    assert before < 400
    assert after > before + 60
    assert now < after - 60


def test_now_is_at_most_the_peak():
    assert 0 < psutil.Process().memory_info().rss / 1e6 <= (peak_mb() or 0) + 1


_PRODUCTS = """
import sys
import psutil
import torch
from layerfuse.encoders.devices import pack_linears
from layerfuse.parallel import trim_heap, limit_kernel_cache
resident_mb = lambda: psutil.Process().memory_info().rss / 1e6
if sys.argv[1] == "few":
    limit_kernel_cache()
layers = torch.nn.Sequential(torch.nn.Linear(384, 1536), torch.nn.Linear(1536, 384)).eval()
pack_linears(layers)
with torch.inference_mode():
    layers(torch.ones(8, 384))
    before = resident_mb()
    for rows in range(1, 301):
        layers(torch.ones(rows, 384))
trim_heap()
print(resident_mb() - before)
"""


def test_shapes_of_batches_do_not_pile_up_as_kernels():
    def growth(kept: str) -> float:
        environment = {k: v for k, v in os.environ.items() if not k.endswith("CACHE_CAPACITY")}
        environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-c", _PRODUCTS, kept]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return float(done.stdout)

    assert growth("few") < 0.5 * growth("all")


def test_what_the_user_set_for_the_kernels_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    limit_kernel_cache()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "16"
