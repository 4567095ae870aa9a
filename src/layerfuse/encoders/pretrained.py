"""Loading a tokenizer and a model from local files, quietly and without running their code."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from layerfuse.encoders.devices import quantisation
from layerfuse.encoders.source import EncoderSource
from layerfuse.errors import NoMemoryError, UnsupportedModelError, is_out_of_memory, require

__all__ = ["load_model", "load_tokenizer", "too_large"]


def load_tokenizer(source: EncoderSource, *, trust_remote_code: bool) -> Any:
    """The encoder's tokenizer, a fast one where there is one.

    Raises
    ------
    UnsupportedModelError
        When the folder holds no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(
                source.folder, trust_remote_code=trust_remote_code, **_gguf(source)
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnsupportedModelError(
                f"{source.path} has no tokenizer that can be read, so it is not a text model or "
                f"files are missing: {_first_line(error)}"
            ) from error


def load_model(
    source: EncoderSource,
    dtype: str,
    *,
    device: str = "cpu",
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Any:
    """The model without a language-model head, in evaluation mode on the CPU; quantised weights go
    straight to the device.

    Raises
    ------
    UnsupportedModelError
        When transformers cannot build a model from the files.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    packing = quantisation(dtype, device)
    with _quiet():
        try:
            model, outcome = AutoModel.from_pretrained(
                source.folder,
                output_loading_info=True,
                **packing,
                trust_remote_code=trust_remote_code,
                **({} if source.gguf_file else {"use_safetensors": None if allow_pickle else True}),
                **_gguf(source),
            )
        except (
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            RuntimeError,
            SafetensorError,
            MemoryError,
        ) as error:
            if is_out_of_memory(error):
                raise NoMemoryError(too_large(source.name)) from error
            raise UnsupportedModelError(
                f"{source.path} cannot be loaded as a text encoder: {_first_line(error)}"
            ) from error
    # Without this, transformers fills what is missing with random numbers.
    lost = [name for name in outcome["missing_keys"] if not _is_unread(name)]
    if lost:
        raise UnsupportedModelError(
            f"{source.path} lacks {len(lost)} of the weights that its configuration asks for, such "
            f"as {min(lost)}. The file is incomplete or belongs to another configuration; get it "
            "again."
        )
    return model.eval().requires_grad_(False)


def too_large(name: str) -> str:
    """What to do about a model that does not fit."""
    return (
        f"The model {name} does not fit into memory. Use a smaller one, half the bytes with "
        "--dtype bfloat16 (dtype='bfloat16'), another --device, or a machine with more memory."
    )


def _is_unread(name: str) -> bool:
    """Whether reading never uses the weight: poolers, heads, and an encoder-decoder's decoder of
    which only the encoder was saved."""
    parts = name.split(".")
    return parts[0] in ("pooler", "lm_head", "classifier", "score") or (
        parts[0] == "decoder" and len(parts) > 1 and parts[1] in ("block", "final_layer_norm")
    )


def _gguf(source: EncoderSource) -> dict[str, str]:
    if source.gguf_file is None:
        return {}
    require("gguf", "gguf", "Reading a GGUF file")
    require("accelerate", "gguf", "Reading a GGUF file")
    return {"gguf_file": source.gguf_file}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loader's progress bars and its report on heads that are left out to itself."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        # The GGUF reader draws a bar that no setting turns off.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
