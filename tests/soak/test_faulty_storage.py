"""A store on an object server that fails, hangs, tears uploads and lists late."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from budget import Soak

from families import TinyModels
from helpers import sentences
from layerfuse.embeddings import jobs
from object_server import Machine, faulty_case, object_server

pytestmark = pytest.mark.slow


def test_faults(soak: Soak, tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two machines write at once; whatever fails, no value is wrong and no text lost."""
    monkeypatch.setattr(jobs, "SHARD_ROWS", {"cpu": 7})
    one = Machine(tmp_path / "one", tiny("bert"))
    with object_server(monkeypatch) as server:

        def case(draw: np.random.Generator) -> None:
            number = int(draw.integers(1 << 30))
            server.seed(number)
            texts = sentences(int(draw.integers(30, 120)))
            machines = one.at(f"one-{number}"), one.at(f"two-{number}")
            expected = machines[0].extract(texts, str(tmp_path / "whole"))
            url = f"s3://bucket/{number}"
            soak.outcomes["commands again"] += faulty_case(machines, server, url, texts, expected)
            soak.outcomes["stores"] += 1

        soak.run(case, count=3, limit_s=300)
        soak.outcomes.update(server.faults)
        print(f"{sum(server.faults.values())} faults: {dict(server.faults)}")  # noqa: T201
        assert len(server.faults) >= (5 if soak.outcomes["stores"] >= 3 else 1)
