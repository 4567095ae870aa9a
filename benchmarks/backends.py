"""All layers by layerfuse against the last layer by faster settings of peers.

They are sentence-transformers' ONNX and OpenVINO backends, also in int8, FastEmbed, and model2vec's
static embeddings.

Their packages exclude ours, so each setting runs in a process of another environment; its Python is
named by ``LAYERFUSE_PEERS_PYTHON`` (benchmarks/README.md says what to install). All read the same
model files, texts and at most as many tokens; times alternate. Accuracy is that of one head (ridge,
its penalty by leave-one-out) on ``_TRAIN`` training rows, for peers on their embeddings and for us
on the fused layers that these rows choose. A run goes on where an
interrupted one was; without results/backends.json it starts anew.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeClassifierCV

from benchmarks import backends_worker
from benchmarks.common import alternate, measured, save
from layerfuse import (
    FrozenEncoder,
    LayerFusionClassifier,
    LayerFusionTransformer,
    extract,
    load_dataset,
)
from layerfuse.data import Split
from layerfuse.encoders.int8 import computes_int8
from layerfuse.errors import LayerfuseError, LayerfuseWarning

_TIMED = {"mr": 300, "r8": 60}
_TRAIN = _TEST = 1_000
_ENCODERS = ("minilm", "mpnet")
OURS = "layerfuse, all layers"
PYTHON = "LAYERFUSE_PEERS_PYTHON"
SETTINGS = (
    *("torch float32", "torch bfloat16", "onnx float32", "onnx int8"),
    *("openvino float32", "openvino bfloat16", "openvino int8", "fastembed", "model2vec"),
)

Floats = npt.NDArray[np.float32]


class Peer:
    """A setting in a process of its own."""

    def __init__(self, setting: str, encoder: FrozenEncoder, calibration: Path):
        worker = [os.environ[PYTHON], "-P", backends_worker.__file__, setting, str(encoder.path)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [*worker, str(calibration)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions: dict[str, str] = self._answer()

    def read(self, texts: Sequence[str], save: Path | None = None) -> None:
        """Embed texts; where a file is named, into it."""
        assert self._process.stdin is not None
        task = {"texts": list(texts), "save": save and str(save)}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        if self._answer() != len(texts):
            raise RuntimeError(f"{self._process.args} lost texts")

    def embeddings(self, texts: Sequence[str]) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.npy"
            self.read(texts, path)
            return np.load(path)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run() -> list[dict[str, Any]]:
    if PYTHON not in os.environ:
        raise SystemExit(f"{PYTHON} has to name the Python of an environment with the peers.")
    results = {(one["dataset"], one["encoder"]): one for one in measured("backends")}
    for dataset, timed in _TIMED.items():
        try:
            data = load_dataset(dataset)
        except LayerfuseError as error:
            print(f"{dataset} is left out: {error}")
            continue
        train, test = data.subsample(_TRAIN, 0).train, _some(data.splits["test"], _TEST)
        for name in _ENCODERS:
            known = results.get((dataset, name))
            for result in _measure(name, timed, train, test, known):
                results[dataset, name] = {"dataset": dataset, **result}
                save("backends", list(results.values()))  # kept if the rest is interrupted
    return list(results.values())


def _some(split: Split, n: int) -> Split:
    """Every k-th row."""
    return split.take(np.arange(len(split))[:: max(1, len(split) // n)][:n])


def _measure(
    name: str, timed: int, train: Split, test: Split, known: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """The times, then with the accuracies, which take longer; what is ``known`` is not repeated."""
    if known is not None and "accuracy" in known["rows"][-1]:
        return
    dtypes = {OURS: "auto", **({f"{OURS}, int8": "int8"} if computes_int8() else {})}
    encoders = {
        setting: FrozenEncoder.from_pretrained(
            name, max_length=backends_worker.MAX_LENGTH, dtype=dtype
        )
        for setting, dtype in dtypes.items()
    }
    texts = test.texts[:: max(1, len(test) // timed)][:timed]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        calibration = folder / "calibration.json"
        calibration.write_text(json.dumps(list(train.texts[:300])), encoding="utf-8")
        peers = {}
        for setting in SETTINGS:
            peers[setting] = Peer(setting, encoders[OURS], calibration)
            stack.callback(peers[setting].close)
        ways: dict[str, Callable[[], Any]] = {
            **{setting: (lambda own=own: extract(texts, own)) for setting, own in encoders.items()},
            **{setting: (lambda peer=peer: peer.read(texts)) for setting, peer in peers.items()},
        }
        result = known or {
            "encoder": name,
            "dtype": encoders[OURS].dtype,
            "texts": len(texts),
            "train_rows": len(train),
            "test_rows": len(test),
            "peer_versions": peers["torch float32"].versions,
            "rows": _timed_rows(alternate(ways)),
        }
        yield result
        fused = {
            setting: LayerFusionTransformer(LayerFusionClassifier([own], head="ridge", cv=2))
            for setting, own in encoders.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LayerfuseWarning)
            for transformer in fused.values():
                transformer.fit(train.texts, train.labels)
        found: dict[str, Callable[[Sequence[str]], Floats]] = {
            **{setting: transformer.transform for setting, transformer in fused.items()},
            **{setting: peer.embeddings for setting, peer in peers.items()},
        }
        for row in result["rows"]:
            if "accuracy" in row:
                continue
            read = found[row["setting"]]
            head = RidgeClassifierCV(np.logspace(-3, 4, 15)).fit(read(train.texts), train.labels)
            row["accuracy"] = float(head.score(read(test.texts), test.labels))
            print(name, row, flush=True)
            yield result
        yield result | {
            "blocks": {
                setting: [str(block) for block in transformer.classifier_.plan_.blocks]
                for setting, transformer in fused.items()
            }
        }


def _timed_rows(times: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    return [
        {
            "setting": setting,
            "seconds": seconds,
            "median_s": statistics.median(seconds),
            "ours_to_it": statistics.median(
                a / b for a, b in zip(times[OURS], seconds, strict=True)
            ),
        }
        for setting, seconds in times.items()
    ]
