"""``layerfuse serve`` under load, against ``predict`` in Python and against plain FastAPI code.

Clients are a process of their own, as is each server; all share this machine's cores. Every request
has one short text, and no text is sent twice in a measurement.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from layerfuse import LayerFusionClassifier, load, load_dataset

_ENCODER, _DATASET = "minilm", "r8"
_WORDS = 14  # of a short text
_TRAIN = 400
_CLIENTS, _MODELS, _LOAD = 64, 10, 0.7
_SECONDS = 8.0


def run() -> list[dict[str, Any]]:
    """All measurements, in less than three minutes."""
    data = load_dataset(_DATASET)
    train = data.subsample(_TRAIN, 0).train
    texts = short_texts([text for split in data.splits.values() for text in split.texts])
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "m0"
        fitted = LayerFusionClassifier([_ENCODER], cv=2, store=None)
        fitted.fit([_short(text) for text in train.texts], train.labels).save(bundle)
        for number in range(1, _MODELS):
            shutil.copytree(bundle, Path(folder) / f"m{number}")
        return [_measure(bundle, texts)]


def short_texts(texts: list[str]) -> list[str]:
    """Distinct pieces of texts, ``_WORDS`` words each."""
    words = [text.split() for text in texts]
    pieces = {_short(" ".join(w[at:])) for w in words for at in range(0, len(w) - _WORDS, _WORDS)}
    return sorted(pieces)


def _short(text: str) -> str:
    return " ".join(text.split()[:_WORDS])


def _measure(bundle: Path, texts: list[str]) -> dict[str, Any]:
    classifier = load(bundle)
    classifier.predict(texts[:64])
    alone = [_seconds(classifier, [text]) for text in texts[:150]]
    some = texts[: max(256, int(3 / _seconds(classifier, texts[:256]) * 256))]
    rates = [len(some) / _seconds(classifier, some)]
    with _server("-m", "layerfuse", "serve", bundle) as port:
        one = _clients(port, texts, clients=1, seconds=4)
        busy = _clients(port, texts)
        rates.append(len(some) / _seconds(classifier, some))
        load_ = _clients(port, texts, rate=_LOAD * busy["rate"])
    runs = [bundle.parent / f"m{number}" for number in range(_MODELS)]
    with _server("-m", "layerfuse", "serve", *runs) as port:
        ten = _clients(port, texts, models=_MODELS)
    with _server("-m", "benchmarks.serving", "plain", bundle) as port:
        plain = _clients(port, texts)
    rates.append(len(some) / _seconds(classifier, some))
    offline = statistics.median(rates)
    found = {
        "texts": len(some),
        "words": _WORDS,
        "offline_per_s": rates,
        "served_per_s": busy["rate"],
        "served_to_offline": busy["rate"] / offline,
        "p50_ms": busy["p50"],
        "p99_ms": busy["p99"],
        "at_load": load_,
        "p99_to_p50_at_load": load_["p99"] / load_["p50"],
        "ten_models_per_s": ten["rate"],
        "ten_to_one": ten["rate"] / busy["rate"],
        "plain_per_s": plain["rate"],
        "served_to_plain": busy["rate"] / plain["rate"],
        "one_text_http_ms": one["p50"],
        "one_text_python_ms": 1e3 * statistics.median(alone),
        "one_text_ratio": one["p50"] / (1e3 * statistics.median(alone)),
        "failed": sum(part["failed"] for part in (one, busy, load_, ten, plain)),
    }
    print(
        f"{busy['rate']:.0f} texts/s from {_CLIENTS} clients, {offline:.0f} offline "
        f"({found['served_to_offline']:.2f}), {plain['rate']:.0f} in plain FastAPI "
        f"({found['served_to_plain']:.1f}x), {ten['rate']:.0f} over {_MODELS} models "
        f"({found['ten_to_one']:.2f}); p99 {found['p99_to_p50_at_load']:.1f}x p50 at "
        f"{_LOAD:.0%} load; one text {one['p50']:.1f} ms, {found['one_text_ratio']:.2f}x Python",
        flush=True,
    )
    return found


def _seconds(classifier: LayerFusionClassifier, texts: list[str]) -> float:
    started = time.perf_counter()
    classifier.predict(texts)
    return time.perf_counter() - started


@contextlib.contextmanager
def _server(*command: object) -> Iterator[int]:
    """A server process that listens on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    words = [sys.executable, *map(str, command), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while True:
            assert process.poll() is None, "the server ended"
            with (
                contextlib.suppress(OSError),
                urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5),
            ):
                break
            time.sleep(0.1)
        try:
            yield port
        finally:
            process.terminate()


def _clients(
    port: int,
    texts: list[str],
    *,
    clients: int = _CLIENTS,
    seconds: float = _SECONDS,
    models: int = 1,
    rate: float | None = None,
) -> dict[str, Any]:
    """Run clients in a process of their own; with ``rate`` requests come at random times."""
    words = [sys.executable, "-m", "benchmarks.serving", "clients", str(port)]
    settings = {"clients": clients, "seconds": seconds, "models": models, "rate": rate}
    given = json.dumps({"texts": texts, **settings})
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class _Connection(asyncio.Protocol):
    """One kept connection with one request at a time; just enough of HTTP to cost little."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.answered: asyncio.Future[bytes] | None = None
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
            answered, self.answered, self.data = self.answered, None, b""
            assert answered is not None
            answered.set_result(head[9:12])

    def request(self, content: bytes) -> asyncio.Future[bytes]:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(content)
        return self.answered


async def _load(port: int, given: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    contents = []
    for number, text in enumerate(given["texts"]):
        body = json.dumps({"texts": text}).encode()
        path = f"/v1/models/m{number % given['models']}/predict"
        contents.append(
            f"POST {path} HTTP/1.1\r\nHost: local\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    np.random.default_rng(0).shuffle(contents)
    pending = iter(contents * 100)
    n_connections = given["clients"] if given["rate"] is None else 256
    free: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()
    for _ in range(n_connections):
        free.put_nowait((await loop.create_connection(_Connection, "127.0.0.1", port))[1])
    latencies: list[float] = []
    failed = 0
    begun = loop.time() + 1.0  # what comes before warms up

    async def ask(since: float) -> None:
        nonlocal failed
        connection = await free.get()
        status = await connection.request(next(pending))
        free.put_nowait(connection)
        failed += status != b"200"
        if since >= begun:
            latencies.append(loop.time() - since)

    async def repeat() -> None:
        while loop.time() < begun + given["seconds"]:
            await ask(loop.time())

    if given["rate"] is None:
        await asyncio.gather(*(repeat() for _ in range(given["clients"])))
    else:
        gaps = np.random.default_rng(0).exponential(1 / given["rate"], 1_000_000)
        asked, due = set(), loop.time()
        for gap in gaps.tolist():
            due += gap
            if due > begun + given["seconds"]:
                break
            await asyncio.sleep(max(0.0, due - loop.time()))
            asked.add(loop.create_task(ask(due)))
        await asyncio.gather(*asked)
    took = max(given["seconds"], loop.time() - begun)
    p50, p99 = (1e3 * float(np.quantile(latencies, q)) for q in (0.5, 0.99))
    return {"rate": len(latencies) / took, "p50": p50, "p99": p99, "failed": failed}


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
        print(json.dumps(asyncio.run(_load(int(sys.argv[2]), json.load(sys.stdin)))))
