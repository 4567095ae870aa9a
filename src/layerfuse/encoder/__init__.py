"""Frozen language models: found, loaded, cut at a layer, and read layer by layer."""

from layerfuse.encoder.checking import Check, check_encoder
from layerfuse.encoder.frozen import FrozenEncoder
from layerfuse.encoder.reading import Pending
from layerfuse.encoder.tokenizing import Tokens

__all__ = ["Check", "FrozenEncoder", "Pending", "Tokens", "check_encoder"]
