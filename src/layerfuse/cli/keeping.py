"""What lies on disk: ``models``, ``datasets`` and ``store``."""

from __future__ import annotations

from typing import Annotated

import typer

from layerfuse.cli.options import (
    PLAIN,
    AsJson,
    Data,
    DeviceOrAuto,
    LabelColumn,
    Quiet,
    StoreFolder,
    TextColumn,
    Verbose,
)
from layerfuse.cli.output import finish, reporter

__all__ = ["datasets", "models", "store"]

models = typer.Typer(help="Named encoders: list, pull and check them.", **PLAIN)
datasets = typer.Typer(help="Named datasets: list and pull them; audit any dataset.", **PLAIN)
store = typer.Typer(help="The cache of embeddings: look, verify, prune.", **PLAIN)


@models.command("list")
def _models_list(as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """The encoders that need no Hub."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    finish({"models": commands.list_models()}, as_json, render_rows)


@models.command("pull")
def _models_pull(
    name: str, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Download a named encoder into the cache."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    finish(commands.pull_model(name, reporter(quiet, verbose)), as_json, render_rows)


@models.command("check")
def _models_check(
    name: Annotated[str, typer.Argument(help="A name, folder, .gguf file or Hub name.")],
    device: DeviceOrAuto = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check that a model gives a text the same embedding whatever it is batched with."""
    from layerfuse import commands
    from layerfuse.report import render_check

    result = commands.check_model(name, device, dtype, reporter(quiet, verbose))
    finish(result, as_json, render_check)
    if not result["ok"]:
        raise typer.Exit(2)


@datasets.command("list")
def _datasets_list(as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """The datasets that layerfuse knows by name."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    finish({"datasets": commands.list_datasets()}, as_json, render_rows)


@datasets.command("pull")
def _datasets_pull(
    name: str, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Download a named dataset into the cache."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    finish(commands.pull_data(name, reporter(quiet, verbose)), as_json, render_rows)


@datasets.command("audit")
def _datasets_audit(
    data: Data,
    test: Annotated[str | None, typer.Option(help="A file with test rows.")] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Duplicates, conflicting labels, train/test leaks, empty and long texts, class counts."""
    from layerfuse import commands
    from layerfuse.report import render_audit

    result = commands.audit_data(data, test, text_column, label_column, reporter(quiet, verbose))
    finish(result, as_json, render_audit)


@store.command("ls")
def _store_ls(
    folder: StoreFolder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What the store holds."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    finish({"sections": commands.list_store(folder)}, as_json, render_rows)


@store.command("verify")
def _store_verify(
    folder: StoreFolder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Read every byte; damaged shards are set aside and will be computed again."""
    from layerfuse import commands
    from layerfuse.report import render_verify

    result = commands.verify_store(folder, reporter(quiet, verbose))
    finish(result, as_json, render_verify)
    if result["damaged"]:
        raise typer.Exit(2)


@store.command("prune")
def _store_prune(
    folder: StoreFolder = None,
    encoder: Annotated[str | None, typer.Option(help="Only this encoder's embeddings.")] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Only what was not used for this many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Delete stored embeddings; say which."""
    from layerfuse import commands
    from layerfuse.report import render_rows

    result = {"removed": commands.prune_store(folder, encoder, older_than, everything)}
    finish(result, as_json, render_rows)
