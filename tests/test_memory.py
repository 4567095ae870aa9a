"""What a process is told of its own memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from layerfuse.memory import peak_mb, resident_mb

_CHILD = """
import numpy as np
from layerfuse.memory import peak_mb, resident_mb
before = peak_mb()
np.ones(10_000_000)  # given back at once
print(before, peak_mb(), resident_mb())
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
    assert 0 < (resident_mb() or 0) <= (peak_mb() or 0) + 1
