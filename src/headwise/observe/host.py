"""A host: any model whose attention can be looked at, be it no decoder. What runs it tells lenses here what it reads,
and which layers of attention read what.

A decoder that foretells the next token is a `Subject` instead, of which more can be asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

ENCODER, BOTH, IMAGES = "encoder", "encoder-decoder", "image encoder"  # kinds of hosts
TEXT, SOURCE, TARGET, IMAGE = "text", "source", "target", "image"  # names of what they read
READ = {ENCODER: (TEXT,), BOTH: (SOURCE, TARGET), IMAGES: (IMAGE,)}  # by kind of host


@dataclass(frozen=True)
class Stack:
    """Attention layers of one kind in a host: "encoder", "decoder", or "cross" for those by which a decoder reads what
    an encoder gave. queries, keys: the names of what their tokens are of. heads: query heads, by layer."""

    name: str
    queries: str
    keys: str
    causal: bool
    heads: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class HostAttention:
    """What one layer of a stack attends with over one input: q [H, m, d], k [h, n, d], their products times `scale`.

    first, last: of each query, the first and the last key that it sees, int64 [m]. bias: what is added to scores by how
    far a key stands behind a query, [H, m + n - 1], that of the key m - 1 places before its query the first; or None.
    """

    stack: Stack
    layer: int
    q: torch.Tensor
    k: torch.Tensor
    scale: float
    first: torch.Tensor
    last: torch.Tensor
    bias: torch.Tensor | None


See = Callable[[HostAttention], None]


class Host(ABC):
    """A model whose attention is looked at. What runs it hands it to lenses, so that these name no library.

    kind: one of READ's. positions: by the name of what it reads, the most tokens, None where there is no such limit.
    vocabulary: token ids that it knows, 0 where it reads no tokens.
    """

    name: str
    kind: str
    fingerprint: str
    stacks: tuple[Stack, ...]
    positions: Mapping[str, int | None]
    vocabulary: int

    @abstractmethod
    def look(self, inputs: Mapping[str, torch.Tensor], see: See) -> torch.Tensor:
        """The final states [1, tokens, width] of `inputs` by name, one row each, bit for bit those that nobody looks
        at; `see` is shown every layer of attention on the way."""

    @abstractmethod
    def grid(self, image: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of patches of pictures [1, channels, height, width]."""
