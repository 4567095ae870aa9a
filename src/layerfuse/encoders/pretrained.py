"""Files of a pretrained model: where they are, what they hold, loading them without their code."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from layerfuse.data.catalog import ENCODERS
from layerfuse.data.download import encoder_path, place
from layerfuse.encoders.architecture import text_stack
from layerfuse.encoders.devices import QUANTIZED, loading_options
from layerfuse.errors import (
    LayerfuseError,
    NotFoundError,
    UnsupportedModelError,
    did_you_mean,
    is_out_of_memory,
    require,
)
from layerfuse.files import (
    CHECKSUMS,
    LFS_ADVICE,
    LFS_POINTER,
    atomic_folder,
    cache_dir,
    check_own,
    damaged_files,
    digest,
    fingerprint_file,
    fingerprint_folder,
    write_checksums,
    write_json,
)
from layerfuse.progress import SILENT, Reporter

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXTS = {".bpe", ".codes", ".dict", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt"}
_NOT_READ = (
    *("adapter", "config", "generation", "modules", "preprocessor", "processor", "sentence_bert"),
    *("all_results", "eval", "license", "licence", "notice", "readme", "requirements", "train"),
)
_HUB_FILES = ["*.safetensors", *(f"*{suffix}" for suffix in sorted(_TEXTS))]
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SENTENCES = "sentence_bert_config.json"
_PICKLED = {".bin", ".pt", ".pth"}


@dataclass(frozen=True)
class EncoderSource:
    """The files of one encoder on this machine.

    ``origin`` finds them again: a catalog name, an absolute path or a Hub name. ``gguf_file`` is a
    file's name in ``folder``, ``revision`` the Hub commit. ``trust_remote_code`` says whether code
    in the folder may run, ``allow_pickle`` whether pickled weights may be read. ``made_from`` holds
    the fingerprints of an adapter and its base model, where ``folder`` is what they were merged to.
    """

    name: str
    origin: str
    folder: Path
    gguf_file: str | None
    revision: str | None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    made_from: Mapping[str, str] | None = None

    @property
    def path(self) -> Path:
        """The folder, or the GGUF file itself."""
        return self.folder / self.gguf_file if self.gguf_file else self.folder

    @property
    def trained_length(self) -> int | None:
        """Maximum tokens that Sentence-Transformers reads with the model, where it says so."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            settings = json.loads((self.folder / _SENTENCES).read_bytes())
            length = settings.get("max_seq_length")
            return length if isinstance(length, int) and length > 1 else None
        return None

    def fingerprints(self) -> dict[str, str]:
        """Digests of the weights, the tokenizer's files and the configuration.

        Raises
        ------
        UnsupportedModelError
            When one of them is missing, or the weights are pickled and that is not allowed.
        """
        if self.made_from is not None:  # sums differ in their last bits from machine to machine
            return dict(self.made_from)
        names = [file.name for file in self.folder.iterdir() if file.is_file()]
        tokenizer = [name for name in names if _is_tokenizer_file(name)]
        if self.gguf_file:
            _check_pointers(self.folder, [self.gguf_file, *tokenizer])
            parts = {"weights": fingerprint_file(self.path)}  # whatever the file is called
            if tokenizer:  # transformers prefers files beside it to its own
                parts["tokenizer"] = fingerprint_folder(self.folder, tokenizer)
            return parts
        suffixes = {".safetensors", *(_PICKLED if self.allow_pickle else ())}
        weights = [name for name in names if Path(name).suffix in suffixes]
        if not weights:
            found = [name for name in names if Path(name).suffix in _PICKLED]
            raise UnsupportedModelError(
                f"{self.folder} has no .safetensors weights"
                + (
                    f", only {found[0]}, which can run code when it is loaded. Convert it to "
                    "safetensors, or, if you trust it, open it with allow_pickle=True."
                    if found
                    else ". Is it a model folder (config.json, model.safetensors, tokenizer files)?"
                )
            )
        if _ADAPTER in names:
            raise UnsupportedModelError(
                f"{self.folder} holds an adapter beside a whole model. Move one of them to a "
                "folder of its own, and give that of the model or that of the adapter."
            )
        _check_pointers(self.folder, [*weights, *tokenizer, "config.json"])
        if not tokenizer:  # transformers would invent one without a vocabulary
            raise UnsupportedModelError(
                f"{self.folder} has no tokenizer files, so it is not a text model, or they were "
                "not saved. Save them into the same folder: tokenizer.save_pretrained(folder)."
            )
        indexes = [name for name in names if name.endswith(".index.json")]
        for name in indexes:
            self._check_index(name, weights)
        code = [name for name in names if name.endswith(".py")]
        return {
            "weights": fingerprint_folder(self.folder, [*weights, *indexes]),
            "tokenizer": fingerprint_folder(self.folder, tokenizer),
            "config": fingerprint_folder(self.folder, ["config.json", *code]),
        }

    def _check_index(self, name: str, weights: list[str]) -> None:
        """Refuse an index of weights that names other files than those of the folder."""
        if not name.endswith(".safetensors.index.json") and not self.allow_pickle:
            return  # it is not read
        try:
            index = json.loads((self.folder / name).read_bytes())
            named = sorted(set(index["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModelError(
                f"{self.folder / name} is not an index of weights; get it again."
            ) from error
        if other := [file for file in named if file not in weights]:
            raise UnsupportedModelError(
                f"{self.folder / name} names {other[0]!r}, which is not among the weights that may "
                "be read: .safetensors files in the folder itself (and pickled ones with "
                "allow_pickle=True). Get the missing file, or the index again."
            )


def _check_pointers(folder: Path, names: Iterable[str]) -> None:
    """Refuse files that Git LFS has not downloaded yet."""
    for path in (folder / name for name in names):
        if path.stat().st_size < 1000 and path.read_bytes().startswith(LFS_POINTER):
            raise UnsupportedModelError(f"{path} {LFS_ADVICE}")


def _is_tokenizer_file(name: str) -> bool:
    """Whether a tokenizer may read the file: any text but those that are known to be others'."""
    return (
        Path(name).suffix in _TEXTS
        and not name.endswith(".index.json")
        and not name.lower().startswith(_NOT_READ)
    )


def find_source(
    name_or_path: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    reporter: Reporter = SILENT,
) -> EncoderSource:
    """Find an encoder's files, downloading them where that is needed.

    Raises
    ------
    NotFoundError
        When nothing of that name exists here, in the catalog or on the Hub.
    UnsupportedModelError
        When a folder is not a model folder.
    """
    folder, short, origin, revision = _find(name_or_path, revision, reporter)
    if (folder / _ADAPTER).is_file() and not _has_model(folder):
        return _merged(folder, name or short, origin, revision, reporter)
    return _local(folder, name or short, origin, revision)


def _has_model(folder: Path) -> bool:
    """Whether a folder holds a whole model; some tools save its config.json beside an adapter."""
    others = {file.name for file in folder.iterdir()} - {_ADAPTER_WEIGHTS}
    weights = (name.endswith(".safetensors") or name.startswith("pytorch_model") for name in others)
    return "config.json" in others and any(weights)


def _find(
    name_or_path: str, revision: str | None, reporter: Reporter
) -> tuple[Path, str, str, str | None]:
    """Where an encoder's files are, its name, its origin and its revision."""
    try:
        path = Path(name_or_path).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long, not allowed, of a user whom nobody knows
        reason = error.strerror if isinstance(error, OSError) else "it names an unknown user"
        raise NotFoundError(f"{name_or_path[:100]!r} cannot be read: {reason}.") from error
    if name_or_path in ENCODERS and not (path / "config.json").exists():
        return encoder_path(name_or_path, reporter), name_or_path, name_or_path, revision
    if exists:
        return path, _name(path), str(path.resolve()), revision
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name_or_path) and not name_or_path.startswith("."):
        folder = _download(name_or_path, revision, reporter)
        return folder, name_or_path.rpartition("/")[2], name_or_path, folder.name
    if path.suffix == ".gguf" or len(path.parts) > 2:
        near = [str(other) for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise NotFoundError(
            f"There is no model folder or .gguf file {name_or_path!r}."
            f"{did_you_mean(str(path), near)}"
        )
    raise NotFoundError(
        f"Unknown encoder {name_or_path!r}.{did_you_mean(name_or_path, ENCODERS)} It is "
        f"neither a catalog name ({', '.join(ENCODERS)}), nor a model folder or .gguf file "
        "here, nor a Hub name of the form owner/name."
    )


def _name(path: Path) -> str:
    """The name as typed, links not followed; a folder of the Hub's cache is called by its model."""
    path = Path(os.path.normpath(path.absolute()))
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    return path.stem if path.suffix.lower() == ".gguf" and path.is_file() else path.name


def _local(path: Path, name: str, origin: str, revision: str | None) -> EncoderSource:
    """A folder with config.json, or a .gguf file."""
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UnsupportedModelError(
                f"{path} is a file, but not a .gguf file. Give the model's folder instead."
            )
        return EncoderSource(name, origin, path.parent, path.name, revision)
    if not (path / "config.json").is_file():
        if (path / _ADAPTER).is_file():
            raise UnsupportedModelError(
                f"{path} is itself an adapter. Merge it into its model and save that."
            )
        inside = sorted(found.parent for found in path.glob("*/config.json"))
        raise UnsupportedModelError(
            f"{path} has no config.json, so it is not a Hugging Face model folder. "
            + (f"Did you mean {inside[0]}? " if inside else "")
            + "Give the folder that holds config.json, model.safetensors and the tokenizer's files."
        )
    return EncoderSource(name, origin, path, None, revision)


def _merged(
    adapter: Path, name: str, origin: str, revision: str | None, reporter: Reporter
) -> EncoderSource:
    """An adapter (LoRA, Hu et al., ICLR 2022, and others that peft merges), merged into its base
    model once and kept in the cache.
    """
    names = {file.name for file in adapter.iterdir() if file.is_file()}
    own = sorted(filter(_is_tokenizer_file, names))
    _check_pointers(adapter, [*own, *names.intersection((_ADAPTER, _ADAPTER_WEIGHTS))])
    base_name, base_revision = _base_of(adapter)
    what = f"{adapter} is an adapter of {base_name[:200]}"
    require("peft", "peft", f"{what}. Merging the two")
    try:
        base = _local(*_find(base_name, base_revision, reporter))
        made_from = base.fingerprints()
    except LayerfuseError as error:
        raise UnsupportedModelError(f"{what}, which cannot be read: {error}") from error
    if base.gguf_file:
        raise UnsupportedModelError(f"{what}, a GGUF file. It needs the model's own folder.")
    weights = fingerprint_folder(adapter, [_ADAPTER, _ADAPTER_WEIGHTS])
    made_from["weights"] = digest(made_from["weights"], weights)
    if own:  # it may have tokens of its own
        made_from["tokenizer"] = digest(made_from["tokenizer"], fingerprint_folder(adapter, own))
    folder = cache_dir() / "merged" / digest(*made_from.values())
    if folder.is_dir():
        check_own(folder)
        if damaged_files(folder) or not (folder / CHECKSUMS).is_file():
            shutil.rmtree(folder, ignore_errors=True)

    def build(target: Path) -> None:
        reporter.note(f"merging the adapter {name} into {base_name}, once")
        for file in base.folder.iterdir():
            if file.suffix in _TEXTS and not file.name.endswith(".index.json") and file.is_file():
                shutil.copyfile(file, target / file.name)  # not its mode: it may be read-only
        for file_name in own:
            shutil.copyfile(adapter / file_name, target / file_name)
        with quiet(), refusing(f"{what}, but cannot be merged into it"):
            _merge(adapter, base).save_pretrained(target)
        write_checksums(target)

    if not folder.exists():
        place(folder, "config.json", build)
    return EncoderSource(name, origin, folder, None, revision, made_from=made_from)


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter belongs to."""
    try:
        settings = json.loads((adapter / _ADAPTER).read_bytes())
        name, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        name = revision = None
    if not (name and isinstance(name, str)) or not isinstance(revision, str | None):
        raise UnsupportedModelError(
            f"{adapter / _ADAPTER} does not say which model the adapter belongs to. Get it again, "
            "or merge the adapter into its model and give that folder."
        )
    if settings.get("megatron_config") is not None:  # names a module that peft would import
        raise UnsupportedModelError(f"{adapter} is an adapter of Megatron, which is not read.")
    if not (adapter / _ADAPTER_WEIGHTS).is_file():
        raise UnsupportedModelError(
            f"{adapter} has no {_ADAPTER_WEIGHTS}. Save the adapter as safetensors: "
            "save_pretrained(folder) of peft does."
        )
    return name, revision


def _merge(adapter: Path, base: EncoderSource) -> PreTrainedModel:
    """The base model with the adapter's weights merged into its own."""
    import peft
    import torch
    from transformers import AutoConfig

    dtype = str(AutoConfig.from_pretrained(base.folder).dtype or torch.float32)
    model, absent = load_whole(base, dtype.removeprefix("torch."), "cpu")
    weights = peft.load_peft_weights(str(adapter), device="cpu")
    # One that was trained with the head of a task calls the model by the name that it has there.
    inside = f"base_model.model.{model.base_model_prefix}."
    has_head = any(name.startswith(inside) for name in weights)
    whole = torch.nn.ModuleDict({model.base_model_prefix: model}) if has_head else model
    config = peft.PeftConfig.from_pretrained(str(adapter))
    _check_mergeable(
        config, max((size for own in weights.values() for size in own.shape), default=0)
    )
    config.inference_mode, config.task_type = True, None
    table = _resize_vocabulary(whole, model, weights)
    adapted = peft.PeftModel(whole, config)
    _, unknown = peft.set_peft_model_state_dict(adapted, weights)  # type: ignore[attr-defined]
    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # What is neither in the text model nor in the adapter: heads, and copies of the embeddings.
    own = tuple(f"base_model.model.{part}." for part, _ in whole.named_children())
    copies = [f"{table}.{part}.weight" for part in ("modules_to_save", "original_module")]
    unplaced = [
        name
        for name in unknown
        if name.startswith(own) and not (name in copies and f"{table}.weight" in weights)
    ]
    unread = {"pooler", *(("decoder",) if model.config.is_encoder_decoder else ())}
    missing = [
        name
        for name in expected
        if name not in weights and not unread.intersection(name.split("."))
    ]
    if wrong := [*unplaced, *missing]:
        raise UnsupportedModelError(
            f"{adapter} and {base.folder} do not belong together: {min(wrong)} is in only one of "
            f"the two ({len(wrong)} such weights)."
        )
    _refuse_shared(model)
    adapted.merge_and_unload(safe_merge=True)
    _check_complete(base, model, absent)
    return model


def _refuse_shared(model: PreTrainedModel) -> None:
    """Refuse to merge into weights that other modules use, too: peft leaves those as they were."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ".token_adapter." not in name:  # which knows of the others
            names.setdefault(id(parameter), []).append(name)
    for shared in names.values():
        if len(shared) > 1 and any(".base_layer." in name for name in shared):
            plain = " and ".join(name.replace(".base_layer", "") for name in shared[:2])
            raise ValueError(f"{plain} are one weight, and the adapter changes only one use of it.")


def _resize_vocabulary(
    whole: torch.nn.Module, model: PreTrainedModel, weights: Mapping[str, torch.Tensor]
) -> str:
    """Make room for the tokens that were added before training; peft's name of their embeddings."""
    own = model.get_input_embeddings()
    name = next((name for name, part in whole.named_modules() if part is own), "")
    table = f"base_model.model.{name}"
    for middle in ("", ".base_layer", ".token_adapter.base_layer"):
        saved = weights.get(f"{table}{middle}.weight")
        if saved is not None and len(saved) != own.get_parameter("weight").shape[0]:
            model.resize_token_embeddings(len(saved), mean_resizing=False)
    return table


def _check_mergeable(config: PeftConfig, largest: int) -> None:
    """Refuse adapters that peft would merge wrongly or not at all, and sizes that no weight has."""
    from peft import LoraConfig

    if config.is_prompt_learning:
        raise ValueError(
            "It adds vectors to the text, as prompt tuning does, and changes no weights."
        )
    if not isinstance(config, LoraConfig):
        return
    if str(config.init_lora_weights).startswith("pissa_niter"):
        raise ValueError(
            f"{config.init_lora_weights} starts from random numbers that were not saved. Convert "
            "it to LoRA: save_pretrained(folder, path_initial_model_for_weight_conversion=...)."
        )
    if (rank := max([config.r, *(config.rank_pattern or {}).values()])) > largest:
        raise ValueError(f"{_ADAPTER} says that its rank is {rank}, which none of its weights has.")


def _download(repository: str, revision: str | None, reporter: Reporter) -> Path:
    """The Hub snapshot's folder; it is named by its commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    reporter.note(f"looking for {repository} in the Hub's cache or on the Hub")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(
            f"{repository!r} is not a folder here, and it could not be downloaded from the Hub: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}.\nCheck the name and the "
            "connection, log in if the model is gated, or give a local folder."
        ) from error


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
    with quiet(), refusing(f"{source.path} has no tokenizer that can be read"):
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
        _check_complete(source, model, absent)
    stack.eval().requires_grad_(False)
    return stack


def _check_complete(source: EncoderSource, model: PreTrainedModel, absent: list[str]) -> None:
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
    with quiet(), refusing(f"{source.path} cannot be loaded as a text encoder"):
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
