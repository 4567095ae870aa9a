"""``layerfuse serve`` under load, against ``predict`` in Python and against plain FastAPI code.

Clients are a process of their own, as is each server; all share this machine's cores. Every request
has one short text. `run` measures speed, with no text sent twice in a measurement; `soak` compares
each answer of many requests, and the server's memory after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from layerfuse import FrozenEncoder, LayerFusionClassifier, load, load_dataset

_ENCODER, _DATASET = "minilm", "r8"
_WORDS = 14  # of a short text
_TRAIN = 400
_CLIENTS, _MODELS, _LOAD = 64, 10, 0.7
_SECONDS = 8.0
_WARM, _COMPARED, _TOTAL, _MALFORMED = 20_000, 100_000, 200_000, 10_000  # requests of the soak
_SOAK_TEXTS = 5000
_TOLERANCE = 1e-4  # of probabilities in float32, which another batch rounds otherwise


def run() -> list[dict[str, Any]]:
    """All measurements, in less than three minutes."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "m0"
        texts = _fit(bundle)
        for number in range(1, _MODELS):
            shutil.copytree(bundle, Path(folder) / f"m{number}")
        return [_measure(bundle, texts)]


def _fit(bundle: Path, **options: Any) -> list[str]:
    """Save a classifier of short texts; return texts for it, in random order."""
    data = load_dataset(_DATASET)
    train = data.subsample(_TRAIN, 0).train
    encoder = FrozenEncoder.from_pretrained(_ENCODER, **options)
    fitted = LayerFusionClassifier([encoder], cv=2, store=None)
    fitted.fit([_short(text) for text in train.texts], train.labels).save(bundle)
    texts = short_texts([text for split in data.splits.values() for text in split.texts])
    np.random.default_rng(0).shuffle(texts)
    return texts


def short_texts(texts: list[str]) -> list[str]:
    """Distinct pieces of texts, ``_WORDS`` words each."""
    words = [text.split() for text in texts]
    pieces = {_short(" ".join(w[at:])) for w in words for at in range(0, len(w) - _WORDS, _WORDS)}
    return sorted(pieces)


def _short(text: str) -> str:
    return " ".join(text.split()[:_WORDS])


def _measure(bundle: Path, texts: list[str]) -> dict[str, Any]:
    load_average = os.getloadavg()[0]
    classifier = load(bundle)
    classifier.predict(texts[:64])
    alone = [_seconds(classifier, [text])[0] for text in texts[:150]]
    some = texts[: max(256, int(3 / _seconds(classifier, texts[:256])[0] * 256))]
    offline = [_seconds(classifier, some)]
    bodies = valid_bodies(texts)
    with _server("-m", "layerfuse", "serve", bundle) as (port, process):
        one = _clients(Load(port, bodies, clients=1, seconds=4))
        before = _cpu_seconds(process.pid)
        busy = _clients(Load(port, bodies))
        server_cpu_ms = 1e3 * (_cpu_seconds(process.pid) - before) / busy.n_answers
        offline.append(_seconds(classifier, some))
        at_load = _clients(Load(port, bodies, rate=_LOAD * busy.rate))
    runs = [bundle.parent / f"m{number}" for number in range(_MODELS)]
    with _server("-m", "layerfuse", "serve", *runs) as (port, _):
        ten = _clients(Load(port, bodies, models=_MODELS))
    with _server("-m", "benchmarks.serving", "plain", bundle) as (port, _):
        plain = _clients(Load(port, bodies))
    offline.append(_seconds(classifier, some))
    rates = [len(some) / wall for wall, _ in offline]
    rate, alone_ms = statistics.median(rates), 1e3 * statistics.median(alone)
    result = {
        "load_average_before": load_average,
        "texts": len(some),
        "words": _WORDS,
        "offline_per_s": rates,
        "offline_cpu_ms": 1e3 * min(cpu for _, cpu in offline) / len(some),
        "served_per_s": busy.rate,
        "served_to_offline": busy.rate / rate,
        "server_cpu_ms": server_cpu_ms,
        "client_cpu_ms": busy.cpu_ms,
        "p50_ms": busy.p50,
        "p99_ms": busy.p99,
        "at_load": {"rate": at_load.rate, "p50": at_load.p50, "p99": at_load.p99},
        "p99_to_p50_at_load": at_load.p99 / at_load.p50,
        "ten_models_per_s": ten.rate,
        "ten_to_one": ten.rate / busy.rate,
        "plain_per_s": plain.rate,
        "served_to_plain": busy.rate / plain.rate,
        "one_text_http_ms": one.p50,
        "one_text_python_ms": alone_ms,
        "one_text_ratio": one.p50 / alone_ms,
        "failed": sum(part.n_failed for part in (one, busy, at_load, ten, plain)),
    }
    print(
        f"{busy.rate:.0f} texts/s from {_CLIENTS} clients, {rate:.0f} offline "
        f"({busy.rate / rate:.2f}), {plain.rate:.0f} in plain FastAPI "
        f"({busy.rate / plain.rate:.1f}x), {ten.rate:.0f} over {_MODELS} models "
        f"({ten.rate / busy.rate:.2f}); p99 {at_load.p99 / at_load.p50:.1f}x p50 at "
        f"{_LOAD:.0%} load; one text {one.p50:.1f} ms, {one.p50 / alone_ms:.2f}x Python; CPU per "
        f"text {result['offline_cpu_ms']:.2f} ms offline, {server_cpu_ms:.2f} in the server, "
        f"{busy.cpu_ms:.2f} in the clients; load average before {load_average:.1f}",
        flush=True,
    )
    return result


def _seconds(classifier: LayerFusionClassifier, texts: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    started, cpu = time.perf_counter(), time.process_time()
    classifier.predict(texts)
    return time.perf_counter() - started, time.process_time() - cpu


def soak() -> list[dict[str, Any]]:
    """Answers compared, memory after many requests, malformed bodies, and SIGTERM under load."""
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _fit(folder / "m0", layers=[1], dtype="float32")[:_SOAK_TEXTS]
        classifier = load(folder / "m0")
        known = dict(zip(texts, classifier.predict_proba(texts), strict=True))
        labels = classifier.classes_.tolist()
        bodies, rss, answers = valid_bodies(texts), [], []
        with _server("-m", "layerfuse", "serve", folder / "m0") as (port, process):
            for count in (_WARM, _COMPARED - _WARM, _TOTAL - _COMPARED):
                kept = len(rss) < 2  # the rest is for the memory
                part = _clients(Load(port, bodies, count=count), folder / "kept" if kept else None)
                rss.append(_rss_mb(process.pid))
                answers += part.answers
                print(f"{count:,} requests, {part.rate:.0f} a second, {rss[-1]:.0f} MB", flush=True)
            malformed = _clients(Load(port, malformed_bodies(_MALFORMED), count=_MALFORMED))
        with (
            (folder / "log").open("w") as log,
            _server("-m", "layerfuse", "serve", folder / "m0", stdout=log) as (port, process),
        ):
            stopped = _clients(Load(port, bodies, count=10**9), folder / "kept", stop=process)
        lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    logged = [line["id"] for line in lines if line.get("path", "").endswith("/predict")]
    answered = [one.id for one in stopped.answers]
    differences = [_difference(one, known, labels) for one in answers]
    result = {
        "load_average_before": load_average,
        "requests": len(answers),
        "tolerance": _TOLERANCE,
        "largest_difference": max(differences),
        "wrong": sum(difference > _TOLERANCE for difference in differences),
        "lost": _COMPARED - len(answers),
        "answered_twice": len(answers) - len({one.id for one in answers}),
        "rss_mb": dict(zip((_WARM, _COMPARED, _TOTAL), rss, strict=True)),
        "rss_growth": rss[-1] / rss[0] - 1,
        "malformed": malformed.statuses,
        "sigterm_accepted": len(logged),
        "sigterm_lost": len(set(logged) - set(answered)),
        "sigterm_wrong": sum(
            _difference(one, known, labels) > _TOLERANCE for one in stopped.answers
        ),
    }
    print(json.dumps(result, indent=2), flush=True)
    return [result]


def _difference(one: Answer, known: dict[str, Any], labels: list[object]) -> float:
    """The largest difference of a probability; infinite where it is another answer."""
    if one.status != "200":
        return float("inf")
    (row,) = json.loads(one.body)["predictions"]
    found = {each["label"]: each["probability"] for each in row["probabilities"]}
    if found.keys() != set(labels):
        return float("inf")
    proba = known[json.loads(one.request)["texts"]]
    return float(max(abs(found[k] - value) for k, value in zip(labels, proba, strict=True)))


_JSON = "application/json"
Body = tuple[str, str]
"""Content type, and body with one character for each byte."""


def valid_bodies(texts: list[str]) -> list[Body]:
    """One request per text."""
    return [(_JSON, json.dumps({"texts": text})) for text in texts]


def malformed_bodies(n: int) -> list[Body]:
    """Bodies that no server may accept, of many kinds, with random content."""
    rng = np.random.default_rng(0)
    wrong: list[Any] = [None, 1, 1.5, True, {}, [], [1], [None], [["a"]], {"a": "b"}]
    bodies = []
    for number in range(n):
        text = "".join(map(chr, rng.integers(32, 1000, rng.integers(1, 60)).tolist()))
        valid = json.dumps({"texts": [text], "top_k": 2})
        value = wrong[rng.integers(len(wrong))]
        cut = int(rng.integers(len(valid) - 1))
        noise = bytes(rng.integers(128, 256, rng.integers(1, 60)).tolist()).decode("latin-1")
        kinds: list[Body] = [
            (_JSON, valid[:cut]),
            (_JSON, ""),
            (_JSON, "9" * (1 + cut * 100)),
            (_JSON, valid[:cut] + noise + valid[cut:]),
            (_JSON, noise),
            (_JSON, json.dumps(value)),
            (_JSON, json.dumps({"texts": value})),
            (_JSON, json.dumps({"inputs": value})),
            (_JSON, json.dumps({"texts": [text, value]})),
            (_JSON, json.dumps({"texts": text, "top_k": [0, -1, 1.5, "a", []][cut % 5]})),
            (_JSON, json.dumps({"texts": text, f"other {text}": value})),
            (_JSON, json.dumps({"inputs": text, "parameters": [1, "a", [], {"a": 1}][cut % 4]})),
            (_JSON, json.dumps(text)),
            (_JSON, valid + valid),
            (_JSON, "[" * (1 + cut * 100)),
            (_JSON, '{"texts":' * (1 + cut * 100)),
            (_JSON, '{"texts": "\\ud800"}'),
            ("text/plain", valid),
            ("", valid),
        ]
        bodies.append(kinds[number % len(kinds)])
    return bodies


@contextlib.contextmanager
def _server(
    *command: object, stdout: Any = subprocess.DEVNULL
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server process, and the free port that it listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    words = [sys.executable, *map(str, command), "--port", str(port)]
    with subprocess.Popen(words, stdout=stdout) as process:
        while True:
            assert process.poll() is None, "the server ended"
            with (
                contextlib.suppress(OSError),
                urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5),
            ):
                break
            time.sleep(0.1)
        try:
            yield port, process
        finally:
            process.terminate()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass
class Load:
    """What clients send: for ``seconds``, or ``count`` requests; with ``rate`` at random times."""

    port: int
    bodies: list[Body]
    clients: int = _CLIENTS
    seconds: float = _SECONDS
    count: int | None = None
    models: int = 1
    rate: float | None = None


@dataclass
class Answer:
    id: str
    status: str
    request: str
    body: str


@dataclass
class Measured:
    """What came of it; latencies in milliseconds and CPU of the clients per request."""

    rate: float
    p50: float
    p99: float
    cpu_ms: float
    n_answers: int
    statuses: dict[str, int]
    answers: list[Answer] = field(default_factory=list)

    @property
    def n_failed(self) -> int:
        return self.n_answers - self.statuses.get("200", 0)


def _clients(
    given: Load, keep: Path | None = None, stop: subprocess.Popen[bytes] | None = None
) -> Measured:
    """Run clients in a process of their own.

    Answers are kept by way of a file; the server ``stop`` gets SIGTERM after a while.
    """
    words = [sys.executable, "-m", "benchmarks.serving", "clients", *([str(keep)] if keep else [])]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(asdict(given)))
        process.stdin.close()
        if stop is not None:
            process.stdout.readline()  # they have begun
            time.sleep(_SECONDS)
            stop.send_signal(signal.SIGTERM)
        *_, line = process.stdout
    measured = Measured(**json.loads(line))
    if keep is not None:
        with keep.open() as kept:
            measured.answers = [Answer(*json.loads(line)) for line in kept]
        keep.unlink()
    return measured


class _Connection(asyncio.Protocol):
    """One kept connection with one request at a time; just enough of HTTP to cost little."""

    def __init__(self, clients: _Clients) -> None:
        self.clients, self.data, self.number, self.since = clients, b"", -1, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def send(self, number: int, since: float) -> None:
        self.number, self.since = number, since
        self.transport.write(self.clients.contents[number])

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if found and len(body) >= (length := int(_header(head, b"content-length"))):
            assert len(body) == length, "two answers"
            self.data = b""
            self.clients.answered(self, head, body)

    def connection_lost(self, _: Exception | None) -> None:
        self.clients.closed()


def _header(head: bytes, name: bytes) -> bytes:
    return head.partition(name + b": ")[2].partition(b"\r")[0]


class _Clients:
    """All clients, in one event loop."""

    def __init__(self, given: Load, keep: Path | None) -> None:
        self.given = given
        self.kept = keep.open("w") if keep else None
        self.contents = [
            _content(body, number % given.models) for number, body in enumerate(given.bodies)
        ]
        self.pending = islice(cycle(range(len(self.contents))), given.count)
        self.free: list[_Connection] = []
        self.due: deque[float] = deque()
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.finished = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        given, loop = self.given, asyncio.get_running_loop()
        n_connections = given.clients if given.rate is None else 256
        for _ in range(n_connections):
            made = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", given.port)
            self.free.append(made[1])
        started, cpu = loop.time(), time.process_time()
        print("begun", flush=True)
        warming = 0.0 if given.count else 1.0
        self.begun = started + warming
        self.end = float("inf") if given.count else self.begun + given.seconds
        self.open = n_connections
        if given.rate is None:
            for connection in self.free[:]:
                self._repeat(connection)
        else:
            await self._arrive(given.rate)
        await self.finished.wait()
        now = loop.time()
        n_answers = sum(self.statuses.values())
        p50, p99 = (1e3 * float(np.quantile(self.latencies, q)) for q in (0.5, 0.99))
        if self.kept:
            self.kept.close()
        return {
            "rate": len(self.latencies) / (now - self.begun),
            "p50": p50,
            "p99": p99,
            "cpu_ms": 1e3 * (time.process_time() - cpu) / n_answers,
            "n_answers": n_answers,
            "statuses": self.statuses,
        }

    def _repeat(self, connection: _Connection) -> None:
        """The next request of a client, or its end."""
        now = asyncio.get_running_loop().time()
        number = next(self.pending, None) if now < self.end else None
        if number is None:
            connection.transport.close()
        else:
            connection.send(number, now)

    async def _arrive(self, rate: float) -> None:
        """Requests at random times; those that find no free connection wait for one."""
        loop, rng = asyncio.get_running_loop(), np.random.default_rng(0)
        at = loop.time()
        while (at := at + rng.exponential(1 / rate)) < self.end:
            await asyncio.sleep(max(0.0, at - loop.time()))
            if self.free:
                self.free.pop().send(next(self.pending), at)
            else:
                self.due.append(at)
        while len(self.free) < self.open:
            await asyncio.sleep(0.01)
        for connection in self.free:
            connection.transport.close()

    def answered(self, connection: _Connection, head: bytes, body: bytes) -> None:
        status = head[9:12].decode()
        self.statuses[status] += 1
        if connection.since >= self.begun:
            self.latencies.append(asyncio.get_running_loop().time() - connection.since)
        if self.kept:
            request = self.given.bodies[connection.number][1]
            answer = (_header(head, b"x-request-id").decode(), status, request, body.decode())
            self.kept.write(json.dumps(answer) + "\n")
        if self.given.rate is None:
            self._repeat(connection)
        elif self.due:
            connection.send(next(self.pending), self.due.popleft())
        else:
            self.free.append(connection)

    def closed(self) -> None:
        self.open -= 1
        if not self.open:
            self.finished.set()


def _content(body: Body, model: int) -> bytes:
    kind, content = body
    data = content.encode("latin-1")
    return (
        f"POST /v1/models/m{model}/predict HTTP/1.1\r\nHost: local\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )


async def _run_clients(given: Load, keep: Path | None) -> dict[str, Any]:
    return await _Clients(given, keep).run()


def _plain(bundle: Path, port: int) -> None:
    """What is written without a batching server: one text after another."""
    import uvicorn
    from fastapi import Body, FastAPI

    classifier, app = load(bundle), FastAPI()
    classifier.predict(["a text"])

    @app.get("/health/ready")
    def ready() -> str:
        return "ready"

    @app.post("/v1/models/m0/predict")
    def predict(texts: str = Body(embed=True)) -> list[float]:
        (row,) = classifier.predict_proba([texts])
        return list(row.tolist())

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    if sys.argv[1] == "plain":
        _plain(Path(sys.argv[2]), int(sys.argv[-1]))
    else:
        load_given = Load(**json.load(sys.stdin))
        keep_in = Path(sys.argv[2]) if sys.argv[2:] else None
        print(json.dumps(asyncio.run(_run_clients(load_given, keep_in))))
