"""Named encoders and datasets: where each can be had, with pinned checksums."""

from layerfuse.catalog.entries import DATASETS, ENCODERS, DatasetEntry, EncoderEntry, Package
from layerfuse.catalog.pull import encoder_path, is_pulled, load_dataset, pull_dataset

__all__ = [
    "DATASETS",
    "ENCODERS",
    "DatasetEntry",
    "EncoderEntry",
    "Package",
    "encoder_path",
    "is_pulled",
    "load_dataset",
    "pull_dataset",
]
