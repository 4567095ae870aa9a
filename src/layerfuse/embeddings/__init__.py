"""The on-disk cache of embeddings: content-addressed, appendable, resumable."""

from layerfuse.embeddings.cost_record import keep_cost, read_cost
from layerfuse.embeddings.section import Key, Section, text_hashes
from layerfuse.embeddings.store import EmbeddingStore, SectionInfo

__all__ = [
    "EmbeddingStore",
    "Key",
    "Section",
    "SectionInfo",
    "keep_cost",
    "read_cost",
    "text_hashes",
]
