"""Texts to token ids: the text is truncated, never the prompt around it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from layerfuse.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

_SLOT = "{text}"
_MOST_CHARACTERS = 2_000_000  # that are tokenized at once, at about 100 bytes each
_WORD = 8  # a window's length over that of the longest word that stays whole at its border
_RENDER_S = 120  # wall time, most of which the import takes on a busy machine
_RENDER = """
import contextlib, json, sys
from transformers.utils.chat_template_utils import render_jinja_template
with contextlib.suppress(ImportError):  # Windows
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(resource.getrusage(0).ru_utime) + 2,) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000,) * 2)
render_jinja_template(**json.load(sys.stdin), add_generation_prompt=True)
"""


@dataclass(frozen=True)
class Tokens:
    """Token ids of each text, none of them empty, and how many each has before it is cut to fit.

    ``lengths`` is estimated for texts of millions of characters.
    """

    ids: list[list[int]]
    lengths: list[int]

    @property
    def truncated(self) -> list[bool]:
        """Which texts were cut."""
        return [len(row) < length for row, length in zip(self.ids, self.lengths, strict=True)]

    @property
    def read_share(self) -> float:
        """The share of all tokens that is left."""
        return sum(map(len, self.ids)) / max(1, sum(self.lengths))


@dataclass(frozen=True)
class WindowLimits:
    """``length`` is the maximum tokens of a window, special tokens and prompt included; a window
    repeats the share ``overlap`` of the one before; a text has ``most`` windows at most.
    """

    length: int
    overlap: float
    most: int


@dataclass(frozen=True)
class Windows:
    """The pieces of each text, and the share of the text that they hold."""

    pieces: list[tuple[str, ...]]
    shares: list[float]


def check_prompt(prompt: str | None) -> None:
    """Raise a ConfigError unless the prompt contains ``{text}`` exactly once."""
    if prompt is not None and prompt.count(_SLOT) != 1:
        raise ConfigError(
            f"The prompt {prompt!r} must contain {_SLOT} exactly once, where the text goes."
        )


def own_limit(tokenizer: PreTrainedTokenizerBase, path: Path) -> int:
    """Maximum tokens of a text by the tokenizer's own settings; ``path`` names it in an error.

    Raises
    ------
    UnsupportedModelError
        When it is not a number above 1.
    """
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit < 2:
        raise UnsupportedModelError(
            f"{path} says that its texts have at most {limit!r} tokens, expected a number above 1. "
            "Correct model_max_length in its tokenizer_config.json."
        )
    return int(limit)


class TextTokenizer:
    """A Hugging Face tokenizer with a prompt and a token limit; any number of threads may call it.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    prompt : str or None
        Contains ``{text}`` once; may contain special tokens.
    chat_prompt : str or None
        A user message for the model's own chat template. ``{text}`` marks the place of the text;
        without it the text follows after an empty line.
    max_length : int
        Maximum tokens per text, special tokens and prompt included.

    Raises
    ------
    ConfigError
        When the prompt alone fills ``max_length``, or there is no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: str | None,
        chat_prompt: str | None,
        max_length: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        tokenizer.truncation_side = "right"  # the text's beginning is kept
        # A chat template writes its own special tokens.
        self.adds_special = chat_prompt is None
        if chat_prompt is not None:
            prompt = _apply_chat_template(tokenizer, chat_prompt)
        self.prefix, _, self.suffix = (prompt or _SLOT).partition(_SLOT)
        # The first call also switches off the file's own truncation and padding, in the tokenizer
        # itself: here, before threads share it.
        self._fixed = len(self._encode([self.prefix + self.suffix])[0])
        if self._fixed >= max_length:
            raise ConfigError(
                f"The prompt alone takes {self._fixed} of at most {max_length} tokens, special "
                "ones counted. Shorten it or raise max_length."
            )
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.blank_id = next((token for token in special if token is not None), 0)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize; an empty text that yields no token becomes the model's first special token
        (bos, eos or pad).
        """
        longest = max(_MOST_CHARACTERS, 256 * self.max_length)
        filled = self._filled([_encodable(text[:longest]) for text in texts])
        ids = list(chain.from_iterable(map(self._encode, _groups(filled))))
        lengths = []
        for row, text in zip(ids, texts, strict=True):
            seen = min(len(text), longest) or 1
            lengths.append(-(-max(1, len(row)) * max(seen, len(text)) // seen))
        long = [index for index, row in enumerate(ids) if len(row) > self.max_length]
        truncated = chain.from_iterable(map(self._truncate, _groups([filled[row] for row in long])))
        for index, row in zip(long, truncated, strict=True):
            ids[index] = row
        return Tokens([row or [self.blank_id] for row in ids], lengths)

    def split(self, texts: Sequence[str], limits: WindowLimits) -> Windows:
        """Cut texts that are longer than a window into overlapping pieces of about equal length.

        Pieces begin and end between words where there are any. Each is read like a text of its
        own, with the prompt around it, and fits; other texts are one piece, themselves.

        Raises
        ------
        ConfigError
            When the prompt alone fills a window.
        """
        if self._fixed >= limits.length:
            raise ConfigError(
                f"The prompt alone takes {self._fixed} of at most {limits.length} tokens of a "
                "window, special ones counted. Shorten it or raise max_length."
            )
        longest = max(_MOST_CHARACTERS, 256 * limits.length)
        pieces: list[tuple[str, ...]] = []
        shares: list[float] = []
        known = [_encodable(text[:longest]) for text in texts]
        ids = chain.from_iterable(map(self._encode, _groups(self._filled(known))))
        for text, start, row in zip(texts, known, ids, strict=True):
            own: tuple[str, ...] = (text,)
            share = 1.0
            if len(row) > limits.length:
                own, share = self._windows(start, max(1, len(row) - self._fixed), limits)
            pieces.append(own)
            shares.append(share * max(1, len(start)) / max(1, len(text)))
        return Windows(pieces, shares)

    def _windows(
        self, text: str, n_tokens: int, limits: WindowLimits
    ) -> tuple[tuple[str, ...], float]:
        """The pieces of a long text, and the share of it that they hold."""
        room, characters = limits.length - self._fixed, np.arange(len(text))
        spaces = [edge for space in re.finditer(r"\s+", text) for edge in space.span()]
        # Where tokens are not mapped to characters, or one place has too many, characters count.
        for starts in (
            (self._starts(text), characters) if self._tokenizer.is_fast else (characters,)
        ):
            places = np.append(starts, len(text))
            borders = np.flatnonzero(np.isin(places, [0, *spaces, len(text)]))
            size = max(1, room * len(starts) // n_tokens)
            while size:
                begins, ends = _spans(len(starts), size, limits, borders)
                own = [text[places[a] : places[b]] for a, b in zip(begins, ends, strict=True)]
                needed = max(map(len, self._encode(self._filled(own)))) - self._fixed
                if needed <= room:
                    return tuple(own), float(places[ends[-1]] / len(text))
                size = min(size - 1, size * room // needed)
        return tuple(own), float(places[ends[-1]] / len(text))  # a character does not fit

    def _filled(self, texts: Sequence[str]) -> list[str]:
        return [self.prefix + text + self.suffix for text in texts]

    def _starts(self, text: str) -> npt.NDArray[np.intp]:
        """Where tokens of the text begin; the first one at its start."""
        tokens = self._tokenize([text], truncation=False, return_offsets_mapping=True)
        starts = [start for start, _ in tokens["offset_mapping"][0] if start < len(text)]
        return np.unique(np.array([0, *starts], dtype=np.intp))

    def _encode(self, texts: list[str], *, truncation: bool = False) -> list[list[int]]:
        limit = {"max_length": self.max_length} if truncation else {}
        return list(self._tokenize(texts, truncation=truncation, **limit)["input_ids"])

    def _tokenize(self, texts: list[str], **options: bool | int) -> BatchEncoding:
        tokens: BatchEncoding = self._tokenizer(
            texts,
            add_special_tokens=self.adds_special,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
        return tokens

    def _truncate(self, texts: list[str]) -> list[list[int]]:
        """Drop the last tokens of each until the rest fits; what surrounds the text stays."""
        if not self._tokenizer.is_fast:
            if not self.prefix and not self.suffix:
                return self._encode(texts, truncation=True)
            return list(map(self._truncate_by_characters, texts))
        # A fast tokenizer's own truncation would change what other threads share.
        tokens = self._tokenize(
            texts,
            truncation=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        parts = ("input_ids", "offset_mapping", "special_tokens_mask")
        return list(map(self._drop_last, texts, *(tokens[part] for part in parts)))

    def _drop_last(
        self,
        filled: str,
        ids: list[int],
        offsets: Sequence[tuple[int, int]],
        special: Sequence[int],
    ) -> list[int]:
        start, end = len(self.prefix), len(filled) - len(self.suffix)
        # Offsets may leave out blanks, so that a token of blanks is empty, at their end.
        ends = [(index, high) for index, (_, high) in enumerate(offsets) if not special[index]]
        of_text = [
            index
            for index, high in ends
            if (start == 0 or high > start) and (end == len(filled) or high <= end)
        ]
        excess = len(ids) - self.max_length
        if excess > len(of_text):  # tokens that the text shares with its prompt
            return self._truncate_by_characters(filled)
        dropped = set(of_text[len(of_text) - excess :])
        return [token for index, token in enumerate(ids) if index not in dropped]

    def _truncate_by_characters(self, filled: str) -> list[int]:
        """Bisect the length, for tokenizers that don't map tokens to characters."""
        start, end = len(self.prefix), len(filled) - len(self.suffix)
        low, high = 0, end - start
        while low < high:
            middle = (low + high + 1) // 2
            cut = filled[: start + middle] + filled[end:]
            if len(self._encode([cut])[0]) <= self.max_length:
                low = middle
            else:
                high = middle - 1
        return self._encode([filled[: start + low] + filled[end:]])[0]


def _apply_chat_template(tokenizer: PreTrainedTokenizerBase, chat_prompt: str) -> str:
    """The model's chat template around the message, with ``{text}`` still in it."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "A chat prompt was given, but this encoder's tokenizer has no chat template. "
            "Use a plain prompt instead, such as 'Question … {text} Answer:'."
        )
    content = chat_prompt if _SLOT in chat_prompt else f"{chat_prompt}\n\n{_SLOT}"
    check_prompt(content)
    messages = [{"role": "user", "content": content}]
    _try_template(tokenizer, messages)
    filled = str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )
    if filled.count(_SLOT) != 1:
        raise UnsupportedModelError(
            "The chat template of this encoder's tokenizer does not give the message once and as "
            "it is, so that texts would be lost. Use a plain prompt instead."
        )
    return filled


def _try_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> None:
    """Render the chat template in a process of limited time and memory: it is the model's code."""
    asked = {
        "chat_template": tokenizer.get_chat_template(),
        "conversations": [messages],
        **tokenizer.special_tokens_map,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _RENDER],
            input=json.dumps(asked, default=str),
            capture_output=True,
            encoding="utf-8",
            timeout=_RENDER_S,
            check=False,
        )
        lines = done.stderr.strip().splitlines()
        reason = "" if done.returncode == 0 else lines[-1] if lines else "it takes too long"
    except subprocess.TimeoutExpired:
        reason = "it takes too long"
    if reason:
        raise UnsupportedModelError(
            f"The chat template of this encoder's tokenizer does not work: {reason}. Use a plain "
            "prompt instead."
        )


def _spans(
    n: int, size: int, limits: WindowLimits, borders: npt.NDArray[np.intp]
) -> tuple[list[int], list[int]]:
    """First and last (exclusive) of ``n`` tokens in each window of at most ``size`` tokens or so.

    Windows are of equal lengths, so that all weigh alike in a mean; both ends move back to a border
    between words, if one is near.
    """
    overlap = int(size * limits.overlap)
    step = size - overlap
    count = min(limits.most, max(1, -(-(n - overlap) // step)))
    new = min(n - overlap, count * step)
    cuts = np.arange(count + 1) * new // count
    begins, ends = cuts[:-1], cuts[1:] + overlap

    def back(places: npt.NDArray[np.intp]) -> list[int]:
        near = borders[np.searchsorted(borders, places, side="right") - 1]
        moved: list[int] = np.where(places - near <= size // _WORD, near, places).tolist()
        return moved

    return back(begins), back(ends)


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in order, together so short that their tokens fit into memory."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > _MOST_CHARACTERS:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _encodable(text: str) -> str:
    """The text without lone surrogates, which tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
