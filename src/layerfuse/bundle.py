"""The saved classifier: a folder of tensors, JSON and a model card; nothing in it can run."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic import ValidationError as PydanticError

from layerfuse._version import __version__
from layerfuse.blocks import COLUMNS_BLOCK, LEXICAL_BLOCK, NOT_MODELS, BlockRef, split_pooling
from layerfuse.calibration import Abstention, Calibrator, PlattCalibrator, TemperatureCalibrator
from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.devices import has_int8
from layerfuse.encoders.tabular import ColumnEncoder
from layerfuse.errors import ConfigError, FormatError, LayerfuseError, LayerfuseWarning
from layerfuse.files import atomic_folder, read_json, read_tensors, write_json, write_tensors
from layerfuse.fusion import load_fusion
from layerfuse.heads import load_head
from layerfuse.labels import label_array, unsaved_kinds
from layerfuse.metrics import Evaluation, LabelSetEvaluation
from layerfuse.neighbors import TrainingExamples
from layerfuse.pipeline import CoordinateModel, FusedModel
from layerfuse.probing import Axes, ClassCentroids, PrincipalAxes
from layerfuse.resources import resolve_budget
from layerfuse.targets import LabelSpace, MultilabelSpace

_KIND, _VERSION = "layerfuse-bundle", 2
_JSON, _TENSORS, _CARD = "bundle.json", "tensors.safetensors", "README.md"
_N_RETRIES = 9  # of a folder that another process replaces while it is read

Label = StrictBool | StrictInt | FiniteFloat | StrictStr
Named = tuple[Literal["name", "path"], str]
"""A str or a Path parameter."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSpec(_Record):
    """What it takes to open an encoder again, and to know that it is the same.

    ``source`` is a catalog name, an absolute path or a Hub name.
    """

    name: str
    source: str
    revision: str | None
    fingerprints: dict[str, str]
    prompt: str | None
    chat_prompt: str | None
    layers: Literal["all"] | int | tuple[int, ...]
    pooling: str | tuple[str, ...]
    max_length: int
    windows: tuple[str, ...] | None
    overlap: float
    max_windows: int
    dtype: str
    batch_tokens: int | None

    @classmethod
    def of(cls, encoder: FrozenEncoder) -> EncoderSpec:
        """The specification of an encoder that is there."""
        layers, pooling = encoder.layers, encoder.pooling
        return cls(
            name=encoder.name,
            source=encoder.source.origin,
            revision=encoder.source.revision,
            fingerprints=encoder.fingerprints,
            prompt=encoder.prompt,
            chat_prompt=encoder.chat_prompt,
            layers=layers if isinstance(layers, (str, int, np.integer)) else tuple(layers),
            pooling=pooling if isinstance(pooling, str) else tuple(pooling),
            max_length=encoder.max_length,
            windows=None if encoder.windows is None else tuple(encoder.windows),
            overlap=encoder.overlap,
            max_windows=encoder.max_windows,
            dtype=encoder.dtype,
            batch_tokens=encoder.batch_tokens,
        )

    def open(self, place: str | Path | None = None, *, device: str = "auto") -> FrozenEncoder:
        """Find the encoder's files, where it was or at another place."""
        dtype = self.dtype
        if dtype == "int8" and not has_int8(device):
            warnings.warn(
                f"{self.name} was read in int8 when this was fitted, which this machine cannot do. "
                "It is read in bfloat16 or float32; predictions may differ slightly.",
                LayerfuseWarning,
                stacklevel=2,
            )
            dtype = "auto"
        return FrozenEncoder.from_pretrained(
            self.source if place is None else place,
            name=self.name,
            revision=self.revision if place is None else None,
            prompt=self.prompt,
            chat_prompt=self.chat_prompt,
            layers=self.layers,
            pooling=self.pooling,
            max_length=self.max_length,
            windows=self.windows,
            overlap=self.overlap,
            max_windows=self.max_windows,
            device=device,
            # Where bfloat16 would be emulated, float32 is faster and as true.
            dtype="auto" if dtype == "bfloat16" else dtype,
            batch_tokens=self.batch_tokens,
        )


def _checked(limits: dict[str, int | float | None]) -> dict[str, int | float | None]:
    resolve_budget(limits)
    return limits


Limits = tuple[
    Literal["Budget", "mapping"],
    Annotated[dict[str, int | float | None], AfterValidator(_checked)],
]
"""A budget, and whether it was a Budget or a mapping."""


class Settings(_Record):
    """Constructor parameters of a classifier, so that a loaded one has those of the saved one."""

    encoders: Annotated[tuple[EncoderSpec | Named, ...], Field(min_length=1)]
    encoders_type: Literal["one", "list", "tuple"]
    lexical: bool
    columns: tuple[str, ...]
    selection: str
    max_blocks: int
    budget: Limits | None
    fusion: str
    head: str
    class_weight: str | tuple[tuple[Label, float], ...] | None
    fragments: str
    calibration: str | None
    target_accuracy: float | None
    coverage: float | None
    cv: int
    sample_size: int
    store: Named | None
    n_jobs: int | None
    random_state: int | None
    verbose: int


class Facts(_Record):
    """What a bundle knows of its training: settings, nested figures, columns of the table."""

    cv: Evaluation | LabelSetEvaluation | None = None
    text_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    columns: ColumnEncoder | None = None
    strip_html: bool = False
    settings: Settings | None = None


@dataclass(frozen=True)
class Bundle:
    """A model, its labels and encoders, facts, when to abstain, training texts to explain by.

    ``sha256`` is that of the files from which it was read.
    """

    model: FusedModel
    space: LabelSpace
    encoders: tuple[EncoderSpec, ...]
    facts: Facts = field(default_factory=Facts)
    abstention: Abstention | None = None
    examples: TrainingExamples | None = None
    sha256: str = ""


def _distinct(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    if len(set(labels)) < max(2, len(labels)):
        raise ValueError("fewer than two classes, or one of them twice")
    return labels


class _Tensor(_Record):
    shape: tuple[int, ...]
    dtype: str


class _Head(_Record):
    kind: str
    penalty: float


class _Block(_Record):
    encoder: str
    layer: NonNegativeInt
    pooling: str

    @model_validator(mode="after")
    def _has_pooling(self) -> _Block:
        if self.ref not in (LEXICAL_BLOCK, COLUMNS_BLOCK):
            split_pooling(self.pooling)
        return self

    @property
    def ref(self) -> BlockRef:
        return BlockRef(self.encoder, self.layer, self.pooling)


class _Multilabel(_Record):
    """Of each label what its logits are multiplied by, what is added, and its threshold."""

    slopes: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...]
    intercepts: tuple[FiniteFloat, ...]
    thresholds: tuple[FiniteFloat, ...]


class _File(_Record):
    """bundle.json."""

    format: str
    format_version: int
    layerfuse_version: str
    classes: Annotated[tuple[Label, ...], AfterValidator(_distinct)]
    encoders: tuple[EncoderSpec, ...]
    blocks: tuple[_Block, ...]
    fusion: str
    head: _Head
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    multilabel: _Multilabel | None
    abstention: Abstention | None
    tensors: dict[str, _Tensor]
    facts: Facts
    sha256: str = ""

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> _File:
        own, n = self.multilabel, len(self.classes)
        if (own is None) == (self.temperature is None):
            raise ValueError("either a temperature or what each of several labels has is expected")
        if own and {len(own.slopes), len(own.intercepts), len(own.thresholds)} != {n}:
            raise ValueError("slopes, intercepts and thresholds are not as many as the labels")
        return self

    @property
    def space(self) -> LabelSpace:
        """What the outputs mean."""
        classes = label_array(self.classes)
        if self.multilabel is None:
            return LabelSpace(classes)
        return MultilabelSpace(classes, np.array(self.multilabel.thresholds))

    @property
    def calibrator(self) -> Calibrator:
        """From logits to probabilities."""
        if self.multilabel is None:
            assert self.temperature is not None
            return TemperatureCalibrator(self.temperature)
        return PlattCalibrator(self.multilabel.slopes, self.multilabel.intercepts)


def save_bundle(bundle: Bundle, path: Path, *, overwrite: bool = False) -> None:
    """Write a bundle folder, whole or not at all.

    Raises
    ------
    StorageError
        When the folder exists or cannot be written.
    """
    fusion, head = bundle.model.model.fusion, bundle.model.model.head
    parts: dict[str, Mapping[str, npt.NDArray[Any]]] = {
        **{f"axes.{index}": axes.arrays() for index, axes in enumerate(bundle.model.axes)},
        "fusion": fusion.arrays(),
        "head": head.arrays(),
        "examples": {} if bundle.examples is None else bundle.examples.arrays(),
    }
    tensors = {
        f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()
    }
    value = _File(
        format=_KIND,
        format_version=_VERSION,
        layerfuse_version=__version__,
        classes=tuple(bundle.space.classes.tolist()),
        encoders=bundle.encoders,
        blocks=tuple(_Block(**asdict(block)) for block in bundle.model.blocks),
        fusion=fusion.name,
        head=_Head(kind=head.kind, penalty=head.penalty),
        temperature=getattr(bundle.model.calibrator, "temperature", None),
        multilabel=_multilabel(bundle.model.calibrator, bundle.space),
        abstention=bundle.abstention,
        tensors={
            name: _Tensor(shape=array.shape, dtype=str(array.dtype))
            for name, array in tensors.items()
        },
        facts=bundle.facts,
    )
    own = (_JSON, _TENSORS, _CARD) if overwrite else None
    with atomic_folder(path, replaces=own) as folder:
        write_tensors(folder / _TENSORS, tensors)
        plain = value.model_dump(mode="json")
        data = (folder / _TENSORS).read_bytes()
        write_json(folder / _JSON, {**plain, "sha256": _sha256(plain, data)})
        (folder / _CARD).write_text(_card(bundle), encoding="utf-8")


def _multilabel(calibrator: Calibrator, space: LabelSpace) -> _Multilabel | None:
    if not (isinstance(calibrator, PlattCalibrator) and isinstance(space, MultilabelSpace)):
        return None
    return _Multilabel(
        slopes=calibrator.slopes,
        intercepts=calibrator.intercepts,
        thresholds=tuple(space.limits.tolist()),
    )


def _sha256(value: Mapping[str, object], tensors: bytes) -> str:
    """Of bundle.json, but for this field itself, and of the tensors."""
    fields = {name: own for name, own in value.items() if name != "sha256"}
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode() + tensors).hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Read a bundle folder; one that is replaced meanwhile is read again.

    Raises
    ------
    NotFoundError
        When the folder holds no bundle.
    FormatError
        When it is damaged, was changed, or comes from a newer version.
    """
    for _ in range(_N_RETRIES):
        before = _state(path)
        try:
            return _read(path)
        except LayerfuseError:
            if _state(path) == before:
                raise
    return _read(path)


def _state(path: Path) -> tuple[int, int] | None:
    """What differs where another folder was put in the place of one; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _read(path: Path) -> Bundle:
    try:
        value = read_json(path / _JSON, kind=_KIND, version=_VERSION)
        file = _File.model_validate(value)
        expected = {name: (entry.shape, entry.dtype) for name, entry in file.tensors.items()}
        tensors, data = read_tensors(path / _TENSORS, expected)
        bundle = _from_file(path, file, tensors)
        if _sha256(value, data) != file.sha256:
            raise _changed(path, "sha256: not that of this file and the tensors")
        return replace(bundle, sha256=file.sha256)
    except PydanticError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _changed(path, f"{where}: {first['msg']}") from error
    except LayerfuseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _changed(path, f"{type(error).__name__}: {error}") from error


def _changed(path: Path, why: str) -> FormatError:
    return FormatError(
        f"{path / _JSON} lacks something or was changed after it was saved ({why}). Save the "
        "bundle again."
    )


def _from_file(path: Path, file: _File, tensors: Mapping[str, npt.NDArray[Any]]) -> Bundle:
    blocks = tuple(block.ref for block in file.blocks)
    axes = tuple(
        _axes(block, _part(tensors, f"axes.{index}")) for index, block in enumerate(blocks)
    )
    fusion = load_fusion(file.fusion, _part(tensors, "fusion"), len(blocks))
    head = load_head(file.head.kind, _part(tensors, "head"), file.head.penalty)
    space = file.space
    row = [np.zeros((1, own.rank), dtype=np.float32) for own in axes]
    shape = (fusion.transform(row).shape[1], space.n_outputs)
    if head.shape != shape:
        raise FormatError(
            f"{path}: the head has shape {list(head.shape)}, but blocks and classes need "
            f"{list(shape)}. The bundle was changed after it was saved."
        )
    described = sorted(spec.name for spec in file.encoders)
    used = sorted({block.encoder for block in blocks} - NOT_MODELS)
    if (COLUMNS_BLOCK in blocks) > (file.facts.columns is not None):
        raise _changed(path, "facts.columns: missing, but a block is of columns")
    if described != used:
        raise _changed(path, f"encoders: {described}, but blocks are of {used}")
    windows = {spec.name: spec.windows for spec in file.encoders}
    for block in blocks:
        if block.encoder in windows and block.windowed != (windows[block.encoder] is not None):
            own = windows[block.encoder]
            raise _changed(path, f"blocks: {block} of an encoder with windows {own}")
    model = FusedModel(axes, CoordinateModel(blocks, fusion, head), file.calibrator, space)
    kept = _part(tensors, "examples")
    examples = TrainingExamples.from_arrays(kept, shape[0], space) if kept else None
    return Bundle(model, space, file.encoders, file.facts, file.abstention, examples)


def _axes(block: BlockRef, arrays: Mapping[str, npt.NDArray[Any]]) -> Axes:
    kind = ClassCentroids if block == LEXICAL_BLOCK else PrincipalAxes
    return kind.from_arrays(arrays)


def _part(tensors: Mapping[str, npt.NDArray[Any]], part: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors whose names start with the part's, without it."""
    start = f"{part}."
    return {
        name.removeprefix(start): array for name, array in tensors.items() if name.startswith(start)
    }


def rename_labels(
    classes: npt.NDArray[np.generic], names: Mapping[Label, Label]
) -> npt.NDArray[np.generic]:
    """Classes (n_classes,) by the names to save; those that ``names`` leaves out keep theirs.

    Raises
    ------
    ConfigError
        For a name of no class, one name for two classes, or a label that is then not a string, a
        finite number or a boolean.
    """
    labels = classes.tolist()
    if unknown := [label for label in names if label not in labels]:
        raise ConfigError(f"labels names {unknown[0]!r}, which is not a label: {labels[:10]}.")
    renamed = [names.get(label, label) for label in labels]
    if len(set(renamed)) < len(renamed):
        raise ConfigError(f"labels gives two classes one name: {renamed[:10]}. Give each its own.")
    if odd := unsaved_kinds(renamed):
        raise ConfigError(
            f"Labels of type {', '.join(odd)} cannot be saved: a bundle holds strings, finite "
            "numbers and booleans. Nothing is lost; give names to save them by: "
            f"save(path, labels={{{labels[0]!r}: 'name', ...}})."
        )
    return label_array(renamed)


def _card(bundle: Bundle) -> str:
    """A model card that says what this is, for people and for model hubs."""
    card = f"""\
---
library_name: layerfuse
pipeline_tag: text-classification
---
# A layerfuse text classifier

Classes: {", ".join(map(str, bundle.space.classes.tolist()))}.

It reads these layers of frozen language models:

{chr(10).join(f"- `{block}`" for block in bundle.model.blocks)}

from these encoders:

{chr(10).join(f"- {_encoder_of_card(encoder)}" for encoder in bundle.encoders)}

Use it:

```python
import layerfuse

classifier = layerfuse.load("path/to/this/folder")
classifier.predict(["a text"])
```
"""
    if cv := bundle.facts.cv:
        card += f"""
Nested cross-validation of its training run:

- {bundle.space.metric} {cv.headline.value:.1%}
- 95% interval {cv.headline.low:.1%} to {cv.headline.high:.1%}
- macro-F1 {cv.macro_f1.value:.1%}
- {cv.n} rows
"""
    return card


def _encoder_of_card(encoder: EncoderSpec) -> str:
    """Its name, and what tells others which it is: a folder of this machine tells them nothing."""
    local = Path(encoder.source).is_absolute()
    origin = "a local model" if local else encoder.source
    revision = f", revision {encoder.revision}" if encoder.revision else ""
    return f"`{encoder.name}`: {origin}{revision}"
