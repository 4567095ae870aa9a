"""Reading texts into the embedding cache: ``extract``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from layerfuse.cli_options import ExtractConfig
from layerfuse.commands.fit import make_encoders, read_all, read_options
from layerfuse.commands.output import check_new_file, open_store
from layerfuse.commands.parts import Part, PartSource, run_parts
from layerfuse.data import STANDARD_INPUT
from layerfuse.embeddings import EmbeddingStore
from layerfuse.embeddings.extraction import extract_all
from layerfuse.errors import ConfigError
from layerfuse.files import atomic_write
from layerfuse.labels import LabelSet
from layerfuse.progress import Reporter
from layerfuse.report.results import ExtractResult


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
    dataset = read_all(config, reporter, labeled=config.label_column is not None)
    encoders = make_encoders(config, reporter)
    found: dict[str, Mapping[str, npt.NDArray[np.generic]]] = {}
    for name, split in dataset.splits.items():
        blocks = extract_all(split.texts, encoders, store, reporter=reporter)
        if split.n_unlabeled:
            reporter.note(f"{split.n_unlabeled} {name} rows have no label and are not in {out}")
        labels = {} if split.labels is None else {"label": _labels(split.labels)}
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


def _labels(labels: Sequence[object]) -> npt.NDArray[np.generic]:
    """An array that is read without running code: several labels of a row are one text."""
    several = any(isinstance(label, LabelSet) for label in labels)
    return np.array(list(map(str, labels)) if several else labels)


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
