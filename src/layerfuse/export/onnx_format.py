"""ONNX: one graph from token ids to probabilities, tokenizers, settings and a runner beside it."""

from __future__ import annotations

import logging
import runpy
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.architecture import Architecture, accepted, find_architecture, pad
from layerfuse.encoders.pretrained import load_model, load_tokenizer
from layerfuse.errors import ConfigError, UnsupportedModelError, require
from layerfuse.export.graph import PipelineGraph, fuse_function, head_function
from layerfuse.export.protocol import Source, check_padding, label_settings
from layerfuse.files import write_json

GRAPH, RUNNER = "model.onnx", "run.py"
_OPSET = 17
_EXAMPLE = ("one", "two words and a few more, so that the first text is padded")


class OnnxExporter:
    """See `layerfuse.export.protocol.Exporter`; needs the extra ``onnx``."""

    def check(self, source: Source) -> None:
        for module in ("onnx", "onnxruntime", "onnxscript"):
            require(module, "onnx", "Export to ONNX")
        if source.block is not None:
            raise ConfigError("--block is for --format sentence-transformers; ONNX holds all.")
        for encoder in source.encoders:
            check_padding(encoder)
        fuse_function(source.model.model.fusion)
        head_function(source.model.model.head)

    def write(self, source: Source, folder: Path) -> None:
        entries, examples = [], []
        stacks: dict[str, Architecture] = {}
        for index, encoder in enumerate(source.encoders):
            entries.append(_write_tokenizer(encoder, folder, index))
            example, own = encoder.tokenize(_EXAMPLE).ids, encoder.architecture
            encoder.release()  # its weights, packed for kernels of this machine
            stack = load_model(encoder.source, "float32", "cpu")
            stacks[encoder.name] = find_architecture(stack, own.traits, own.pad_id)
            batch = pad(example, own.pad_id, "cpu", accepted(stack))
            examples += [batch.ids, batch.mask.long()]
        graph = PipelineGraph(source.model, stacks).eval()
        _trace(graph, tuple(examples), folder / GRAPH)
        labels = label_settings(source.model)
        write_json(folder / "settings.json", {**labels, "encoders": entries})
        shutil.copyfile(Path(__file__).with_name(RUNNER), folder / RUNNER)

    def predict(self, source: Source, folder: Path, texts: Sequence[str]) -> npt.NDArray[Any]:
        """By the folder's own runner."""
        try:
            run = cast(Callable[..., Any], runpy.run_path(str(folder / RUNNER))["predict_proba"])
        except Exception as error:
            raise UnsupportedModelError(
                "onnxruntime cannot load the graph, so an operation of the model has no ONNX "
                f"form: {str(error).strip().splitlines()[0]} Nothing was written."
            ) from error
        return np.asarray(run(list(texts)))


def _write_tokenizer(encoder: FrozenEncoder, folder: Path, index: int) -> dict[str, object]:
    """Write tokenizer.json, padding on and truncation off; the runner's settings of the encoder."""
    hf = load_tokenizer(encoder.source)
    if not hf.is_fast:
        raise ConfigError(
            f"The tokenizer of {encoder.name} has no tokenizer.json form (it is a slow one), which "
            "run.py needs. Save it as a fast tokenizer first."
        )
    text, pad_id = encoder.tokenizer, encoder.architecture.pad_id
    core = Tokenizer.from_str(hf.backend_tokenizer.to_str())
    core.no_truncation()
    core.enable_padding(pad_id=pad_id, pad_token=core.id_to_token(pad_id))
    name = f"tokenizer_{index}.json" if index else "tokenizer.json"
    core.save(str(folder / name))
    empty = core.encode(text.prefix + text.suffix, add_special_tokens=text.adds_special)
    return {
        "file": name,
        "inputs": _inputs(index),
        "prefix": text.prefix,
        "suffix": text.suffix,
        "blank": "" if empty.ids else core.id_to_token(text.blank_id),
        "special": text.adds_special,
        "most": text.max_length,
    }


def _inputs(index: int) -> list[str]:
    """Names of the graph's inputs for an encoder."""
    return [f"{name}_{index}" if index else name for name in ("input_ids", "attention_mask")]


def _trace(graph: PipelineGraph, examples: tuple[torch.Tensor, ...], path: Path) -> None:
    """Trace the graph. PyTorch's newer exporter cannot follow hooks and early exits."""
    names = [name for index in range(len(examples) // 2) for name in _inputs(index)]
    axes = {name: {0: "texts", 1: "tokens"} for name in names} | {"probabilities": {0: "texts"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of shapes that are constant, and that tracing is old
        try:
            torch.onnx.export(
                graph,
                examples,
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=names,
                output_names=["probabilities"],
                dynamic_axes=axes,
            )
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise UnsupportedModelError(
                f"PyTorch cannot trace the pipeline for ONNX: {str(error).strip().splitlines()[0]}"
            ) from error


def quantize(folder: Path) -> None:
    """Replace the encoders' matrices by int8; activations are quantized as they come.

    What follows the encoders stays in float32: it is small, and the labels hang on it.
    """
    onnx = require("onnx", "onnx", "Quantization")
    quantization = require("onnxruntime.quantization", "onnx", "Quantization")
    path, small = folder / GRAPH, folder / f"int8-{GRAPH}"
    nodes = onnx.load(path, load_external_data=False).graph.node
    rest = [node.name for node in nodes if not node.name.startswith("/stacks")]
    logging.disable(logging.WARNING)  # advice on images
    try:
        quantization.quantize_dynamic(
            path, small, op_types_to_quantize=["MatMul"], nodes_to_exclude=rest, per_channel=True
        )
    finally:
        logging.disable(logging.NOTSET)
    small.replace(path)
