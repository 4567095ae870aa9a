"""Loading pretrained models and tokenizers without their code; what GGUF files hold is kept."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from layerfuse.encoders.architecture import text_stack
from layerfuse.encoders.devices import QUANTIZED, loading_options
from layerfuse.encoders.source import EncoderSource
from layerfuse.errors import LayerfuseError, UnsupportedModelError, is_out_of_memory, require
from layerfuse.files import (
    atomic_folder,
    cache_dir,
    check_own,
    damaged_files,
    digest,
    fingerprint_file,
    write_checksums,
    write_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    check_own(folder)
    if damaged_files(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def keep_model(model: PreTrainedModel, source: EncoderSource, dtype: str) -> None:
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


def keep_tokenizer(tokenizer: PreTrainedTokenizerBase, source: EncoderSource) -> None:
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


def _facts(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
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
        known = json.dumps(source.fingerprints())
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


# transformers loads with state of the whole process: its verbosity, its progress bars, torch's
# default dtype and initializers. One load at a time, or one would restore what another has set.
_PROCESS_STATE = RLock()
_TRIED_WORDS = 200
_SHARED_LAYERS = 100  # of a model whose layers share their weights


def load_tokenizer(source: EncoderSource) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer, a fast one where there is one.

    Raises
    ------
    UnsupportedModelError
        When the folder holds no tokenizer that can be read.
    """
    with (
        quiet(gguf=source.gguf_file is not None),
        refusing(f"{source.path} has no tokenizer that can be read"),
    ):
        from transformers import AutoTokenizer

        unpacked = find_unpacked(source, "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(
            unpacked or source.folder,
            trust_remote_code=source.trust_remote_code,
            **({} if unpacked else _gguf_options(source)),
        )
        _ = tokenizer.all_special_ids  # fails where the vocabulary lacks even the unknown token
        if not _knows_words(tokenizer):
            files = ", ".join(sorted(set(tokenizer.vocab_files_names.values())))
            raise UnsupportedModelError(
                f"{source.path} lacks its tokenizer's vocabulary: {type(tokenizer).__name__} reads "
                f"no word from the files that are there. It comes from {files}; get the missing "
                "ones, or save all with tokenizer.save_pretrained(folder)."
            )
        if unpacked is None:
            keep_tokenizer(tokenizer, source)
        return tokenizer


def _knows_words(tokenizer: PreTrainedTokenizerBase) -> bool:
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


def load_model(source: EncoderSource, dtype: str, device: str) -> PreTrainedModel:
    """The part of the model that reads text, in evaluation mode on the CPU; quantized weights go
    straight to the device.

    Raises
    ------
    UnsupportedModelError
        When transformers cannot build a model from the files.
    """
    model, absent = load_whole(source, dtype, device)
    with refusing(f"{source.path} cannot be loaded as a text encoder"):
        stack = text_stack(model)
        check_complete(source, model, absent)
    stack.eval().requires_grad_(False)
    return stack


def check_complete(source: EncoderSource, model: PreTrainedModel, absent: list[str]) -> None:
    """Refuse files without all weights of the text stack: transformers makes up what is missing."""
    tensors = model.state_dict(keep_vars=True)
    stack = text_stack(model).state_dict(keep_vars=True)
    needed = {id(tensor) for tensor in stack.values()}
    missing = [name for name in absent if id(tensors.get(name)) in needed]
    if missing:
        raise UnsupportedModelError(
            f"{source.path} lacks {len(missing)} of the weights that its configuration asks "
            f"for, such as {min(missing)}. The file is incomplete or belongs to another "
            "configuration; get it again."
        )


def load_whole(source: EncoderSource, dtype: str, device: str) -> tuple[PreTrainedModel, list[str]]:
    """The whole model as it was saved, and the names of weights that its files lack."""
    with (
        quiet(gguf=source.gguf_file is not None),
        refusing(f"{source.path} cannot be loaded as a text encoder"),
    ):
        from transformers import AutoModel

        unpacked = find_unpacked(source, dtype)
        options = loading_options(dtype, device) | ({} if unpacked else _gguf_options(source))
        if "gguf_file" in options:
            _check_size(source.path)
        else:
            options["use_safetensors"] = None if source.allow_pickle else True
            _check_config(unpacked or source.folder, trust_remote_code=source.trust_remote_code)
        model, outcome = AutoModel.from_pretrained(
            unpacked or source.folder,
            output_loading_info=True,
            trust_remote_code=source.trust_remote_code,
            **options,
        )
        absent = list(outcome["missing_keys"])
        if unpacked is None and not absent:
            keep_model(model, source, dtype)
    return model, absent


def too_large(name: str) -> str:
    """What to do about a model that does not fit."""
    return (
        f"The model {name} does not fit into memory. Use a smaller one, half the bytes with "
        "--dtype bfloat16 (dtype='bfloat16'), another --device, or a machine with more memory."
    )


def _gguf_options(source: EncoderSource) -> dict[str, str]:
    """What transformers needs to read a GGUF file."""
    if source.gguf_file is None:
        return {}
    require("gguf", "gguf", "Reading a GGUF file")
    require("accelerate", "gguf", "Reading a GGUF file")
    return {"gguf_file": source.gguf_file}


def _check_config(folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse a configuration of sizes that no tensor has, before transformers takes time and memory
    for them.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    shapes: list[list[int]] = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    largest = max((size for shape in shapes for size in shape), default=0)
    limits = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), largest)
    limits["num_hidden_layers"] = _SHARED_LAYERS + len(shapes)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # A configuration of parts may have sizes of its own, which nothing reads.
    own = getattr(config, "text_config", None) if config.sub_configs else config
    for name, limit in limits.items() if shapes else ():
        size = getattr(own, name, None)
        if isinstance(size, int) and size > limit:
            raise UnsupportedModelError(
                f"{folder} has {name}={size} in its configuration, for which its "
                f"{len(shapes)} tensors are too few or too small. Get it again."
            )


def _check_size(path: Path) -> None:
    """Refuse a GGUF file that lacks what it says, before transformers takes time and memory for it:
    blocks, each of which is looked for, and the width of their states.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    kind, claimed = reader.get_field("general.architecture"), dict[str, int]()
    for name in ("block_count", "embedding_length", "feed_forward_length"):
        field = reader.get_field(f"{kind.contents()}.{name}") if kind else None
        if field and isinstance(field.contents(), int):  # some have one for each block
            claimed[name] = field.contents()
    blocks = [re.search(r"\bblk\.(\d+)\.", tensor.name) for tensor in reader.tensors]
    there = 1 + max((int(block[1]) for block in blocks if block), default=-1)
    largest = max((int(size) for tensor in reader.tensors for size in tensor.shape), default=0)
    limits = {"block_count": there, "embedding_length": largest}
    if there and not (
        all(claimed.get(name, limit + 1) <= limit for name, limit in limits.items())
        and claimed.get("feed_forward_length", 0) <= largest
    ):
        raise UnsupportedModelError(
            f"{path} holds {there} blocks of tensors up to {largest} wide, but says that it has "
            f"{claimed}. The file is incomplete or damaged; get it again."
        )


def _reason(error: BaseException) -> str:
    """An error's first line, with its kind where that alone says little."""
    lines = (*str(error).strip().split("\n"), "")
    text = f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") else lines[0]
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
def quiet(*, gguf: bool = False) -> Iterator[None]:
    """No progress bars, and no report on the heads that are left out; ``gguf`` says that a GGUF
    file may be read, which draws a bar of its own.
    """
    with _PROCESS_STATE:
        from transformers.utils import logging as hf_logging

        # Standard error and the warning filters stay alone: other threads write and change them.
        verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity(logging.ERROR)
        hf_logging.disable_progress_bar()
        try:
            with _no_gguf_bar() if gguf else contextlib.nullcontext():
                yield
        finally:
            hf_logging.set_verbosity(verbosity)
            if bars:
                hf_logging.enable_progress_bar()


@contextlib.contextmanager
def _no_gguf_bar() -> Iterator[None]:
    """No setting turns it off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = vars(reader).get("tqdm")
    if bar is not None:
        vars(reader)["tqdm"] = partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            vars(reader)["tqdm"] = bar
