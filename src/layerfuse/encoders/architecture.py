"""Discovery of the text stack and transformer blocks of a Hugging Face model."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerfuse.encoders.devices import count_parameters
from layerfuse.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch


# A final norm of another name is counted at layer 0: some hundred parameters too early.
_AFTER_BLOCKS = frozenset(
    {"norm", "ln_f", "norm_f", "final_norm", "final_layer_norm", "project_out"}
)


@dataclass(frozen=True)
class Architecture:
    """The text stack of a model.

    ``blocks`` are the transformer blocks, None where they cannot be found; ``accepts`` are the
    parameter names of the forward method; ``own_positions`` says that the model derives position
    numbers from the padding itself (like RoBERTa). ``layer_parameters``, (n_layers + 1,), and
    ``bytes_per_parameter`` are those of the whole stack, before any cut.
    """

    stack: torch.nn.Module
    blocks: torch.nn.ModuleList | None
    n_layers: int
    dim: int
    accepts: frozenset[str]
    own_positions: bool
    layer_parameters: tuple[int, ...]
    bytes_per_parameter: float


def find_architecture(model: Any, name: str) -> Architecture:
    """Find the text stack, its blocks and sizes.

    Raises
    ------
    UnsupportedModelError
        When the model does not read text.
    """
    config = model.config.get_text_config(encoder=True)
    stack = model
    if model.config.is_encoder_decoder:
        stack = model.get_encoder()
    elif hasattr(model, "language_model"):
        stack = model.language_model
    n_layers = getattr(config, "num_hidden_layers", None)
    dim = getattr(config, "hidden_size", None)
    main_input = getattr(stack, "main_input_name", "input_ids")
    if main_input != "input_ids" or n_layers is None or dim is None:
        raise UnsupportedModelError(
            f"{name} ({type(model).__name__}) is not a text model: it has no single stack of "
            "transformer blocks that reads token ids. Choose a BERT-, GPT- or T5-like model."
        )
    if getattr(stack, "pooler", None) is not None:
        stack.pooler = None  # the pooled output of BERT-like models is never used
    blocks = _find_blocks(stack, n_layers)
    weights = list(stack.parameters())
    n_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    return Architecture(
        stack=stack,
        blocks=blocks,
        n_layers=n_layers,
        dim=dim,
        accepts=frozenset(inspect.signature(stack.forward).parameters),
        own_positions=any(
            hasattr(module, "padding_idx") and hasattr(module, "position_embeddings")
            for module in stack.children()
        ),
        layer_parameters=_count_parameters(stack, blocks, n_layers),
        bytes_per_parameter=n_bytes / max(1, sum(map(count_parameters, weights))),
    )


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


def position_limit(config: Any, own_positions: bool) -> int | None:
    """Maximum tokens of the position embeddings, or None where nothing limits them."""
    config = config.get_text_config(encoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    if own_positions:  # positions start behind the padding's own number
        limit -= (config.pad_token_id or 0) + 1
    return limit
