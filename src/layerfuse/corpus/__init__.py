"""Labelled texts: the noun, its readers (csv, tsv, jsonl, parquet, Hub) and its audit."""

from layerfuse.corpus.audit import Audit, audit
from layerfuse.corpus.columns import TEXT_NAMES, ColumnError
from layerfuse.corpus.dataset import Split, TextDataset, check_trainable
from layerfuse.corpus.hub import read_hub
from layerfuse.corpus.near import NEAR, NearDuplicate, near_duplicates
from layerfuse.corpus.overlap import contained_rows
from layerfuse.corpus.readers import read_dataset

__all__ = [
    "NEAR",
    "TEXT_NAMES",
    "Audit",
    "ColumnError",
    "NearDuplicate",
    "Split",
    "TextDataset",
    "audit",
    "check_trainable",
    "contained_rows",
    "near_duplicates",
    "read_dataset",
    "read_hub",
]
