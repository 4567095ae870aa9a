"""What people use or write today, over the same model files as our encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from layerfuse import FrozenEncoder

Reader = Callable[[Sequence[str]], Any]

_BATCH = 32


def sentence_transformers(encoder: FrozenEncoder, batch_size: int = _BATCH) -> Reader:
    """The last layer by ``encode``, in the encoder's dtype, with its token limit."""
    model = SentenceTransformer(
        str(encoder.path),
        device=encoder.device,
        model_kwargs={"dtype": getattr(torch, encoder.dtype)},
    )
    model.max_seq_length = encoder.max_length
    return lambda texts: model.encode(list(texts), batch_size=batch_size)


def embetter(encoder: FrozenEncoder) -> Reader | None:
    """The last layer by embetter's ``SentenceEncoder``, or None where it is not installed."""
    try:
        from embetter.text import SentenceEncoder
    except ImportError:
        return None
    peer = SentenceEncoder(str(encoder.path), device=encoder.device)
    peer.tfm.to(getattr(torch, encoder.dtype))
    peer.tfm.max_seq_length = encoder.max_length
    return lambda texts: peer.transform(list(texts))


def plain_loop(encoder: FrozenEncoder) -> Reader:
    """All layers by ``output_hidden_states=True``: texts in the order given, 32 to a batch, each
    layer's masked mean, in float32."""
    path = encoder.path
    place: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.suffix == ".gguf":
        place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModel.from_pretrained(**place, dtype=torch.float32).to(encoder.device).eval()

    @torch.inference_mode()
    def read(texts: Sequence[str]) -> Any:
        pooled = []
        for start in range(0, len(texts), _BATCH):
            batch = tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=encoder.max_length,
                return_tensors="pt",
            ).to(encoder.device)
            states = model(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"].unsqueeze(-1)
            means = [(state * mask).sum(1) / mask.sum(1) for state in states]
            pooled.append(torch.stack(means, dim=1).cpu())
        return torch.cat(pooled)

    return read
