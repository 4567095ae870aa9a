"""The text stack of a Hugging Face model: where it is, how it can be read, and one forward pass."""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from layerfuse.encoders.devices import count_parameters
from layerfuse.errors import UnsupportedModelError, is_out_of_memory
from layerfuse.files import digest, is_own
from layerfuse.pooling import send_ahead

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


class _EarlyExit(Exception):  # noqa: N818  # no error
    """Ends a forward pass once the highest layer asked for has been pooled."""


class Pending:
    """Pooled states on their way to numpy; a GPU may still be computing them.

    Copies are queued behind the forward pass into pinned memory, so that nothing waits before
    `result`, which also checks that all values are finite.
    """

    def __init__(self, pooled: Mapping[int, torch.Tensor], name: str, dtype: str) -> None:
        import torch

        self._name, self._dtype = name, dtype
        self._shapes = {layer: tuple(tensor.shape) for layer, tensor in pooled.items()}
        self._event: torch.cuda.Event | None = None
        values = torch.cat([tensor.flatten() for tensor in pooled.values()])
        finite = values.isfinite().all()
        if values.device.type != "cuda":
            self._values, self._finite = values.cpu(), finite.cpu()
            return
        self._values, self._finite = (
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in (values, finite)
        )
        with torch.cuda.device(values.device):
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> dict[int, npt.NDArray[np.float32]]:
        """Wait for the values.

        Returns
        -------
        dict of int to ndarray of shape (batch, n_poolings, dim), float32
            Pooled states of each layer.

        Raises
        ------
        UnsupportedModelError
            When the model yields values that are not finite.
        """
        if self._event is not None:
            self._event.synchronize()
        ends = np.cumsum([math.prod(shape) for shape in self._shapes.values()])
        parts = np.split(self._values.numpy(), ends[:-1])
        arrays = {
            layer: part.reshape(shape)
            for (layer, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        if not self._finite:
            layer = next(layer for layer, array in arrays.items() if not np.isfinite(array).all())
            raise UnsupportedModelError(
                f"{self._name} gives values that are not finite at layer {layer} in "
                f"{self._dtype}. Use --dtype float32 (dtype='float32')."
            )
        return arrays


@dataclass(frozen=True)
class Batch:
    """Token ids (batch, tokens), the bool mask of those that are no padding, and what else the
    forward method is to be given.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    options: Mapping[str, object]


def pad(
    ids: Sequence[Sequence[int]],
    pad_id: int,
    device: str,
    accepts: frozenset[str],
    *,
    masked: bool = True,
) -> Batch:
    """Put texts' tokens on the device, and their mask on the CPU.

    Short texts are padded on the right. A batch without padding has no mask, so that models need
    not expand and add one, nor has one that is not to be ``masked``: there a text's own first token
    is its padding, as some models warn of ``pad_id`` without a mask.
    """
    import torch

    width = max(len(row) for row in ids)
    tokens = np.full((len(ids), width), pad_id, dtype=np.int64)
    real = np.zeros((len(ids), width), dtype=bool)
    for index, row in enumerate(ids):
        tokens[index, : len(row)] = row
        if not masked:
            tokens[index, len(row) :] = row[0]
        real[index, : len(row)] = True
    mask = torch.from_numpy(real)
    options: dict[str, object] = {}
    if "use_cache" in accepts:
        options["use_cache"] = False
    if masked and not real.all():
        options["attention_mask"] = send_ahead(mask.long(), device)
    return Batch(send_ahead(torch.from_numpy(tokens), device), mask, options)


def hidden_states(stack: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """The model's own hidden states, without the padding that some models add themselves."""
    states = stack(input_ids=batch.ids, **batch.options, output_hidden_states=True).hidden_states
    return [state[:, : batch.mask.shape[1]] for state in states]


def pool_layers(
    stack: torch.nn.Module,
    blocks: torch.nn.ModuleList | None,
    batch: Batch,
    pool: Callable[[torch.Tensor], torch.Tensor],
    layers: Sequence[int],
) -> dict[int, torch.Tensor]:
    """Pool ascending ``layers`` during one forward pass, which ends after the highest of them.

    A layer below the last is what the block after it receives; without blocks it is the model's
    own hidden state. Hooks are on the modules meanwhile, so that no other pass of the model may
    run.
    """
    if blocks is None:
        states = hidden_states(stack, batch)
        return {layer: pool(states[layer]) for layer in layers}
    pooled: dict[int, torch.Tensor] = {}

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(
            module: torch.nn.Module,
            args: tuple[torch.Tensor, ...],
            kwargs: Mapping[str, torch.Tensor],
        ) -> None:
            pooled[layer] = pool(args[0] if args else kwargs["hidden_states"])
            if layer == layers[-1]:
                raise _EarlyExit

        return hook

    with contextlib.ExitStack() as hooks, contextlib.suppress(_EarlyExit):
        for layer in layers:
            if layer < len(blocks):
                hooks.enter_context(
                    blocks[layer].register_forward_pre_hook(hook_for(layer), with_kwargs=True)
                )
        pooled[layers[-1]] = pool(stack(input_ids=batch.ids, **batch.options)[0])
    return pooled


# A final norm of another name is counted at layer 0: some hundred parameters too early.
_AFTER_BLOCKS = frozenset(
    {"norm", "ln_f", "norm_f", "final_norm", "final_layer_norm", "project_out"}
)
_LIMITS = ("max_encoder_position_embeddings", "max_position_embeddings", "max_seq_len")
_PADDED_TO = ("attention_window", "local_attn_chunk_length", "lsh_attn_chunk_length", "block_size")
_SHORT, _LONG = 5, 24  # tokens of the texts that a model is tried on
_TOLERANCE = {"float32": 1e-3}
_HALF_TOLERANCE = 0.1  # deep models round as much as a few percent

_Batches: TypeAlias = Literal["any", "of one length", "of one text"]
States: TypeAlias = "Mapping[int, torch.Tensor]"
"""Hidden states by layer, each (batch, tokens, dim)."""


class Traits(BaseModel, frozen=True, extra="forbid"):
    """What a trial shows of a model; afterwards it is known without the weights.

    ``dtype`` is one that the model computes in. ``by_blocks`` says whether its blocks receive what
    its own hidden states are; otherwise those are read, which takes all blocks. ``batches`` are
    the texts that can be read together without changing each other's values. A ``causal`` model's
    tokens see none behind them, so that padding there needs no mask. The model's own first hidden
    state is layer ``first``. ``layer_parameters``, (n_layers + 1,), are those of the whole
    stack, before any cut. ``token_limit`` is that of its positions, None where nothing limits them.
    """

    n_layers: int
    dim: int
    dtype: str
    by_blocks: bool
    batches: _Batches
    causal: bool
    first: int
    layer_parameters: tuple[int, ...]
    token_limit: int | None


class TraitsFile(BaseModel, frozen=True, extra="forbid"):
    """Traits as they are kept; ``checksum`` is their digest."""

    traits: Traits
    checksum: str

    @classmethod
    def of(cls, traits: Traits) -> TraitsFile:
        """What is to be written."""
        return cls(traits=traits, checksum=digest(traits.model_dump_json()))

    @classmethod
    def read(cls, file: Path) -> Traits | None:
        """What was written, None where there is nothing, or nothing to trust."""
        with contextlib.suppress(OSError, ValueError):
            if is_own(file):
                kept = cls.model_validate_json(file.read_bytes())
                return kept.traits if kept == cls.of(kept.traits) else None
        return None


@dataclass(frozen=True)
class Architecture:
    """The text stack of a model.

    ``blocks`` are None where they cannot be read one by one. ``n_tokens`` is the size of the
    embedding, above all token ids that the model knows; ``pad_id`` is one of them. Batches longer
    than ``rope_switch`` tokens have other rotary frequencies.
    """

    stack: PreTrainedModel
    blocks: torch.nn.ModuleList | None
    traits: Traits
    bytes_per_parameter: float
    n_tokens: int
    pad_id: int
    rope_switch: int

    @property
    def notes(self) -> list[str]:
        """What users are to know of how it can be read."""
        notes = []
        if self.blocks is None:
            notes.append(
                "its blocks cannot be read one by one; all hidden states of a batch are kept in "
                "memory and no layer is saved by stopping early"
            )
        if self.traits.batches != "any":
            notes.append(
                "padding or other texts of a batch change its values, so it reads texts "
                f"{self.traits.batches} at a time"
            )
        return notes

    def batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """The rows of a batch in as many parts as are to be read each by itself."""
        parts: dict[int, list[int]] = {}
        for row, tokens in enumerate(ids):
            part = {
                "any": int(len(tokens) > self.rope_switch),
                "of one length": len(tokens),
                "of one text": row,
            }[self.traits.batches]
            parts.setdefault(part, []).append(row)
        return list(parts.values())


def text_stack(model: PreTrainedModel) -> PreTrainedModel:
    """The part that reads text: the encoder of an encoder-decoder, the language model of one that
    reads images or sound, or all. Poolers, which no layer needs, are taken out.
    """
    import torch
    from transformers import PreTrainedModel

    stack = model
    if model.config.is_encoder_decoder or all(
        isinstance(getattr(model, part, None), PreTrainedModel) for part in ("encoder", "decoder")
    ):
        stack = model.get_encoder()
    else:
        for part in ("language_model", "text_model"):
            if isinstance(getattr(model, part, None), torch.nn.Module):
                stack = getattr(model, part)
    if not hasattr(stack, "config"):
        stack.config = model.config
    if stack is not model and isinstance(stack, PreTrainedModel):
        return text_stack(stack)
    if getattr(stack, "pooler", None) is not None:
        stack.pooler = torch.nn.Identity()
    if set_attention := getattr(stack, "set_attention_type", None):
        set_attention("original_full")  # its other type depends on earlier texts' lengths
    return stack


def find_architecture(stack: PreTrainedModel, traits: Traits, pad_id: int) -> Architecture:
    """The stack with its blocks and sizes."""
    weights = list(stack.parameters())
    n_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    return Architecture(
        stack=stack,
        blocks=_find_blocks(stack, traits.n_layers) if traits.by_blocks else None,
        traits=traits,
        bytes_per_parameter=n_bytes / max(1, sum(map(count_parameters, weights))),
        n_tokens=count_tokens(stack),
        pad_id=pad_id,
        rope_switch=_rope_switch(stack.config),
    )


def _rope_switch(config: PreTrainedConfig) -> int:
    """The length behind which LongRoPE takes its other factors."""
    rope = getattr(config, "rope_parameters", None) or {}
    several = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # kinds of layers
    long = [part for part in several if part.get("rope_type") == "longrope"]
    lengths = [part.get("original_max_position_embeddings") or 0 for part in long]
    return min(lengths, default=sys.maxsize)


def count_tokens(stack: PreTrainedModel) -> int:
    """Rows of the token embedding; without limit where there is no table."""
    try:
        return int(getattr(stack.get_input_embeddings(), "num_embeddings", sys.maxsize))
    except (AttributeError, NotImplementedError):
        return sys.maxsize


def own_states(
    stack: PreTrainedModel, ids: Sequence[Sequence[int]], pad_id: int, device: str
) -> States:
    """The hidden states that the model itself gives, by their number."""
    batch = pad(ids, pad_id, device, accepted(stack))
    return dict(enumerate(hidden_states(stack, batch)))


def accepted(stack: torch.nn.Module) -> frozenset[str]:
    """The parameters of the forward method."""
    return frozenset(inspect.signature(stack.forward).parameters)


def examine(
    stack: PreTrainedModel, name: str, dtype: str, tokens: Sequence[int], pad_id: int, device: str
) -> Traits:
    """Try a model on two short texts made of ``tokens``, alone and together.

    Raises
    ------
    UnsupportedModelError
        When it does not read text, or has no state of each token at each layer.
    """
    import torch

    kind = f"{name} ({type(stack).__name__})"
    short, long, other = (
        [tokens[(start + index * 7) % len(tokens)] for index in range(length)]
        for start, length in ((0, _SHORT), (3, _LONG), (5, _LONG))
    )
    with torch.inference_mode():
        own = own_states(stack, [short], pad_id, device)
        n_layers = len(own) - 1
        shapes = [states.shape[:-1] for states in own.values()]
        if n_layers < 1 or any(shape != (1, _SHORT) for shape in shapes):
            raise UnsupportedModelError(
                f"{kind} cannot be read layer by layer: its hidden states are not one state of "
                "each token at each layer. Choose a BERT-, GPT- or T5-like model."
            )
        blocks = _find_blocks(stack, n_layers)

        def read(*texts: Sequence[int], masked: bool = True) -> States:
            batch = pad(texts, pad_id, device, accepted(stack), masked=masked)
            return pool_layers(stack, blocks, batch, lambda states: states, range(n_layers + 1))

        first: int | None = None
        if blocks is not None:
            with _tolerant():  # of blocks that take something else than states
                hooked = read(short)
                matching = (start for start in (0, 1) if _agree(align(own, start), hooked, dtype))
                first = next(matching, None)
        blocks = None if first is None else blocks
        batches: _Batches = "of one text"
        tried: tuple[tuple[_Batches, list[int]], ...]
        tried = (("any", short), ("of one length", other))
        for kinds, mate in tried:
            with _tolerant():  # of a model that takes no mask
                together = read(mate, long)
                parts = (
                    {layer: states[[row], : len(text)] for layer, states in together.items()}
                    for row, text in enumerate((mate, long))
                )
                if all(map(_agree, parts, (read(mate), read(long)), (dtype, dtype))):
                    batches = kinds
                    break
        causal = False
        if batches == "any" and not _attends_in_chunks(stack):
            changed = [*long[:_SHORT], *other[_SHORT:]]
            seen, unseen = (read(text) for text in (long, changed))
            causal = all(
                torch.equal(seen[layer][:, :_SHORT], unseen[layer][:, :_SHORT]) for layer in seen
            )
        if causal:
            padded = read(short, long, masked=False)
            alone = {layer: states[:1, :_SHORT] for layer, states in padded.items()}
            causal = _agree(alone, read(short), dtype)
        if batches == "of one text" and not _agree(read(long), read(long), dtype):
            raise UnsupportedModelError(
                f"{kind} gives the same text other values each time, so that nothing can be "
                "learned from them. Choose another model."
            )
    return Traits(
        n_layers=n_layers,
        dim=max(states.shape[-1] for states in own.values()),
        dtype=dtype,
        by_blocks=blocks is not None,
        batches=batches,
        causal=causal,
        first=first or 0,
        layer_parameters=_count_parameters(stack, blocks, n_layers),
        token_limit=token_limit(stack),
    )


def _attends_in_chunks(stack: PreTrainedModel) -> bool:
    """Whether what tokens see depends on chunks, which are longer than the texts of a trial."""
    return any(getattr(stack.config, name, None) for name in _PADDED_TO)


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    """Pass over what a trial shows to be impossible, but for a lack of memory."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise


def align(own: States, first: int) -> States:
    """The model's own hidden states by layer, where the first is layer ``first``."""
    return {min(number + first, len(own) - 1): states for number, states in own.items()}


def _agree(some: States, reference: States, dtype: str) -> bool:
    """Whether states are the same but for rounding, which in halves can be much at one token."""
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    for layer, states in some.items():
        expected = reference[layer]
        if states.shape != expected.shape:
            return False
        difference = (states.float() - expected.float()).abs().mean(dim=-1)
        relative = difference / (expected.float().abs().mean(dim=-1) + 1e-6)
        if (relative.max() if dtype == "float32" else relative.mean()) > tolerance:  # not for NaN
            return False
    return True


def _find_blocks(stack: torch.nn.Module, n_layers: int) -> torch.nn.ModuleList | None:
    """The shallowest list of ``n_layers`` modules of one kind."""
    import torch

    found = [
        (path.count("."), module)
        for path, module in stack.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == n_layers
        and len({type(block) for block in module}) == 1
    ]
    if not found:
        return None
    depth = min(depth for depth, _ in found)
    shallowest = [module for at, module in found if at == depth]
    return shallowest[0] if len(shallowest) == 1 else None


def _count_parameters(
    stack: torch.nn.Module, blocks: torch.nn.ModuleList | None, n_layers: int
) -> tuple[int, ...]:
    """Parameters needed up to each layer, (n_layers + 1,); shared ones count where they come first.

    What stands outside the blocks is needed from layer 0 on, but for what follows the last block.
    Where the blocks are not found, every layer needs all.
    """
    if blocks is None:
        return (sum(map(count_parameters, stack.parameters())),) * (n_layers + 1)
    parent = next(module for module in stack.modules() if blocks in list(module.children()))
    after = [module for name, module in parent.named_children() if name in _AFTER_BLOCKS]
    steps = [[block] for block in blocks]
    steps[-1] += after
    sizes = [
        {id(weight): count_parameters(weight) for module in step for weight in module.parameters()}
        for step in steps
    ]
    inside = set().union(*sizes)
    counted = {id(weight): count_parameters(weight) for weight in stack.parameters()}
    counted = {weight: size for weight, size in counted.items() if weight not in inside}
    totals = [sum(counted.values())]
    for step_sizes in sizes:
        counted |= step_sizes
        totals.append(sum(counted.values()))
    return tuple(totals)


def token_limit(stack: PreTrainedModel) -> int | None:
    """Maximum tokens of the position embeddings, or None where nothing limits them."""
    config = stack.config.get_text_config(encoder=True)
    limits = [getattr(config, name, None) for name in _LIMITS]
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
    own = any(  # positions start behind the padding's own number, as in RoBERTa
        hasattr(module, "padding_idx") and hasattr(module, "position_embeddings")
        for module in stack.modules()
    )
    if limit is None:
        return None
    limit -= ((config.pad_token_id or 0) + 1) * own
    # Models of long texts pad within to a multiple of these, which needs positions as well.
    sizes = np.hstack([getattr(config, name, None) or 1 for name in _PADDED_TO])
    multiple = math.lcm(*sizes.tolist()) if sizes.dtype.kind == "i" else 1
    return limit - limit % multiple if limit >= multiple else limit
