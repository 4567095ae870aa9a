"""The HTTP application: its endpoints, what they answer, and the process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, Query
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from layerfuse._version import __version__
from layerfuse.cli_options import ServeConfig
from layerfuse.errors import ConfigError, LayerfuseError
from layerfuse.progress import Reporter
from layerfuse.serving.batcher import Batcher, QueueFullError
from layerfuse.serving.guard import LOG, Guard, JsonLines, Metrics, Record, problem
from layerfuse.serving.registry import PredictedText, ServedModel, load_models, named_runs, predict
from layerfuse.serving.schemas import (
    EXAMPLES,
    ClassificationRequest,
    LabelScore,
    Models,
    PredictRequest,
    PredictResponse,
    Problem,
)

Load = Callable[[tuple[ServedModel, ...]], Mapping[str, ServedModel]]
"""Loads what is to be served, given what is served now."""
Answer = PredictResponse | list[list[LabelScore]]
AnyRequest = PredictRequest | ClassificationRequest
RequestBody = Annotated[AnyRequest, Body(openapi_examples=EXAMPLES)]
_BODY: TypeAdapter[AnyRequest] = TypeAdapter(AnyRequest)
_NO_INPUTS = ("ClassificationRequest", "inputs")  # of a body that is not of the Hugging Face form
_FIRST = ("/", "/predict")  # answered by the first model
_SWITCH_S = 0.0005
_NAMED = re.compile("/v1/models/([^/]+)/predict")
_ERRORS = {
    code: {"model": Problem} for code in (401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504)
}


class Server:
    """What is served now; a reload replaces the models, and requests keep those they began with.

    Parameters
    ----------
    config : ServeConfig
        The limits.
    load : callable
        Gives the models by name.

    Raises
    ------
    LayerfuseError
        When a model cannot be loaded.
    """

    def __init__(self, config: ServeConfig, load: Load) -> None:
        self.config, self.metrics, self._load = config, Metrics(), load
        self.batcher = Batcher(config.max_queue, config.max_batch, self.metrics)
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[str | None]] = set()
        self.models: Mapping[str, ServedModel] = {}
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._load_models).result()

    def _load_models(self) -> None:
        """Load the models and their weights, then serve them.

        In a thread that ends: OpenMP's threads are freed with the one that used them, and slow the
        others down while they are more than the cores.
        """
        models = self._load(tuple(self.models.values()))
        predict([(model, ("",)) for model in models.values()])
        self.models = models
        # What stays is left out of collections, each of which would halt all for half a second.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def reload(self) -> asyncio.Task[str | None]:
        """Load anew beside what goes on; what is wrong is logged, and the task's result."""
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)  # nothing else keeps it, where nobody waits any more
        task.add_done_callback(self._reloads.discard)
        return task

    async def _reload(self) -> str | None:
        async with self._reloading:
            try:
                with ThreadPoolExecutor(1) as thread:
                    await asyncio.get_running_loop().run_in_executor(thread, self._load_models)
            except LayerfuseError as error:
                LOG.error("reload failed", extra={"fields": {"error": str(error)}})
                return str(error)
            except Exception as error:  # such as no memory for both
                wrong = f"{type(error).__name__}: {error}"
                LOG.exception("reload failed", extra={"fields": {"error": wrong}})
                return wrong
        LOG.info("reloaded", extra={"fields": {"models": list(self.models)}})
        return None

    async def answer(self, scope: Scope, receive: Receive) -> Response:
        """Classify the texts of a request, in the form that it asks for."""
        started, config, models = time.perf_counter(), self.config, self.models
        request = Request(scope, receive)
        record: Record = request.state.record
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return problem(415, "Send Content-Type: application/json.")
        try:
            body = _BODY.validate_json(await request.body())
        except ValidationError as error:
            return _invalid(error)
        named = _NAMED.fullmatch(scope["path"])
        name = named[1] if named else request.query_params.get("model", next(iter(models)))
        if name not in models:
            return problem(404, f"There is no such model. Choose from {', '.join(models)}.")
        model, texts = models[name], body.rows
        record.model, record.n_texts = name, len(texts)
        record.texts = texts if config.log_texts else None
        if len(texts) > config.max_texts:
            return problem(413, f"Got {len(texts)} texts. Send at most {config.max_texts}.")
        if (longest := max(map(len, texts))) > config.max_characters:
            return problem(
                413, f"Got {longest} characters. Send at most {config.max_characters} for a text."
            )
        explain = isinstance(body, PredictRequest) and body.explain
        if explain and model.examples is None:
            return problem(400, "This run keeps no training texts. Fit it with --explain.")
        try:
            rows = await self.batcher.submit(model, texts)
        except QueueFullError as error:
            return problem(429, str(error), **{"Retry-After": str(error.retry_after)})
        self._count(name, rows)
        if isinstance(body, ClassificationRequest):
            top = body.parameters.top_k
            return _json([[{"label": str(k), "score": p} for k, p in r.ranked[:top]] for r in rows])
        near: list[list[dict[str, object]] | None] = [None] * len(texts)
        if explain and model.examples is not None:
            features = np.stack([row.features for row in rows])
            found = await asyncio.to_thread(model.examples.nearest, features, model.model.space)
            near = [list(map(vars, own)) for own in found]
        # Written by hand: validating what was just made costs as much as all the rest.
        predictions = [
            {
                "label": row.label,
                "probability": row.probability,
                "probabilities": [
                    {"label": k, "probability": p} for k, p in row.ranked[: body.top_k]
                ],
                "truncated": row.truncated,
                "abstain": row.abstain,
                "neighbors": neighbors,
            }
            for row, neighbors in zip(rows, near, strict=True)
        ]
        ms = round(1e3 * (time.perf_counter() - started), 2)
        return _json({"model": name, "predictions": predictions, "ms": ms})

    def _count(self, model: str, rows: Sequence[PredictedText]) -> None:
        metrics = self.metrics
        metrics.texts.labels(model).inc(len(rows))
        for row in rows:
            if row.truncated:
                metrics.truncated.labels(model).inc()
            for label in row.label if isinstance(row.label, tuple) else (row.label,):
                metrics.predicted.labels(model, str(label)).inc()


def _json(value: object, status: int = 200) -> Response:
    """Escaped ASCII: what was sent may hold half of a surrogate pair, which UTF-8 cannot."""
    return Response(json.dumps(value), status, media_type="application/json")


def _invalid(error: ValidationError) -> Response:
    """What is wrong and where, without the texts; of the two forms by the one that was meant."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    places = [tuple(str(part)[:40] for part in fault["loc"]) for fault in faults]
    form = PredictRequest if _NO_INPUTS in places else ClassificationRequest
    wrong = [
        ": ".join(filter(None, (".".join(place[1:]), fault["msg"][:200])))
        for place, fault in zip(places, faults, strict=True)
        if place[:1] in ((), (form.__name__,))
    ]
    return _json({"detail": "; ".join(wrong[:5])}, 422)


def make_app(server: Server, token: str | None = None) -> Guard:
    """The ASGI application.

    Parameters
    ----------
    server : Server
        What it serves; the first of its models answers at ``/predict``.
    token : str, optional
        What requests have to send; without it there is no reload over HTTP.
    """
    config = server.config

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batcher.start()
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):  # Windows, a thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
        yield
        await server.batcher.stop()

    app = FastAPI(
        title="layerfuse",
        version=__version__,
        summary="Text classification on fused layers of frozen language models.",
        lifespan=lifespan,
        responses=_ERRORS,  # type: ignore[arg-type]
        docs_url=None,  # their scripts would come from a CDN
        redoc_url=None,
    )

    # FastAPI describes these two; `route` answers them before FastAPI, at a third of its cost.
    @app.post("/v1/models/{name}/predict", tags=["predict"])
    async def predict_with(name: str, body: RequestBody) -> Answer:
        """Classify texts with one of the models."""
        raise NotImplementedError

    @app.post("/predict", tags=["predict"])
    async def predict_first(
        body: RequestBody, model: Annotated[str | None, Query()] = None
    ) -> Answer:
        """Classify texts with the first model, or the one that is named."""
        raise NotImplementedError

    @app.get("/v1/models", tags=["models"])
    async def models() -> Models:
        """What is served: classes, encoders, layers, figures of the fit, cost; the limits."""
        return Models(
            models=tuple(model.info for model in server.models.values()),
            max_texts=config.max_texts,
            max_characters=config.max_characters,
        )

    @app.post("/v1/reload", tags=["models"])
    async def reload() -> Response:
        """Load the runs again; requests go on meanwhile, and what fails leaves all as it was."""
        if token is None:
            return problem(403, "Reload needs a token. Set LAYERFUSE_TOKEN, or send SIGHUP.")
        wrong = await asyncio.shield(server.reload())  # it outlasts the request
        return Response(status_code=204) if wrong is None else problem(409, wrong)

    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    async def ready() -> Response:
        """Whether texts can be sent: models are loaded and the queue has room."""
        if server.batcher.is_ready:
            return _json({"status": "ready"})
        return problem(503, "The queue is full.")

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """Counters for Prometheus."""
        content = generate_latest(server.metrics.registry)
        return Response(content, media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """A page for people."""
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _policy()})

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope.get("method") == "POST" and (path in _FIRST or _NAMED.fullmatch(path)):
            response = await server.answer(scope, receive)
            await response(scope, receive, send)
        else:
            await app(scope, receive, send)

    return Guard(
        route,
        metrics=server.metrics,
        token=token,
        max_body=config.max_body,
        deadline=config.deadline,
    )


@cache
def _page() -> str:
    return (files("layerfuse.serving") / "page.html").read_text(encoding="utf-8")


@cache
def _policy() -> str:
    """Only the page's own script and style; requests go to this server alone."""
    (script,), (style,) = (
        re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", _page(), re.S) for tag in ("script", "style")
    )
    digests = (hashlib.sha256(part.encode()).digest() for part in (script, style))
    own, look = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {own}; style-src {look}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _check_port(host: str, port: int) -> None:
    """Refuse a taken port before models are loaded, which takes a while."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on {host}, port {port}: {error.strerror}. Choose another "
            "port with --port."
        ) from error


def _read_token() -> str | None:
    """What requests have to send; files of secrets often end with a line break, which is left out.

    Raises
    ------
    ConfigError
        When it is empty.
    """
    token = os.environ.get("LAYERFUSE_TOKEN")
    if token is None:
        return None
    if not token.strip():
        raise ConfigError(
            "LAYERFUSE_TOKEN is set, but empty. Set it to the token that requests have to send, "
            "or unset it to serve without one."
        )
    return token.strip()


def serve(config: ServeConfig, reporter: Reporter) -> None:
    """Serve runs until SIGTERM or SIGINT; what is in flight is finished first.

    Raises
    ------
    LayerfuseError
        When an option is wrong or a run cannot be loaded; nothing is served then.
    """
    if config.max_texts > config.max_queue:
        raise ConfigError(
            f"--max-texts {config.max_texts} is more than --max-queue {config.max_queue}: a full "
            "request would always be refused. Raise --max-queue."
        )
    runs, token = named_runs(config.runs), _read_token()

    def load(known: tuple[ServedModel, ...]) -> Mapping[str, ServedModel]:
        return load_models(runs, config.encoders, config.device, reporter, known)

    _check_port(config.host, config.port)
    app = make_app(Server(config, load), token)
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
