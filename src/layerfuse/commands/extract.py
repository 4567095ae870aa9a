"""Reading texts into an embedding cache ahead of a fit, on one machine or many: ``extract``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from layerfuse.commands.fit import make_encoders
from layerfuse.commands.parts import Part, PartSource, run_parts
from layerfuse.commands.paths import open_store
from layerfuse.data import STANDARD_INPUT
from layerfuse.embeddings.extraction import extract_all
from layerfuse.errors import ConfigError
from layerfuse.options import ReadConfig, StreamConfig
from layerfuse.progress import Reporter
from layerfuse.report.results import ExtractResult


@dataclass(frozen=True)
class _Fill:
    """Reads a part's texts into the store; counts those that were not in it."""

    config: ReadConfig

    def open(self, reporter: Reporter) -> Callable[[Part], int]:
        encoders = make_encoders(self.config, reporter)
        store = open_store(self.config.store, new=True)

        def fill(part: Part) -> int:
            return extract_all(part.rows.texts, encoders, store, reporter=reporter).n_computed

        return fill


def extract(config: ReadConfig, stream: StreamConfig, reporter: Reporter) -> ExtractResult:
    """Read all splits at all candidate blocks; a run that was stopped goes on where it was.

    Parameters
    ----------
    config : ReadConfig
        Data, encoders and store; ``fit`` with the same ones finds everything there.
    stream : StreamConfig
        The engine. On several machines the store's folder must be one that all of them share.
    reporter : Reporter

    Raises
    ------
    ConfigError
        For a sample, which is drawn by ``fit``, and for standard input on a cluster.
    """
    if config.sample is not None:
        raise ConfigError("extract reads all rows. Leave out --sample.")
    if config.data == STANDARD_INPUT and stream.engine != "local":
        raise ConfigError("Standard input can be read only here. Give the name of a file.")
    store = open_store(config.store, new=True)
    source = PartSource(config.data, stream.part_rows, config.text_column)
    n_rows = n_computed = 0
    opened = source.stream(reporter)
    with reporter.task("extracting", 0, "rows") as advance:
        work = _Fill(config)
        for done in run_parts(work, source, opened, stream, config.device, advance, reporter):
            n_rows, n_computed = n_rows + done.rows, n_computed + done.result
    return ExtractResult(store=str(store.root), rows=n_rows, computed=n_computed)
