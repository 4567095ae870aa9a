"""From a saved bundle back to a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from layerfuse.bundle import Bundle, EncoderSpec, Named, Settings, load_bundle
from layerfuse.classifier.classifier import LayerFusionClassifier
from layerfuse.encoders import FrozenEncoder
from layerfuse.errors import (
    ConfigError,
    FormatError,
    LayerfuseError,
    LayerfuseWarning,
    NotFoundError,
    did_you_mean,
)
from layerfuse.objects import local_folder
from layerfuse.resources import Budget

_BUNDLE_OF_RUN = Path("bundle", "bundle.json")


def load(
    path: str | Path, *, encoders: Mapping[str, str | Path] | None = None, device: str = "auto"
) -> LayerFusionClassifier:
    """Load a bundle, ready to predict; its encoders are cut above the highest layer in use.

    The classifier has the parameters of the one that was saved, so it can be fitted again. Of what
    ``fit`` measured it has ``cv_``.

    Parameters
    ----------
    path : str or Path
        The bundle folder, or a run folder that holds one; or the URL of either, of which each
        version is downloaded once.
    encoders : mapping of str to path, optional
        For an encoder's name, another place to load it from.
    device : str, default="auto"
        Where to run.

    Returns
    -------
    LayerFusionClassifier
        Fitted.

    Raises
    ------
    NotFoundError, FormatError
        When there is no bundle, or it is damaged.
    ConfigError
        When ``encoders`` names one that the bundle does not read.

    Examples
    --------
    >>> import layerfuse
    >>> layerfuse.load("runs/tickets").predict(["My parcel is lost"])  # doctest: +SKIP
    """
    return open_bundle(read_bundle(path), encoders or {}, device)


def read_bundle(place: str | Path) -> Bundle:
    """The bundle at a path or URL, which may be that of the run folder that holds it.

    Raises
    ------
    NotFoundError, FormatError
        When there is no bundle, or it is damaged.
    """
    return load_bundle(bundle_folder(local_folder(place)))


def open_bundle(
    bundle: Bundle, places: Mapping[str, str | Path], device: str = "auto"
) -> LayerFusionClassifier:
    """A classifier that is ready to predict; errors and parameters are those of `load`."""
    names = [spec.name for spec in bundle.encoders]
    if unknown := [name for name in places if name not in names]:
        raise ConfigError(
            f"The bundle has no encoder {unknown[0]!r}; it has {', '.join(names)}."
            + did_you_mean(unknown[0], names)
        )
    opened = []
    for spec in bundle.encoders:
        encoder = spec.open(places.get(spec.name), device=device)
        if encoder.fingerprints != spec.fingerprints:
            raise FormatError(
                f"{encoder.path} is not the {spec.name} that the bundle was trained with: its "
                f"files differ. Point to the original with --encoder {spec.name}=PATH (in Python "
                f"load(path, encoders={{{spec.name!r}: PATH}}))."
            )
        blocks = [block for block in bundle.model.blocks if block.encoder == spec.name]
        opened.append(encoder.truncate(max(block.layer for block in blocks)))
    classifier = LayerFusionClassifier()
    classifier.set_params(**_parameters(bundle.facts.settings, places, device))
    classifier.encoders_ = tuple(opened)
    classifier.label_space_ = bundle.space
    classifier.classes_ = bundle.space.classes
    classifier.model_ = bundle.model
    classifier.abstention_ = bundle.abstention
    classifier.kept_examples_ = bundle.examples
    classifier.column_encoder_ = bundle.facts.columns
    if bundle.facts.cv is not None:
        classifier.cv_ = bundle.facts.cv
    return classifier


def bundle_folder(path: Path) -> Path:
    """The bundle's folder, from it or the run folder that holds it.

    Raises
    ------
    NotFoundError
        Where not the folder but some in it are run folders; it names them.
    """
    if (path / _BUNDLE_OF_RUN).is_file():
        return path / "bundle"
    if path.is_dir() and not (path / "bundle.json").exists():
        runs = sorted(found.parent.parent for found in path.glob(f"*/{_BUNDLE_OF_RUN}"))
        if runs:
            shown = ", ".join(map(str, runs[:5])) + (", ..." if len(runs) > 5 else "")
            raise NotFoundError(f"{path} holds runs but is not one. Give one of them: {shown}.")
    return path


def _parameters(
    settings: Settings | None, places: Mapping[str, str | Path], device: str
) -> dict[str, object]:
    """Constructor parameters, as they were given to the classifier that was saved."""
    if settings is None:
        return {}
    values: dict[str, object] = settings.model_dump(exclude={"encoders_type"})
    encoders = [_encoder(item, places, device) for item in settings.encoders]
    form = settings.encoders_type
    values["encoders"] = (
        encoders[0] if form == "one" else encoders if form == "list" else tuple(encoders)
    )
    if settings.budget is not None:
        kind, limits = settings.budget
        values["budget"] = Budget(**limits) if kind == "Budget" else limits  # type: ignore[arg-type]
    if isinstance(settings.class_weight, tuple):
        values["class_weight"] = dict(settings.class_weight)
    if settings.store is not None:
        values["store"] = _named(settings.store)
    return values


def _named(value: Named) -> str | Path:
    kind, text = value
    return Path(text) if kind == "path" else text


def _encoder(
    item: EncoderSpec | Named, places: Mapping[str, str | Path], device: str
) -> str | Path | FrozenEncoder:
    if not isinstance(item, EncoderSpec):
        return _named(item)
    try:
        return item.open(places.get(item.name), device=device)
    except LayerfuseError as error:  # one that the pipeline does not read: predicting needs it not
        warnings.warn(
            f"The encoder {item.name}, which the pipeline does not read, cannot be opened; the "
            f"parameter `encoders` names its source, without its prompt and candidates. {error}",
            LayerfuseWarning,
            stacklevel=5,
        )
        return f"{item.name}={item.source}"
