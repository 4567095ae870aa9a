"""Loading a tokenizer and a model from local files, quietly and without running their code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from threading import RLock
from typing import Any

from layerfuse.encoders.architecture import text_stack
from layerfuse.encoders.devices import loading_options
from layerfuse.encoders.source import EncoderSource
from layerfuse.errors import LayerfuseError, UnsupportedModelError, is_out_of_memory, require

# transformers loads with state of the whole process: its verbosity, its progress bars, torch's
# default dtype and initializers. One load at a time, or one would restore what another has set.
_PROCESS_STATE = RLock()
_TRIED_WORDS = 200


def load_tokenizer(source: EncoderSource, *, trust_remote_code: bool) -> Any:
    """The encoder's tokenizer, a fast one where there is one.

    Raises
    ------
    UnsupportedModelError
        When the folder holds no tokenizer that can be read.
    """
    with quiet(), refusing(f"{source.path} has no tokenizer that can be read"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=trust_remote_code, **_gguf_options(source)
        )
        if not _knows_words(tokenizer):
            files = ", ".join(sorted(set(tokenizer.vocab_files_names.values())))
            raise UnsupportedModelError(
                f"{source.path} lacks its tokenizer's vocabulary: {type(tokenizer).__name__} reads "
                f"no word from the files that are there. It comes from {files}; get the missing "
                "ones, or save all with tokenizer.save_pretrained(folder)."
            )
        return tokenizer


def _knows_words(tokenizer: Any) -> bool:
    """Whether a tokenizer of words reads some of its vocabulary; one made up without files, or
    without its merges, reads none.
    """
    if not tokenizer.vocab_files_names:  # it reads characters or bytes
        return True
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    vocabulary = tokenizer.get_vocab()
    words = [word for word in vocabulary if word not in special and any(map(str.isalnum, word))]
    if len(words) < 2:
        return False
    long = [word for word in words if sum(map(str.isalnum, word)) > 1]
    tried = long[:: len(long) // _TRIED_WORDS + 1]
    texts = [tokenizer.convert_tokens_to_string([word]) for word in tried]
    if not tried:  # an alphabet
        return True
    read = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return any(vocabulary[word] in ids for word, ids in zip(tried, read, strict=True))


def load_model(
    source: EncoderSource,
    dtype: str,
    device: str,
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Any:
    """The part of the model that reads text, in evaluation mode on the CPU; quantized weights go
    straight to the device.

    Raises
    ------
    UnsupportedModelError
        When transformers cannot build a model from the files.
    """
    with quiet(), refusing(f"{source.path} cannot be loaded as a text encoder"):
        from transformers import AutoModel

        options = loading_options(dtype, device) | _gguf_options(source)
        if not source.gguf_file:
            options["use_safetensors"] = None if allow_pickle else True
        model, outcome = AutoModel.from_pretrained(
            source.folder,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
        stack = text_stack(model)
        # Without this, transformers fills what is missing with random numbers.
        tensors = model.state_dict(keep_vars=True)
        needed = {id(tensor) for tensor in stack.state_dict(keep_vars=True).values()}
        missing = [name for name in outcome["missing_keys"] if id(tensors.get(name)) in needed]
        if missing:
            raise UnsupportedModelError(
                f"{source.path} lacks {len(missing)} of the weights that its configuration asks "
                f"for, such as {min(missing)}. The file is incomplete or belongs to another "
                "configuration; get it again."
            )
    return stack.eval().requires_grad_(False)


def too_large(name: str) -> str:
    """What to do about a model that does not fit."""
    return (
        f"The model {name} does not fit into memory. Use a smaller one, half the bytes with "
        "--dtype bfloat16 (dtype='bfloat16'), another --device, or a machine with more memory."
    )


def _gguf_options(source: EncoderSource) -> dict[str, Any]:
    """What transformers needs to read a GGUF file."""
    if source.gguf_file is None:
        return {}
    require("gguf", "gguf", "Reading a GGUF file")
    require("accelerate", "gguf", "Reading a GGUF file")
    return {"gguf_file": source.gguf_file}


def _reason(error: BaseException) -> str:
    """An error's first line, with its kind where that alone says little."""
    text = str(error).strip().partition("\n")[0]
    plain = isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) and text
    return text if plain else f"{type(error).__name__} {text}".strip()


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any error of transformers, of a package that it misses or of a file that it cannot read
    into an UnsupportedModelError that begins with ``what`` and gives the reason.
    """
    try:
        yield
    except (LayerfuseError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of compiled code are no Exceptions
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(f"{what}: {_reason(error)}") from error


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
