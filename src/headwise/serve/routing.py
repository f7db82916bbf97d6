"""Which of several servers of one model a request goes to: the one that knows how it begins, unless others are idle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHARACTERS, TOKENS = 1024, 256  # of a completion's prompt, by which it is told apart
SLACK = 8  # requests that a server may have more than the idlest, before its conversations go to others


def beginning(body: bytes) -> bytes:
    """What a request begins with, by which it is sent: of a chat all up to the first thing that its user says, so that
    a conversation stays where its cache is as it grows; of a completion the front of its first prompt, and of texts to
    embed that of the first of them."""
    try:
        said = json.loads(body)
    except ValueError:  # which any server refuses
        return b""
    if not isinstance(said, dict):
        return b""
    return json.dumps([_opening(said.get("messages")), _front(said.get("prompt", said.get("input")))]).encode()


def _opening(messages: Any) -> Any:
    """The messages up to the first of a user."""
    if not isinstance(messages, list):
        return None
    users = [place for place, one in enumerate(messages) if isinstance(one, dict) and one.get("role") == "user"]
    return messages[: users[0] + 1] if users else messages


def _front(prompt: Any) -> Any:
    """The front of a prompt: text, tokens, or several of either, of which the first one counts."""
    if isinstance(prompt, str):
        return prompt[:CHARACTERS]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return _front(prompt[0])
    return prompt[:TOKENS] if isinstance(prompt, list) else None


@dataclass
class Load:
    """A server as the choice sees it. busy: requests that it was sent and has not answered."""

    number: int
    up: bool = True
    busy: int = 0


def choose(key: bytes, servers: Sequence[Load]) -> Load | None:
    """The server for what begins with `key`: each has a rank of its own for every key, so that one that comes or goes
    moves no conversation but its own. One that has much more to do than the idlest is passed over. None where none is
    up."""
    there = [one for one in servers if one.up]
    least = min((one.busy for one in there), default=0)

    def rank(one: Load) -> bytes:
        return hashlib.blake2b(key + b"@%d" % one.number, digest_size=8).digest()

    return max((one for one in there if one.busy <= least + SLACK), key=rank, default=None)
