"""ONNX: one graph from token ids to probabilities, tokenizers, settings and a runner beside it."""

from __future__ import annotations

import logging
import math
import runpy
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from layerfuse.encoders import FrozenEncoder
from layerfuse.encoders.architecture import (
    Architecture,
    Batch,
    accepted,
    find_architecture,
    pad,
    pool_layers,
)
from layerfuse.encoders.pretrained import load_model, load_tokenizer
from layerfuse.errors import ConfigError, UnsupportedModelError, require
from layerfuse.export.protocol import Source, check_padding, label_settings, projections
from layerfuse.files import write_json
from layerfuse.fusion import Fusion
from layerfuse.fusion.ensembles import StackingFusion, VotingFusion
from layerfuse.fusion.learned import LearnedFusion, torch_functions
from layerfuse.fusion.products import Concat, ProductFusion
from layerfuse.fusion.protocol import Residual
from layerfuse.heads import Head, KernelHead, LinearHead, MlpHead
from layerfuse.pipeline import FusedModel
from layerfuse.pooling import Pooler

Function = Callable[[Tensor], Tensor]
Fuse = Callable[[Sequence[Tensor]], Tensor]
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
    (folder / name).write_text(core.to_str(), encoding="utf-8")
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


class PipelineGraph(torch.nn.Module):
    """``forward(ids, mask, ids, mask, ...)``, a pair for each encoder, to probabilities.

    Parameters
    ----------
    model : FusedModel
    stacks : mapping of str to Architecture
        Of each encoder by its name, in the order of the pairs.

    Raises
    ------
    ConfigError
        For a fusion or a head that has no form in PyTorch.
    """

    def __init__(self, model: FusedModel, stacks: Mapping[str, Architecture]) -> None:
        super().__init__()
        self._model, self._architectures = model, stacks
        self.stacks = torch.nn.ModuleList(each.stack for each in stacks.values())
        self._fuse = fuse_function(model.model.fusion)
        self._head = head_function(model.model.head)

    def forward(self, *pairs: Tensor) -> Tensor:
        """Token ids and masks, both (n, tokens) int64, to probabilities (n, n_outputs) float32."""
        found: dict[tuple[str, int, str], Tensor] = {}
        for index, (name, architecture) in enumerate(self._architectures.items()):
            ids, mask = pairs[2 * index : 2 * index + 2]
            own = [block for block in self._model.blocks if block.encoder == name]
            poolings = tuple(dict.fromkeys(block.pooling for block in own))
            layers = tuple(sorted({block.layer for block in own}))
            options: dict[str, object] = {"attention_mask": mask}
            if "use_cache" in accepted(architecture.stack):
                options["use_cache"] = False
            pooler = Pooler(mask.bool(), poolings)
            batch = Batch(ids, mask, options)
            pooled = pool_layers(architecture.stack, architecture.blocks, batch, pooler, layers)
            for layer in layers:
                for place, pooling in enumerate(poolings):
                    found[name, layer, pooling] = pooled[layer][:, place]
        coordinates = [
            (found[block.encoder, block.layer, block.pooling] - torch.from_numpy(axes.mean))
            * torch.from_numpy(axes.scale)
            @ torch.from_numpy(axes.axes)
            for block, axes in zip(self._model.blocks, projections(self._model), strict=True)
        ]
        logits = self._head(self._fuse(coordinates)).double()
        slope, intercept = map(torch.as_tensor, self._model.calibrator.affine)
        return _LINKS[self._model.space.link_name](logits * slope + intercept).float()


_LINKS: dict[str, Function] = {
    "softmax": lambda logits: torch.softmax(logits, dim=1),
    "sigmoid": torch.sigmoid,
}


def head_function(head: Head) -> Function:
    """A head in PyTorch.

    Raises
    ------
    ConfigError
        For a head that has none; names it.
    """
    if isinstance(head, LinearHead):
        return _affine(head.coef, head.intercept)
    if isinstance(head, MlpHead):
        layers = [_affine(w, b) for w, b in zip(head.weights, head.biases, strict=True)]
        return lambda x: layers[2](torch.relu(layers[1](torch.relu(layers[0](x)))))
    if isinstance(head, KernelHead):
        landmarks, scale = torch.from_numpy(head.landmarks), torch.from_numpy(head.scale)
        linear, squares = head_function(head.linear), torch.square(landmarks).sum(0) / 2

        def kernel(x: Tensor) -> Tensor:
            x = x * scale
            distances = x @ landmarks - torch.square(x).sum(1, keepdim=True) / 2 - squares
            return linear(torch.exp(distances.clamp(max=0.0)))

        return kernel
    raise ConfigError(
        f"The head {head.kind!r} cannot be written as a graph. Fit again with --head ridge."
    )


def fuse_function(fusion: Fusion) -> Fuse:
    """A fusion in PyTorch, of principal coordinates.

    Raises
    ------
    ConfigError
        For a fusion that has none; names it.
    """
    if isinstance(fusion, Concat):
        return lambda blocks: torch.cat(list(blocks), dim=1)
    if isinstance(fusion, Residual):
        operation = fuse_function(fusion.operation)
        return lambda blocks: torch.cat([operation(blocks), *blocks], dim=1)
    if isinstance(fusion, LearnedFusion):
        weights = {name: torch.from_numpy(array) for name, array in fusion.weights.items()}
        kind, functions = fusion.kind, torch_functions()

        def learned(blocks: Sequence[Tensor]) -> Tensor:
            result: Tensor = kind.formula(weights, blocks, functions)
            return result

        return learned
    if isinstance(fusion, ProductFusion) and fusion.name in _PRODUCTS:
        combine = _PRODUCTS[fusion.name]
        maps = [torch.from_numpy(array) for array in fusion.projections]
        mean, scale = torch.from_numpy(fusion.mean), torch.from_numpy(fusion.scale)

        def product(blocks: Sequence[Tensor]) -> Tensor:
            projected = [(z @ P).double() for z, P in zip(blocks, maps, strict=True)]
            return ((combine(projected) - mean) * scale).float()

        return product
    if isinstance(fusion, StackingFusion | VotingFusion):
        heads = [head_function(head) for head in fusion.heads]

        def scores(blocks: Sequence[Tensor]) -> list[Tensor]:
            return [head(z) for head, z in zip(heads, blocks, strict=True)]

        if isinstance(fusion, VotingFusion):
            tiny = float(np.finfo(np.float64).tiny)

            def vote(blocks: Sequence[Tensor]) -> Tensor:
                votes = [torch.softmax(each.double(), dim=1) for each in scores(blocks)]
                return _mean(votes).clamp(min=tiny).log().float()

            return vote
        mean, scale = torch.from_numpy(fusion.mean), torch.from_numpy(fusion.scale)
        return lambda blocks: (torch.cat(scores(blocks), dim=1) - mean) * scale
    raise ConfigError(
        f"The fusion {fusion.name!r} cannot be written as a graph. Fit again with --fusion concat."
    )


def _affine(weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> Function:
    W, b = torch.from_numpy(weight), torch.from_numpy(bias)
    return lambda x: x @ W + b


def _mean(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(vectors)).mean(dim=0)


def _matmul(vectors: Sequence[Tensor]) -> Tensor:
    size = int(vectors[0].shape[1])
    r = math.isqrt(size)
    return reduce(torch.matmul, [v.reshape(-1, r, r) for v in vectors]).reshape(-1, size)


def _quaternion(vectors: Sequence[Tensor]) -> Tensor:
    product = vectors[0].chunk(4, dim=1)
    for vector in vectors[1:]:
        (a, b, c, d), (e, f, g, h) = product, vector.chunk(4, dim=1)
        product = (
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        )
    return torch.cat(product, dim=1)


def _cooccurrence(vectors: Sequence[Tensor]) -> Tensor:
    H = torch.stack(list(vectors), dim=1)
    pooled = torch.tanh(H @ H.transpose(1, 2) / (2.0 * H.shape[2]))
    return torch.cat([pooled.flatten(1), H.mean(dim=1)], dim=1)


def _tensor(vectors: Sequence[Tensor]) -> Tensor:
    pairs = list(combinations(vectors, 2)) or [(vectors[0], vectors[0])]
    return torch.cat([(a[:, :, None] * b[:, None, :]).flatten(1) for a, b in pairs], dim=1)


# In float64, as in `layerfuse.fusion.products`, where the formulas are explained.
_PRODUCTS: dict[str, Fuse] = {
    "sum": lambda vectors: torch.stack(list(vectors)).sum(dim=0),
    "mean": _mean,
    "hadamard": lambda vectors: reduce(torch.mul, vectors),
    "matmul": _matmul,
    "quaternion": _quaternion,
    "cooccurrence": _cooccurrence,
    "tensor": _tensor,
}
