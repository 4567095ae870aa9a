"""Embeddings of texts: planned, computed, cached on disk, and viewed as blocks."""

from layerfuse.embeddings.store import EmbeddingStore, Section, SectionInfo, text_hashes

__all__ = [
    "EmbeddingStore",
    "Section",
    "SectionInfo",
    "text_hashes",
]
