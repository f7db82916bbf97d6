"""Codecs whose tokens share numbers: by a group of tokens, or all of a lane."""

from __future__ import annotations

from headwise.cache.codecs import codec
from headwise.cache.codecs.balanced import Balanced
from headwise.cache.codecs.channels import Channels
from headwise.cache.codecs.lowrank import LowRank


def sharing(name: str) -> Channels | LowRank | Balanced | None:
    """The codec called `name` if its tokens share numbers, which lie beside the pages; None if each is on its own."""
    found = codec(name)
    return found if isinstance(found, Channels | LowRank | Balanced) else None
