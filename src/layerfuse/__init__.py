"""Find, fuse and ship the layers of frozen language models that classify your texts best.

Every public name is loaded on first use (PEP 562), so that ``import layerfuse`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfuse.blocks import BlockRef, BlockScores, Selection
    from layerfuse.classifier import LayerFusionClassifier, LayerFusionTransformer, load
    from layerfuse.complementarity import compare
    from layerfuse.data import TextDataset, load_dataset
    from layerfuse.embeddings import EmbeddingStore
    from layerfuse.embeddings.extraction import extract
    from layerfuse.encoders import FrozenEncoder
    from layerfuse.errors import LayerfuseError
    from layerfuse.probing import score_blocks
    from layerfuse.selection import select_blocks

from layerfuse._version import __version__  # noqa: F401  # not in __all__: `import *` leaves dunders

__all__ = [
    "BlockRef",
    "BlockScores",
    "EmbeddingStore",
    "FrozenEncoder",
    "LayerFusionClassifier",
    "LayerFusionTransformer",
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
    "EmbeddingStore": "embeddings",
    "FrozenEncoder": "encoders",
    "LayerFusionClassifier": "classifier",
    "LayerFusionTransformer": "classifier",
    "LayerfuseError": "errors",
    "Selection": "blocks",
    "TextDataset": "data",
    "compare": "complementarity",
    "extract": "embeddings.extraction",
    "load": "classifier",
    "load_dataset": "data",
    "score_blocks": "probing",
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
