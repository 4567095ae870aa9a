"""A frozen language model, read at every layer."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import KW_ONLY, dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from layerfuse.blocks import BlockRef, Layers, resolve_layers, resolve_poolings
from layerfuse.data.catalog import ENCODERS
from layerfuse.encoders.adapters import merged
from layerfuse.encoders.architecture import (
    Architecture,
    Pending,
    Traits,
    TraitsFile,
    accepted,
    count_tokens,
    examine,
    find_architecture,
    own_states,
    pad,
    pool_layers,
)
from layerfuse.encoders.devices import (
    QUANTIZED,
    choose_device,
    choose_dtype,
    device_kind,
    dtype_of_weights,
    fuse_norms,
    pack_linears,
    rounds_states,
    use_plain_attention,
)
from layerfuse.encoders.int8 import quantize_linears
from layerfuse.encoders.pretrained import load_model, load_tokenizer, refusing, too_large
from layerfuse.encoders.source import EncoderSource, locate, open_located
from layerfuse.encoders.tokenizer import (
    TextTokenizer,
    Tokens,
    WindowLimits,
    Windows,
    check_prompt,
    own_limit,
)
from layerfuse.errors import (
    ConfigError,
    NoMemoryError,
    StorageError,
    UnsupportedModelError,
    is_out_of_memory,
)
from layerfuse.files import cache_dir, digest, write_json
from layerfuse.parallel import limit_kernel_cache
from layerfuse.pooling import WINDOW_POOLINGS, Pooler
from layerfuse.progress import SILENT, Reporter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


DEFAULT_MAX_LENGTH = 512
_TRIED_TOKENS = (16, 32)  # random texts and tokens of each, before weights are rounded


def find_source(
    name_or_path: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    reporter: Reporter = SILENT,
) -> EncoderSource:
    """Find an encoder's files, downloading them where that is needed; an adapter is merged.

    Raises
    ------
    NotFoundError
        When nothing of that name exists here, in the catalog or on the Hub.
    UnsupportedModelError
        When a folder is not a model folder.
    """
    located = locate(name_or_path, revision, reporter)
    located = replace(located, name=name or located.name)
    return merged(located, reporter) if located.is_adapter else open_located(located)


@dataclass(eq=False, repr=False)
class FrozenEncoder:
    """A frozen language model with its tokenizer, prompt and candidate blocks.

    Made by `from_pretrained`, whose parameters are attributes of the same names; what says where
    its files are and how far they are trusted is in ``source``.

    Layers are numbered from 0 (the embedding output) to ``n_layers`` (the model's own
    ``last_hidden_state``, after its final norm where it has one); layer ``i`` between them is what
    block ``i + 1`` receives, the raw output of block ``i``. Weights are loaded when they are first
    needed, and are left out of pickles and copies. Any number of threads may share an encoder.

    Examples
    --------
    >>> encoder = FrozenEncoder.from_pretrained("minilm", layers=[3, -1])
    >>> [str(block) for block in encoder.candidates]
    ['minilm:3:mean', 'minilm:6:mean']
    """

    source: EncoderSource
    _: KW_ONLY
    prompt: str | None = None
    chat_prompt: str | None = None
    layers: Layers = "all"
    pooling: str | Sequence[str] = ("mean",)
    max_length: int = DEFAULT_MAX_LENGTH
    windows: str | Sequence[str] | None = None
    overlap: float = 0.0
    max_windows: int = 64
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    reporter: Reporter = SILENT
    _highest: int | None = field(default=None, init=False)
    _architecture: Architecture | None = field(default=None, init=False)
    _tokenizer: TextTokenizer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        named = ENCODERS.get(self.source.origin)
        if named is not None and self.prompt is None and self.chat_prompt is None:
            self.prompt = named.prompt
        check_prompt(self.prompt)
        if self.prompt is not None and self.chat_prompt is not None:
            raise ConfigError(f"{self.name} has both a prompt and a chat prompt; choose one.")
        resolve_poolings(self.pooling)
        if self.windows is not None:
            self.windows = resolve_poolings(self.windows, WINDOW_POOLINGS, "pooling over windows")
        if not 0 <= self.overlap <= 0.5:
            raise ConfigError(f"overlap={self.overlap} cannot be used; give a share from 0 to 0.5.")
        if self.max_windows < 1:
            raise ConfigError(f"max_windows={self.max_windows} is too few; give at least 1.")
        if self.max_length < 2:
            raise ConfigError(f"max_length={self.max_length} is too short; give at least 2 tokens.")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens={self.batch_tokens} is too few; give at least 1.")
        self.device = choose_device(self.device)
        self._any_dtype = self.dtype == "auto"
        self.dtype = choose_dtype(self.dtype, self.device)
        self.fingerprints = self.source.fingerprints()
        self._start_unloaded()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        name: str | None = None,
        revision: str | None = None,
        prompt: str | None = None,
        chat_prompt: str | None = None,
        layers: Layers = "all",
        pooling: str | Sequence[str] = ("mean",),
        max_length: int = DEFAULT_MAX_LENGTH,
        windows: str | Sequence[str] | None = None,
        overlap: float = 0.0,
        max_windows: int = 64,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        reporter: Reporter = SILENT,
    ) -> FrozenEncoder:
        """Find an encoder by catalog name, model folder, ``.gguf`` file or Hub name.

        Parameters
        ----------
        name_or_path : str or Path
            What to load; a catalog name is downloaded when it is not in the cache.
        name : str, optional
            The encoder's name in its blocks; by default the catalog name or the folder's name.
        revision : str, optional
            The Hub revision.
        prompt : str, optional
            Text around each text; contains ``{text}`` once. The text is truncated, never the
            prompt. By default that of the catalog, for encoders that were trained with one;
            ``"{text}"`` is none.
        chat_prompt : str, optional
            A user message for the model's own chat template; the text takes the place of
            ``{text}``, or follows after an empty line.
        layers : {"all"}, int or sequence of int
            Candidate layers; negative numbers count from the end.
        pooling : str or sequence of str
            Candidate poolings, names of `layerfuse.pooling.POOLINGS`.
        max_length : int
            Maximum tokens per text (with ``windows``, per window), special tokens and prompt
            included.
        windows : str or sequence of str, optional
            Candidate poolings over the windows of a text, names of
            `layerfuse.pooling.WINDOW_POOLINGS`; by default a longer text is truncated.
        overlap : float
            Share of a window, 0 to 0.5, that repeats the window before.
        max_windows : int
            Maximum windows per text; what follows is not read.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        dtype : str
            ``"auto"`` (bfloat16 where the device computes it natively, else float32),
            ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"`` (on CUDA, and on
            CPUs that multiply 8 bits themselves), or on CUDA ``"nf4"``.
        batch_tokens : int, optional
            Maximum tokens per batch, padding included; by default it depends on the device.
        trust_remote_code : bool
            Whether code in the model folder may run.
        allow_pickle : bool
            Whether pickled weights, which can run code, may be read.
        reporter : Reporter
            Receives progress and notes.

        Returns
        -------
        FrozenEncoder

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
        return cls(
            replace(source, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle),
            prompt=prompt,
            chat_prompt=chat_prompt,
            layers=layers,
            pooling=pooling,
            max_length=max_length,
            windows=windows,
            overlap=overlap,
            max_windows=max_windows,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            reporter=reporter,
        )

    def __repr__(self) -> str:
        return f"FrozenEncoder({self.name!r}, device={self.device!r}, dtype={self.dtype!r})"

    @property
    def name(self) -> str:
        """The encoder's name in its blocks."""
        return self.source.name

    @property
    def kind(self) -> str:
        """The kind of device: cpu, cuda or mps."""
        return device_kind(self.device)

    @property
    def path(self) -> Path:
        """The model folder or GGUF file."""
        return self.source.path

    @property
    def identity(self) -> dict[str, object]:
        """Everything that changes the value of an embedding, but for text, layer and pooling."""
        self._traits()  # they may change the dtype
        return {
            "fingerprints": self.fingerprints,
            "revision": self.source.revision,
            "template": self.prompt,
            "chat_question": self.chat_prompt,
            "max_length": self.max_length,
            "dtype": "int8 by token" if rounds_states(self.dtype, self.device) else self.dtype,
        }

    @property
    def candidates(self) -> tuple[BlockRef, ...]:
        """The blocks of ``layers`` and ``pooling``: for each pooling all layers.

        Raises
        ------
        ConfigError
            For a layer that the encoder does not have.
        """
        return self.select()

    def select(
        self, layers: Layers | None = None, pooling: str | Sequence[str] | None = None
    ) -> tuple[BlockRef, ...]:
        """Blocks as in `candidates`, of other layers and token poolings where they are given."""
        poolings = resolve_poolings(self.pooling if pooling is None else pooling)
        if self.windows is not None:
            poolings = tuple(f"{name}/{over}" for name in poolings for over in self.windows)
        wanted = self.layers if layers is None else layers
        numbers = resolve_layers(wanted, self.n_layers, self.name)
        return tuple(BlockRef(self.name, layer, name) for name in poolings for layer in numbers)

    @property
    def n_layers(self) -> int:
        """The number of transformer blocks; there are ``n_layers + 1`` layers."""
        return self._traits().n_layers

    @property
    def dim(self) -> int:
        """The size of the hidden states."""
        return self._traits().dim

    @property
    def highest_layer(self) -> int:
        """The highest layer that can be read: ``n_layers``, or less after `truncate`."""
        return self.n_layers if self._highest is None else self._highest

    @property
    def layer_parameters(self) -> tuple[int, ...]:
        """Parameters of the embeddings and blocks up to each layer, (n_layers + 1,).

        Shared weights count once, a final norm at ``n_layers``; `truncate` changes nothing here.
        """
        return self._traits().layer_parameters

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of an average parameter as loaded. Loads the weights."""
        return self.architecture.bytes_per_parameter

    @property
    def stops_early(self) -> bool:
        """Whether reading a low layer skips the blocks above it. Loads the weights."""
        return self.architecture.blocks is not None

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._architecture is not None

    @property
    def stack(self) -> PreTrainedModel:
        """The model itself, without language-model head and pooler. Loads the weights."""
        return self.architecture.stack

    @property
    def architecture(self) -> Architecture:
        """The model's parts and how they are read. Loads the weights."""
        return self._load()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer, with the prompt and the token limit."""
        if (tokenizer := self._tokenizer) is not None:
            return tokenizer
        traits = self._traits()  # which may load it with the weights
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._open_tokenizer(load_tokenizer(self.source), traits)
            return self._tokenizer

    @property
    def window_length(self) -> int:
        """Maximum tokens per window: ``max_length``, or the model's own limit where that is less.

        A limit of Sentence-Transformers counts, too, as the model was trained on texts up to it.
        """
        return min(self.tokenizer.max_length, self.source.trained_length or self.max_length)

    def truncate(self, layer: int) -> FrozenEncoder:
        """Drop the blocks above ``layer``, which frees their memory, and return self.

        The block after ``layer`` stays in place, unused: it marks where reading stops.
        """
        (layer,) = resolve_layers(layer, self.n_layers, self.name)
        highest = min(layer, self.highest_layer)
        with self._lock:
            self._highest = highest
            if self._architecture is not None:
                self._drop_blocks(self._architecture)
        return self

    def release(self) -> None:
        """Drop the weights and the tokenizer; they are loaded again when they are needed."""
        with self._lock:
            self._architecture = self._tokenizer = None

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each text, at most ``max_length`` each, and which texts were cut.

        Loads the weights, too.
        """
        self._load()
        return self.tokenizer(texts)

    def split(self, texts: Sequence[str]) -> Windows:
        """The windows of each text, which are read like texts of their own."""
        limits = WindowLimits(self.window_length, self.overlap, self.max_windows)
        return self.tokenizer.split(texts, limits)

    def read_share(self, texts: Sequence[str]) -> float:
        """The share of the texts' tokens that is read: below 1 where texts are cut."""
        tokens = self.tokenizer(texts)
        if self.windows is None:
            return tokens.read_share
        return float(np.average(self.split(texts).shares, weights=tokens.lengths))

    def read(
        self,
        ids: Sequence[Sequence[int]],
        layers: Layers,
        poolings: Sequence[str],
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Compute blocks of one batch in one forward pass.

        Parameters
        ----------
        ids : sequence of sequence of int
            Token ids of each text, from `tokenize`; none empty.
        layers : {"all"}, int or sequence of int
        poolings : sequence of str

        Returns
        -------
        dict of int to ndarray of shape (n_texts, n_poolings, dim), float32
            Pooled states of each layer.

        Raises
        ------
        ConfigError
            For a layer or pooling that is not there.
        UnsupportedModelError
            When the model yields values that are not finite.
        """
        return self.launch(ids, layers, poolings).result()

    def replica(self) -> FrozenEncoder:
        """An encoder on the same weights whose passes run beside this one's, for another thread.

        Returns
        -------
        FrozenEncoder
            Cut where this one is; modules, hooks and buffers are its own.
        """
        architecture, twin = self._load(), copy(self)
        twin._tokenizer = self.tokenizer
        with self._lock:  # the hooks of a pass must not be copied
            weights: dict[int, object] = {id(own): own for own in architecture.stack.parameters()}
            twin._architecture = deepcopy(architecture, weights)
        return twin

    def launch(
        self, ids: Sequence[Sequence[int]], layers: Layers, poolings: Sequence[str]
    ) -> Pending:
        """`read` without waiting for a GPU: its ``result()`` is what `read` returns."""
        import torch

        architecture = self._load()
        wanted = resolve_layers(layers, self.n_layers, self.name)
        highest = max(map(max, ids))
        if highest >= architecture.n_tokens:
            raise UnsupportedModelError(
                f"{self.name} has no embedding of token {highest}, which its tokenizer gives a "
                f"text: it has {architecture.n_tokens}. The tokenizer is another model's, "
                "or tokens were added without resize_token_embeddings; save both together again."
            )
        batches = architecture.batches(ids)
        with torch.inference_mode(), refusing(f"{self.name} cannot read the texts"):
            parts = [
                self._run(architecture, [ids[row] for row in rows], wanted, poolings)
                for rows in batches
            ]
            if len(parts) == 1:
                return Pending(parts[0], self.name, self.dtype)
            place = torch.tensor(list(chain(*batches)), device=self.device).argsort()
            pooled = {layer: torch.cat([part[layer] for part in parts])[place] for layer in wanted}
            return Pending(pooled, self.name, self.dtype)

    def _run(
        self,
        architecture: Architecture,
        ids: Sequence[Sequence[int]],
        wanted: tuple[int, ...],
        poolings: Sequence[str],
    ) -> dict[int, torch.Tensor]:
        stack, blocks = architecture.stack, architecture.blocks
        masked = not architecture.traits.causal
        batch = pad(ids, architecture.pad_id, self.device, accepted(stack), masked=masked)
        pooler = Pooler(batch.mask, poolings, self.device)
        # Passes take turns, for a lock is right for any model: some write to their own modules
        # during a pass (rotary frequencies, caches of remote code), which context-local hooks
        # would not keep apart. Little is lost: one pass uses all cores, or only queues kernels.
        with self._lock:
            if self._highest is not None and wanted[-1] > self._highest:
                raise ConfigError(
                    f"{self.name}: layer {wanted[-1]} is not loaded (encoder truncated at "
                    f"{self._highest}). Load the encoder again to read it."
                )
            return pool_layers(stack, blocks, batch, pooler, wanted)

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__ | {"_architecture": None, "_tokenizer": None, "reporter": SILENT}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start_unloaded()

    def _start_unloaded(self) -> None:
        self._architecture = self._tokenizer = None
        self._lock = Lock()  # held to load, to cut and for a pass; never while a reporter runs
        _ENCODERS.add(self)

    def _traits(self) -> Traits:
        """What is known of the model, from the cache where it was tried before."""
        traits = self._known_traits() if self._architecture is None else None
        if traits is None:
            traits = self.architecture.traits
        self._accept(traits)
        return traits

    def _traits_file(self, dtype: str) -> Path:
        code = f"transformers {version('transformers')}, own code {self.source.trust_remote_code}"
        name = digest(json.dumps(self.fingerprints), dtype, self.kind, code)
        return cache_dir() / "traits" / f"{name}.json"

    def _known_traits(self) -> Traits | None:
        return TraitsFile.read(self._traits_file(self.dtype))

    def _accept(self, traits: Traits) -> None:
        """Go on in the dtype that the model computes in."""
        if traits.dtype != self.dtype and not self._any_dtype:
            raise UnsupportedModelError(
                f"{self.name} cannot compute in {self.dtype}. Use --dtype {traits.dtype} "
                f"(dtype={traits.dtype!r})."
            )
        self.dtype = traits.dtype

    def _load(self) -> Architecture:
        loaded = self._architecture
        if loaded is not None:
            return loaded
        notes: list[str] = []
        with self.reporter.task(f"loading {self.name}", 1, "model"), self._lock:
            loaded = self._architecture
            if loaded is None:  # another thread may have loaded it meanwhile
                loaded = self._architecture = self._read_files(notes)
        for note in notes:
            self.reporter.note(note)
        return loaded

    def _read_files(self, notes: list[str]) -> Architecture:
        limit_kernel_cache()
        try:
            tokenizer = load_tokenizer(self.source)
            architecture = self._open_architecture(tokenizer, notes)
            traits = architecture.traits
            self._tokenizer = self._open_tokenizer(tokenizer, traits)
            self._drop_blocks(architecture)
            self._send(architecture.stack)
            if rounds_states(self.dtype, self.device):
                self._quantize(architecture, tokenizer, notes)
        except Exception as error:
            if is_out_of_memory(error):
                raise NoMemoryError(too_large(self.name)) from error
            raise
        if self.kind == "cpu":
            pack_linears(architecture.stack)
            if dtype_of_weights(self.dtype, self.device) == "bfloat16":
                use_plain_attention(architecture.stack)
        if self.kind == "cuda":
            fuse_norms(architecture.stack)
        size = f"{traits.n_layers} layers of {traits.dim}, {self.dtype} on {self.device}"
        notes += [f"{self.name}: {note}" for note in (*architecture.notes, size)]
        return architecture

    def _open_tokenizer(self, tokenizer: PreTrainedTokenizerBase, traits: Traits) -> TextTokenizer:
        limits = (own_limit(tokenizer, self.path), traits.token_limit)
        limit = min([self.max_length, *(limit for limit in limits if limit is not None)])
        with refusing(f"{self.source.path} has a tokenizer that does not work"):
            return TextTokenizer(
                tokenizer, prompt=self.prompt, chat_prompt=self.chat_prompt, max_length=limit
            )

    def _open_architecture(
        self, tokenizer: PreTrainedTokenizerBase, notes: list[str]
    ) -> Architecture:
        """The loaded model, tried unless that was done before."""
        traits = self._known_traits()
        if traits is not None:
            self._accept(traits)
        stack = load_model(self.source, dtype_of_weights(self.dtype, self.device), self.device)
        if traits is None:
            try:
                traits = self._examine(stack, self.dtype, tokenizer)
            except UnsupportedModelError:
                if dtype_of_weights(self.dtype, self.device) not in ("bfloat16", "float16"):
                    raise
                stack = load_model(self.source, "float32", self.device)
                traits = self._examine(stack, "float32", tokenizer)
            with contextlib.suppress(StorageError):
                for dtype in {self.dtype, traits.dtype}:
                    write_json(self._traits_file(dtype), TraitsFile.of(traits).model_dump())
            self._accept(traits)
        if self._any_dtype and self.dtype != choose_dtype("auto", self.device):
            notes.append(f"{self.name} cannot compute in bfloat16, so it is read in float32")
        return find_architecture(stack, traits, _pad_id(tokenizer, stack))

    def _examine(
        self, stack: PreTrainedModel, dtype: str, tokenizer: PreTrainedTokenizerBase
    ) -> Traits:
        if self._highest is None:
            self._send(stack)  # else what is to be cut may not fit there
        device = str(next(stack.parameters()).device)
        known = range(min(len(tokenizer), count_tokens(stack)))
        special = set(tokenizer.all_special_ids)
        tokens = [token for token in known[:: len(known) // 64 + 1] if token not in special] or [0]
        kind = type(stack).__name__
        if getattr(stack, "main_input_name", "input_ids") != "input_ids":
            raise UnsupportedModelError(
                f"{self.name} ({kind}) is not a text model: it has no single stack of blocks that "
                "reads token ids. Choose a BERT-, GPT- or T5-like model."
            )
        with refusing(f"{self.name} ({kind}) cannot read a short text in {dtype}"):
            return examine(stack, self.name, dtype, tokens, _pad_id(tokenizer, stack), device)

    def _quantize(
        self, architecture: Architecture, base: PreTrainedTokenizerBase, notes: list[str]
    ) -> None:
        import torch

        stack, known = architecture.stack, architecture.n_tokens
        tokens = np.random.default_rng(0).integers(min(len(base), known), size=_TRIED_TOKENS)

        def try_tokens() -> None:
            # As texts, so that they have the special tokens, whose states are the largest.
            texts = [str(base.decode(row, skip_special_tokens=True)) for row in tokens.tolist()]
            for ids in self.tokenizer(texts).ids:
                if own := [token for token in ids if token < known]:
                    own_states(stack, [own], architecture.pad_id, self.device)

        dtype = getattr(torch, dtype_of_weights(self.dtype, self.device))
        with refusing(f"{self.name} cannot be tried before its weights are rounded to int8"):
            if not quantize_linears(stack, dtype, try_tokens):
                notes.append(
                    f"{self.name} has no linear layers that can compute in 8 bits, so that "
                    "int8 changes nothing"
                )

    def _send(self, stack: torch.nn.Module) -> None:
        if self.dtype not in QUANTIZED:  # those are on the device already
            stack.to(self.device)

    def _drop_blocks(self, architecture: Architecture) -> None:
        if architecture.blocks is not None and self._highest is not None:
            del architecture.blocks[self._highest + 1 :]


def _pad_id(tokenizer: PreTrainedTokenizerBase, stack: PreTrainedModel) -> int:
    """The token for padding, or any where the model has none."""
    token = int(tokenizer.pad_token_id or 0)
    return token if token < count_tokens(stack) else 0


_ENCODERS: WeakSet[FrozenEncoder] = WeakSet()


def _unlock_after_fork() -> None:
    """A lock that another thread held at a fork is never released in the child; what it was
    changing is loaded anew.
    """
    for encoder in _ENCODERS:
        if encoder._lock.locked():
            encoder._start_unloaded()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_after_fork)
