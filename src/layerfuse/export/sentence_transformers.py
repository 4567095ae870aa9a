"""A folder that ``SentenceTransformer(path)`` loads: a cut transformer and stock modules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from layerfuse.blocks import BlockRef
from layerfuse.encoders.architecture import Architecture, find_architecture, text_stack
from layerfuse.encoders.pretrained import load_tokenizer, load_whole, quiet
from layerfuse.errors import ConfigError, UnsupportedModelError, require
from layerfuse.export.protocol import Source, check_padding, label_settings, projections
from layerfuse.files import write_json, write_tensors
from layerfuse.heads import LinearHead
from layerfuse.pipeline import FusedModel

Floats = npt.NDArray[np.float32]

# Our names and theirs, in the order in which their module concatenates.
_MODES = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
_MODES |= {"weighted_mean": "weightedmean_tokens", "last": "lasttoken"}
_ALL_MODES = (*_MODES.values(), "mean_sqrt_len_tokens")
_CARRIER = "cls_token_embeddings"  # what the pooling module gives for the mode cls, where it is set


class SentenceTransformersExporter:
    """See `layerfuse.export.protocol.Exporter`.

    One layer: Transformer, Pooling and, unless it is a block alone, Dense with the fused embedding.
    Several layers: for each WeightedLayerPooling, which picks it, Pooling and Dense, whose output
    takes the place of the first token's state for the next pooling module and so is added up.
    """

    def check(self, source: Source) -> None:
        require("sentence_transformers", "sentence-transformers", "Export to sentence-transformers")
        blocks, names = source.blocks, {block.encoder for block in source.blocks}
        if len(names) > 1:
            raise ConfigError(f"A folder holds one encoder; the pipeline reads {_join(names)}.")
        if odd := {block.pooling for block in blocks} - set(_MODES):
            raise ConfigError(f"There is no stock module for the pooling {_join(odd)}.")
        if len({block.layer for block in blocks if block.pooling == "cls"}) > 1:
            raise ConfigError("Stock modules can read the first token of one layer only.")
        (encoder,) = source.encoders
        check_padding(encoder)
        text = encoder.tokenizer
        if text.suffix or not text.adds_special:
            raise ConfigError(
                f"Stock modules write a prompt before the text only; {encoder.name} has text "
                "behind it, or a chat template."
            )
        if source.block is None and not _is_affine(source.model):
            raise ConfigError(
                f"The fusion {source.model.model.fusion.name!r} is not linear, and stock modules "
                "are."
            )

    def write(self, source: Source, folder: Path) -> None:
        (encoder,) = source.encoders
        text, dim = encoder.tokenizer, encoder.dim
        known, example = encoder.architecture, text(["one text"]).ids
        encoder.release()  # its weights, packed for kernels of this machine
        model, _ = load_whole(encoder.source, "float32", "cpu")
        states = model.eval().state_dict()  # with poolers, which stock loaders miss
        architecture = find_architecture(text_stack(model), known.traits, known.pad_id)
        top = max(block.layer for block in source.blocks)
        layers = sorted(
            {block.layer for block in source.blocks},
            key=lambda layer: BlockRef(encoder.name, layer, "cls") not in source.blocks,
        )
        kept = _cut(model, architecture, top, example)
        many = len(layers) > 1 or kept > top
        model.config.output_hidden_states = many
        left = {*model.state_dict(), *(name for name in states if "pooler." in name)}
        states = {
            name: tensor
            for name, tensor in states.items()
            if name in left
            and not (model.config.is_encoder_decoder and name.startswith("decoder."))
        }
        with quiet():
            model.save_pretrained(folder, state_dict=states)
        for weights in folder.glob("*.safetensors"):  # which only their owner may read
            shutil.copymode(folder / "config.json", weights)
        hf = load_tokenizer(encoder.source)
        hf.padding_side, hf.model_max_length = "right", text.max_length
        if hf.pad_token is None:
            hf.pad_token = hf.convert_ids_to_tokens(text.blank_id)
        hf.save_pretrained(folder)
        modules = _Modules(folder)
        modules.add("Transformer")
        width = 0  # of what is carried to the next layer
        for layer in layers:
            at = [block for block in source.blocks if block.layer == layer]
            own = sorted(at, key=lambda block: list(_MODES).index(block.pooling))
            if many:
                modules.pick_layer(layer, kept, dim)
            modules.pool([block.pooling for block in own], dim, carried=width > 0)
            if source.block is None:
                weight, bias = _affine_map(source.model, own)
                carried = np.eye(width, weight.shape[1], dtype=np.float32)
                width, last = weight.shape[1], layer == layers[-1]
                output = None if last else _CARRIER
                modules.dense(np.concatenate([carried, weight]), bias * np.float32(last), output)
        modules.save(text.prefix, text.max_length)
        if source.block is None:
            _write_classifier(source.model, folder)

    def predict(self, source: Source, folder: Path, texts: Sequence[str]) -> npt.NDArray[Any]:
        """Embeddings by sentence-transformers, and the pipeline's classifier on them."""
        from sentence_transformers import SentenceTransformer

        (encoder,) = source.encoders
        empty = load_tokenizer(encoder.source)(encoder.tokenizer.prefix)["input_ids"]
        if not empty and "" in texts:
            raise UnsupportedModelError(
                f"The tokenizer of {encoder.name} makes no token of an empty text, which stock "
                "modules then cannot read. Check the export on other texts with --data."
            )
        try:
            with quiet():
                model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
            features = np.asarray(model.encode(list(texts), show_progress_bar=False))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise UnsupportedModelError(
                "sentence-transformers cannot read this kind of model cut at this layer: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
        if source.block is not None:
            return features
        logits = source.model.model.head.logits(features)
        return source.model.calibrator.predict_proba(logits, source.model.space)


def _join(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _cut(model: Any, architecture: Architecture, top: int, example: list[list[int]]) -> int:
    """Drop the blocks that layer ``top`` does not need; return how many are left.

    One more than ``top`` is kept where the last hidden state is not the last block's output (a
    final norm, which no weights neutralize) and for layer 0, so that the layer can be picked.
    """
    if architecture.blocks is None or top == architecture.traits.n_layers:
        return architecture.traits.n_layers
    blocks = list(architecture.blocks)
    ids = torch.tensor(example)
    raw: list[torch.Tensor] = []
    hook = blocks[top].register_forward_pre_hook(
        lambda module, args, kwargs: raw.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        architecture.stack(input_ids=ids)
        hook.remove()
        del architecture.blocks[max(top, 1) :]
        last = architecture.stack(input_ids=ids)[0]
    same = last.shape == raw[0].shape and torch.allclose(last, raw[0], rtol=1e-4, atol=1e-5)
    if top and not same:
        architecture.blocks.append(blocks[top])
    kept = len(architecture.blocks)
    configs: list[Any] = [model.config, architecture.stack.config]
    for config in configs:
        config.num_hidden_layers = kept
        if types := getattr(config, "layer_types", None):
            config.layer_types = list(types[:kept])
    return kept


def _is_affine(model: FusedModel) -> bool:
    """Whether the fusion is a linear map with an offset, by its values at random points."""
    rng = np.random.default_rng(0)
    a, b = (
        [rng.standard_normal((8, axes.rank), dtype=np.float32) for axes in model.axes]
        for _ in range(2)
    )
    fuse = model.model.fusion.transform
    left = fuse([x + y for x, y in zip(a, b, strict=True)]) + fuse([0 * x for x in a])
    right = fuse(a) + fuse(b)
    return bool(np.allclose(left, right, rtol=1e-3, atol=1e-3 * np.abs(right).max()))


def _affine_map(model: FusedModel, chosen: Sequence[BlockRef]) -> tuple[Floats, Floats]:
    """The map (widths of the chosen blocks, d_out) from blocks to fused features, and the offset of
    all blocks together.
    """
    fuse = model.model.fusion.transform
    zeros = [np.zeros((1, axes.rank), dtype=np.float32) for axes in model.axes]
    offset = fuse(zeros)[0].astype(np.float64)
    maps: dict[BlockRef, npt.NDArray[np.float64]] = {}
    for index, (block, axes) in enumerate(zip(model.blocks, projections(model), strict=True)):
        ones = [np.repeat(zero, axes.rank, axis=0) for zero in zeros]
        ones[index] = np.eye(axes.rank, dtype=np.float32)
        slope = fuse(ones).astype(np.float64) - fuse(zeros)
        maps[block] = (axes.scale[:, None] * axes.axes.astype(np.float64)) @ slope
        offset -= axes.mean @ maps[block]
    weight = np.concatenate([maps[block] for block in chosen])
    return weight.astype(np.float32), offset.astype(np.float32)


def _write_classifier(model: FusedModel, folder: Path) -> None:
    """Labels, and for a linear head its weights: link(weight @ embedding + bias)."""
    head, (slope, intercept) = model.model.head, model.calibrator.affine
    write_json(folder / "classes.json", label_settings(model))
    if isinstance(head, LinearHead):
        arrays = {"weight": (head.coef * slope).T, "bias": head.intercept * slope + intercept}
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        write_tensors(folder / "classifier.safetensors", arrays)


class _Modules:
    """Configurations and weights of modules, in the spelling that all versions, TEI and vLLM read:
    older names of classes, and a flag for each mode of pooling.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: list[dict[str, object]] = []

    def add(self, kind: str, config: dict[str, object] | None = None) -> Path:
        """The folder of a new module, in which its configuration lies."""
        index = len(self._entries)
        path = f"{index}_{kind}" if index else ""
        kind = f"sentence_transformers.models.{kind}"
        self._entries.append({"idx": index, "name": str(index), "path": path, "type": kind})
        if config is not None:
            write_json(self._folder / path / "config.json", config)
        return self._folder / path

    def pick_layer(self, layer: int, n_layers: int, dim: int) -> None:
        """Token states of one layer."""
        config: dict[str, object] = {"word_embedding_dimension": dim, "layer_start": layer}
        config["num_hidden_layers"] = n_layers
        weights = np.eye(1, n_layers + 1 - layer, dtype=np.float32)[0]
        folder = self.add("WeightedLayerPooling", config)
        write_tensors(folder / "model.safetensors", {"layer_weights": weights})

    def pool(self, poolings: Sequence[str], dim: int, *, carried: bool) -> None:
        """Poolings side by side, behind what is carried."""
        modes = {_MODES[name] for name in poolings} | ({"cls_token"} if carried else set())
        flags = {f"pooling_mode_{mode}": mode in modes for mode in _ALL_MODES}
        self.add("Pooling", {"word_embedding_dimension": dim, **flags, "include_prompt": True})

    def dense(self, weight: Floats, bias: Floats, output: str | None) -> None:
        """A linear map (d_in, d_out) of the pooled states; ``output`` if not the result."""
        config: dict[str, object] = {"in_features": len(weight), "out_features": weight.shape[1]}
        config |= {"bias": True, "activation_function": "torch.nn.modules.linear.Identity"}
        if output is not None:
            config |= {"module_input_name": "sentence_embedding", "module_output_name": output}
        tensors = {"linear.weight": np.ascontiguousarray(weight.T), "linear.bias": bias}
        write_tensors(self.add("Dense", config) / "model.safetensors", tensors)

    def save(self, prefix: str, max_length: int) -> None:
        """Write what belongs to the folder as a whole."""
        path = self._folder / "modules.json"
        path.write_text(json.dumps(self._entries, indent=2) + "\n", encoding="utf-8")
        limits = {"max_seq_length": max_length, "do_lower_case": False}
        write_json(self._folder / "sentence_bert_config.json", limits)
        prompts = {"prompts": {"text": prefix}, "default_prompt_name": "text"} if prefix else {}
        write_json(
            self._folder / "config_sentence_transformers.json",
            {"model_type": "SentenceTransformer", **prompts, "similarity_fn_name": "cosine"},
        )
