"""A real server: its answers are those of ``predict_proba``, and nothing is lost under stress."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from huggingface_hub import InferenceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser, expect

from benchmarks.serving import malformed_bodies
from browser import faults, open_browser, open_page
from commandline import rows, run, start, succeed, write_csv
from families import TinyModels
from helpers import Notes, planted, sentences
from layerfuse import FrozenEncoder, LayerFusionClassifier, load
from layerfuse.cli.commands import app
from layerfuse.cli_options import ServeConfig
from layerfuse.data import TEXT_NAMES
from layerfuse.errors import ConfigError
from layerfuse.progress import SILENT
from layerfuse.serving import batcher, registry
from layerfuse.serving.app import Server, make_app
from layerfuse.serving.guard import JsonLines
from layerfuse.serving.registry import load_models, named_runs
from processes import Child

HOSTILE = "<img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def runs(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with a report that reads layer 1, and bundles that read layer 3 and another model."""
    root = tmp_path_factory.mktemp("runs")
    train = write_csv(root / "train.csv", rows(60))
    few = ["--cv", 2, "--fusion", "concat", "--head", "ridge", "--no-report"]
    few += ["--dtype", "float32"]
    bert = f"bert={tiny('bert')}"
    store = ["--store", root / "store"]
    succeed("fit", train, "-e", bert, "--layers", 1, *few, *store, "--out", root / "low")
    texts, labels = planted(60, 3)
    for name, family in (("high", "bert"), ("other", "gpt2")):
        encoder = (
            FrozenEncoder.from_pretrained(
                tiny(family), name=family, layers=[3], dtype="float32", device="cpu", max_length=12
            )
            if name == "other"
            else FrozenEncoder.from_pretrained(
                tiny(family), name="same", layers=[3], dtype="float32", device="cpu"
            )
        )
        share = 0.8 if name == "other" else None
        model = LayerFusionClassifier([encoder], cv=2, store=None, coverage=share)
        model.fit(texts, labels).save(root / name, explain=name == "other")
    return {name: root / name for name in ("low", "high", "other")}


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def proba(self) -> list[dict[object, float]]:
        return [
            {one["label"]: one["probability"] for one in row["probabilities"]}
            for row in self.json["predictions"]
        ]


@dataclass
class Running:
    """A server in a thread of this process."""

    port: int
    server: Server

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Got:
        return ask(self.port, method, path, body, **headers)

    def predict(self, texts: str | Sequence[str], model: str = "low", **more: object) -> Got:
        return self.ask("POST", f"/v1/models/{model}/predict", {"texts": texts, **more})


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        return _send(connection, method, path, body, **headers)
    finally:
        connection.close()


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: object, **headers: str
) -> Got:
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, content, {"Content-Type": "application/json", **names})
    answer = connection.getresponse()
    return Got(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


@contextmanager
def serving(
    paths: Sequence[Path | str], token: str | None = None, **options: Any
) -> Iterator[Running]:
    named = tuple(map(str, paths))
    config = ServeConfig(named, port=0, **options)

    def load_all(known: Any) -> Any:
        return load_models(named_runs(named), {}, "cpu", SILENT, known)

    served = Server(config, load_all)
    made = make_app(served, token)
    process = uvicorn.Server(uvicorn.Config(made, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        while not process.started:
            time.sleep(0.01)
            assert thread.is_alive()
        port = process.servers[0].sockets[0].getsockname()[1]
        yield Running(port, served)
    finally:
        process.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(runs: dict[str, Path]) -> Iterator[Running]:
    with serving(list(runs.values())) as running:
        yield running


@pytest.fixture(scope="module")
def small(runs: dict[str, Path]) -> Iterator[Running]:
    limits = {"max_texts": 4, "max_queue": 4, "max_batch": 1, "max_characters": 50}
    with serving([runs["low"]], **limits, max_body=1000, deadline=2.0) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def hostile(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, labels = planted(40)
    encoder = FrozenEncoder.from_pretrained(tiny("bert"), layers=[1], device="cpu")
    path = tmp_path_factory.mktemp("runs") / "hostile & <b>"
    names = {"good": HOSTILE, "bad": "bad"}
    LayerFusionClassifier([encoder], cv=2, store=None).fit(texts, labels).save(path, labels=names)
    return path


def expected(path: Path, texts: Sequence[str]) -> list[dict[object, float]]:
    classifier = load(path, device="cpu")
    labels = classifier.classes_.tolist()
    return [dict(zip(labels, row, strict=True)) for row in classifier.predict_proba(texts).tolist()]


def close(found: dict[object, float], known: dict[object, float]) -> bool:
    return found.keys() == known.keys() and all(abs(found[k] - known[k]) < 1e-5 for k in known)


@contextmanager
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Batches wait until they are let go."""
    gate, real = threading.Event(), registry.predict

    def slow(requests: Any, worker: int) -> Any:
        assert gate.wait(30)
        return real(requests, worker)

    monkeypatch.setattr(batcher, "predict", slow)
    try:
        yield gate.set
    finally:
        gate.set()


class TestAnswers:
    @pytest.mark.slow
    def test_all_of_2000_concurrent_requests_are_right(
        self, server: Running, runs: dict[str, Path]
    ) -> None:
        texts = sentences(400, longest=30)
        known = {name: expected(path, texts) for name, path in runs.items()}
        rng = np.random.default_rng(0)
        sizes = rng.choice(
            [1, 1, 1, 1, 2, 7, 70], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.08, 0.02], size=2000
        )
        asked = [
            (("low", "high", "other")[number % 3], rng.integers(len(texts), size=size).tolist())
            for number, size in enumerate(sizes)
        ]
        before = counters(server)

        def one(request: tuple[str, list[int]]) -> str:
            name, places = request
            got = server.predict([texts[place] for place in places], name)
            assert got.status == 200
            for row, place in zip(got.proba, places, strict=True):
                assert close(row, known[name][place])
            return got.headers["x-request-id"]

        with ThreadPoolExecutor(32) as threads:
            assert len(set(threads.map(one, asked))) == 2000
        after = counters(server)
        for name in runs:
            sent = sum(len(places) for model, places in asked if model == name)
            key = f'layerfuse_texts_total{{model="{name}"}}'
            assert after[key] - before.get(key, 0) == sent
            labels = [
                k for k in after if k.startswith("layerfuse_predictions_total{") and name in k
            ]
            assert sum(after[k] - before.get(k, 0) for k in labels) == sent
        batches = after["layerfuse_batch_texts_count"] - before["layerfuse_batch_texts_count"]
        assert batches < 2000, "texts that wait are computed together"

    def test_one_text(self, server: Running, runs: dict[str, Path]) -> None:
        got = server.predict("the film was good")
        (known,) = expected(runs["low"], ["the film was good"])
        assert close(got.proba[0], known)
        (row,) = got.json["predictions"]
        best = max(known, key=lambda label: known[label])
        assert (row["label"], row["truncated"], got.json["model"]) == (best, False, "low")
        values = [one["probability"] for one in row["probabilities"]]
        assert values == sorted(values, reverse=True)
        assert row["probability"] == values[0]

    def test_top_k(self, server: Running) -> None:
        got = server.predict(["oil", "trade"], top_k=2).json["predictions"]
        assert [len(row["probabilities"]) for row in got] == [2, 2]

    def test_the_first_model_answers_unless_one_is_named(self, server: Running) -> None:
        for query, name in (("", "low"), ("?model=high", "high")):
            assert server.ask("POST", f"/predict{query}", {"texts": "oil"}).json["model"] == name

    def test_a_text_that_was_cut(self, server: Running) -> None:
        long = " ".join(["oil"] * 40)
        got = server.predict([long, "oil"], "other").json["predictions"]
        assert [row["truncated"] for row in got] == [True, False]
        assert counters(server)['layerfuse_truncated_texts_total{model="other"}'] >= 1

    def test_texts_that_go_to_a_person(self, server: Running, runs: dict[str, Path]) -> None:
        texts = ["oil price", "good awful market", "bad", "w1 w2"]
        got = server.predict(texts, "other").json["predictions"]
        alone = load(runs["other"])
        assert alone.abstention_ is not None
        unsure = alone.abstention_.abstains(alone.predict_proba(texts)).tolist()
        assert [row["abstain"] for row in got] == unsure
        assert server.predict(texts).json["predictions"][0]["abstain"] is None

    def test_the_nearest_training_texts(self, server: Running, runs: dict[str, Path]) -> None:
        texts = sentences(6)
        assert server.predict(texts, "other").json["predictions"][0]["neighbors"] is None
        answer = server.predict(texts, "other", explain=True)
        assert answer.status == 200
        known = load(runs["other"], device="cpu").explain(texts).neighbors
        for row, own in zip(answer.json["predictions"], known, strict=True):
            assert [one["text"] for one in row["neighbors"]] == [one.text for one in own]
            assert [one["label"] for one in row["neighbors"]] == [one.label for one in own]
        refused = server.predict(texts, "low", explain=True)
        assert (refused.status, "--explain" in refused.json["detail"]) == (400, True)

    def test_what_is_served(self, server: Running, runs: dict[str, Path]) -> None:
        got = server.ask("GET", "/v1/models").json
        low, high, _ = got["models"]
        assert [one["name"] for one in got["models"]] == ["low", "high", "other"]
        assert low["classes"] == load(runs["low"]).classes_.tolist()
        assert low["encoders"][0]["layers"] == [1]
        report = json.loads((runs["low"] / "report.json").read_text())
        assert low["cv"] == report["cv"]
        assert low["cost"] == report["cost"]["pipeline"]
        assert high["cv"]["n"] == 60, "a bundle knows its nested figures"
        assert high["cost"] is None
        assert server.ask("GET", "/health/live").status == 200
        assert server.ask("GET", "/health/ready").status == 200

    def test_requests_and_endpoints_of_the_documentation(self, server: Running) -> None:
        page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
        commands = re.findall("^layerfuse serve .+", page, re.M)
        assert len(commands) >= 2
        for command in commands:
            _, arguments, _ = app.parse_args(shlex.split(command, comments=True)[1:])
            assert arguments.args[0].runs
        bodies = re.findall(r"-d '(.+)'", page)
        assert bodies
        for body in bodies:
            assert server.ask("POST", "/predict", body.encode()).status == 200
        endpoints = re.findall(r"`(GET|POST) (/[^`?]*)", page)
        assert len(endpoints) >= 8
        for method, path in endpoints:
            got = server.ask(method, path.replace("NAME", "low"), {"texts": "oil"})
            assert got.status == (403 if path == "/v1/reload" else 200), path


class TestHuggingFaceForm:
    @pytest.mark.parametrize("path", ["", "/predict", "/v1/models/low/predict"])
    def test_its_own_client(self, server: Running, runs: dict[str, Path], path: str) -> None:
        client = InferenceClient(model=f"http://127.0.0.1:{server.port}{path}")
        found = client.text_classification("the film was good")
        (known,) = expected(runs["low"], ["the film was good"])
        assert close({one.label: one.score for one in found}, known)
        assert len(client.text_classification("a bank", top_k=1)) == 1

    def test_many_inputs(self, server: Running) -> None:
        body = {"inputs": ["oil", "a film"], "truncate": True}
        got = server.ask("POST", "/predict", body).json
        assert [len(row) for row in got] == [3, 3]
        assert {*got[0][0]} == {"label", "score"}

    def test_scores_that_are_no_probabilities_are_refused(self, server: Running) -> None:
        for more in ({"raw_scores": True}, {"parameters": {"function_to_apply": "sigmoid"}}):
            assert server.ask("POST", "/predict", {"inputs": "oil", **more}).status == 422


class TestSharedEncoders:
    def test_bundles_share_the_encoder_cut_at_the_highest_layer(
        self, server: Running, runs: dict[str, Path]
    ) -> None:
        models = server.server.models
        lows, highs = (models[name].encoders for name in ("low", "high"))
        assert [[*own.values()] for own in lows] == [[*own.values()] for own in highs]
        (low,), (beside,) = (own.values() for own in lows)
        assert low is not beside
        assert beside.highest_layer == 3
        assert low.highest_layer == 3
        (alone,) = load_models({"low": runs["low"]}, {}, "cpu", SILENT)["low"].encoders[0].values()
        assert alone.highest_layer == 1

    def test_a_text_is_read_once_for_all(
        self, server: Running, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes: list[tuple[int, object]] = []
        real = FrozenEncoder.launch

        def launch(self: FrozenEncoder, ids: Any, layers: Any, poolings: Any) -> Any:
            passes.append((len(ids), tuple(layers)))
            return real(self, ids, layers, poolings)

        monkeypatch.setattr(FrozenEncoder, "launch", launch)
        low, high = (server.server.models[name] for name in ("low", "high"))
        texts = ("oil", "a film", "oil")
        found = registry.predict([(low, texts), (high, texts), (low, ("oil",))])
        assert passes == [(2, (1, 3))]
        for answer, name in zip(found, ("low", "high"), strict=False):
            for row, known in zip(answer, expected(runs[name], texts), strict=True):
                assert close(dict(row.ranked), known)
        passes.clear()
        registry.predict([(low, ("oil",))])
        assert passes == [(1, (1,))], "no higher than these requests need"

    def test_names(self, runs: dict[str, Path]) -> None:
        folder = str(runs["low"])
        assert named_runs([folder, f"b={folder}"]) == {"low": runs["low"], "b": runs["low"]}
        for bad in ([folder, folder], [f"a/b={folder}"], [f"={folder}"]):
            with pytest.raises(ConfigError, match="NAME="):
                named_runs(bad)

    def test_a_path_with_an_equals_sign(self, tmp_path: Path) -> None:
        place, url = tmp_path / "lr=0.1", "memory://runs/lr=0.1"
        with pytest.raises(ConfigError, match=r"lr=0\.1 does not exist.+Correct the path"):
            named_runs([str(place)])
        place.mkdir()
        assert named_runs([str(place), f"a={place}"]) == {"lr=0.1": place, "a": place}
        assert named_runs([url, f"a={url}"]) == {"lr=0.1": url, "a": url}

    def test_a_damaged_report_costs_only_its_figures(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        shutil.copytree(runs["low"], tmp_path / "low")
        (tmp_path / "low" / "report.json").write_text("{}")
        notes = Notes()
        served = load_models({"low": tmp_path / "low"}, {}, "cpu", notes)["low"]
        assert served.info.cost is None
        assert served.info.cv is not None
        assert notes.about("report.json")


def counters(running: Running) -> dict[str, float]:
    text = running.ask("GET", "/metrics").body.decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


class TestLimits:
    def test_a_full_queue_refuses_and_the_others_are_answered(
        self, small: Running, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        n = 4 + registry.N_WORKERS
        with ThreadPoolExecutor(n) as threads, blocked(monkeypatch) as let_go:
            asked = [threads.submit(small.predict, "oil") for _ in range(n)]
            wait_for(lambda: counters(small)["layerfuse_queue_texts"] == 4)
            refused = small.predict("oil")
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert small.ask("GET", "/health/ready").status == 503
            let_go()
            (known,) = expected(runs["low"], ["oil"])
            assert all(close(one.result().proba[0], known) for one in asked)
        assert small.ask("GET", "/health/ready").status == 200
        assert counters(small)["layerfuse_queue_texts"] == 0

    @pytest.mark.slow
    def test_the_deadline(self, small: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        with blocked(monkeypatch):
            started = time.perf_counter()
            assert small.predict("oil").status == 504
            assert 1.9 < time.perf_counter() - started < 5
        assert small.predict("oil").status == 200

    @pytest.mark.slow
    def test_a_body_that_never_ends(self, small: Running) -> None:
        with socket.create_connection(("127.0.0.1", small.port)) as slow:
            head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            slow.sendall(head + b"Content-Length: 50\r\n\r\n{")
            assert b" 504 " in slow.recv(1000)

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"texts": ["oil"] * 5}, 413),
            ({"texts": "o" * 51}, 413),
            ({"texts": ["oil"], "top_k": 0}, 422),
            ({"texts": []}, 422),
            ({"texts": [""]}, 200),
            ({"texts": ["x" * 50], "other": 1}, 422),
            (b" " * 1001, 413),
        ],
        ids=str,
    )
    def test_sizes(self, small: Running, body: object, status: int) -> None:
        got = small.ask("POST", "/predict", body)
        assert got.status == status, got.body
        assert status == 200 or got.json["detail"]

    @pytest.mark.parametrize(
        ("body", "says", "other"),
        [
            ({"text": "oil"}, "texts: Field required", "inputs:"),
            ({"texts": ["oil"], "top_k": 0}, "top_k: ", "inputs"),
            ({"inputs": 5}, "inputs", "texts"),
            (b"{", "Invalid JSON", "Request"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_said_of_the_form_that_was_meant(
        self, small: Running, body: object, says: str, other: str
    ) -> None:
        detail = small.ask("POST", "/predict", body).json["detail"]
        assert says in detail
        assert other not in detail
        assert not detail.startswith(":")

    def test_a_body_in_chunks(self, small: Running) -> None:
        with socket.create_connection(("127.0.0.1", small.port)) as sent:
            head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            chunk = b"200\r\n" + b" " * 512 + b"\r\n"
            sent.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + 4 * chunk)
            assert b" 413 " in sent.recv(1000)

    def test_what_is_not_there(self, small: Running) -> None:
        assert small.predict("oil", "no-such").status == 404
        assert small.ask("GET", "/v2").status == 404
        assert small.ask("GET", "/predict").status == 405

    def test_a_request_that_fails_spoils_no_other(
        self, small: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = registry.predict

        def fragile(requests: Any, worker: int) -> Any:
            if any("awful" in texts for _, texts in requests):
                raise MemoryError
            return real(requests, worker)

        monkeypatch.setattr(batcher, "predict", fragile)
        with ThreadPoolExecutor(6) as threads:
            texts = ["oil", "awful", "bank", "awful"]
            found = [one.status for one in threads.map(small.predict, texts)]
        assert found == [200, 500, 200, 500]


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda own: (
        st.lists(own, max_size=3)
        | st.dictionaries(
            st.sampled_from(["texts", "inputs", "top_k", "parameters", "\ud800"])
            | st.text(max_size=5),
            own,
            max_size=3,
        )
    ),
    max_leaves=8,
)
_VALID = json.dumps({"texts": ["oil \ud800 price"], "top_k": 1}).encode()


class TestMalformed:
    @pytest.mark.slow
    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        body=st.binary(max_size=40)
        | _JSON.map(lambda value: json.dumps(value).encode())
        | st.dictionaries(st.sampled_from(["texts", "inputs"]), _JSON, min_size=1).map(
            lambda value: json.dumps(value).encode()
        )
        | st.tuples(st.integers(0, len(_VALID)), st.binary(max_size=3)).map(
            lambda cut: _VALID[: cut[0]] + cut[1] + _VALID[cut[0] + 1 :]
        ),
        path=st.sampled_from(["/predict", "/v1/models/low/predict", "/predict?model=%FF"]),
        kind=st.sampled_from(["application/json", "text/plain", "application/json; charset=x", ""]),
    )
    def test_no_body_is_an_internal_error(
        self, server: Running, body: bytes, path: str, kind: str
    ) -> None:
        got = server.ask("POST", path, body, Content_Type=kind)
        assert got.status < 500, (body, got.body)
        assert got.status == 200 or got.json["detail"]

    def test_each_malformed_body_is_refused(self, server: Running) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for kind, body in malformed_bodies(600):
            content = body.encode("latin-1")
            got = _send(connection, "POST", "/predict", content, Content_Type=kind)
            assert got.status == (422 if kind == "application/json" else 415), (kind, body)
            assert got.json["detail"]
        connection.close()

    @pytest.mark.slow
    def test_the_openapi_document_is_kept(self, server: Running, tmp_path: Path) -> None:
        url = f"http://127.0.0.1:{server.port}/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--max-examples", "15"]
        command += ["--checks", "not_a_server_error", "--seed", "1", "--phases", "examples,fuzzing"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


class TestTokenAndReload:
    def test_the_token(self, runs: dict[str, Path]) -> None:
        with serving([runs["low"]], token="secret ü") as running:
            right = {"Authorization": "Bearer secret ü".encode().decode("latin-1")}
            for path in ("/predict", "/v1/models", "/metrics", "/v1/reload", "/openapi.json"):
                for headers in (
                    {},
                    {"Authorization": "Bearer secret"},
                    {"Authorization": "secret"},
                ):
                    got = running.ask("POST", path, {"texts": "oil"}, **headers)
                    assert got.status == 401
            assert running.ask("POST", "/predict", {"texts": "oil"}, **right).status == 200
            for path in ("/", "/health/live", "/health/ready"):
                assert running.ask("GET", path).status == 200
            assert running.ask("POST", "/", {"inputs": "oil"}).status == 401

    def test_no_reload_without_a_token(self, server: Running) -> None:
        assert server.ask("POST", "/v1/reload").status == 403

    def test_a_signal_to_reload_without_memory_for_it(
        self, runs: dict[str, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        named = (str(runs["low"]),)

        def load_once(known: Any) -> Any:
            if known:
                raise RuntimeError("CUDA out of memory")
            return load_models(named_runs(named), {}, "cpu", SILENT, known)

        served = make_app(Server(ServeConfig(named, port=0), load_once))
        process = uvicorn.Server(uvicorn.Config(served, port=0, log_config=None))

        async def reload_and_ask() -> Got:
            running = asyncio.create_task(process.serve())
            await asyncio.to_thread(wait_for, lambda: process.started)
            assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGHUP)
            await asyncio.to_thread(wait_for, lambda: "reload failed" in caplog.messages)
            port = process.servers[0].sockets[0].getsockname()[1]
            got = await asyncio.to_thread(ask, port, "POST", "/predict", {"texts": "oil"})
            process.should_exit = True
            await running
            return got

        (row,) = asyncio.run(reload_and_ask()).proba
        assert close(row, expected(runs["low"], ["oil"])[0])
        (record,) = [record for record in caplog.records if record.message == "reload failed"]
        line = json.loads(JsonLines().format(record))
        assert (line["level"], line["error"]) == ("error", "RuntimeError: CUDA out of memory")
        assert "load_once" in line["traceback"]

    @pytest.mark.slow
    def test_a_reload_that_outlasts_its_request(
        self,
        runs: dict[str, Path],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It goes on, nobody waits for it meanwhile, and the log says how it ended."""
        done, token = threading.Event(), {"Authorization": "Bearer secret"}
        with serving([runs["low"]], token="secret", deadline=4.0) as running:
            server, before = running.server, running.server.models
            load = server._load
            monkeypatch.setattr(server, "_load", lambda known: done.wait(20) and load(known))
            assert running.ask("POST", "/v1/reload", **token).status == 504
            assert running.ask("POST", "/predict", {"texts": "oil"}, **token).status == 200
            assert server.models is before
            done.set()
            wait_for(lambda: server.models is not before)
            done.clear()

            def fail(known: Any) -> Any:
                raise RuntimeError(f"no memory for {len(known)}" * done.wait(20))

            monkeypatch.setattr(server, "_load", fail)
            assert running.ask("POST", "/v1/reload", **token).status == 504
            done.set()
            wait_for(lambda: "reload failed" in caplog.messages)
            assert running.ask("POST", "/predict", {"texts": "oil"}, **token).status == 200

    @pytest.mark.slow
    def test_a_reload_drops_nothing(self, runs: dict[str, Path], tmp_path: Path) -> None:
        place, text = tmp_path / "model", "the market was bad"
        shutil.copytree(runs["low"] / "bundle", place)
        (old,), (new,) = (expected(runs[name], [text]) for name in ("low", "high"))
        right = {"Authorization": "Bearer secret"}
        body = {"texts": text}
        with serving([place], token="secret") as running, ThreadPoolExecutor(4) as threads:
            found, stop = [], threading.Event()

            def repeat() -> None:
                while not stop.is_set():
                    found.append(running.ask("POST", "/predict", body, **right))

            asking = [threads.submit(repeat) for _ in range(4)]
            wait_for(lambda: len(found) > 20)
            (place / "bundle.json").write_text("{}")
            broken = running.ask("POST", "/v1/reload", **right)
            assert broken.status == 409
            assert "bundle.json" in broken.json["detail"]
            shutil.rmtree(place)
            shutil.copytree(runs["high"], place)
            assert running.ask("POST", "/v1/reload", **right).status == 204
            then = len(found) + 8
            wait_for(lambda: len(found) > then + 20)
            stop.set()
            for one in asking:
                one.result()
        assert {one.status for one in found} == {200}
        assert all(close(one.proba[0], old) or close(one.proba[0], new) for one in found)
        assert close(found[0].proba[0], old)
        assert all(close(one.proba[0], new) for one in found[then:])


@contextmanager
def command(run: Path, folder: Path) -> Iterator[tuple[int, Child]]:
    """``layerfuse serve`` and its port; it is ended, and ``log`` in the folder has its output."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with (
        (folder / "log").open("w", buffering=1) as log,
        start("serve", run, "--port", port, cwd=folder) as process,
    ):
        reader = threading.Thread(target=lambda: log.writelines(process.stdout or ()))
        reader.start()

        def listens() -> bool:
            assert process.poll() is None, process.stderr and process.stderr.read()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_for(listens, 60)
            yield port, process
        finally:
            process.terminate()
            process.wait(30)
            reader.join(30)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


class TestProcess:
    """The command itself: signals and the log."""

    @pytest.mark.slow
    def test_sigterm_under_load_loses_no_accepted_request(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        with command(runs["low"], tmp_path) as (port, process):
            answered: list[str] = []
            (known,) = expected(runs["low"], ["secret oil"])

            def repeat() -> None:
                while True:
                    try:
                        got = ask(port, "POST", "/predict", {"texts": "secret oil"})
                    except OSError:  # not accepted any more
                        return
                    assert got.status == 200
                    assert close(got.proba[0], known)
                    answered.append(got.headers["x-request-id"])

            with ThreadPoolExecutor(8) as threads:
                asking = [threads.submit(repeat) for _ in range(8)]
                wait_for(lambda: len(answered) > 50)
                process.send_signal(signal.SIGHUP)
                wait_for(lambda: len(answered) > 300, 30)
                process.send_signal(signal.SIGTERM)
                for one in asking:
                    one.result(60)
        lines = logged(tmp_path)
        assert any(line["event"] == "reloaded" for line in lines)
        requests = [line for line in lines if line["event"] == "request"]
        assert {line["status"] for line in requests} == {200}
        assert sorted(line["id"] for line in requests) == sorted(answered)
        assert {(line["model"], line["n_texts"]) for line in requests} == {("low", 1)}
        assert "secret" not in (tmp_path / "log").read_text()

    @pytest.mark.slow
    def test_the_token_of_a_secret_that_ends_with_a_line_break(
        self, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAYERFUSE_TOKEN", " secret\n")
        with command(runs["low"], tmp_path) as (port, _):
            for given, status in (("Bearer secret", 200), ("Bearer ", 401), ("Bearer", 401)):
                got = ask(port, "GET", "/v1/models", Authorization=given)
                assert got.status == status, given

    def test_refused_before_the_models_are_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:  # which is said of what is accepted
            to_serve = ("serve", tmp_path, "--port", taken.getsockname()[1])
            assert "cannot listen" in run(*to_serve, "--deadline", 86_400).err
            for deadline in ("inf", "nan", 86_401):
                done = run(*to_serve, "--deadline", deadline)
                assert (done.code, "--deadline. Must be" in done.err) == (2, True), deadline
            for token in ("", " \n"):
                monkeypatch.setenv("LAYERFUSE_TOKEN", token)
                done = run(*to_serve)
                assert (done.code, "LAYERFUSE_TOKEN is set, but empty" in done.err) == (2, True)

    @pytest.mark.slow
    def test_mistakes_end_with_2_before_anything_is_served(self, runs: dict[str, Path]) -> None:
        assert run("serve", "nowhere").code == 2
        assert run("serve", runs["low"], "-e", "tert=x").code == 2
        done = run("serve", runs["low"], "--max-texts", 9, "--max-queue", 8)
        assert done.code == 2
        assert "--max-queue" in done.err


@pytest.mark.browser
class TestPage:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_texts_are_classified(
        self, browser: Browser, runs: dict[str, Path], hostile: Path, tmp_path: Path, scheme: str
    ) -> None:
        with serving([runs["low"], hostile], max_texts=3) as running:
            url = f"http://127.0.0.1:{running.port}/"
            opened = open_page(browser, url, scheme=scheme, width=390, drawn=False)
            page = opened.page
            page.locator("html[data-ready]").wait_for(state="attached")
            expect(page.locator("#about")).to_contain_text("bert 1 (of 0 to 3)")
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
            page.keyboard.type(f"a good film\n{HOSTILE}")
            page.keyboard.press("Control+Enter")
            results = page.locator("#results > li")
            expect(results).to_have_count(2)
            assert results.nth(1).locator(".text").inner_text() == HOSTILE
            (known,) = expected(runs["low"], ["a good film"])
            best = max(known, key=lambda label: known[label])
            first = results.first.locator(".label").inner_text()
            assert first.startswith(f"{best} {100 * known[best]:.1f}%")
            assert results.first.locator("meter").count() == 3
            assert re.search(r"2 of 2 texts in [\d.]+ ms", page.locator("#status").inner_text())
            page.select_option("#model", hostile.name)
            lines = "".join(f'{n},"{text}, ""x"""\n' for n, text in enumerate(["oil"] * 7))
            (tmp_path / "texts.csv").write_text(f"id,text\n{lines}")
            page.set_input_files("#file", tmp_path / "texts.csv")
            expect(results).to_have_count(7)
            assert results.first.locator(".text").inner_text() == 'oil, "x"'
            assert HOSTILE in results.first.inner_text()
            with page.expect_download() as saved:
                page.click("#save")
            assert Path(saved.value.path()).read_bytes().startswith(b"text,label,probability\r\n")
            assert faults(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert page.evaluate("window.broken") is None
            assert opened.said == []
            assert opened.asked == []

    def test_the_texts_of_a_file(
        self, browser: Browser, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        read = {
            "id;text\n1;oil, gas\n2;a bank\n": ["oil, gas", "a bank"],
            "id\tBody\n1\tgood; bad\n": ["good; bad"],
            'id|Text \r\n1|"a ""b"" c"\r\n': ['a "b" c'],
            '"a;b;c",text\n1,trade\n': ["trade"],
            "body,text\n1,both\n": ["both"],
            "Review\noil, gas\na; b\n": ["oil, gas", "a; b"],
            '\n"the, film"\n\noil, gas': ["the, film", "oil, gas"],
            **{f"id,{name.upper()}\n7,a {name}\n": [f"a {name}"] for name in TEXT_NAMES},
        }
        with serving([runs["low"]]) as running:
            page = open_page(browser, f"http://127.0.0.1:{running.port}/", drawn=False).page
            page.locator("html[data-ready]").wait_for(state="attached")
            found, wrong = page.locator("#results .text"), page.locator("#error")
            for refused in ("id,note\n7,oil\n", "id;note\n7;oil\n"):
                (tmp_path / "texts.csv").write_text(refused)
                page.set_input_files("#file", tmp_path / "texts.csv")
                expect(wrong).to_contain_text("“id”, “note”. Which has the texts? Rename it to")
                expect(found).to_have_count(0)
                page.set_input_files("#file", [])
            for number, (content, texts) in enumerate(read.items()):
                (tmp_path / f"{number}.csv").write_text(content, newline="")
                page.set_input_files("#file", tmp_path / f"{number}.csv")
                expect(found).to_have_text(texts)
                expect(wrong).to_be_hidden()

    def test_a_token_is_asked_for(self, browser: Browser, runs: dict[str, Path]) -> None:
        with serving([runs["low"]], token="secret") as running:
            url = f"http://127.0.0.1:{running.port}/"
            page = open_page(browser, url, drawn=False).page
            page.locator("#token").fill("secret")
            page.keyboard.press("Enter")
            page.locator("html[data-ready]").wait_for(state="attached")
            expect(page.locator("#error")).to_be_hidden()
