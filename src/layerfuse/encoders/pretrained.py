"""Loading a tokenizer and a model from local files, quietly and without running their code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from threading import RLock
from typing import Any

from layerfuse.encoders.devices import loading_options
from layerfuse.encoders.source import EncoderSource
from layerfuse.errors import NoMemoryError, UnsupportedModelError, is_out_of_memory, require

# transformers loads with state of the whole process: its verbosity, its progress bars, torch's
# default dtype and initializers. One load at a time, or one would restore what another has set.
_PROCESS_STATE = RLock()


def load_tokenizer(source: EncoderSource, *, trust_remote_code: bool) -> Any:
    """The encoder's tokenizer, a fast one where there is one.

    Raises
    ------
    UnsupportedModelError
        When the folder holds no tokenizer that can be read.
    """
    with quiet():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                source.folder, trust_remote_code=trust_remote_code, **_gguf_options(source)
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnsupportedModelError(
                f"{source.path} has no tokenizer that can be read, so it is not a text model or "
                f"files are missing: {_first_line(error)}"
            ) from error


def load_model(
    source: EncoderSource,
    dtype: str,
    device: str,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Any:
    """The model without a language-model head, in evaluation mode on the CPU; quantized weights go
    straight to the device.

    Raises
    ------
    UnsupportedModelError
        When transformers cannot build a model from the files.
    NoMemoryError
        When the model does not fit.
    """
    with quiet():
        from safetensors import SafetensorError
        from transformers import AutoModel

        wrong_file = (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError)
        options = loading_options(dtype, device) | _gguf_options(source)
        if not source.gguf_file:
            options["use_safetensors"] = None if allow_pickle else True
        try:
            model, outcome = AutoModel.from_pretrained(
                source.folder,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **options,
            )
        except (*wrong_file, MemoryError) as error:
            if is_out_of_memory(error):
                raise NoMemoryError(too_large(source.name)) from error
            raise UnsupportedModelError(
                f"{source.path} cannot be loaded as a text encoder: {_first_line(error)}"
            ) from error
    # Without this, transformers fills what is missing with random numbers.
    missing = [name for name in outcome["missing_keys"] if not _is_unused(name)]
    if missing:
        raise UnsupportedModelError(
            f"{source.path} lacks {len(missing)} of the weights that its configuration asks for, "
            f"such as {min(missing)}. The file is incomplete or belongs to another configuration; "
            "get it again."
        )
    return model.eval().requires_grad_(False)


def too_large(name: str) -> str:
    """What to do about a model that does not fit."""
    return (
        f"The model {name} does not fit into memory. Use a smaller one, half the bytes with "
        "--dtype bfloat16 (dtype='bfloat16'), another --device, or a machine with more memory."
    )


def _is_unused(name: str) -> bool:
    """Whether no layer needs the weight: poolers, heads, and an encoder-decoder's decoder of which
    only the encoder was saved.
    """
    parts = name.split(".")
    return parts[0] in ("pooler", "lm_head", "classifier", "score") or (
        parts[0] == "decoder" and len(parts) > 1 and parts[1] in ("block", "final_layer_norm")
    )


def _gguf_options(source: EncoderSource) -> dict[str, Any]:
    """What transformers needs to read a GGUF file."""
    if source.gguf_file is None:
        return {}
    require("gguf", "gguf", "Reading a GGUF file")
    require("accelerate", "gguf", "Reading a GGUF file")
    return {"gguf_file": source.gguf_file}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no report on the heads that are left out."""
    with _PROCESS_STATE:
        from transformers import modeling_gguf_pytorch_utils as gguf_reader
        from transformers.utils import logging as hf_logging

        # Standard error and the warning filters stay alone: other threads write and change them.
        verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
        gguf_bar = vars(gguf_reader).get("tqdm")  # no setting turns it off
        hf_logging.set_verbosity(logging.ERROR)
        hf_logging.disable_progress_bar()
        if gguf_bar is not None:
            vars(gguf_reader)["tqdm"] = partial(gguf_bar, disable=True)
        try:
            yield
        finally:
            hf_logging.set_verbosity(verbosity)
            if bars:
                hf_logging.enable_progress_bar()
            if gguf_bar is not None:
                vars(gguf_reader)["tqdm"] = gguf_bar
