"""Exports predict what the pipeline predicts, or are refused; what is pushed holds no texts."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import layerfuse
from commandline import rows, run, succeed, write_csv
from families import TinyModels
from helpers import planted, sentences
from layerfuse import BlockRef, FrozenEncoder
from layerfuse.calibration import Calibrator, PlattCalibrator, TemperatureCalibrator
from layerfuse.cli_options import EXPORT_FORMATS
from layerfuse.embeddings.extraction import extract_blocks
from layerfuse.errors import ConfigError, StorageError, UnsupportedModelError
from layerfuse.export import FORMATS, write_export
from layerfuse.export.onnx import fuse_function, head_function
from layerfuse.export.protocol import TOLERANCE, Source
from layerfuse.fusion import FUSIONS, fit_fusion
from layerfuse.heads import HEADS, fit_head
from layerfuse.pipeline import FusedModel, Plan, train
from layerfuse.probing import PrincipalAxes
from layerfuse.targets import MultilabelSpace, Targets

TEXTS, LABELS = planted(60)
OTHERS = [*planted(20, seed=1)[0], *sentences(10, seed=2, longest=50), ""]
TARGETS = Targets.from_labels(LABELS)
SETS = Targets.from_labels(
    [[str(label), *(["odd"] * (row % 2))][row % 3 == 0 :] for row, label in enumerate(LABELS)]
)
MAX_LENGTH = 30  # some of the texts are longer
ST, ONNX = FORMATS["sentence-transformers"], FORMATS["onnx"]
COMMON = ("bert", "roberta", "mpnet", "t5", "llama", "qwen2")
OTHER = ("deberta-v2", "modernbert", "distilbert", "gemma3", "gpt2", "gpt-neox", "falcon")
FAMILIES = [*COMMON, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER)]


@pytest.fixture(autouse=True)
def _extras(request: pytest.FixtureRequest) -> None:
    if "onnx" in request.node.name:
        for module in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(module)


def trained(
    tiny: TinyModels, *names: str, fusion: str = "concat", head: str = "ridge",
    prompt: str | None = None, targets: Targets = TARGETS,
) -> Source:  # fmt: skip
    """A pipeline on blocks of tiny models that are named by their family."""
    blocks = tuple(map(BlockRef.parse, names))
    encoders = tuple(
        FrozenEncoder.from_pretrained(
            tiny(name), name=name, prompt=prompt, max_length=MAX_LENGTH, device="cpu",
            dtype="float32",
        )
        for name in dict.fromkeys(block.encoder for block in blocks)
    )  # fmt: skip
    found = extract_blocks(TEXTS, encoders, blocks, None)
    axes = tuple(PrincipalAxes.fit(found[block])[0] for block in blocks)
    coordinates = {b: own.transform(found[b]) for b, own in zip(blocks, axes, strict=True)}
    model = train(Plan(blocks, fusion, head), coordinates, targets)
    calibrator: Calibrator = TemperatureCalibrator(0.7)
    space = targets.space
    if isinstance(space, MultilabelSpace):
        slopes, intercepts = np.linspace(1, 3, space.n_outputs), np.linspace(-1, 1, space.n_outputs)
        calibrator = PlattCalibrator(tuple(slopes), tuple(intercepts))
        space = replace(space, thresholds=space.link(0.4 * slopes + intercepts))
    return Source(FusedModel(axes, model, calibrator, space), encoders)


def exported(source: Source, name: str, out: Path) -> float:
    """The largest difference in a probability."""
    return write_export(source, FORMATS[name], out, OTHERS).difference


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_options_are_the_formats() -> None:
    assert list(FORMATS) == list(EXPORT_FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_predicts_the_same(tiny: TinyModels, tmp_path: Path, family: str) -> None:
    source = trained(tiny, f"{family}:1:max", f"{family}:2:mean", f"{family}:3:last")
    assert exported(source, "onnx", tmp_path / "out") < TOLERANCE


@pytest.mark.slow
def test_onnx_of_two_encoders_with_a_prompt_around_the_text(
    tiny: TinyModels, tmp_path: Path
) -> None:
    names = ("bert:1:cls", "bert:0:mean_no_sink", "llama:2:weighted_mean")
    prompt = "the film {text} was good"
    source = trained(tiny, *names, fusion="tensor+residual", prompt=prompt)
    assert exported(source, "onnx", tmp_path / "out") < TOLERANCE
    assert [e["file"] for e in read(tmp_path / "out" / "settings.json")["encoders"]] == [
        "tokenizer.json",
        "tokenizer_1.json",
    ]


@pytest.mark.slow
def test_onnx_runner_needs_no_other_package(tiny: TinyModels, tmp_path: Path) -> None:
    source = trained(tiny, "bert:1:mean")
    exported(source, "onnx", tmp_path / "out")
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in ("torch", "layerfuse"))
    path = str(tmp_path / "out" / "run.py")
    code = f"import sys, runpy; {blocked}runpy.run_path({path!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(OTHERS[:5]), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    proba = source.expected(OTHERS[:5])
    assert [label for label, _ in lines] == TARGETS.space.classes[proba.argmax(axis=1)].tolist()
    np.testing.assert_allclose([float(p) for _, p in lines], proba.max(axis=1), atol=1e-4)


@pytest.mark.slow
def test_onnx_runner_labels_each_line_of_its_input(tiny: TinyModels, tmp_path: Path) -> None:
    source = trained(tiny, "bert:1:mean")
    exported(source, "onnx", tmp_path / "out")
    texts = ["good\x0cbad", "great\u2028bad\x85film", "", "a film\x1ebad"]
    proba = [f"{row.max():.4f}" for row in source.expected(texts)]
    for ending in ("\n", "\r\n"):
        done = subprocess.run(
            [sys.executable, tmp_path / "out" / "run.py"],
            input="".join(text + ending for text in texts).encode(), capture_output=True,
            check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        assert [line.split("\t")[1] for line in done.stdout.decode().splitlines()] == proba


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ridge", "logistic", "kernel"])
def test_onnx_of_several_labels_decides_the_same(
    tiny: TinyModels, tmp_path: Path, head: str
) -> None:
    source = trained(tiny, "bert:1:mean", "bert:2:max", head=head, targets=SETS)
    assert exported(source, "onnx", tmp_path / "out") < TOLERANCE
    texts = [text for text in OTHERS if text]
    done = subprocess.run(
        [sys.executable, tmp_path / "out" / "run.py"], input="\n".join(texts),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    space, proba = source.model.space, source.expected(texts)
    assert read(tmp_path / "out" / "settings.json")["thresholds"] == space.limits.tolist()
    lines = [tuple(line.split("\t")[::2]) if line else () for line in done.stdout.splitlines()]
    assert lines == space.names(space.decide(proba))
    assert {len(line) for line in lines} >= {1, 2}  # there is something to tell apart


@pytest.mark.slow
def test_onnx_refuses_what_has_no_operation(tiny: TinyModels, tmp_path: Path) -> None:
    """ALiBi of Falcon is computed with powers that become complex numbers."""
    with pytest.raises(UnsupportedModelError, match="Nothing was written"):
        exported(trained(tiny, "falcon-alibi:1:mean"), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_onnx_int8_is_smaller_and_close(tiny: TinyModels, tmp_path: Path) -> None:
    source = trained(tiny, "bert:3:mean")
    plain = write_export(source, ONNX, tmp_path / "plain", OTHERS)
    small = write_export(source, ONNX, tmp_path / "small", OTHERS, int8=True)
    assert small.int8 is not None
    assert 0 < np.abs(small.int8 - plain.found).max() < 0.1
    size = [(tmp_path / name / "model.onnx").stat().st_size for name in ("plain", "small")]
    assert size[1] < size[0]


def coordinates(n: int, seed: int) -> list[npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    blocks = [rng.standard_normal((n, dim), dtype=np.float32) / dim**0.5 for dim in (20, 18, 16)]
    return [np.asarray(block, dtype=np.float32) for block in blocks]


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("k", [1, 3])
def test_a_fusion_is_the_same_in_pytorch(name: str, k: int) -> None:
    fusion = fit_fusion(name, coordinates(len(TEXTS), 0)[:k], TARGETS).fusion
    new = coordinates(9, 1)[:k]
    found = fuse_function(fusion)([torch.from_numpy(block) for block in new])
    np.testing.assert_allclose(found.numpy(), fusion.transform(new), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_the_same_in_pytorch(name: str) -> None:
    head = fit_head(name, coordinates(len(TEXTS), 0)[0], TARGETS, 0.1)
    (new, *_) = coordinates(9, 1)
    found = head_function(head)(torch.from_numpy(new))
    np.testing.assert_allclose(found.numpy(), head.logits(new), atol=1e-5)


def test_a_fusion_without_a_form_in_pytorch_is_refused_by_name() -> None:
    class Other:
        name = "other"

        def transform(self, blocks: Sequence[Any]) -> Any:
            return blocks[0]

        def arrays(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ConfigError, match="'other'"):
        fuse_function(Other())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentence_transformers_folder_gives_a_layer(
    tiny: TinyModels, tmp_path: Path, family: str
) -> None:
    out = tmp_path / "out"
    texts = [text for text in OTHERS if text]
    source = trained(tiny, f"{family}:2:mean")
    assert write_export(source, ST, out, texts).difference < TOLERANCE
    config = read(out / "config.json")
    (n_layers,) = {config[key] for key in ("num_hidden_layers", "num_layers", "n_layers", "n_layer") if key in config}  # fmt: skip  # noqa: E501
    has_norm = family not in ("bert", "roberta", "mpnet", "distilbert", "deberta-v2")
    assert n_layers == (3 if has_norm else 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("bert:1:mean", "bert:2:max", "bert:2:cls", "bert:3:last"),
        ("llama:3:last", "llama:1:weighted_mean", "llama:0:mean"),
    ],
)
@pytest.mark.parametrize("fusion", ["concat", "sum+residual"])
def test_stock_modules_add_layers_up(
    tiny: TinyModels, tmp_path: Path, names: tuple[str, ...], fusion: str
) -> None:
    source = trained(tiny, *names, fusion=fusion, prompt="the film {text}")
    texts = [text for text in OTHERS if text]
    assert write_export(source, ST, tmp_path / "out", texts).difference < TOLERANCE


def test_a_text_without_a_token_cannot_be_checked_on(tiny: TinyModels, tmp_path: Path) -> None:
    """sentence-transformers gives nothing for it, or something else in a batch of others."""
    for texts in ([""], ["a film", ""]):
        with pytest.raises(UnsupportedModelError, match=r"no token of an empty text.*--data"):
            write_export(trained(tiny, "qwen2:1:mean"), ST, tmp_path / "out", texts)
    assert list(tmp_path.iterdir()) == []


def test_the_classifier_beside_an_embedding_is_the_head(tiny: TinyModels, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "out"
    source = trained(tiny, "bert:1:mean", "bert:2:mean")
    exported(source, "sentence-transformers", out)
    embedding = SentenceTransformer(str(out), device="cpu").encode(OTHERS)
    head = load_file(out / "classifier.safetensors")
    logits = embedding @ head["weight"].T + head["bias"]
    proba = source.expected(OTHERS)
    np.testing.assert_allclose(TARGETS.space.link(logits), proba, atol=TOLERANCE)
    assert read(out / "classes.json")["classes"] == TARGETS.space.classes.tolist()


def test_the_classifier_beside_an_embedding_knows_several_labels(
    tiny: TinyModels, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "out"
    source = trained(tiny, "bert:1:mean", "bert:2:mean", head="logistic", targets=SETS)
    exported(source, "sentence-transformers", out)
    embedding = SentenceTransformer(str(out), device="cpu").encode(OTHERS)
    head, labels = load_file(out / "classifier.safetensors"), read(out / "classes.json")
    proba = 1 / (1 + np.exp(-(embedding @ head["weight"].T + head["bias"])))
    np.testing.assert_allclose(proba, source.expected(OTHERS), atol=TOLERANCE)
    assert labels["classes"] == SETS.space.classes.tolist()
    assert labels["thresholds"] == source.model.space.limits.tolist()


def test_a_block_alone_has_the_layout_of_other_servers(tiny: TinyModels, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = replace(trained(tiny, "bert:1:mean"), block=BlockRef("bert", 2, "cls"))
    written = write_export(source, ST, out, OTHERS)
    assert written.found.shape == (len(OTHERS), 32)
    assert [module["type"].rpartition(".")[2] for module in read(out / "modules.json")] == [
        "Transformer",
        "Pooling",
    ]
    pooling = read(out / "1_Pooling" / "config.json")
    assert [key for key, value in pooling.items() if value is True] == [
        "pooling_mode_cls_token",
        "include_prompt",
    ]
    assert pooling["word_embedding_dimension"] == 32
    assert read(out / "sentence_bert_config.json")["max_seq_length"] == MAX_LENGTH
    config = read(out / "config.json")
    assert config["architectures"] == ["BertModel"]
    assert {"model_type", "max_position_embeddings", "pad_token_id"} <= set(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (("bert:1:mean", "bert:2:mean"), {"fusion": "tensor"}, "'tensor' is not linear"),
        (("bert:1:mean", "llama:2:mean"), {}, "bert, llama"),
        (("bert:1:mean_no_sink",), {}, "mean_no_sink"),
        (("bert:1:cls", "bert:2:cls"), {}, "one layer"),
        (("bert:1:mean",), {"prompt": "the {text} was"}, "prompt"),
    ],
)
def test_what_stock_modules_cannot_do_is_refused(
    tiny: TinyModels, tmp_path: Path, names: tuple[str, ...], options: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        exported(trained(tiny, *names, **options), "sentence-transformers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Careless:
    """A format that forgets the temperature."""

    def check(self, source: Source) -> None: ...

    def write(self, source: Source, folder: Path) -> None:
        (folder / "file").write_text("something")

    def predict(self, source: Source, folder: Path, texts: Sequence[str]) -> npt.NDArray[Any]:
        model = replace(source.model, calibrator=TemperatureCalibrator(1.0))
        return replace(source, model=model).expected(texts)


def test_an_export_that_differs_is_not_kept(tiny: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="differs from the pipeline"):
        write_export(trained(tiny, "bert:1:mean"), Careless(), tmp_path / "out", OTHERS)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def fitted(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of ``fit`` on a file with test rows; tests must not write into it."""
    folder = tmp_path_factory.mktemp("run")
    data = write_csv(folder / "train.csv", rows(60))
    test = write_csv(folder / "test.csv", rows(30, seed=1))
    succeed(
        "fit", data, "--test", test, "-e", f"tiny={tiny('bert')}", "--out", folder / "run",
        "--explain", "--no-report", "--cv", "2", "--selection", "top_k", "--max-blocks", "2",
        "--fusion", "tensor+residual", "-q",
    )  # fmt: skip
    return folder / "run"


@pytest.mark.slow
def test_the_command_checks_an_onnx_export_on_the_test_rows(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = succeed("export", fitted, "--format", "onnx", "--out", out, "--int8", "--json")
    report = read(fitted / "report.json")
    assert done.json["n_rows"] == 30
    assert done.json["difference"] < TOLERANCE
    assert done.json["accuracy"] == pytest.approx(report["test"]["accuracy"]["value"], abs=0.04)
    assert done.json["dtype_difference"] < 0.1
    assert done.json["int8"]["accuracy_change"] == pytest.approx(
        done.json["int8"]["accuracy"] - done.json["accuracy"]
    )
    assert {file.name for file in out.iterdir()} == {
        "model.onnx", "run.py", "settings.json", "tokenizer.json"
    }  # fmt: skip
    again = run("export", fitted, "--format", "onnx", "--out", out)
    assert again.code == 2
    assert "exists already" in again.err


def test_a_refusal_names_the_best_block_which_can_be_exported(fitted: Path, tmp_path: Path) -> None:
    command = ("export", fitted, "--format", "sentence-transformers", "--out", tmp_path / "out")
    refused = run(*command)
    assert refused.code == 2
    ranking = sorted(read(fitted / "report.json")["profile"]["scores"], key=lambda s: s["loss"])
    best = "tiny:{layer}:{pooling}".format(**ranking[0]["block"])
    assert f"--block {best}" in refused.err
    assert f"accuracy {ranking[0]['accuracy']:.1%}" in refused.err
    texts = write_csv(tmp_path / "texts.csv", [(text, "") for text in OTHERS if text])
    done = succeed(*command, "--block", best, "--data", texts, "--json")
    assert done.json["blocks"] == [ranking[0]["block"]]
    assert done.json["accuracy"] is None
    assert done.json["difference"] < TOLERANCE


def test_labels_to_check_on_are_looked_at_before_the_work(fitted: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "odd.csv", [*rows(6), ("a film", "odd")])
    command = ("export", fitted, "--format", "onnx", "--out", tmp_path / "out", "--data", data)
    unknown = run(*command)
    assert unknown.code == 2
    assert "do not occur in training: odd" in unknown.err
    missing = run(*command, "--label-column", "nosuch")
    assert missing.code == 2
    assert "no column 'nosuch'" in missing.err
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("block", [(), ("--block", "tiny:1:mean")])
def test_an_encoder_with_other_weights_is_refused(
    fitted: Path, tiny: TinyModels, tmp_path: Path, block: tuple[str, ...]
) -> None:
    other = f"tiny={tiny('bert', seed=1)}"
    command = ("--format", "sentence-transformers", "--out", tmp_path / "out", *block)
    done = run("export", fitted, *command, "-e", other)
    assert done.code == 2
    assert "trained with" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_a_card_and_nothing_private(fitted: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    out = tmp_path / "pushed"
    done = succeed("push", fitted, "me/news", "--dry-run", out, "--json")
    assert done.json["url"] is None
    files = ["README.md", "bundle.json", "tensors.safetensors"]
    assert done.json["files"] == files
    report = read(fitted / "report.json")
    card = ModelCard.load(out / "README.md")
    card.validate = None  # asks the Hub
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == round(report["test"]["accuracy"]["value"], 4)
    assert results["f1"].metric_value == round(report["test"]["macro_f1"]["value"], 4)
    assert results["accuracy"].dataset_split == "test"
    assert card.data.library_name == "layerfuse"
    assert report["verdict"]["sentence"] in card.text
    everything = b"".join((out / name).read_bytes() for name in files)
    assert str(fitted.parent).encode() not in everything
    texts = [text.encode() for text, _ in rows(60) + rows(30, seed=1)]
    assert any(text in (fitted / "bundle" / files[2]).read_bytes() for text in texts)  # --explain
    assert not [text for text in texts if text in everything]
    assert "training texts" in done.err


def test_what_is_pushed_can_be_loaded(fitted: Path, tiny: TinyModels, tmp_path: Path) -> None:
    succeed("push", fitted, "me/news", "--dry-run", tmp_path / "pushed", "-q")
    classifier = layerfuse.load(tmp_path / "pushed", encoders={"tiny": tiny("bert")})
    np.testing.assert_array_equal(
        classifier.predict_proba(OTHERS), layerfuse.load(fitted).predict_proba(OTHERS)
    )


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload asks for; files come in the commit itself."""

    received: dict[str, bytes]
    refuses: bool

    def log_message(self, *args: object) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer: dict[str, Any] = {}
        if self.refuses:
            self.send_response(403)
            self.end_headers()
            return
        if self.path.endswith("/repos/create"):
            answer = {"url": f"http://{self.headers['Host']}/me/{json.loads(body)['name']}"}
        elif "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            answer = {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                ]
            }
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                value = json.loads(line)["value"]
                if "content" in value:
                    self.received[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/me/news/commit/1"
            answer = {"commitUrl": url, "commitOid": "1", "success": True}
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({"id": "me/news", "sha": "1", "siblings": []})

    def _answer(self, value: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("OwnHub", (Hub,), {"received": {}, "refuses": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_push_uploads_bundle_and_card(fitted: Path, hub: type[Hub], tmp_path: Path) -> None:
    done = succeed("push", fitted, "me/news", "--json")
    assert sorted(hub.received) == done.json["files"]
    assert hub.received["README.md"].startswith(b"---\n")
    succeed("push", fitted, "me/news", "--dry-run", tmp_path / "pushed")
    assert hub.received["tensors.safetensors"] == (
        (tmp_path / "pushed" / "tensors.safetensors").read_bytes()
    )


@pytest.mark.slow
def test_a_push_that_the_hub_refuses_says_what_to_do(fitted: Path, hub: type[Hub]) -> None:
    hub.refuses = True
    done = run("push", fitted, "me/news")
    assert done.code == 2
    assert "hf auth login" in done.err


def test_a_repository_has_an_owner(fitted: Path) -> None:
    assert "owner/name" in run("push", fitted, "news").err


def test_a_folder_that_exists_is_left_alone(tiny: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        write_export(trained(tiny, "bert:1:mean"), Careless(), tmp_path / "out", OTHERS)
