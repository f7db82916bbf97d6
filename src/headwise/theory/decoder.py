"""A small decoder of plain parts for experiments that change how a layer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from headwise.layers.position.rope import Rope

Made = Callable[[], nn.Module]
Kind = TypeVar("Kind", bound=nn.Module)


class Heads(nn.Module):
    """Causal attention with rotary positions, [batch, tokens, width] -> the same shape; what it is made of serves
    layers that read otherwise.

    window: tokens that one sees, its own included; 0 is all before it.
    """

    def __init__(self, width: int, heads: int, window: int = 0) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """What is read of `x`."""
        q, k, v = self.split(x)
        return self.merged(attention(turned(q), turned(k), v, self.seen(x.shape[1])))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, heads, tokens, dim] of `x`."""
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
        return q, k, v

    def merged(self, read: Tensor) -> Tensor:
        """What heads read, [batch, heads, tokens, dim], as the layer's output."""
        made: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return made

    def seen(self, tokens: int) -> Tensor:
        """Which keys each query sees, [tokens, tokens]."""
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        return seen.triu(1 - self.window) if self.window else seen


class Decoder(nn.Module):
    """Layers that each read and then have a feed-forward layer, with norms before both.

    embed: ids to inputs. mixers: what reads in each layer.
    """

    def __init__(self, embed: nn.Module, mixers: Sequence[nn.Module], width: int, answers: int) -> None:
        super().__init__()
        self.embed, self.mixers = embed, nn.ModuleList(mixers)
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in mixers
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * len(mixers) + 1))
        self.head = nn.Linear(width, answers, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [batch, tokens]` -> logits [batch, tokens, answers]."""
        return self.told(self.states(self.embed(ids))[-1])

    def told(self, x: Tensor) -> Tensor:
        """The logits of last states `x [batch, tokens, width]`."""
        logits: Tensor = self.head(self.norms[-1](x))
        return logits

    def states(self, x: Tensor) -> list[Tensor]:
        """What each layer is given, from inputs `x [batch, tokens, width]`, and what the last one gives."""
        found = [x]
        for layer in range(len(self.mixers)):
            found.append(self.layer(layer, found[-1]))
        return found

    def layer(self, place: int, x: Tensor) -> Tensor:
        """`x` after one layer."""
        x = x + self.mixers[place](self.norms[2 * place](x))
        made: Tensor = x + self.wide[place](self.norms[2 * place + 1](x))
        return made


def seeded(seed: int, make: Callable[[], Kind]) -> Kind:
    """A module from a start of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Softmax attention of q [..., t, d] over k and v [..., n, d]; seen [..., t, n]: keys that count; None is all."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return F.softmax(scores, -1) @ v


def turned(x: Tensor, first: int = 0) -> Tensor:
    """`x [..., tokens, dim]` turned by the place of each token, the first of which is `first`."""
    places = torch.arange(first, first + x.shape[-2])
    return Rope().rotation(x.shape[-1]).rotate(x, places)


def exponent(read: Callable[[Tensor], Any], lengths: tuple[int, int], width: int) -> float:
    """That of the operations in the number of tokens, from two lengths of a text [1, tokens, width]."""
    counts = [operations(read, torch.zeros(1, tokens, width)) for tokens in lengths]
    return log(counts[1] / counts[0]) / log(lengths[1] / lengths[0])


def operations(read: Callable[[Tensor], Any], x: Tensor) -> int:
    """Those of matrix products and convolutions in `read(x)`."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counted:
        read(x)
    return int(counted.get_total_flops())
