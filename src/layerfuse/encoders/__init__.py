"""Frozen language models: found, loaded, cut at a layer, and read layer by layer."""

from layerfuse.encoders.architecture import Pending
from layerfuse.encoders.checks import Check, check_encoder
from layerfuse.encoders.frozen import FrozenEncoder
from layerfuse.encoders.lexical import count_words
from layerfuse.encoders.tokenizer import Tokens

__all__ = ["Check", "FrozenEncoder", "Pending", "Tokens", "check_encoder", "count_words"]
