"""Find, fuse and ship the layers of frozen language models that classify your texts best.

Every public name is loaded on first use (PEP 562), so that ``import layerfuse`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfuse.blocks import BlockRef, BlockScores, Selection
    from layerfuse.catalog import load_dataset
    from layerfuse.complementarity import compare
    from layerfuse.corpus import TextDataset
    from layerfuse.encoder import FrozenEncoder
    from layerfuse.errors import LayerfuseError
    from layerfuse.estimator import LayerFusionClassifier, load
    from layerfuse.extraction import extract
    from layerfuse.scoring import score_blocks
    from layerfuse.selection import select_blocks
    from layerfuse.store import EmbeddingStore

__version__ = "0.1.0"

__all__ = [
    "BlockRef",
    "BlockScores",
    "EmbeddingStore",
    "FrozenEncoder",
    "LayerFusionClassifier",
    "LayerfuseError",
    "Selection",
    "TextDataset",
    "compare",
    "extract",
    "load",
    "load_dataset",
    "score_blocks",
    "select_blocks",
]

# Where each public name lives.
_HOME = {
    "BlockRef": "blocks",
    "BlockScores": "blocks",
    "EmbeddingStore": "store",
    "FrozenEncoder": "encoder",
    "LayerFusionClassifier": "estimator",
    "LayerfuseError": "errors",
    "Selection": "blocks",
    "TextDataset": "corpus",
    "compare": "complementarity",
    "extract": "extraction",
    "load": "estimator",
    "load_dataset": "catalog",
    "score_blocks": "scoring",
    "select_blocks": "selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # later look-ups no longer come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
