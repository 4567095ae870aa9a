"""GGUF files unpacked once, into safetensors folders of the cache: it takes up to a minute."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerfuse.encoders.devices import QUANTIZED
from layerfuse.encoders.source import EncoderSource
from layerfuse.files import (
    atomic_folder,
    cache_dir,
    damaged_files,
    digest,
    fingerprint_file,
    write_checksums,
    write_json,
)

_TOKENIZER_CONFIG = "tokenizer_config.json"


def find_unpacked(source: EncoderSource, part: str) -> Path | None:
    """The folder with the part, ``"tokenizer"`` or the weights' dtype, if it was kept.

    One that is damaged is removed.
    """
    if source.gguf_file is None:
        return None
    folder = _folder(source, part)
    if not folder.is_dir():
        return None
    if damaged_files(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def keep_model(model: Any, source: EncoderSource, dtype: str) -> None:
    """Keep a model as it was loaded from a GGUF file; without room on the disk, do nothing."""
    if source.gguf_file is None or dtype in QUANTIZED:  # those are packed for their device
        return

    def write(folder: Path) -> bool:
        from safetensors.torch import save_model

        size = sum(parameter.nbytes for parameter in model.parameters())
        if shutil.disk_usage(folder).free < 2 * size:
            return False
        config = copy.deepcopy(model.config)
        if hasattr(config, "quantization_config"):  # how the file was packed
            del config.quantization_config
        config.save_pretrained(folder)
        save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return True

    _keep(source, dtype, write)


def keep_tokenizer(tokenizer: Any, source: EncoderSource) -> None:
    """Keep a tokenizer as it was read from a GGUF file, if what is kept reads texts the same."""
    if source.gguf_file is None or not tokenizer.is_fast:
        return

    def write(folder: Path) -> bool:
        from transformers import AutoTokenizer

        tokenizer.save_pretrained(folder)
        path = folder / _TOKENIZER_CONFIG
        settings = json.loads(path.read_text(encoding="utf-8"))
        # The classes of single models build their own tokenizer from the vocabulary.
        write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
        return _facts(AutoTokenizer.from_pretrained(folder)) == _facts(tokenizer)

    _keep(source, "tokenizer", write)


def _facts(tokenizer: Any) -> tuple[object, ...]:
    """What of a tokenizer decides the ids of a text."""
    return (
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        tokenizer.model_max_length,
    )


def _folder(source: EncoderSource, part: str) -> Path:
    import transformers

    known = fingerprint_file(source.path)
    if part == "tokenizer":  # files beside the GGUF file go before its own
        known = json.dumps(source.fingerprints(allow_pickle=False))
    key = digest(known, transformers.__version__)
    return cache_dir() / "gguf" / f"{part}-{key}"


def _keep(source: EncoderSource, part: str, write: Callable[[Path], bool]) -> None:
    """Keep what ``write`` writes, if it returns true and the cache can be written."""
    from safetensors import SafetensorError

    refused = contextlib.suppress(OSError, RuntimeError, SafetensorError, _NotKeptError)
    with refused, atomic_folder(_folder(source, part)) as folder:
        if not write(folder):
            raise _NotKeptError
        write_checksums(folder)


class _NotKeptError(Exception):
    """Leaves a folder before it is in place."""
