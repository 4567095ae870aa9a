"""Texts to token ids: the text is truncated, never the template around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layerfuse.errors import ConfigError

__all__ = ["TextTokenizer", "Tokens", "check_template"]

_SLOT = "{text}"


@dataclass(frozen=True)
class Tokens:
    """Token ids of each text, and which texts were cut to fit."""

    ids: list[list[int]]
    truncated: list[bool]


def check_template(template: str | None) -> None:
    """Raise a ConfigError unless the template holds ``{text}`` exactly once."""
    if template is not None and template.count(_SLOT) != 1:
        raise ConfigError(
            f"The template {template!r} must hold {_SLOT} exactly once, where the text goes."
        )


class TextTokenizer:
    """A Hugging Face tokenizer with a template and a token limit.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    template : str or None
        Holds ``{text}`` once; may hold special tokens.
    chat_question : str or None
        A question that is put to the model's own chat template. ``{text}`` marks the place of the
        text; without it the text follows the question after an empty line.
    max_length : int
        The most tokens of one text, special tokens and template counted.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None,
        chat_question: str | None,
        max_length: int,
    ) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        # A chat template writes its own special tokens.
        self._add_special = chat_question is None
        if chat_question is not None:
            template = _apply_chat_template(tokenizer, chat_question)
        self._prefix, _, self._suffix = (template or _SLOT).partition(_SLOT)
        fixed = len(self._encode([self._prefix + self._suffix])[0])
        if fixed >= max_length:
            raise ConfigError(
                f"The template alone takes {fixed} of at most {max_length} tokens, special ones "
                "counted. Shorten it or raise max_length."
            )
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._blank = next((token for token in special if token is not None), 0)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize; an empty text that yields no token is read as the model's first special token
        (bos, eos or pad)."""
        filled = [self._prefix + _encodable(text) + self._suffix for text in texts]
        ids = self._encode(filled) if filled else []
        truncated = [len(row) > self.max_length for row in ids]
        for index, is_long in enumerate(truncated):
            if is_long:
                ids[index] = self._cut(filled[index], len(filled[index]) - len(self._suffix))
            elif not ids[index]:
                ids[index] = [self._blank]
        return Tokens(ids, truncated)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return list(self._tokens(texts)["input_ids"])

    def _tokens(self, texts: list[str], **options: Any) -> Any:
        return self._tokenizer(
            texts,
            add_special_tokens=self._add_special,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )

    def _cut(self, filled: str, end: int) -> list[int]:
        """Drop the last tokens of the text's characters until the rest fits."""
        start = len(self._prefix)
        if not self._tokenizer.is_fast:
            return self._cut_by_characters(filled, start, end)
        tokens = self._tokens([filled], return_offsets_mapping=True)
        ids, offsets = tokens["input_ids"][0], tokens["offset_mapping"][0]
        of_text = [
            index for index, (low, high) in enumerate(offsets) if max(low, start) < min(high, end)
        ]
        excess = len(ids) - self.max_length
        dropped = set(of_text[len(of_text) - excess :])
        return [token for index, token in enumerate(ids) if index not in dropped]

    def _cut_by_characters(self, filled: str, start: int, end: int) -> list[int]:
        """For tokenizers that don't say which characters a token stands for: bisect the length."""
        low, high = 0, end - start
        while low < high:
            middle = (low + high + 1) // 2
            cut = filled[: start + middle] + filled[end:]
            if len(self._encode([cut])[0]) <= self.max_length:
                low = middle
            else:
                high = middle - 1
        return self._encode([filled[: start + low] + filled[end:]])[0]


def _apply_chat_template(tokenizer: Any, question: str) -> str:
    """The model's chat template around the question, with ``{text}`` still in it."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "A chat question was given, but this encoder's tokenizer has no chat template. "
            "Use a plain template instead, such as 'Question … {text} Answer:'."
        )
    content = question if _SLOT in question else f"{question}\n\n{_SLOT}"
    check_template(content)
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    )


def _encodable(text: str) -> str:
    """The text without lone surrogates, which tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
