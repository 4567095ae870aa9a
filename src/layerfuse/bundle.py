"""The saved classifier: a folder of tensors, JSON and a card; nothing in it can run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from layerfuse._version import __version__
from layerfuse.blocks import BlockRef
from layerfuse.calibration import TemperatureCalibrator
from layerfuse.errors import ConfigError, FormatError, LayerfuseError
from layerfuse.files import atomic_folder, read_json, read_tensors, write_json, write_tensors
from layerfuse.fusion import load_fusion
from layerfuse.heads import load_head
from layerfuse.pipeline import CoordinateModel, FusedModel
from layerfuse.probing import PrincipalAxes
from layerfuse.targets import LabelSpace, label_array

__all__ = ["Bundle", "EncoderSpec", "load_bundle", "save_bundle", "unsaved_kinds"]

_KIND, _VERSION = "layerfuse-bundle", 1
_JSON, _TENSORS, _CARD = "bundle.json", "tensors.safetensors", "README.md"
_LABEL_KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_MIXED = "mixed"  # labels of several of these kinds


@dataclass(frozen=True)
class EncoderSpec:
    """What it takes to open an encoder again; ``source`` is a catalog name, path or Hub name."""

    name: str
    source: str
    revision: str | None
    fingerprints: dict[str, str]
    template: str | None
    chat_question: str | None
    max_length: int
    dtype: str


@dataclass(frozen=True)
class Bundle:
    """A model, the labels its columns stand for, and the encoders that feed it.

    ``classes`` (n_classes,) are the labels as they were given; ``facts`` is what the training run
    says about itself.
    """

    model: FusedModel
    classes: npt.NDArray[Any]
    encoders: tuple[EncoderSpec, ...]
    facts: Mapping[str, Any]


def save_bundle(bundle: Bundle, path: Path, *, overwrite: bool = False) -> None:
    """Write a bundle folder, whole or not at all.

    Raises
    ------
    ConfigError
        When a label is not a string, a finite number or a boolean.
    StorageError
        When the folder exists or cannot be written.
    """
    fusion, head = bundle.model.model.fusion, bundle.model.model.head
    parts = {
        **{f"axes.{index}": axes.arrays() for index, axes in enumerate(bundle.model.axes)},
        "fusion": fusion.arrays(),
        "head": head.arrays(),
    }
    tensors = {
        f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()
    }
    kind, labels = _labels_to_json(bundle.classes)
    value = {
        "format": _KIND,
        "format_version": _VERSION,
        "layerfuse_version": __version__,
        "classes": {"kind": kind, "values": labels},
        "encoders": [asdict(encoder) for encoder in bundle.encoders],
        "blocks": [asdict(block) for block in bundle.model.blocks],
        "fusion": {"name": fusion.name},
        "head": {"kind": head.kind, "penalty": head.penalty},
        "calibration": {"temperature": bundle.model.calibrator.temperature},
        "tensors": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in tensors.items()
        },
        "facts": dict(bundle.facts),
    }
    with atomic_folder(path, overwrite=overwrite) as folder:
        write_json(folder / _JSON, value)
        write_tensors(folder / _TENSORS, tensors)
        (folder / _CARD).write_text(_card(bundle, labels), encoding="utf-8")


def load_bundle(path: Path) -> Bundle:
    """Read a bundle folder.

    Raises
    ------
    NotFoundError
        When the folder holds no bundle.
    FormatError
        When it is damaged, was changed, or comes from a newer version.
    """
    value = read_json(path / _JSON, kind=_KIND, version=_VERSION)
    try:
        return _from_json(path, value)
    except LayerfuseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{path / _JSON} lacks something or was changed after it was saved "
            f"({type(error).__name__}: {error}). Save the bundle again."
        ) from error


def _from_json(path: Path, value: dict[str, Any]) -> Bundle:
    classes = _labels_from_json(value["classes"])
    blocks = tuple(BlockRef(**block) for block in value["blocks"])
    encoders = tuple(EncoderSpec(**encoder) for encoder in value["encoders"])
    expected = {
        name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in value["tensors"].items()
    }
    tensors = read_tensors(path / _TENSORS, expected)
    axes = tuple(
        PrincipalAxes.from_arrays(_part(tensors, f"axes.{index}")) for index in range(len(blocks))
    )
    fusion = load_fusion(value["fusion"]["name"], _part(tensors, "fusion"), len(blocks))
    kind, penalty = value["head"]["kind"], value["head"]["penalty"]
    head = load_head(kind, _part(tensors, "head"), penalty)
    row = [np.zeros((1, dim), dtype=np.float32) for dim in (own.rank for own in axes)]
    shape = (fusion.transform(row).shape[1], len(classes))
    if head.shape != shape:
        raise FormatError(
            f"{path}: the head has shape {list(head.shape)}, but blocks and classes need "
            f"{list(shape)}. The bundle was changed after it was saved."
        )
    if missing := {block.encoder for block in blocks} - {encoder.name for encoder in encoders}:
        raise FormatError(f"{path / _JSON} does not describe the encoders {sorted(missing)}.")
    calibrator = TemperatureCalibrator(value["calibration"]["temperature"])
    model = FusedModel(axes, CoordinateModel(blocks, fusion, head), calibrator, LabelSpace(classes))
    return Bundle(model, classes, encoders, value["facts"])


def _part(tensors: Mapping[str, npt.NDArray[Any]], part: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors whose names start with the part's, without it."""
    start = f"{part}."
    return {
        name.removeprefix(start): array for name, array in tensors.items() if name.startswith(start)
    }


def unsaved_kinds(labels: Iterable[Any]) -> list[str]:
    """The kinds among the labels that a bundle cannot hold; it holds str, int, float and bool."""
    return sorted(
        {
            type(label).__name__ if type(label) is not float else repr(label)
            for label in labels
            if type(label) not in _LABEL_KINDS.values()
            or (type(label) is float and not math.isfinite(label))
        }
    )


def _labels_to_json(classes: npt.NDArray[Any]) -> tuple[str, list[Any]]:
    values = classes.tolist()
    if odd := unsaved_kinds(values):
        raise ConfigError(
            f"Labels of type {', '.join(odd)} cannot be saved: a bundle holds strings, finite "
            "numbers and booleans. Nothing is lost; give names to save them by: "
            f"save(path, labels={{{values[0]!r}: 'name', …}})."
        )
    for kind, python in _LABEL_KINDS.items():
        if all(type(value) is python for value in values):
            return kind, values
    return _MIXED, values


def _labels_from_json(value: Mapping[str, Any]) -> npt.NDArray[Any]:
    kind = value["kind"]
    known = tuple(_LABEL_KINDS.values()) if kind == _MIXED else (_LABEL_KINDS[kind],)
    if not all(type(label) in known for label in value["values"]):
        raise FormatError(f"The bundle's labels are not all of type {kind}.")
    return label_array(value["values"])


def _card(bundle: Bundle, labels: Sequence[Any]) -> str:
    """A model card that says what this is, for people and for model hubs."""
    lines = [
        "---",
        "library_name: layerfuse",
        "pipeline_tag: text-classification",
        "---",
        "# A layerfuse text classifier",
        "",
        f"Classes: {', '.join(str(label) for label in labels)}.",
        "",
        "It reads these layers of frozen language models:",
        "",
        *(f"- `{block}`" for block in bundle.model.blocks),
        "",
        "from these encoders:",
        "",
        *(f"- {_encoder_of_card(encoder)}" for encoder in bundle.encoders),
        "",
        "Use it:",
        "",
        "```python",
        "import layerfuse",
        "",
        'classifier = layerfuse.load("path/to/this/folder")',
        'classifier.predict(["a text"])',
        "```",
        "",
        "What its training run measured:",
        "",
        *(f"- {_fact_of_card(name, value)}" for name, value in bundle.facts.items()),
        "",
    ]
    return "\n".join(lines)


def _encoder_of_card(encoder: EncoderSpec) -> str:
    """Its name, and what tells others which it is: a folder of this machine tells them nothing."""
    local = Path(encoder.source).is_absolute()
    origin = "a local model" if local else encoder.source
    revision = f", revision {encoder.revision}" if encoder.revision else ""
    return f"`{encoder.name}`: {origin}{revision}"


def _fact_of_card(name: str, value: Any) -> str:
    """A measurement; of an evaluation the accuracy with its interval and macro-F1."""
    if not isinstance(value, Mapping) or not {"n", "accuracy", "macro_f1", "ci95"} <= set(value):
        return f"{name}: {value}"
    low, high = (100 * share for share in value["ci95"])
    return (
        f"{name}: accuracy {100 * value['accuracy']:.1f} % (95 % interval {low:.1f} to "
        f"{high:.1f}), macro-F1 {100 * value['macro_f1']:.1f} %, {value['n']} rows"
    )
