"""Adapters (LoRA and others that peft merges), each merged into its base model once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from layerfuse.data.download import place
from layerfuse.encoders.pretrained import check_complete, load_whole, quiet, refusing
from layerfuse.encoders.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    EncoderSource,
    Located,
    check_pointers,
    is_text_file,
    is_tokenizer_file,
    locate,
    open_located,
)
from layerfuse.errors import LayerfuseError, UnsupportedModelError, require
from layerfuse.files import (
    CHECKSUMS,
    cache_dir,
    check_own,
    damaged_files,
    digest,
    fingerprint_folder,
    write_checksums,
)
from layerfuse.progress import Reporter

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel


def merged(located: Located, reporter: Reporter) -> EncoderSource:
    """An adapter (LoRA: Hu et al., ICLR 2022), merged into its base model and kept in the cache.

    Raises
    ------
    UnsupportedModelError
        When the base model cannot be read, or the two do not belong together.
    """
    adapter = located.path
    names = {file.name for file in adapter.iterdir() if file.is_file()}
    own = sorted(filter(is_tokenizer_file, names))
    check_pointers(adapter, [*own, *names.intersection((ADAPTER_CONFIG, ADAPTER_WEIGHTS))])
    base_name, base_revision = _base_of(adapter)
    what = f"{adapter} is an adapter of {base_name[:200]}"
    require("peft", "peft", f"{what}. Merging the two")
    try:
        base = open_located(locate(base_name, base_revision, reporter))
        made_from = base.fingerprints()
    except LayerfuseError as error:
        raise UnsupportedModelError(f"{what}, which cannot be read: {error}") from error
    if base.gguf_file:
        raise UnsupportedModelError(f"{what}, a GGUF file. It needs the model's own folder.")
    weights = fingerprint_folder(adapter, [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
    made_from["weights"] = digest(made_from["weights"], weights)
    if own:  # it may have tokens of its own
        made_from["tokenizer"] = digest(made_from["tokenizer"], fingerprint_folder(adapter, own))
    folder = cache_dir() / "merged" / digest(*made_from.values())
    if folder.is_dir():
        check_own(folder)
        if damaged_files(folder) or not (folder / CHECKSUMS).is_file():
            shutil.rmtree(folder, ignore_errors=True)

    def build(target: Path) -> None:
        reporter.note(f"merging the adapter {located.name} into {base_name}, once")
        for file in base.folder.iterdir():
            if is_text_file(file.name) and file.is_file():
                shutil.copyfile(file, target / file.name)  # not its mode: it may be read-only
        for file_name in own:
            shutil.copyfile(adapter / file_name, target / file_name)
        with quiet(), refusing(f"{what}, but cannot be merged into it"):
            _merge(adapter, base).save_pretrained(target)
        write_checksums(target)

    if not folder.exists():
        place(folder, "config.json", build)
    return EncoderSource(
        located.name, located.origin, folder, None, located.revision, made_from=made_from
    )


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter belongs to."""
    try:
        settings = json.loads((adapter / ADAPTER_CONFIG).read_bytes())
        name, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        name = revision = None
    if not (name and isinstance(name, str)) or not isinstance(revision, str | None):
        raise UnsupportedModelError(
            f"{adapter / ADAPTER_CONFIG} does not say which model the adapter belongs to. Get it "
            "again, or merge the adapter into its model and give that folder."
        )
    if settings.get("megatron_config") is not None:  # names a module that peft would import
        raise UnsupportedModelError(f"{adapter} is an adapter of Megatron, which is not read.")
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UnsupportedModelError(
            f"{adapter} has no {ADAPTER_WEIGHTS}. Save the adapter as safetensors: "
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
    check_complete(base, model, absent)
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
        raise ValueError(
            f"{ADAPTER_CONFIG} says that its rank is {rank}, which none of its weights has."
        )
