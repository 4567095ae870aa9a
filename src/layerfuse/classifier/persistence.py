"""What a bundle says of labels and encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerfuse.bundle import load_bundle
from layerfuse.classifier.classifier import NESTED, LayerFusionClassifier
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import ConfigError, FormatError, NotFoundError, did_you_mean
from layerfuse.heads import HEADS
from layerfuse.metrics import Evaluation

__all__ = ["load"]


_OF_A_RUN = Path("bundle", "bundle.json")


def load(
    path: str | Path, *, encoders: Mapping[str, str | Path] | None = None, device: str = "auto"
) -> LayerFusionClassifier:
    """Load a bundle, ready to predict; its encoders are cut above the highest layer in use.

    Of what ``fit`` measured it holds ``cv_``.

    Parameters
    ----------
    path
        The bundle folder, or a run folder that holds one.
    encoders
        For an encoder's name, another place to load it from.
    device
        Where to run.

    Raises
    ------
    NotFoundError, FormatError
        When there is no bundle, or it cannot be trusted.
    ConfigError
        When ``encoders`` names one that the bundle does not read.
    """
    folder = Path(path)
    if (folder / _OF_A_RUN).is_file():
        folder = folder / "bundle"
    elif not (folder / "bundle.json").exists() and folder.is_dir():
        _point_inside(folder)
    bundle = load_bundle(folder)
    places = dict(encoders or {})
    names = [spec.name for spec in bundle.encoders]
    if unknown := [name for name in places if name not in names]:
        raise ConfigError(
            f"The bundle has no encoder {unknown[0]!r}; it has {', '.join(names)}."
            + did_you_mean(unknown[0], names)
        )
    opened = []
    for spec in bundle.encoders:
        encoder = FrozenEncoder.from_pretrained(
            places.get(spec.name, spec.source),
            name=spec.name,
            revision=spec.revision,
            prompt=spec.template,
            chat_prompt=spec.chat_question,
            max_length=spec.max_length,
            device=device,
            # Where bfloat16 would be emulated, float32 is faster and as true.
            dtype="auto" if spec.dtype == "bfloat16" else spec.dtype,
        )
        if encoder.fingerprints != spec.fingerprints:
            raise FormatError(
                f"{encoder.path} is not the {spec.name} that the bundle was trained with: its "
                f"files differ. Point to the original with --encoder {spec.name}=PATH (in Python "
                f"load(path, encoders={{{spec.name!r}: PATH}}))."
            )
        top = max(block.layer for block in bundle.model.blocks if block.encoder == spec.name)
        opened.append(encoder.truncate(top))
    model = bundle.model
    classifier = LayerFusionClassifier(
        encoders=tuple(opened), max_blocks=len(model.blocks), fusion=model.model.fusion.name
    )
    if model.model.head.kind in HEADS:  # else it came with the fusion
        classifier.head = model.model.head.kind
    classifier.encoders_ = tuple(opened)
    classifier.classes_ = bundle.classes
    classifier.model_ = bundle.model
    if NESTED in bundle.facts:
        classifier.cv_ = _evaluation_of(folder, bundle.facts[NESTED])
    return classifier


def _evaluation_of(folder: Path, value: Mapping[str, Any]) -> Evaluation:
    try:
        return Evaluation.from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{folder}: the figures of its training were changed after it was saved "
            f"({type(error).__name__}: {error}). Save the bundle again."
        ) from error


def _point_inside(folder: Path) -> None:
    """Raise a NotFoundError where not the folder but some in it are run folders."""
    runs = sorted(path.parent.parent for path in folder.glob(f"*/{_OF_A_RUN}"))
    if runs:
        shown = ", ".join(map(str, runs[:5])) + (", …" if len(runs) > 5 else "")
        raise NotFoundError(f"{folder} holds runs and is none itself. Give one of them: {shown}.")
