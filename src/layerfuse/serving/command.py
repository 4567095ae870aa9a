"""``layerfuse serve``: the process and its log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

import uvicorn
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from layerfuse.cli_options import ServeConfig
from layerfuse.errors import ConfigError
from layerfuse.progress import Reporter
from layerfuse.serving.app import Server, make_app
from layerfuse.serving.guard import JsonLines
from layerfuse.serving.registry import ServedModel, load_models, named_runs

_SWITCH_S = 0.0005


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

    app = make_app(Server(config, load), os.environ.get("LAYERFUSE_TOKEN"))
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(JsonLines())
    for name in ("layerfuse.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [lines], False
        logger.setLevel(logging.INFO)
    # A pass needs the interpreter for a moment between its products; by default it waits for 5 ms
    # where the event loop has it.
    sys.setswitchinterval(_SWITCH_S)
    # Heads are small products: more threads would only wait for each other.
    with threadpool_limits(1, user_api="blas"):
        uvicorn.run(
            app,
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(config.deadline) + 1,
        )
