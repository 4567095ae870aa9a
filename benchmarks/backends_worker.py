"""One setting of a peer, in a process of an environment of its own.

It embeds the texts of each line on standard input, ``{"texts": [...], "save": FILE or null}``, and
answers with their number.

Each setting reads the last layer of a sentence-transformers folder, as its package's documentation
says, with the model's own pooling.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

MAX_LENGTH = 256
BATCH = 32
Encode = Callable[[list[str]], Any]


def _sentence_transformers(folder: Path, **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", **options)
    model.max_seq_length = MAX_LENGTH
    return model


def _encode(model: Any) -> Encode:
    return lambda texts: model.encode(texts, batch_size=BATCH)


def torch_dtype(folder: Path, dtype: str, _: Path, __: list[str]) -> Encode:
    return _encode(_sentence_transformers(folder, model_kwargs={"torch_dtype": dtype}))


def onnx(folder: Path, kind: str, scratch: Path, _: list[str]) -> Encode:
    from sentence_transformers import (
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    model = _sentence_transformers(folder, backend="onnx", model_kwargs={"export": True})
    model.save_pretrained(str(scratch))
    if kind == "int8":
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(scratch))
        name = "model_qint8_avx512_vnni.onnx"
    else:
        export_optimized_onnx_model(model, "O3", str(scratch))
        name = "model_O3.onnx"
    options = {"file_name": f"onnx/{name}", "provider": "CPUExecutionProvider"}
    return _encode(_sentence_transformers(scratch, backend="onnx", model_kwargs=options))


def openvino(folder: Path, kind: str, scratch: Path, texts: list[str]) -> Encode:
    options: dict[str, Any] = {"export": True, "ov_config": {}}
    if kind == "float32":
        options["ov_config"] = {"INFERENCE_PRECISION_HINT": "f32"}
    model = _sentence_transformers(folder, backend="openvino", model_kwargs=options)
    if kind != "int8":
        return _encode(model)
    import nncf
    from openvino import save_model

    inner = model[0].auto_model.model
    names = {name for port in inner.inputs for name in port.get_names()}

    def tokens(text: str) -> dict[str, Any]:
        found = model.tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        return {key: value for key, value in found.items() if key in names}

    quantized = nncf.quantize(
        inner,
        nncf.Dataset(texts, tokens),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(texts),
    )
    model.save_pretrained(str(scratch))
    (path,) = scratch.rglob("openvino_model.xml")
    path.unlink()
    path.with_suffix(".bin").unlink()
    save_model(quantized, path, compress_to_fp16=False)
    return _encode(_sentence_transformers(scratch, backend="openvino"))


def fastembed(folder: Path, _: str, scratch: Path, __: list[str]) -> Encode:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    model = _sentence_transformers(folder, backend="onnx", model_kwargs={"export": True})
    model.save_pretrained(str(scratch))
    TextEmbedding.add_custom_model(
        "own/model",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="own/model"),
        dim=model.get_sentence_embedding_dimension(),
        model_file="onnx/model.onnx",
    )
    own = TextEmbedding("own/model", specific_model_path=str(scratch), local_files_only=True)
    own.model.tokenizer.enable_truncation(MAX_LENGTH)
    return lambda texts: list(own.embed(texts, batch_size=BATCH))


def model2vec(folder: Path, _: str, __: Path, ___: list[str]) -> Encode:
    from model2vec.distill import distill

    model = distill(str(folder), device="cpu")
    return lambda texts: model.encode(texts)


SETTINGS = {
    "torch": ("sentence-transformers", torch_dtype),
    "onnx": ("sentence-transformers", onnx),
    "openvino": ("sentence-transformers", openvino),
    "fastembed": ("fastembed", fastembed),
    "model2vec": ("model2vec", model2vec),
}
PACKAGES = (
    *("sentence-transformers", "transformers", "torch", "onnxruntime", "openvino", "fastembed"),
    "model2vec",
)


def main(setting: str, folder: str, calibration: str) -> None:
    import numpy as np

    answers, sys.stdout = sys.stdout, sys.stderr
    name, _, kind = setting.partition(" ")
    with tempfile.TemporaryDirectory() as scratch:
        texts = json.loads(Path(calibration).read_text(encoding="utf-8"))
        encode = SETTINGS[name][1](Path(folder), kind, Path(scratch), texts)
        print(json.dumps({name: version(name) for name in PACKAGES}), file=answers, flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            found = encode(task["texts"])
            if task["save"]:
                np.save(task["save"], np.asarray(found, dtype=np.float32))
            print(len(found), file=answers, flush=True)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(*sys.argv[1:])
