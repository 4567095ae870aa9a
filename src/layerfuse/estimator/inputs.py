"""What a user hands to the classifier, checked: labels, class weights, encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_class_weight

from layerfuse.corpus import check_trainable, contained_rows
from layerfuse.encoder import FrozenEncoder
from layerfuse.errors import ConfigError, DataError, did_you_mean
from layerfuse.events import Reporter

__all__ = [
    "PARTS",
    "check_class_weight",
    "check_labels",
    "check_parts",
    "class_weights",
    "open_encoders",
    "training_rows",
]

PARTS = ("auto", "keep")

_MOSTLY_PARTS = 0.5


def check_labels(y: Sequence[Any] | None, n_texts: int) -> npt.NDArray[Any]:
    """Labels as an array (n_texts,).

    Raises
    ------
    DataError
        When they are not as many as the texts, one is missing or of another kind, or there are
        not two rows of two classes.
    """
    labels = [] if y is None else [label.item() if _is_numpy(label) else label for label in y]
    if len(labels) != n_texts:
        raise DataError(f"There are {n_texts} texts but {len(labels)} labels.")
    for row, label in enumerate(labels):
        if label is None or label != label:
            raise DataError(f"Row {row} has no label ({label!r}). Drop such rows, or label them.")
        if not isinstance(label, (str, bool, int, float)):
            raise DataError(
                f"The label of row {row} is {label!r} ({type(label).__name__}); expected a string, "
                "a number or a boolean for each text."
            )
    kinds = {type(label) for label in labels}
    if len(kinds) > 1 and kinds != {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"The labels are of several kinds ({names}). Give labels of one kind.")
    check_trainable(labels)
    return np.asarray(labels)


def training_rows(
    texts: Sequence[str], y: npt.NDArray[np.intp], parts: str, reporter: Reporter
) -> npt.NDArray[np.intp]:
    """Numbers of the rows to learn from: all, or only those that are no part of a longer row.

    Where most rows are phrases of other rows, they repeat what those say: held-out rows would not
    be new, and many short rows outweigh the whole texts. ``"keep"`` keeps them all the same;
    ``"auto"`` also does where a class would be left with fewer than two rows. ``y`` are class
    indices (n,).
    """
    every = np.arange(len(texts))
    if parts == "keep":
        return every
    contained = contained_rows(texts)
    if contained.mean() <= _MOSTLY_PARTS:
        return every
    left = np.bincount(y[~contained], minlength=int(y.max()) + 1)
    if left.min() < 2:
        return every
    reporter.note(
        f"{contained.sum()} of {len(texts)} rows are parts of longer rows and left out, so that "
        f"{left.sum()} whole texts are learned from; parts='keep' keeps them"
    )
    return every[~contained]


def check_parts(parts: str) -> None:
    """Raise a ConfigError for an unknown way to treat rows that are part of others."""
    if parts not in PARTS:
        raise ConfigError(
            f"Unknown parts={parts!r}. Choose from {', '.join(PARTS)}."
            + did_you_mean(str(parts), PARTS)
        )


def _is_numpy(label: Any) -> bool:
    """Whether the label is numpy's wrapping of one Python value."""
    return isinstance(label, np.generic)


def class_weights(
    given: str | Mapping[Any, float] | None, classes: npt.NDArray[Any], y: npt.NDArray[np.intp]
) -> npt.NDArray[np.floating] | None:
    """The weight of each class (n_classes,), or None for equal weights.

    Raises
    ------
    ConfigError
        For a word other than ``"balanced"``, or a label that does not occur.
    """
    if given is None:
        return None
    check_class_weight(given)
    if isinstance(given, str):
        balanced: npt.NDArray[np.floating] = compute_class_weight(
            given, classes=np.arange(len(classes)), y=y
        )
        return balanced
    labels = classes.tolist()
    if unknown := [label for label in given if label not in labels]:
        raise ConfigError(f"class_weight names {unknown[0]!r}, which is not a label.")
    if negative := [label for label, weight in given.items() if not weight > 0]:
        raise ConfigError(f"class_weight gives {negative[0]!r} a weight that is not above 0.")
    return np.array([given.get(label, 1.0) for label in labels])


def check_class_weight(given: str | Mapping[Any, float] | None) -> None:
    """Raise a ConfigError for a word other than ``"balanced"``."""
    if isinstance(given, str) and given != "balanced":
        raise ConfigError(f"class_weight={given!r}: give None, 'balanced' or a mapping.")


def open_encoders(
    encoders: str | Path | Sequence[str | Path | FrozenEncoder],
    templates: Mapping[str, str],
    chat_questions: Mapping[str, str],
    *,
    max_length: int,
    device: str,
    dtype: str,
    reporter: Reporter,
) -> tuple[FrozenEncoder, ...]:
    """Open encoders by name or place (``NAME=PLACE`` renames), each with its template.

    Raises
    ------
    ConfigError
        For no encoder, two of one name, or a template for one that is not there.
    """
    given = [encoders] if isinstance(encoders, (str, Path)) else list(encoders)
    if not given:
        raise ConfigError("No encoder was given. Name one, for example encoders=['minilm'].")
    opened = []
    for item in given:
        if isinstance(item, FrozenEncoder):
            opened.append(item)
            continue
        is_path = isinstance(item, Path) or Path(item).exists()  # its name may hold a "="
        alias, _, place = ("", "", str(item)) if is_path else str(item).rpartition("=")
        name = alias or Path(place).stem
        opened.append(
            FrozenEncoder.from_pretrained(
                place,
                name=alias or None,
                template=templates.get(name),
                chat_question=chat_questions.get(name),
                max_length=max_length,
                device=device,
                dtype=dtype,
                reporter=reporter,
            )
        )
    names = [encoder.name for encoder in opened]
    if unknown := [name for name in (*templates, *chat_questions) if name not in names]:
        raise ConfigError(
            f"A template or question names {unknown[0]!r}, which is not one of the encoders "
            f"({', '.join(names)}).{did_you_mean(unknown[0], names)}"
        )
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"Two encoders are called {repeated[0]!r}. Give one another name: other=PATH."
        )
    return tuple(opened)
