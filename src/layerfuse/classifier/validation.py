"""What a user hands to the classifier, checked: labels, class weights, encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.bundle import unsaved_kinds
from layerfuse.calibration import check_calibration
from layerfuse.data import check_trainable, contained_rows
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError, DataError, did_you_mean
from layerfuse.model_selection import SearchSpace, check_search
from layerfuse.progress import Reporter
from layerfuse.resources import resolve_budget
from layerfuse.selection import CostBudget, check_selection
from layerfuse.targets import Column, find_classes

__all__ = [
    "PARTS",
    "check_class_weight",
    "check_labels",
    "check_parameters",
    "check_parts",
    "open_encoders",
    "search_space_of",
    "training_rows",
]

PARTS = ("auto", "keep")

_MOSTLY_PARTS = 0.5


def check_labels(
    y: Column | None, n_texts: int, reporter: Reporter
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp]]:
    """Classes (n_classes,) and class indices (n_texts,); see `find_classes`.

    Raises
    ------
    DataError
        When labels are not as many as the texts, one is missing or cannot be hashed, or there are
        not two rows of two classes.
    """
    classes, codes = find_classes(y)
    if len(codes) != n_texts:
        raise DataError(
            f"There are {n_texts} texts but {len(codes)} labels. Give one label for each text."
        )
    values = classes.tolist()
    check_trainable([values[code] for code in codes], reporter)
    if odd := unsaved_kinds(values):
        reporter.note(
            f"labels of type {', '.join(odd)} cannot be saved as they are; save(path, labels=…) "
            "takes other names for them"
        )
    return classes, codes


def training_rows(
    texts: Sequence[str], y: npt.NDArray[np.intp], parts: str, reporter: Reporter
) -> npt.NDArray[np.intp]:
    """Numbers of the rows to learn from: all, or only those that are no part of a longer row.

    Where most rows are phrases of other rows, they repeat what those say: held-out rows would not
    be new, and many short rows outweigh the whole texts. ``"keep"`` keeps them all the same;
    ``"auto"`` also does where a class of two rows or more would be left with fewer than two. ``y``
    are class indices (n,).
    """
    every = np.arange(len(texts))
    if parts == "keep":
        return every
    contained = contained_rows(texts)
    if contained.mean() <= _MOSTLY_PARTS:
        return every
    left = np.bincount(y[~contained], minlength=int(y.max()) + 1)
    if (left < np.minimum(2, np.bincount(y))).any():
        return every
    reporter.note(
        f"{contained.sum()} of {len(texts)} rows are parts of longer rows and left out, so that "
        f"{left.sum()} whole texts are learned from; parts='keep' keeps them"
    )
    return every[~contained]


def check_parameters(model: Any) -> None:
    """Raise a ConfigError for a parameter of the classifier that cannot be used."""
    check_search(model.fusion, model.head)
    check_selection(model.selection)
    resolve_budget(model.budget)
    if model.max_blocks < 1:
        raise ConfigError(f"max_blocks={model.max_blocks} chooses nothing; give at least 1.")
    given = model.encoders
    n_encoders = 1 if isinstance(given, (str, Path)) else len(given)
    if model.selection == "last" and n_encoders > model.max_blocks:
        raise ConfigError(
            f"selection='last' takes a block of each of the {n_encoders} encoders, and "
            f"max_blocks={model.max_blocks} allows fewer. Raise it (--max-blocks {n_encoders}), "
            "name fewer encoders, or use selection='greedy'."
        )
    check_calibration(model.calibration)
    check_class_weight(model.class_weight)
    check_parts(model.parts)
    if model.cv < 2:
        raise ConfigError(f"cv={model.cv} is not enough; give at least 2 folds.")


def search_space_of(model: Any) -> SearchSpace:
    """What the costs and the classifier's parameters make of a search."""
    budget = resolve_budget(model.budget)
    budget = replace(budget, blocks=min(model.max_blocks, budget.blocks or model.max_blocks))
    return SearchSpace(
        selection=model.selection,
        budget=CostBudget(budget, model.costs_),
        fusion=model.fusion,
        head=model.head,
        seed=model.random_state,
    )


def check_parts(parts: str) -> None:
    """Raise a ConfigError for an unknown way to treat rows that are part of others."""
    if parts not in PARTS:
        raise ConfigError(
            f"Unknown parts={parts!r}. Choose from {', '.join(PARTS)}."
            + did_you_mean(str(parts), PARTS)
        )


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
        if not isinstance(item, FrozenEncoder) and not str(item).strip():
            raise ConfigError("An encoder's name is empty. Name one, such as minilm.")
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
