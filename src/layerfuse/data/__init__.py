"""Datasets and the catalog: readers, audit, and downloads with pinned checksums."""

from layerfuse.data.audit import NEAR, Audit, audit, find_languages, near_duplicates
from layerfuse.data.catalog import DATASETS, ENCODERS, DatasetEntry
from layerfuse.data.columns import (
    SEPARATOR,
    ColumnError,
    ReadOptions,
    split_names,
    strip_html,
)
from layerfuse.data.dataset import TEXT_NAMES, Split, TextDataset, test_name
from layerfuse.data.download import (
    encoder_path,
    is_pulled,
    load_dataset,
    pull_dataset,
    read_terms,
    stream_texts,
)
from layerfuse.data.readers import STANDARD_INPUT, TABLE_SUFFIXES
from layerfuse.data.sources import TextStream

__all__ = [
    "DATASETS",
    "ENCODERS",
    "NEAR",
    "SEPARATOR",
    "STANDARD_INPUT",
    "TABLE_SUFFIXES",
    "TEXT_NAMES",
    "Audit",
    "ColumnError",
    "DatasetEntry",
    "ReadOptions",
    "Split",
    "TextDataset",
    "TextStream",
    "audit",
    "encoder_path",
    "find_languages",
    "is_pulled",
    "load_dataset",
    "near_duplicates",
    "pull_dataset",
    "read_terms",
    "split_names",
    "stream_texts",
    "strip_html",
    "test_name",
]
