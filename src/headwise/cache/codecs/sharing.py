"""Codecs whose tokens share numbers: by a group of tokens, or all of a lane."""

from __future__ import annotations

from headwise.cache.codecs import Codec, codec
from headwise.cache.codecs.channels import CHANNELS, Channels
from headwise.cache.codecs.lowrank import LowRank, low_rank


def sharing(name: str) -> Channels | LowRank | None:
    """The codec called `name` if its tokens share numbers, which lie beside the pages; None if each is on its own."""
    return CHANNELS.get(name) or low_rank(name)


def any_codec(name: str) -> Codec | Channels | LowRank:
    """The codec called `name`, of either kind: all know their planes."""
    return sharing(name) or codec(name)
