"""Drawn pictures in which one patch asks what others show, and a small encoder whose attention is given to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headwise.theory.decoder import seeded
from headwise.theory.fitting import adam, generator, share_right

PIXELS, THINGS, WIDTH = 12, 8, 32  # of a thing and of a colour; channels of the encoder
ROWS, TESTED, NOISE = 64, 1024, 0.3
Looks = tuple[Tensor, Tensor]  # of things and of colours, [count, PIXELS] each


@dataclass(frozen=True)
class Lookup:
    """patches: of a picture, one of which asks. asks: how many others it asks for. steps: of training. rates: at which
    each side is trained; it counts by the best."""

    patches: int
    asks: int
    steps: int
    rates: tuple[float, ...] = (5e-3, 1e-2)

    def looks(self, chance: torch.Generator) -> Looks:
        """How things and colours look."""
        things = torch.randn(THINGS, PIXELS, generator=chance)
        return things, torch.randn(self.patches - 1, PIXELS, generator=chance)

    def pictures(self, rows: int, looks: Looks, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Patches in any order that show a thing each in a colour of its own, and one that shows `asks` colours beside
        each other, [rows, patches, (1 + asks) PIXELS]; and which things have these, [rows, asks]."""
        things, colours = looks
        shown = torch.randint(THINGS, (rows, self.patches - 1), generator=chance)
        order = torch.rand(rows, self.patches - 1, generator=chance).argsort(-1)
        x = torch.zeros(rows, self.patches, 1 + self.asks, PIXELS)
        x[:, :-1, 0], x[:, :-1, 1], x[:, -1, 1:] = things[shown], colours[order], colours[order[:, : self.asks]]
        mixed = torch.rand(rows, self.patches, generator=chance).argsort(-1)
        x = x.flatten(2).gather(1, mixed[..., None].expand(-1, -1, (1 + self.asks) * PIXELS))
        return x + NOISE * torch.randn(x.shape, generator=chance), shown[:, : self.asks]

    def right_answers(self, make: Callable[[], nn.Module], name: str, seed: int) -> tuple[float, Encoder]:
        """The share of right answers on held pictures, and the encoder, whose attention is what `make` makes. All sides
        of a seed see the same pictures."""
        looks = self.looks(generator(f"{name}/kinds", seed))
        x, things = self.pictures(TESTED, looks, generator(f"{name}/held", seed))
        found = []
        for rate in self.rates:
            chance, model = generator(f"{name}/pictures", seed), seeded(seed, lambda: Encoder(make, self))

            def loss(model: Encoder = model, chance: torch.Generator = chance) -> Tensor:
                x, things = self.pictures(ROWS, looks, chance)
                return cross_entropy(model(x).flatten(0, 1), things.flatten())

            adam([one for one in model.parameters() if one.requires_grad], loss, self.steps, rate)
            with torch.no_grad():
                found.append((share_right(model(x).flatten(0, 1), things.flatten()), model))
        return max(found, key=lambda one: one[0])


class Encoder(nn.Module):
    """Patches with places, an attention and a feed-forward layer, and the mean of all patches.

    make: an attention, [n, patches, WIDTH] -> the same shape.
    """

    def __init__(self, make: Callable[[], nn.Module], task: Lookup) -> None:
        super().__init__()
        self.asks, self.embed = task.asks, nn.Linear((1 + task.asks) * PIXELS, WIDTH)
        self.head = nn.Linear(WIDTH, task.asks * THINGS)
        self.places = nn.Parameter(0.1 * torch.randn(task.patches, WIDTH))
        self.reads = make()
        self.wide = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def given(self, x: Tensor) -> Tensor:
        """What the attention is given of pictures, [n, patches, WIDTH]."""
        found: Tensor = self.norms[0](self.embed(x) + self.places)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits of things, [n, asks, THINGS]."""
        x = self.embed(x) + self.places
        x = x + self.reads(self.norms[0](x))
        x = x + self.wide(self.norms[1](x))
        logits: Tensor = self.head(self.norms[2](x).mean(1))
        return logits.unflatten(-1, (self.asks, THINGS))
