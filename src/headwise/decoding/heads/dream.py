"""DREAM's drafter: a decoder layer, gated cross-attention to the model's own features, and another decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Linear, RMSNorm
from torch.nn.functional import cross_entropy, silu, smooth_l1_loss

from headwise.decoding.heads.base import Heads, Taught, heads
from headwise.seams.transformers.sharpness import sharpest_states

OF_STATES, OF_WORDS, OF_MIDDLE = 0.2, 1.0, 1.0  # weights in the loss (the official code's)
THETA = 10_000.0
LAYERS, CROSSING = 3, 1  # of the drafter, and which of them attends to features
Pair = tuple[Tensor, Tensor]


class Attention(torch.nn.Module):
    """Attention of drafted tokens over those of the text before them, and over their own chain. turned: whether keys
    and queries are rotated by their places; else they are normed, as in the paper's cross-attention."""

    def __init__(self, width: int, parts: int, turned: bool) -> None:
        super().__init__()
        self.parts, self.turned = parts, turned
        self.query, self.key, self.value, self.out = (Linear(width, width, bias=False) for _ in range(4))
        self.query_norm, self.key_norm = (RMSNorm(width // parts) for _ in range(2))

    def entries(self, x: Tensor, places: Tensor) -> Pair:
        """Keys and values [n, parts, c] of x [n, d]."""
        return self._placed(self.key(x), places, self.key_norm), self.value(x).unflatten(1, (self.parts, -1))

    def forward(self, x: Tensor, places: Tensor, text: Pair, seen: Tensor, chain: Sequence[Pair]) -> Tensor:
        """x [n, d] over entries of a text [m, parts, c], of which each sees [n, m], and one [n, parts, c] of each step
        of its chain."""
        q = self._placed(self.query(x), places, self.query_norm) * (x.shape[1] // self.parts) ** -0.5
        scores = torch.einsum("nhc,mhc->nhm", q, text[0]).masked_fill(~seen[:, None], -torch.inf)
        own = [(q * key).sum(-1, keepdim=True) for key, _ in chain]
        weights = torch.cat((scores, *own), dim=2).softmax(-1)
        read = torch.einsum("nhm,mhc->nhc", weights[..., : seen.shape[1]], text[1])
        for step, (_, value) in enumerate(chain):
            read = read + weights[..., seen.shape[1] + step, None] * value
        told: Tensor = self.out(read.flatten(1))
        return told

    def _placed(self, x: Tensor, places: Tensor, norm: RMSNorm) -> Tensor:
        x = x.unflatten(1, (self.parts, -1))
        if not self.turned:
            normed: Tensor = norm(x)
            return normed
        half = x.shape[-1] // 2
        angles = places[:, None].float() * THETA ** (-torch.arange(half, device=x.device) / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = x[..., :half], x[..., half : 2 * half]
        turned = (first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :])
        return torch.cat(turned, dim=-1)


class Mlp(torch.nn.Module):
    """A gated feed-forward layer of a normed input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.gate, self.up = RMSNorm(width), Linear(width, 2 * width, bias=False), Linear(width, 2 * width)
        self.down = Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        told: Tensor = self.down(silu(self.gate(normed)) * self.up(normed))
        return told


@dataclass(frozen=True)
class Thought:
    """What guesses of n texts go on from.

    feature: [n, d], the newest guessed state; middle: [n, d], the same before the last layer. places: [n], of the last
    token that was no guess. text: by layer, keys and values of the text. seen: [n, m], which of them each sees. chain:
    by layer and step, keys and values [n, parts, c] of the guesses.
    """

    feature: Tensor
    middle: Tensor
    places: Tensor
    text: tuple[Pair, ...]
    seen: Tensor
    chain: tuple[tuple[Pair, ...], ...]

    def __getitem__(self, rows: Any) -> Thought:
        chain = tuple(tuple((key[rows], value[rows]) for key, value in steps) for steps in self.chain)
        own = (self.feature[rows], self.middle[rows], self.places[rows])
        return Thought(*own, self.text, self.seen[rows], chain)


@heads("dream")
class DreamHeads(Heads):
    """The drafter of Hu et al., DREAM, arXiv 2505.19201, section 3: token and state are fused and read by a decoder
    layer, by tanh-gated cross-attention whose keys and values are the model's own last states, and by a second one."""

    sees = 64

    def __init__(self, model: Any, depth: int) -> None:
        super().__init__()
        output = model.get_output_embeddings().weight.detach().float()
        width, parts = output.shape[1], model.config.get_text_config().num_attention_heads
        parts = parts if width % parts == 0 else 1
        self.depth = depth
        self.register_buffer("output", output, persistent=False)  # the model's, which are frozen: not in the file
        self.register_buffer("input", model.get_input_embeddings().weight.detach().float(), persistent=False)
        self.output: Tensor
        self.input: Tensor
        self.fuse = Linear(2 * width, width)
        self.norms = torch.nn.ModuleList(RMSNorm(width) for _ in range(LAYERS - 1))
        self.attend = torch.nn.ModuleList(Attention(width, parts, layer != CROSSING) for layer in range(LAYERS))
        self.mlps = torch.nn.ModuleList(Mlp(width) for _ in range(LAYERS))
        self.gates = torch.nn.Parameter(torch.zeros(2))
        with torch.no_grad():  # at first the guess is the state before it
            self.fuse.weight.copy_(torch.cat((torch.zeros(width, width), torch.eye(width)), dim=1))
            for layer in (0, LAYERS - 1):
                self._attend(layer).out.weight.mul_(0.1)
                self._mlp(layer).down.weight.mul_(0.1)

    def begin(self, states: Tensor, following: Tensor, places: Tensor, encoded: Tensor | None = None) -> Thought:
        at = torch.arange(len(states), device=states.device)
        back = at[:, None] - at
        seen = (back >= 0) & (back < self.sees)
        read, middle, text = self._through(self._fused(states, following), states, at, seen, None)
        return Thought(read[places], middle[places], at[places], text, seen[places], ((), (), ()))

    def step(self, place: int, carry: Thought, tokens: Tensor) -> tuple[Tensor, Thought]:
        if place:
            fused, at = self._fused(carry.feature, tokens), carry.places + place
            read, middle, own = self._through(fused, carry.feature, at, carry.seen, carry)
            chain = tuple((*steps, new) for steps, new in zip(carry.chain, own, strict=True))
            carry = replace(carry, feature=read, middle=middle, chain=chain)
        return torch.cat((carry.feature, carry.middle), dim=1), carry

    def words(self, place: int, out: Tensor) -> Tensor:
        return out[:, : self.output.shape[1]] @ self.output.T

    def loss(self, place: int, out: Tensor, taught: Taught) -> Tensor:
        width = self.output.shape[1]
        words = cross_entropy(self.words(place, out), taught.logits.softmax(-1))
        told = OF_STATES * smooth_l1_loss(out[:, :width], taught.states) + OF_WORDS * words
        return told if taught.middle is None else told + OF_MIDDLE * smooth_l1_loss(out[:, width:], taught.middle)

    def middle(self, model: Any, ids: Tensor) -> Tensor | None:
        return sharpest_states(model, ids, self.early(model))

    def early(self, model: Any) -> range:
        """The layers of which the sharpest is learnt from, token by token: the first half."""
        return range(max(1, model.config.get_text_config().num_hidden_layers // 2))

    def _fused(self, states: Tensor, following: Tensor) -> Tensor:
        fused: Tensor = self.fuse(torch.cat((self.input[following], states), dim=1))
        return fused

    def _through(
        self, fused: Tensor, features: Tensor, at: Tensor, seen: Tensor, carry: Thought | None
    ) -> tuple[Tensor, Tensor, tuple[Pair, ...]]:
        """All layers over fused tokens [n, d] at places [n], with the features [n, d] that they are fused of: the state
        [n, d] after them, that after cross-attention, and keys and values by layer. They are a text's own, of which
        each sees [n, n]; or, with a carry, the next step of the chains behind its text."""
        read = middle = fused
        made: list[Pair] = []
        for layer in range(LAYERS):
            own = self._attend(layer).entries(features if layer == CROSSING else self._normed(layer, read), at)
            text, chain = (own, ()) if carry is None else (carry.text[layer], (*carry.chain[layer], own))
            told = self._attend(layer)(self._normed(layer, read), at, text, seen, chain)
            gate, feed = torch.tanh(self.gates) if layer == CROSSING else (1.0, 1.0)
            read = read + gate * told
            read = read + feed * self._mlp(layer)(read)
            middle = read if layer == CROSSING else middle
            made.append(own)
        return read, middle, tuple(made)

    def _attend(self, layer: int) -> Attention:
        return cast(Attention, self.attend[layer])

    def _mlp(self, layer: int) -> Mlp:
        return cast(Mlp, self.mlps[layer])

    def _normed(self, layer: int, x: Tensor) -> Tensor:
        """What a layer reads: the first one takes its input as it is."""
        normed: Tensor = self.norms[layer - 1](x) if layer else x
        return normed
