"""Embeddings of texts: planned, computed by an engine, cached on disk, and viewed as blocks."""

from layerfuse.embeddings.section import Section, text_hashes
from layerfuse.embeddings.store import EmbeddingStore, SectionInfo

__all__ = [
    "EmbeddingStore",
    "Section",
    "SectionInfo",
    "text_hashes",
]
