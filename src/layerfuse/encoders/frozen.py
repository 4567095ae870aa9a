"""A frozen language model that is read at every layer."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import Layers, resolve_layers
from layerfuse.encoders.architecture import Architecture, find_architecture, position_limit
from layerfuse.encoders.cpu_kernels import pack_linears, use_plain_attention
from layerfuse.encoders.devices import QUANTISED, choose_device, choose_dtype
from layerfuse.encoders.forward import Pending, pad, run_pass
from layerfuse.encoders.pretrained import load_model, load_tokenizer, too_large
from layerfuse.encoders.source import EncoderSource, find_source
from layerfuse.encoders.tokenizer import TextTokenizer, Tokens, check_template
from layerfuse.errors import ConfigError, NoMemoryError, StorageError, is_out_of_memory
from layerfuse.files import cache_dir, digest, write_json
from layerfuse.parallel import limit_kernel_cache
from layerfuse.pooling import Pooler
from layerfuse.progress import SILENT, Reporter

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT_MAX_LENGTH", "FrozenEncoder"]

DEFAULT_MAX_LENGTH = 512

_LOADING = RLock()  # transformers' lazy imports and verbosity are the process's: one load at a time


class FrozenEncoder:
    """A frozen language model with its tokenizer; made by `from_pretrained`.

    Layers are numbered from 0 (the embedding output) to ``n_layers`` (the model's own
    ``last_hidden_state``, after its final norm where it has one); layer ``i`` between them is what
    block ``i + 1`` receives, the raw output of block ``i``. Weights are loaded when they are first
    needed, and are left out of pickles.
    """

    def __init__(
        self,
        source: EncoderSource,
        *,
        template: str | None = None,
        chat_question: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        check_template(template)
        if template is not None and chat_question is not None:
            raise ConfigError(
                f"{source.name} was given a template and a chat question; choose one of them."
            )
        if max_length < 2:
            raise ConfigError(f"max_length={max_length} is too short; give at least 2 tokens.")
        self.source = source
        self.template = template
        self.chat_question = chat_question
        self.max_length = max_length
        self._all_gpus = device == "cuda:all"
        self._copies: list[FrozenEncoder] = []
        self.device = choose_device("cuda:0" if self._all_gpus else device)
        self.dtype = choose_dtype(dtype, self.device)
        self.trust_remote_code = trust_remote_code
        self.allow_pickle = allow_pickle
        self._reporter = reporter
        self.fingerprints = source.fingerprints(allow_pickle=allow_pickle)
        self._highest: int | None = None
        self._tokenizer: TextTokenizer | None = None
        self._pad_id = 0
        self._architecture: Architecture | None = None
        self._lock = Lock()  # hooks sit on the modules: one forward pass at a time

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        name: str | None = None,
        revision: str | None = None,
        reporter: Reporter = SILENT,
        **options: Any,
    ) -> FrozenEncoder:
        """Find an encoder by catalog name, model folder, ``.gguf`` file or Hub name.

        Parameters
        ----------
        name_or_path
            What to load; a catalog name is downloaded when it is not in the cache.
        name
            How its blocks are called; by default the catalog name or the folder's name.
        revision
            The Hub revision.
        **options
            Those of the constructor: ``template``, ``chat_question``, ``max_length`` (tokens),
            ``device``, ``dtype``, ``trust_remote_code``, ``allow_pickle``.

        Raises
        ------
        NotFoundError
            When there is nothing of that name.
        UnsupportedModelError
            When it is not a text model or its weights are not in a safe format.
        ConfigError
            For an option that cannot be used.
        """
        source = find_source(str(name_or_path), name=name, revision=revision, reporter=reporter)
        return cls(source, reporter=reporter, **options)

    def __repr__(self) -> str:
        return f"FrozenEncoder({self.name!r}, device={self.device!r}, dtype={self.dtype!r})"

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def kind(self) -> str:
        """The kind of device: cpu, cuda or mps."""
        return self.device.partition(":")[0]

    @property
    def path(self) -> Path:
        """The model folder or GGUF file."""
        return self.source.path

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes the value of an embedding, but for text, layer and pooling."""
        return {
            "fingerprints": self.fingerprints,
            "revision": self.source.revision,
            "template": self.template,
            "chat_question": self.chat_question,
            "max_length": self.max_length,
            "dtype": self.dtype,
        }

    @property
    def n_layers(self) -> int:
        """The number of transformer blocks; there are ``n_layers + 1`` layers."""
        return self._shape()["n_layers"]

    @property
    def dim(self) -> int:
        """The size of the blocks' hidden states."""
        return self._shape()["dim"]

    @property
    def highest_layer(self) -> int:
        """The highest layer that can be read: ``n_layers``, or less after `truncate`."""
        return self.n_layers if self._highest is None else self._highest

    @property
    def layer_parameters(self) -> tuple[int, ...]:
        """Parameters of the embeddings and blocks up to each layer, (n_layers + 1,).

        Shared weights count once, a final norm at ``n_layers``; `truncate` changes nothing here.
        Loads the weights.
        """
        return self._load().layer_parameters

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of an average parameter as loaded. Loads the weights."""
        return self._load().bytes_per_parameter

    @property
    def stops_early(self) -> bool:
        """Whether reading a low layer spares the blocks above it. Loads the weights."""
        return self._load().blocks is not None

    @property
    def is_loaded(self) -> bool:
        return self._architecture is not None

    @property
    def stack(self) -> torch.nn.Module:
        """The model itself, its language-model head and pooler left out."""
        return self._load().stack

    def truncate(self, layer: int) -> FrozenEncoder:
        """Give up the blocks above ``layer`` (their memory is freed) and return self.

        The block after ``layer`` stays in place, unused: it marks where reading stops.
        """
        (layer,) = resolve_layers(layer, self.n_layers, self.name)
        self._highest = min(layer, self.highest_layer)
        self._copies.clear()
        if self._architecture is not None:
            self._cut(self._architecture)
        return self

    def release(self) -> None:
        """Let go of the weights and the tokenizer; they are loaded again when they are needed."""
        self._tokenizer = self._architecture = None
        self._copies.clear()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each text, at most ``max_length`` each, and which texts were cut."""
        return self._load_tokenizer()(texts)

    def read(
        self,
        ids: Sequence[Sequence[int]],
        layers: Layers,
        poolings: Sequence[str],
        *,
        padding_side: str = "right",
    ) -> dict[int, npt.NDArray[np.float32]]:
        """One forward pass over one batch.

        Parameters
        ----------
        ids
            Token ids of each text, from `tokenize`; none empty.
        layers, poolings
            What to read.
        padding_side
            Where short texts are padded; it changes nothing (``layerfuse models check`` shows it).

        Returns
        -------
        dict
            For each layer an array of shape (n_texts, n_poolings, dim).

        Raises
        ------
        UnsupportedModelError
            When the model yields values that are not finite.
        """
        return self.launch(ids, layers, poolings, padding_side=padding_side).result()

    def launch(
        self,
        ids: Sequence[Sequence[int]],
        layers: Layers,
        poolings: Sequence[str],
        *,
        padding_side: str = "right",
    ) -> Pending:
        """`read` without waiting for a GPU: its ``result()`` is what `read` returns."""
        import torch

        architecture = self._load()
        wanted = resolve_layers(layers, self.n_layers, self.name)
        if wanted[-1] > self.highest_layer:
            raise ConfigError(
                f"{self.name} was truncated at layer {self._highest}; layer {wanted[-1]} is gone."
            )
        self._load_tokenizer()  # which knows the padding token
        with self._lock, torch.inference_mode():
            inputs, mask = pad(ids, self._pad_id, self.device, architecture, padding_side)
            pooler = Pooler(mask, poolings, self.device)
            pooled = run_pass(architecture, inputs, pooler, wanted)
            return Pending(pooled, self.name, self.dtype)

    def copies(self, most: int) -> list[FrozenEncoder]:
        """At most ``most`` copies of an encoder for ``"cuda:all"``, each loaded on its own GPU.

        There are none for another device. They are kept until `release`.
        """
        if self._all_gpus:
            import torch

            here = torch.cuda.get_device_properties(0)
            for number in range(len(self._copies) + 1, min(torch.cuda.device_count(), most + 1)):
                if torch.cuda.get_device_properties(number).name != here.name:
                    break  # values would depend on which GPU reads a text
                other = copy.copy(self)  # without weights, as in pickles
                other.device, other._all_gpus = f"cuda:{number}", False
                other.tokenize([])  # loading is not safe beside other threads: it is done here
                self._copies.append(other)
        return self._copies[:most]

    def as_current_device(self) -> contextlib.AbstractContextManager[Any]:
        """Makes a GPU the one that this thread's kernels are launched on."""
        if self.kind != "cuda":
            return contextlib.nullcontext()
        import torch

        return torch.cuda.device(self.device)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_tokenizer"] = state["_architecture"] = None
        state["_reporter"], state["_copies"] = SILENT, []
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def _shape(self) -> dict[str, int]:
        """Layers and size: remembered in the cache by fingerprint, so that stored embeddings can
        be used without loading the model."""
        if self._architecture is None:
            path = cache_dir() / "shapes" / f"{digest(json.dumps(self.fingerprints))}.json"
            with contextlib.suppress(OSError, ValueError, KeyError):
                known = json.loads(path.read_text(encoding="utf-8"))
                return {"n_layers": int(known["n_layers"]), "dim": int(known["dim"])}
            self._load()
            shape = self._shape()
            with contextlib.suppress(StorageError):
                write_json(path, shape)
            return shape
        return {"n_layers": self._architecture.n_layers, "dim": self._architecture.dim}

    def _load(self) -> Architecture:
        if self._architecture is None:
            with _LOADING:
                if self._architecture is None:
                    self._architecture = self._loaded()
        return self._architecture

    def _loaded(self) -> Architecture:
        limit_kernel_cache()
        with self._reporter.task(f"loading {self.name}", 1, "model"):
            model = load_model(
                self.source,
                self.dtype,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
                allow_pickle=self.allow_pickle,
            )
        architecture = find_architecture(model, self.name)
        if architecture.blocks is None:
            self._reporter.note(
                f"{self.name}: its blocks were not found; all hidden states of a batch are kept in "
                "memory and no layer is saved by stopping early"
            )
        self._cut(architecture)
        try:
            if self.dtype not in QUANTISED:  # those lie on the device already
                architecture.stack.to(self.device)
        except Exception as error:
            if is_out_of_memory(error):
                raise NoMemoryError(too_large(self.name)) from error
            raise
        if self.kind == "cpu":
            pack_linears(architecture.stack)
            if self.dtype == "bfloat16":
                use_plain_attention(architecture.stack)
        self._reporter.note(
            f"{self.name}: {architecture.n_layers} layers of {architecture.dim}, "
            f"{self.dtype} on {self.device}"
        )
        return architecture

    def _cut(self, architecture: Architecture) -> None:
        if architecture.blocks is not None and self._highest is not None:
            del architecture.blocks[self._highest + 1 :]

    def _load_tokenizer(self) -> TextTokenizer:
        if self._tokenizer is None:
            with _LOADING:
                if self._tokenizer is None:
                    self._tokenizer = self._loaded_tokenizer()
        return self._tokenizer

    def _loaded_tokenizer(self) -> TextTokenizer:
        tokenizer = load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)
        architecture = self._load()
        config = architecture.stack.config
        limits = (tokenizer.model_max_length, position_limit(config, architecture.own_positions))
        limit = min([self.max_length, *(limit for limit in limits if limit is not None)])
        self._pad_id = tokenizer.pad_token_id or 0
        return TextTokenizer(
            tokenizer,
            template=self.template,
            chat_question=self.chat_question,
            max_length=int(limit),
        )
