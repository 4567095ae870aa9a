"""What every soak test gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from budget import Soak


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Soak:
    return Soak(request.node.name)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Values of one thread are the same each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
