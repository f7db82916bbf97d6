"""A small decoder of plain attention for trials that change how it reads, and the facts that it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm, silu

from headwise.theory.facts import VALUES, Facts, asked, told
from headwise.theory.fitting import adam, generator

LAYERS, HEADS, WIDTH, LONGEST = 2, 4, 64, 80
Stored: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # keys and values of a layer [rows, heads, tokens, dim]


class Layer(nn.Module):
    """Attention and a feed-forward layer, each normed before and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Parameter(torch.randn(4, WIDTH, WIDTH) / WIDTH**0.5)  # of queries, keys, values and outputs
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(
        self, x: torch.Tensor, before: Stored | None = None, last: torch.Tensor | None = None,
        factors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Stored]:  # fmt: skip
        """What `x [rows, tokens, width]` becomes, and the keys and values of its last token. before: keys and values
        that all tokens see beside their past. last: projections [4, width, width] of the last token in the place of
        the layer's own. factors: what scores are multiplied by [heads, tokens]."""
        read = layer_norm(x, (WIDTH,))
        query, key, value = (_split(_projected(read, self.project[i], None if last is None else last[i]))
                             for i in range(3))  # fmt: skip
        own, tokens = (key[:, :, -1:], value[:, :, -1:]), x.shape[1]
        if before is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        scores = query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        if factors is not None:
            scores = scores * factors[:, None]
        hidden = torch.ones(tokens, key.shape[2], dtype=torch.bool).triu(key.shape[2] - tokens + 1)
        mixed = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + _projected(mixed, self.project[3], None if last is None else last[3])
        return x + self.down(silu(self.up(layer_norm(x, (WIDTH,))))), own


class Decoder(nn.Module):
    """Reads facts and answers a question with a value."""

    def __init__(self) -> None:
        super().__init__()
        self.facts, self.place = Facts(WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.layers, self.out = nn.ModuleList(Layer() for _ in range(LAYERS)), nn.Linear(WIDTH, VALUES)

    def forward(
        self, x: torch.Tensor, before: Sequence[Stored] | None = None, last: torch.Tensor | None = None,
        factors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Stored]]:  # fmt: skip
        """The logits of the answer [rows, values] after inputs [rows, tokens, width], and of each layer the keys and
        values of the last token. before, last: of each layer, factors: of the first one, see `Layer`."""
        x, stored = x + self.place.weight[: x.shape[1]], []
        for i, layer in enumerate(self.layers):
            x, own = layer(
                x, None if before is None else before[i], None if last is None else last[i], None if i else factors
            )
            stored.append(own)
        return self.out(layer_norm(x[:, -1], (WIDTH,))), stored

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The inputs of ids [rows, tokens]: a fact's are those of its key and of its value, a question's of its key."""
        made: torch.Tensor = self.facts(ids)
        return made

    def projections(self) -> torch.Tensor:
        """Those of all layers [layers, 4, width, width]."""
        return torch.stack([layer.project for layer in self.layers])  # type: ignore[misc]

    def answers(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits of the answer after ids [rows, tokens]."""
        return self(self.embed(ids))[0]


@cache
def answering(name: str, seed: int, steps: int, tokens: int, facts: int) -> Decoder:
    """A decoder that answers questions after up to so many tokens; where an end of the text that it is given does not
    tell, it has learnt to be unsure."""
    chance = generator(f"{name}/host", seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Decoder()

    def loss() -> torch.Tensor:
        ids, values = told(64, tokens, facts, chance)
        question, answer = asked(ids, values, chance)
        end = (
            ids
            if torch.rand(1, generator=chance) < 0.7
            else ids[:, int(torch.randint(tokens, (1,), generator=chance)) :]
        )
        return cross_entropy(model.answers(torch.cat([end, question], dim=1)), answer)

    adam(list(model.parameters()), loss, steps, 3e-3)
    return model.requires_grad_(False)


def _split(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _projected(x: torch.Tensor, weight: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    """`x` by a projection; its last token by another one, where there is one."""
    return x @ weight if last is None else torch.cat([x[:, :-1] @ weight, x[:, -1:] @ last], dim=1)
