"""An object server on this machine, and a proxy in front of it that fails as networks do."""

from __future__ import annotations

import http.client
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import numpy as np
import pytest

from layerfuse import EmbeddingStore, FrozenEncoder, extract
from layerfuse.embeddings.extraction import BlockView
from layerfuse.errors import StorageError
from layerfuse.progress import SILENT, Reporter

URL = "memory://bucket/place"
READ_TIMEOUT_S = 0.3
LAG_S = 1.0
_AZURITE_KEY = (  # Azurite's own, the same everywhere
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
FAULTS = ("error", "error afterwards", "hang", "hang afterwards", "cut upload", "cut download")


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that hang up, as those do that have waited too long."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exception(), OSError):
            raise


class FaultyServer:
    """A proxy of an object server; ``rate`` is the share of requests that fail, by a seed.

    A listing that lags does not have what was put in the last `LAG_S` seconds. ``faults`` counts
    what was done, by its kind.
    """

    def __init__(self, port: int) -> None:
        self.rate = 0.0
        self.faults: Counter[str] = Counter()
        self._port = port
        self._draw = random.Random(0)  # noqa: S311  # not for secrets
        self._put: dict[str, float] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def seed(self, seed: int) -> None:
        self._draw = random.Random(seed)  # noqa: S311  # not for secrets

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plan(self, method: str, *, lists: bool) -> str | None:
        """The fault of the next request."""
        with self._lock:
            if self._draw.random() >= self.rate:
                return None
            fitting = [
                fault
                for fault in FAULTS
                if not (fault == "cut upload" and method != "PUT")
                and not (fault == "cut download" and method != "GET")
            ]
            fault = self._draw.choice([*fitting, *(["late listing"] * 6 if lists else [])])
            if fault != "late listing":  # which is counted where it leaves something out
                self.faults[fault] += 1
            return fault

    def _without_new(self, body: bytes) -> bytes:
        """A listing without what was just put."""
        now = time.monotonic()

        def keep(match: re.Match[bytes]) -> bytes:
            found = re.search(rb"<Key>(.*?)</Key>", match[0])
            assert found is not None
            is_new = now - self._put.get(unquote(found[1].decode()), -LAG_S) < LAG_S
            return b"" if is_new else match[0]

        less = re.sub(rb"<Contents>.*?</Contents>", keep, body, flags=re.S)
        if less != body:
            with self._lock:
                self.faults["late listing"] += 1
        return less

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_any(self) -> None:
                body = self._body()
                fault = outer.plan(self.command, lists="list-type=2" in self.path)
                if fault == "cut upload":
                    body = body[: len(body) // 2]
                elif fault == "error":
                    self._answer(503, {}, b"<Error><Code>ServiceUnavailable</Code></Error>")
                    return
                elif fault == "hang":
                    self._hang()
                    return
                status, headers, answer = self._forward(body)
                if self.command == "PUT" and status == 200:
                    key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
                    outer._put.setdefault(key, time.monotonic())
                if fault == "error afterwards":
                    self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
                elif fault == "hang afterwards":
                    self._hang()
                elif fault == "cut upload":
                    self.close_connection = True
                elif fault == "cut download" and self.command == "GET":
                    self._answer(status, headers, answer, sent=len(answer) // 2)
                elif fault == "late listing":
                    self._answer(status, headers, outer._without_new(answer))
                else:
                    self._answer(status, headers, answer)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_any  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                server = http.client.HTTPConnection("127.0.0.1", outer._port)
                names = {"transfer-encoding", "content-length", "connection", "expect"}
                kept = {n: v for n, v in self.headers.items() if n.lower() not in names}
                server.request(self.command, self.path, body, kept)
                answer = server.getresponse()
                headers = {n: v for n, v in answer.getheaders() if n.lower() not in names}
                if self.command == "HEAD":
                    headers["Content-Length"] = answer.getheader("Content-Length", "0")
                return answer.status, headers, answer.read()

            def _hang(self) -> None:
                time.sleep(2 * READ_TIMEOUT_S)
                self.close_connection = True

            def _answer(
                self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("date", "server"):
                        self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[:sent])
                if sent is not None:
                    self.close_connection = True

        return Handler


@contextmanager
def object_server(patch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """An object server with the bucket ``s3://bucket``; skips where the packages are missing."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'layerfuse[s3]'")
    running = moto.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    proxy = FaultyServer(port)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_ENDPOINT_URL", proxy.url)
    timeouts = {"connect_timeout": 2, "read_timeout": READ_TIMEOUT_S}
    patch.setitem(fsspec.config.conf, "s3", {"config_kwargs": timeouts})
    # The client tries as often as it does for everyone, without seconds in between.
    patch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield proxy
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.stop()
        server = http.client.HTTPConnection(host, port)
        server.request("POST", "/moto-api/reset")  # its state is that of the process
        server.getresponse().read()
        running.stop()


@contextmanager
def azure_server(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Azurite with the container ``az://bucket``; skips where it or adlfs is missing."""
    adlfs = pytest.importorskip("adlfs", reason="adlfs is not installed")
    if (binary := shutil.which("azurite-blob")) is None:
        pytest.skip("azurite-blob is not installed: npm install -g azurite")
    options = ("--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck")
    port = _free_port()
    server = subprocess.Popen([binary, *options, "--blobPort", str(port)])
    account = "devstoreaccount1"
    patch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"AccountName={account};AccountKey={_AZURITE_KEY};DefaultEndpointsProtocol=http;"
        f"BlobEndpoint=http://127.0.0.1:{port}/{account};",
    )
    adlfs.AzureBlobFileSystem.clear_instance_cache()
    try:
        _wait_for(port)
        fsspec.filesystem("az").mkdir("bucket")
        yield "az://bucket"
    finally:
        adlfs.AzureBlobFileSystem.clear_instance_cache()
        server.kill()
        server.wait()


@contextmanager
def google_server(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """A storage emulator with the bucket ``gs://bucket``; skips where a package is missing."""
    # gcsfs would ask for the kind of the bucket by gRPC, which the emulator does not speak.
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed"
    )
    port = _free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    own = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"}
    patch.setitem(fsspec.config.conf, "gs", own)
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield "gs://bucket"
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    """Until somebody listens there."""
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.05)
        else:
            return


class Machine:
    """A machine has a cache folder of its own, and sees what others do only at the URL."""

    def __init__(self, cache: Path, model: Path) -> None:
        self._cache, self._model = cache, model

    def at(self, name: str) -> Machine:
        """Another one with the same model."""
        return Machine(self._cache.with_name(name), self._model)

    def store(self, url: str = URL) -> EmbeddingStore:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LAYERFUSE_CACHE", str(self._cache))
            return EmbeddingStore(url)

    def extract(
        self, texts: list[str], store: str | EmbeddingStore = URL, reporter: Reporter = SILENT
    ) -> BlockView:
        encoder = FrozenEncoder.from_pretrained(
            self._model, name="tiny", device="cpu", dtype="float32"
        )
        place = self.store(store) if isinstance(store, str) else store
        return extract(texts, encoder, store=place, reporter=reporter)


def faulty_case(
    machines: tuple[Machine, Machine],
    server: FaultyServer,
    url: str,
    texts: list[str],
    expected: BlockView,
) -> int:
    """Two machines fill a store at once, a third reads, while the server fails; a fourth finds all.

    Returns how often a machine had to run the same command again. ``expected`` are the blocks of
    the texts.
    """
    quarter, name = len(texts) // 4, url.rpartition("/")[2]
    parts = slice(None, 3 * quarter), slice(quarter, None), slice(None)
    third, fourth = (machines[0].at(f"{number}-{name}") for number in ("third", "fourth"))
    users = (*machines, third)
    stores = [user.store(url) for user in users]

    def use(number: int) -> int:
        own = np.arange(len(texts))[parts[number]]
        for attempt in range(20):
            try:
                found = users[number].extract(texts[parts[number]], stores[number])
                check(found, expected.take(own))
            except StorageError:
                continue
            return attempt
        raise AssertionError("the server failed too often")

    server.rate = 0.25
    try:
        with ThreadPoolExecutor(2) as pool:
            again = sum(pool.map(use, range(2)))
        again += use(2)
    finally:
        server.rate = 0.0
    found = fourth.extract(texts, url)
    assert found.n_computed == 0, f"{found.n_computed} texts are lost"
    check(found, expected)
    assert fourth.store(url).verify() == []
    return again


def check(found: BlockView, expected: BlockView) -> None:
    """Fail where a store gives anything else than what was computed, as float16."""
    for ref, array in expected.items():
        np.testing.assert_allclose(found[ref], array, rtol=1e-3, atol=1e-4)
