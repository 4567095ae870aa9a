"""What a bundle says of labels and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from layerfuse.bundle import EncoderSpec
from layerfuse.encoder import FrozenEncoder
from layerfuse.errors import ConfigError
from layerfuse.labels import label_array

__all__ = ["NESTED", "describe", "rename_labels"]

NESTED = "nested cross-validation"  # the name of `cv_` among a bundle's facts


def describe(encoder: FrozenEncoder) -> EncoderSpec:
    """What it takes to open the encoder again, and to know that it is the same."""
    return EncoderSpec(
        name=encoder.name,
        source=encoder.source.origin,
        revision=encoder.source.revision,
        fingerprints=encoder.fingerprints,
        template=encoder.template,
        chat_question=encoder.chat_question,
        max_length=encoder.max_length,
        dtype=encoder.dtype,
    )


def rename_labels(classes: npt.NDArray[Any], names: Mapping[Any, Any]) -> npt.NDArray[Any]:
    """Classes (n_classes,) under other names; those that ``names`` leaves out keep theirs.

    Raises
    ------
    ConfigError
        For a name of no class, or one name for two classes.
    """
    labels = classes.tolist()
    if unknown := [label for label in names if label not in labels]:
        raise ConfigError(f"labels names {unknown[0]!r}, which is not a label: {labels[:10]}.")
    renamed = [names.get(label, label) for label in labels]
    if len(set(renamed)) < len(renamed):
        raise ConfigError(f"labels gives two classes one name: {renamed[:10]}. Give each its own.")
    return label_array(renamed)
