"""What a scheduler stays within, and how things stand with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a scheduler stays within.

    kv_bytes: promised to all sequences together, kept prefixes included. prefix_bytes: of kept prefixes at most.
    waiting: requests in the queue. sequences: that are read or write at once. piece: tokens of a prompt read at once.
    budget: prompt tokens read between two steps of those that write, one forward at least. seconds: from a request's
    arrival to its end. stall: seconds that those that write wait for prompts between two steps, and for the layer that
    is being read then. ahead: tokens of an answer whose bytes are kept free before they are written. joined: pieces
    that one forward reads together where a cut between them changes nothing.
    """

    kv_bytes: int
    prefix_bytes: int = 0
    waiting: int = 256
    sequences: int = 64
    piece: int = 256
    budget: int = 256
    seconds: float = 3600.0
    stall: float = 0.1
    ahead: int = 256
    joined: int = 1


@dataclass(frozen=True)
class Stats:
    """How things stand. aside: requests that make room for others. promised, held: bytes of sequences; kept: of
    prefixes. counts: of what happened since the start. unshared: why prefixes were not shared, and how often."""

    waiting: int
    aside: int
    reading: int
    writing: int
    promised: int
    held: int
    kept: int
    counts: dict[str, int]
    unshared: dict[str, int]
