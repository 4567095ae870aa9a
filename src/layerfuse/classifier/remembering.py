"""Analyses kept in the store, so that the same fit on the same rows is not worked out twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, BlockScore, BlockScores, Selection
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import LayerfuseError
from layerfuse.evaluation.nested import OutOfFold
from layerfuse.files import (
    atomic_folder,
    digest,
    fingerprint_folder,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from layerfuse.model_selection import Found, Recipe, Trial
from layerfuse.pipeline import Plan
from layerfuse.probing import PrincipalAxes, Probed

__all__ = ["Remembered", "analysis_key", "recall", "remember"]

_KIND, _VERSION = "layerfuse-analysis", 1
_FOLDER, _JSON, _TENSORS = "analyses", "analysis.json", "tensors.safetensors"
_KEPT = 20  # of some 20 MB each


@dataclass(frozen=True)
class Remembered:
    """What an analysis found; ``axes`` are those of the blocks that some plan uses."""

    scores: BlockScores
    axes: Mapping[BlockRef, PrincipalAxes]
    found: Found
    nested: Mapping[str, OutOfFold]

    @property
    def probed(self) -> Probed:
        """Without coordinates: nothing is searched again."""
        return Probed(self.scores, {}, self.axes)


def analysis_key(
    texts: Sequence[str],
    y: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
    blocks: Sequence[BlockRef] | Mapping[BlockRef, Any],
    encoders: Sequence[FrozenEncoder],
    recipe: Recipe,
    n_folds: int,
) -> str:
    """A digest of everything that changes an analysis: rows, labels, blocks, settings, code."""
    budget = recipe.allowance.budget
    weights = recipe.task.class_weight
    settings = {
        "selection": recipe.selection,
        "budget": budget.to_dict(),
        # Costs matter only to a budget that limits them.
        "costs": {name: cost.to_dict() for name, cost in recipe.allowance.costs.items()}
        if set(budget.limits) - {"blocks"}
        else None,
        "fusion": recipe.fusion,
        "head": recipe.head,
        "n_classes": recipe.task.n_classes,
        "class_weight": None if weights is None else [float(weight) for weight in weights],
        "seed": recipe.task.seed,
        "n_folds": n_folds,
        "blocks": [str(block) for block in blocks],
        "encoders": {encoder.name: encoder.identity for encoder in encoders},
    }
    return digest(
        json.dumps(settings, sort_keys=True),
        digest(*texts),
        np.ascontiguousarray(y, dtype=np.int64).tobytes(),
        np.ascontiguousarray(rows, dtype=np.int64).tobytes(),
        _code(),
    )


@cache
def _code() -> str:
    """A digest of this package's files: other code may find something else."""
    root = Path(__file__).parents[1]
    return fingerprint_folder(root, sorted(str(p.relative_to(root)) for p in root.rglob("*.py")))


def remember(root: Path, key: str, analysis: Remembered) -> None:
    """Keep an analysis; the oldest go. A store that cannot be written to is left as it is."""
    names = list(analysis.nested)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for number, name in enumerate(names):
        tensors[f"logits.{number}"] = analysis.nested[name].logits
        tensors[f"plan_of.{number}"] = analysis.nested[name].plan_of.astype(np.int64)
    for number, axes in enumerate(analysis.axes.values()):
        tensors |= {f"axes.{number}.{name}": array for name, array in axes.arrays().items()}
    found = analysis.found
    value = {
        "format": _KIND,
        "format_version": _VERSION,
        "scorer": analysis.scores.scorer,
        "scores": [score.to_dict() for score in analysis.scores],
        "axes": [asdict(block) for block in analysis.axes],
        "selection": asdict(found.selection),
        "plan": found.plan.to_dict(),
        "trials": [trial.to_dict() for trial in found.trials],
        "nested": {
            name: [plan.to_dict() for plan in result.plans]
            for name, result in analysis.nested.items()
        },
        "tensors": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in tensors.items()
        },
    }
    with (
        contextlib.suppress(LayerfuseError, OSError),
        atomic_folder(root / _FOLDER / key, overwrite=True) as folder,
    ):
        write_json(folder / _JSON, value)
        write_tensors(folder / _TENSORS, tensors)
    _forget(root / _FOLDER)


def recall(root: Path, key: str) -> Remembered | None:
    """The analysis of a key; None when there is none, or none that can be read."""
    folder = root / _FOLDER / key
    try:
        value = read_json(folder / _JSON, kind=_KIND, version=_VERSION)
        expected = {
            name: (tuple(entry["shape"]), entry["dtype"])
            for name, entry in value["tensors"].items()
        }
        tensors = read_tensors(folder / _TENSORS, expected)
        analysis = _from_json(value, tensors)
    except (LayerfuseError, KeyError, TypeError, ValueError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)
    return analysis


def _from_json(value: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Remembered:
    scores = tuple(
        BlockScore(**{**score, "block": BlockRef(**score["block"])}) for score in value["scores"]
    )
    axes = {
        BlockRef(**block): PrincipalAxes(
            *(tensors[f"axes.{number}.{name}"] for name in ("mean", "scale", "axes"))
        )
        for number, block in enumerate(value["axes"])
    }
    chosen = value["selection"]
    selection = Selection(
        blocks=tuple(BlockRef(**block) for block in chosen["blocks"]),
        method=chosen["method"],
        support_=tuple(chosen["support_"]),
        ranking_=tuple(chosen["ranking_"]),
        gains_=tuple(chosen["gains_"]),
    )
    trials = tuple(Trial(**trial) for trial in value["trials"])
    nested = {
        name: OutOfFold(
            tensors[f"logits.{number}"],
            tensors[f"plan_of.{number}"].astype(np.intp),
            [_plan(plan) for plan in plans],
        )
        for number, (name, plans) in enumerate(value["nested"].items())
    }
    found = Found(selection, _plan(value["plan"]), trials)
    return Remembered(BlockScores(scores, value["scorer"]), axes, found, nested)


def _plan(value: Mapping[str, Any]) -> Plan:
    blocks = tuple(BlockRef(**block) for block in value["blocks"])
    return Plan(blocks, value["fusion"], value["head"])


def _forget(folder: Path) -> None:
    """Delete all but the analyses used last."""
    with contextlib.suppress(OSError):
        found = sorted(folder.iterdir(), key=lambda path: -path.stat().st_mtime)
        for path in found[_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)
