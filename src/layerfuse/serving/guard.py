"""What holds for every request: token, size, deadline, a log line, metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = {"/", "/health/live", "/health/ready"}
"""What can be read without a token: the page asks for it."""
_PATHS = _OPEN | {"/predict", "/v1/models", "/v1/reload", "/metrics", "/openapi.json"}
LOG = logging.getLogger("layerfuse.serving")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """What Prometheus reads at /metrics: counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        counter = partial(Counter, registry=own, namespace="layerfuse")
        histogram = partial(Histogram, registry=own, namespace="layerfuse")
        seconds = partial(histogram, buckets=_SECONDS)
        self.requests = counter("requests", "Requests answered.", ("path", "status"))
        self.seconds = seconds("request_seconds", "Time to answer.", ("path",))
        self.texts = counter("texts", "Texts classified.", ("model",))
        self.truncated = counter("truncated_texts", "Texts that were cut.", ("model",))
        self.predicted = counter("predictions", "Texts by class.", ("model", "label"))
        self.queue = Gauge("layerfuse_queue_texts", "Texts that wait.", registry=own)
        self.queue_seconds = seconds("queue_seconds", "Time until a request's batch begins.")
        self.batch_texts = histogram("batch_texts", "Texts of a batch.", buckets=_TEXTS)


@dataclass
class Record:
    """What the log says of a request."""

    id: str
    model: str | None = None
    n_texts: int | None = None
    texts: tuple[str, ...] | None = None
    error: str | None = None


class Guard:
    """ASGI middleware; what it refuses never reaches the application."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, token: str | None, max_body: int, deadline: float
    ) -> None:
        self._app, self._metrics = app, metrics
        self._token, self._max_body, self._deadline = token, max_body, deadline
        self._too_large = f"The body has more than {max_body} bytes."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        record = Record(uuid.uuid4().hex)
        scope.setdefault("state", {})["record"] = record
        status, received = 0, 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", record.id.encode()))
            await send(message)

        refusal: Response | None = self._refuse(scope)
        try:
            if refusal is None:
                async with asyncio.timeout(self._deadline):
                    await self._app(scope, limited, watched)
        except HTTPException as error:
            refusal = problem(error.status_code, error.detail, **(error.headers or {}))
        except ClientDisconnect:
            status, record.error = 499, "The client has disconnected."
        except TimeoutError:
            refusal = problem(504, f"No answer within {self._deadline:g} s.")
        except Exception as error:
            record.error = f"{type(error).__name__}: {error}"
            LOG.exception("internal error", extra={"fields": {"id": record.id}})
            refusal = problem(500, "Internal error; the server's log says more.")
        if refusal is not None and not status:
            await refusal(scope, receive, watched)
        self._note(scope, record, status, time.perf_counter() - started)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        is_open = scope["path"] in _OPEN and scope["method"] == "GET"
        if self._token is not None and not is_open:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                return problem(
                    401, "Send Authorization: Bearer TOKEN.", **{"WWW-Authenticate": "Bearer"}
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:18]) > self._max_body:
            return problem(413, self._too_large, Connection="close")  # the body is not read
        return None

    def _note(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        path = scope["path"]
        shown = path if path in _PATHS else "/v1/models/{name}" if record.model else "other"
        self._metrics.requests.labels(shown, str(status)).inc()
        self._metrics.seconds.labels(shown).observe(seconds)
        fields = {key: value for key, value in vars(record).items() if value is not None}
        fields |= {
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1e3 * seconds, 2),
        }
        LOG.info("request", extra={"fields": fields})


def problem(status: int, detail: str, **headers: str) -> Response:
    """An answer that says what is wrong."""
    return JSONResponse({"detail": detail}, status, headers)


class JsonLines(logging.Formatter):
    """One JSON object a line; control characters and non-ASCII text are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
