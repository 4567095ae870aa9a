"""Texts to token ids: the text is truncated, never the prompt around it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerfuse.errors import ConfigError, UnsupportedModelError

_SLOT = "{text}"
_RENDER_S = 120  # wall time, most of which the import takes on a busy machine
_RENDER = """
import contextlib, json, sys
from transformers.utils.chat_template_utils import render_jinja_template
with contextlib.suppress(ImportError):  # Windows
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(resource.getrusage(0).ru_utime) + 5,) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000,) * 2)
render_jinja_template(**json.load(sys.stdin), add_generation_prompt=True)
"""


@dataclass(frozen=True)
class Tokens:
    """Token ids of each text, none of them empty, and which texts were cut to fit."""

    ids: list[list[int]]
    truncated: list[bool]


def check_prompt(prompt: str | None) -> None:
    """Raise a ConfigError unless the prompt contains ``{text}`` exactly once."""
    if prompt is not None and prompt.count(_SLOT) != 1:
        raise ConfigError(
            f"The prompt {prompt!r} must contain {_SLOT} exactly once, where the text goes."
        )


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
        self, tokenizer: Any, *, prompt: str | None, chat_prompt: str | None, max_length: int
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
        fixed = len(self._encode([self.prefix + self.suffix])[0])
        if fixed >= max_length:
            raise ConfigError(
                f"The prompt alone takes {fixed} of at most {max_length} tokens, special ones "
                "counted. Shorten it or raise max_length."
            )
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.blank_id = next((token for token in special if token is not None), 0)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize; an empty text that yields no token becomes the model's first special token
        (bos, eos or pad).
        """
        filled = [self.prefix + _encodable(text) + self.suffix for text in texts]
        ids = self._encode(filled) if filled else []
        truncated = [len(row) > self.max_length for row in ids]
        for index, is_long in enumerate(truncated):
            if is_long:
                ids[index] = self._truncate(filled[index], len(filled[index]) - len(self.suffix))
            elif not ids[index]:
                ids[index] = [self.blank_id]
        return Tokens(ids, truncated)

    def _encode(self, texts: list[str], *, truncation: bool = False) -> list[list[int]]:
        limit = {"max_length": self.max_length} if truncation else {}
        return list(self._tokenize(texts, truncation=truncation, **limit)["input_ids"])

    def _tokenize(self, texts: list[str], **options: bool | int) -> Any:
        return self._tokenizer(
            texts,
            add_special_tokens=self.adds_special,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )

    def _truncate(self, filled: str, end: int) -> list[int]:
        """Drop the text's last tokens until the rest fits; what surrounds it stays."""
        start = len(self.prefix)
        if not self._tokenizer.is_fast:
            if start == 0 and end == len(filled):
                return self._encode([filled], truncation=True)[0]
            return self._truncate_by_characters(filled, start, end)
        # A fast tokenizer's own truncation would change what other threads share.
        tokens = self._tokenize(
            [filled],
            truncation=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        ids, offsets, special = (
            tokens[part][0] for part in ("input_ids", "offset_mapping", "special_tokens_mask")
        )
        # Offsets may leave out blanks, so that a token of blanks is empty, at their end.
        ends = [(index, high) for index, (_, high) in enumerate(offsets) if not special[index]]
        of_text = [
            index
            for index, high in ends
            if (start == 0 or high > start) and (end == len(filled) or high <= end)
        ]
        excess = len(ids) - self.max_length
        if excess > len(of_text):  # tokens that the text shares with its prompt
            return self._truncate_by_characters(filled, start, end)
        dropped = set(of_text[len(of_text) - excess :])
        return [token for index, token in enumerate(ids) if index not in dropped]

    def _truncate_by_characters(self, filled: str, start: int, end: int) -> list[int]:
        """Bisect the length, for tokenizers that don't map tokens to characters."""
        low, high = 0, end - start
        while low < high:
            middle = (low + high + 1) // 2
            cut = filled[: start + middle] + filled[end:]
            if len(self._encode([cut])[0]) <= self.max_length:
                low = middle
            else:
                high = middle - 1
        return self._encode([filled[: start + low] + filled[end:]])[0]


def _apply_chat_template(tokenizer: Any, chat_prompt: str) -> str:
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
    filled = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if filled.count(_SLOT) != 1:
        raise UnsupportedModelError(
            "The chat template of this encoder's tokenizer does not give the message once and as "
            "it is, so that texts would be lost. Use a plain prompt instead."
        )
    return str(filled)


def _try_template(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> None:
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


def _encodable(text: str) -> str:
    """The text without lone surrogates, which tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
