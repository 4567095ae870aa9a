"""What is served: classifiers by name, and the encoders that they share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import COLUMNS_BLOCK, LEXICAL_BLOCK, BlockRef
from layerfuse.calibration import Abstention
from layerfuse.classifier import LayerFusionClassifier
from layerfuse.classifier.persistence import open_bundle, read_bundle
from layerfuse.embeddings.extraction import BlockView, extract_blocks
from layerfuse.encoders import FrozenEncoder, count_words
from layerfuse.errors import ConfigError, FormatError, NotFoundError, check_choice
from layerfuse.files import is_url
from layerfuse.neighbors import TrainingExamples
from layerfuse.objects import local_folder
from layerfuse.pipeline import FusedModel
from layerfuse.progress import Reporter
from layerfuse.report.run_report import RunReport, read_run_report
from layerfuse.serving.schemas import Label, ModelInfo, ServedEncoder

Texts = tuple[str, ...]
N_WORKERS = 2  # batches that are computed side by side


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One classifier; ``encoders`` has for each worker the shared encoders by name."""

    model: FusedModel
    encoders: tuple[Mapping[str, FrozenEncoder], ...]
    info: ModelInfo
    abstention: Abstention | None
    examples: TrainingExamples | None


@dataclass(frozen=True, eq=False)
class PredictedText:
    """Of one text: fused features (n_features,), and what the answer says of it.

    ``ranked`` are all classes with their calibrated probabilities, the most probable ones first.
    """

    features: npt.NDArray[np.float32]
    label: Label | tuple[Label, ...]
    probability: float | None
    ranked: list[tuple[Label, float]]
    truncated: bool
    abstain: bool | None


def named_runs(runs: Sequence[str]) -> dict[str, str | Path]:
    """Folders and URLs by the names they are served under: ``NAME=RUN``, or the folder's own.

    What is there, and what begins as a URL, is taken as a whole, with any ``=`` in its name.

    Raises
    ------
    ConfigError
        When two have the same name, or a name cannot be part of a URL.
    """
    named: dict[str, str | Path] = {}
    for run in runs:
        name, equals, place = run.partition("=")
        if not equals or is_url(name) or Path(run).exists():
            name, place = Path(run).resolve().name, run
        folder = place if is_url(place) else Path(place)
        if name in named:
            raise ConfigError(f"Two runs are named {name!r}. Name one of them: NAME={folder}.")
        if "/" in name:
            raise ConfigError(
                f"{run} does not exist, and read as NAME=RUN it has the name {name!r}. Correct the "
                "path, or choose a name without a slash."
            )
        if not name:
            raise ConfigError(f"The run {folder} has no name. Give it one: NAME={folder}.")
        named[name] = folder
    return named


def load_models(
    runs: Mapping[str, str | Path],
    places: Mapping[str, str],
    device: str,
    reporter: Reporter,
    known: Iterable[ServedModel] = (),
) -> dict[str, ServedModel]:
    """Load bundles; equal encoders become one, cut at the highest layer that any bundle needs.

    Parameters
    ----------
    runs : mapping of str to str or Path
        Run folders or bundles, or URLs of them, by name.
    places : mapping of str to str
        New places of encoders, by their names.
    device : str
    reporter : Reporter
    known : iterable of ServedModel
        What is served already: its loaded encoders are used again where they reach high enough.

    Raises
    ------
    LayerfuseError
        When a bundle or an encoder cannot be loaded.
    """
    loaded: dict[str, LayerFusionClassifier] = {}
    names: set[str] = set()
    folders = {name: local_folder(place) for name, place in runs.items()}
    for name, path in folders.items():
        bundle = read_bundle(path)
        if COLUMNS_BLOCK in bundle.model.blocks:
            raise ConfigError(
                f"{path} reads columns beside the texts (fit --columns), which a "
                "request does not have. Use `layerfuse predict`, or fit without --columns."
            )
        own = {spec.name for spec in bundle.encoders}
        names |= own
        own_places = {encoder: place for encoder, place in places.items() if encoder in own}
        loaded[name] = open_bundle(bundle, own_places, device)
    for place in places:
        check_choice(place, sorted(names), "encoder")
    shared: dict[str, FrozenEncoder] = {}
    before = [encoder for served in known for encoder in served.encoders[0].values()]
    opened = [encoder for classifier in loaded.values() for encoder in classifier.encoders_]
    for encoder in (*before, *opened):
        best = shared.setdefault(_identity(encoder), encoder)
        if best.highest_layer < encoder.highest_layer:
            shared[_identity(encoder)] = encoder
    others = ({k: _replica(encoder) for k, encoder in shared.items()} for _ in range(1, N_WORKERS))
    by_worker = (shared, *others)
    return {
        name: ServedModel(
            classifier.model_,
            tuple(
                {encoder.name: own[_identity(encoder)] for encoder in classifier.encoders_}
                for own in by_worker
            ),
            _info(name, classifier, _report(folders[name], reporter)),
            classifier.abstention_,
            classifier.kept_examples_,
        )
        for name, classifier in loaded.items()
    }


def _replica(encoder: FrozenEncoder) -> FrozenEncoder:
    """What another worker reads with; a model with its own code may not allow a replica."""
    is_plain = encoder.kind == "cpu" and not encoder.source.trust_remote_code
    return encoder.replica() if is_plain else encoder


def _identity(encoder: FrozenEncoder) -> str:
    """Equal for encoders that give the same values from the same weights."""
    return json.dumps(
        [
            sorted(encoder.fingerprints.items()),
            encoder.prompt,
            encoder.chat_prompt,
            encoder.max_length,
            encoder.windows is not None and (encoder.overlap, encoder.max_windows),
            encoder.dtype,
            encoder.device,
        ]
    )


def _report(path: Path, reporter: Reporter) -> RunReport | None:
    try:
        return read_run_report(path)
    except NotFoundError:
        return None
    except FormatError as error:
        reporter.note(f"{path}: served without the figures of its report. {error}")
        return None


def _info(name: str, classifier: LayerFusionClassifier, report: RunReport | None) -> ModelInfo:
    blocks = classifier.model_.blocks
    return ModelInfo(
        name=name,
        classes=tuple(classifier.label_space_.classes.tolist()),
        blocks=tuple(map(str, blocks)),
        encoders=tuple(
            ServedEncoder(
                name=encoder.name,
                layers=tuple(sorted({b.layer for b in blocks if b.encoder == encoder.name})),
                n_layers=encoder.n_layers,
                max_length=encoder.max_length,
                max_windows=1 if encoder.windows is None else encoder.max_windows,
                dtype=encoder.dtype,
                device=encoder.device,
            )
            for encoder in classifier.encoders_
        ),
        cv=getattr(classifier, "cv_", None) if report is None else report.cv,
        test=None if report is None else report.test,
        cost=None if report is None else report.cost.pipeline,
        verdict=None if report is None else report.verdict.sentence,
    )


def predict(
    requests: Sequence[tuple[ServedModel, Texts]], worker: int = 0
) -> list[list[PredictedText]]:
    """Answer requests together: each encoder reads each distinct text once.

    It is read at the layers that these requests need, no higher than the highest of them. Calls
    for different workers run side by side.
    """
    together: dict[ServedModel, list[str]] = {}
    for served, texts in requests:
        together.setdefault(served, []).extend(texts)
    wanted: dict[FrozenEncoder, tuple[dict[str, int], dict[BlockRef, None]]] = {}
    for served, own in together.items():
        for block in served.model.blocks:
            if block == LEXICAL_BLOCK:
                continue
            encoder = served.encoders[worker][block.encoder]
            places, blocks = wanted.setdefault(encoder, ({}, {}))
            blocks[replace(block, encoder=encoder.name)] = None
            for text in own:
                places.setdefault(text, len(places))
    read = {
        encoder: (places, extract_blocks(list(places), [encoder], tuple(blocks), None))
        for encoder, (places, blocks) in wanted.items()
    }
    rows = {served: iter(_classify(served, own, read, worker)) for served, own in together.items()}
    return [list(islice(rows[served], len(texts))) for served, texts in requests]


def _classify(
    served: ServedModel,
    texts: Sequence[str],
    read: Mapping[FrozenEncoder, tuple[Mapping[str, int], BlockView]],
    worker: int,
) -> list[PredictedText]:
    blocks: dict[BlockRef, npt.NDArray[np.float32]] = {}
    truncated = np.zeros(len(texts), dtype=bool)
    for block in served.model.blocks:
        if block == LEXICAL_BLOCK:
            blocks[block] = count_words(texts)
            continue
        encoder = served.encoders[worker][block.encoder]
        places, view = read[encoder]
        rows = [places[text] for text in texts]
        blocks[block] = view[replace(block, encoder=encoder.name)][rows]
        truncated |= view.truncated[0, rows]
    features = served.model.features(blocks)
    proba = served.model.proba_of(features)
    space, rule, classes = served.model.space, served.abstention, served.info.classes
    decisions = space.decide(proba)
    order = np.argsort(-proba, axis=1, kind="stable")
    values = np.take_along_axis(proba, order, axis=1)
    return list(
        map(
            PredictedText,
            features,
            space.names(decisions),
            space.certainty(proba, decisions),
            (
                [(classes[index], value) for index, value in zip(row, own, strict=True)]
                for row, own in zip(order.tolist(), values.tolist(), strict=True)
            ),
            truncated.tolist(),
            [None] * len(texts) if rule is None else rule.abstains(proba).tolist(),
        )
    )
