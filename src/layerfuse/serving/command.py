"""``layerfuse serve``: the process, its signals and its log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping

import uvicorn
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from layerfuse.config import ServeConfig
from layerfuse.errors import ConfigError
from layerfuse.progress import Reporter
from layerfuse.serving.app import Server, make_app
from layerfuse.serving.guard import JsonLines
from layerfuse.serving.registry import ServedModel, load_models, named_runs

TOKEN = "LAYERFUSE_TOKEN"  # noqa: S105  # the variable's name


def serve(config: ServeConfig, reporter: Reporter) -> None:
    """Serve runs until SIGTERM or SIGINT; what is in flight is finished first.

    Raises
    ------
    LayerfuseError
        When a run cannot be loaded; nothing is served then.
    """
    if config.max_texts > config.max_queue:
        raise ConfigError(
            f"--max-texts {config.max_texts} is more than --max-queue {config.max_queue}: a full "
            "request would always be refused. Raise --max-queue."
        )
    runs = named_runs(config.runs)

    def load(known: tuple[ServedModel, ...]) -> Mapping[str, ServedModel]:
        return load_models(runs, config.encoders, config.device, reporter, known)

    app = make_app(config, load, os.environ.get(TOKEN) or None)
    _log_json()
    process = _Process(
        app.state.server,
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.deadline) + 1,
        ),
    )
    # Heads are small products: more threads would only wait for each other.
    with threadpool_limits(1, user_api="blas"):
        process.run()


class _Process(uvicorn.Server):
    """Reloads at SIGHUP."""

    def __init__(self, server: Server, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._served, self._reloads = server, set[asyncio.Task[str | None]]()

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen."""
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup(sockets)  # type: ignore[arg-type]

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._served.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)


def _log_json() -> None:
    """The server's log and uvicorn's as JSON lines on standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name in ("layerfuse.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
