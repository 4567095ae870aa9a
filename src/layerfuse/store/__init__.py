"""The on-disk cache of embeddings: content-addressed, appendable, resumable."""

from layerfuse.store.costs import keep_cost, read_cost
from layerfuse.store.embedding_store import EmbeddingStore, SectionInfo
from layerfuse.store.section import Key, Section, text_hashes

__all__ = [
    "EmbeddingStore",
    "Key",
    "Section",
    "SectionInfo",
    "keep_cost",
    "read_cost",
    "text_hashes",
]
