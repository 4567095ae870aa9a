"""The on-disk cache of embeddings: content-addressed, appendable, resumable."""

from layerfuse.store.embedding_store import EmbeddingStore, SectionInfo
from layerfuse.store.section import Key, Section, text_hashes

__all__ = ["EmbeddingStore", "Key", "Section", "SectionInfo", "text_hashes"]
