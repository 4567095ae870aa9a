"""Named models and datasets, and the embedding cache: ``models``, ``datasets`` and ``store``.

Nothing that fits is imported here, so that lists are there at once.
"""

from __future__ import annotations

from layerfuse.commands.output import open_store
from layerfuse.data import (
    DATASETS,
    ENCODERS,
    encoder_path,
    is_pulled,
    pull_dataset,
    read_terms,
)
from layerfuse.encoders import FrozenEncoder, check_encoder
from layerfuse.errors import ConfigError, NotFoundError, did_you_mean
from layerfuse.progress import Reporter
from layerfuse.report.results import (
    CheckOutcome,
    DatasetEntry,
    DatasetList,
    ModelCheck,
    ModelEntry,
    ModelList,
    PruneResult,
    PullResult,
    StoreCheck,
    StoreList,
)


def list_models() -> ModelList:
    """The named encoders."""
    return ModelList(
        models=tuple(
            ModelEntry(
                name=entry.name,
                description=entry.description,
                layers=entry.n_layers,
                dim=entry.dim,
                parameters=entry.parameters,
                n_bytes=entry.size,
                languages=entry.languages,
                max_tokens=entry.max_tokens,
                prompt=entry.prompt,
                license=entry.license,
                pulled=is_pulled(entry.name),
            )
            for entry in ENCODERS.values()
        )
    )


def pull_model(name: str, reporter: Reporter, *, accept_terms: bool = False) -> PullResult:
    """Download a named encoder; its terms of use, where it has any, are shown first."""
    if name not in ENCODERS:
        raise NotFoundError(
            f"Unknown encoder {name!r}.{did_you_mean(name, ENCODERS)} Named encoders: "
            f"{', '.join(ENCODERS)}. Others are downloaded from the Hub when they are used."
        )
    if ENCODERS[name].terms and not is_pulled(name):
        reporter.note(read_terms(ENCODERS[name], reporter))
    path = encoder_path(name, reporter, accept_terms=accept_terms)
    return PullResult(name=name, path=str(path))


def check_model(name: str, device: str, dtype: str, reporter: Reporter) -> ModelCheck:
    """Invariance and parity of a model's embeddings."""
    encoder = FrozenEncoder.from_pretrained(name, device=device, dtype=dtype, reporter=reporter)
    checks = tuple(
        CheckOutcome(
            name=check.name, deviation=check.deviation, tolerance=check.tolerance, ok=check.ok
        )
        for check in check_encoder(encoder)
    )
    return ModelCheck(
        name=encoder.name,
        dtype=encoder.dtype,
        device=encoder.device,
        layers=encoder.n_layers,
        dim=encoder.dim,
        ok=all(check.ok for check in checks),
        checks=checks,
    )


def list_datasets() -> DatasetList:
    """The named datasets."""
    return DatasetList(
        datasets=tuple(
            DatasetEntry(
                name=entry.name,
                classes=entry.n_classes,
                rows=dict(entry.rows),
                pulled=is_pulled(entry.name),
                source=entry.source,
                description=entry.description,
            )
            for entry in DATASETS.values()
        )
    )


def pull_data(name: str, reporter: Reporter) -> PullResult:
    """Download a named dataset."""
    return PullResult(name=name, path=str(pull_dataset(name, reporter)))


def list_store(root: str | None) -> StoreList:
    """The sections of the embedding cache."""
    return StoreList(sections=tuple(open_store(root).sections()))


def verify_store(root: str | None, reporter: Reporter) -> StoreCheck:
    """Check every byte of the embedding cache."""
    store = open_store(root)
    damaged = store.verify(reporter)
    sections = store.sections()
    return StoreCheck(
        root=str(store.place),
        shards=sum(info.shards for info in sections),
        n_bytes=sum(info.n_bytes for info in sections),
        damaged=tuple(map(str, damaged)),
    )


def prune_store(
    root: str | None, encoder: str | None, older_than_days: float | None, everything: bool
) -> PruneResult:
    """Delete sections by encoder, by age, or all of them; return what was deleted."""
    if encoder is None and older_than_days is None and not everything:
        raise ConfigError("Say what to delete: --encoder NAME, --older-than DAYS, or --all.")
    if everything and (encoder is not None or older_than_days is not None):
        raise ConfigError("--all deletes everything; leave it out to delete only some.")
    if older_than_days is not None and not older_than_days >= 0:
        raise ConfigError(f"--older-than {older_than_days:g} should be 0 days or more.")
    store = open_store(root)
    names = dict.fromkeys(info.encoder for info in store.sections())
    if encoder is not None and names and encoder not in names:
        raise NotFoundError(
            f"The store holds no embeddings of {encoder!r}.{did_you_mean(encoder, names)} It holds "
            f"those of {', '.join(names)}."
        )
    removed = store.prune(
        lambda info: (
            everything
            or (
                (encoder is None or info.encoder == encoder)
                and (older_than_days is None or info.idle_s > older_than_days * 86_400)
            )
        )
    )
    return PruneResult(removed=tuple(removed))
