"""Named models and datasets, and the embedding cache.

The commands are ``models``, ``datasets``, ``store`` and ``extract``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse.cli_options import ExtractConfig
from layerfuse.commands.fit import make_encoders, read_options
from layerfuse.commands.output import check_new_file, open_store
from layerfuse.commands.parts import Part, PartSource, run_parts
from layerfuse.data import (
    DATASETS,
    ENCODERS,
    STANDARD_INPUT,
    encoder_path,
    is_pulled,
    load_dataset,
    pull_dataset,
    read_terms,
)
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.extraction import extract_all
from layerfuse.encoders import FrozenEncoder, check_encoder
from layerfuse.errors import ConfigError, NotFoundError, did_you_mean
from layerfuse.files import atomic_write
from layerfuse.progress import Reporter
from layerfuse.report.results import (
    CheckOutcome,
    DatasetEntry,
    DatasetList,
    ExtractResult,
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


@dataclass(frozen=True)
class _Fill:
    """Reads a part's texts into the store; counts those that were not in it."""

    config: ExtractConfig

    def open(self, reporter: Reporter) -> Callable[[Part], int]:
        encoders = make_encoders(self.config, reporter)
        store = open_store(self.config.store, new=True)

        def fill(part: Part) -> int:
            return extract_all(part.rows.texts, encoders, store, reporter=reporter).n_computed

        return fill


def extract(config: ExtractConfig, reporter: Reporter) -> ExtractResult:
    """Read all splits at all candidate blocks into the store; ``fit`` finds everything there.

    A run that was stopped goes on where it was. On several machines the store must be a folder that
    all of them share, or a URL.

    Raises
    ------
    ConfigError
        For a sample, which is drawn by ``fit``, and for standard input on a cluster.
    """
    if config.sample is not None:
        raise ConfigError("extract reads all rows. Leave out --sample.")
    if config.data == STANDARD_INPUT and config.engine != "local":
        raise ConfigError("Standard input can be read only here. Give the name of a file.")
    if config.out is not None:
        check_new_file(config.out, (".npz", ".parquet"))
        if config.data == STANDARD_INPUT:
            raise ConfigError("Standard input can be read only once. Give a file, or no --out.")
    store = open_store(config.store, new=True)
    source = PartSource(
        config.data, config.part_rows, config.text_column, options=read_options(config)
    )
    n_rows = n_computed = 0
    opened = source.stream(reporter)
    with reporter.task("extracting", 0, "rows") as advance:
        work = _Fill(config)
        for done in run_parts(work, source, opened, config, config.device, advance, reporter):
            n_rows, n_computed = n_rows + done.rows, n_computed + done.result
    if config.out is not None:
        _write(config.out, config, store, reporter)
    return ExtractResult(store=str(store.place), rows=n_rows, computed=n_computed)


def _write(out: Path, config: ExtractConfig, store: EmbeddingStore, reporter: Reporter) -> None:
    """Labels, where they are named or plain, and blocks of each split, from the store."""
    dataset = load_dataset(
        config.data,
        text_column=config.text_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        labeled=config.label_column is not None,
        id_column=config.id_column,
        group_column=config.group_column,
        strip_html=config.strip_html,
        reporter=reporter,
    )
    encoders = make_encoders(config, reporter)
    found: dict[str, Mapping[str, npt.NDArray[np.generic]]] = {}
    for name, split in dataset.splits.items():
        blocks = extract_all(split.texts, encoders, store, reporter=reporter)
        labels = {} if split.labels is None else {"label": np.array(split.labels)}
        found[name] = labels | {str(block): blocks[block] for block in blocks}
    with atomic_write(out) as temporary:
        if out.suffix.lower() == ".npz":
            with temporary.open("wb") as file:
                flat = {
                    f"{name}/{key}": own
                    for name, part in found.items()
                    for key, own in part.items()
                }
                np.savez(file, **flat)  # type: ignore[arg-type]  # names are the arrays' own
        else:
            _write_parquet(temporary, found)


def _write_parquet(path: Path, found: Mapping[str, Mapping[str, npt.NDArray[np.generic]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for name, part in found.items():
        columns = {
            key: pa.array(own)
            if own.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(own.ravel()), own.shape[1])
            for key, own in part.items()
        }
        n_rows = len(next(iter(columns.values())))
        tables.append(pa.table({"split": [name] * n_rows, **columns}))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")
