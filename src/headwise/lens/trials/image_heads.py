"""Heads of an image classifier: which it needs, how far they look, and which kinds of patterns they have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Steps, register
from headwise.theory.fitting import adam
from headwise.theory.stack import Stack

SIDE, PIXELS, GLYPHS = 4, 4, 4  # patches along a side, pixels of a patch, kinds of glyphs
PATCHES = SIDE * SIDE
WIDTH, HEADS, LAYERS = 32, 4, 2
RATE, ROWS, NOISE = 4e-3, 64, 0.3
ORDERS = 16  # random ones, in which heads are pruned
KINDS, EACH, CODES = 4, 40, 3  # kinds of planted patterns, how many of each, numbers that a pattern is told by

PLACES = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).flatten(0, 1).float()
APART = (PLACES[:, None] - PLACES).norm(dim=-1)  # [patches, patches]


class Viewer(nn.Module):
    """A classifier of images by their patches."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.stack = nn.Linear(PIXELS, WIDTH), Stack(PATCHES, LAYERS, HEADS, WIDTH)
        self.norm, self.decide = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, GLYPHS)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits [b, GLYPHS] of images [b, PATCHES, PIXELS]; kept: factors of heads, [layers, heads]."""
        logits: Tensor = self.decide(self.norm(self.stack(self.see(images), kept)[0].mean(1)))
        return logits


def images(rows: int, chance: torch.Generator, glyphs: Tensor) -> tuple[Tensor, Tensor]:
    """Noise with two glyphs in it [rows, PATCHES, PIXELS], and the sum of their kinds, modulo GLYPHS."""
    kinds = torch.randint(GLYPHS, (rows, 2), generator=chance)
    at = torch.rand(rows, PATCHES, generator=chance).argsort(1)[:, :2]
    drawn = NOISE * torch.randn(rows, PATCHES, PIXELS, generator=chance)
    return drawn.scatter_add(1, at[..., None].expand(-1, -1, PIXELS), glyphs[kinds]), kinds.sum(1) % GLYPHS


def planted(chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patterns [KINDS * EACH, patches, patches] that look at neighbours, at all alike, at the first patch, or along
    rows, in noise; and the kind of each."""
    along = (PLACES[:, None, 0] != PLACES[:, 0]).float()
    first = torch.zeros(PATCHES, PATCHES)
    first[:, 0] = 4.0
    found = [-2 * APART, torch.zeros_like(APART), first, -4 * along] * EACH
    noise = torch.randn(len(found), PATCHES, PATCHES, generator=chance)
    return (torch.stack(found) + noise).softmax(-1), torch.arange(KINDS).repeat(EACH)


@register("image_heads")
@dataclass(frozen=True, kw_only=True)
class ImageHeads(Experiment):
    """Trains a classifier of images, prunes its heads in two orders, and sorts planted patterns by what an autoencoder
    makes of them.

    steps: of both trainings.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Heads of an image classifier",
        statement="Heads pruned in the order of what each costs alone lose accuracy more slowly than in random order; "
        "attention by distance tells heads that look near from those that look everywhere; an autoencoder of attention "
        "maps sorts patterns by kind",
        paper="How Does Attention Work in Vision Transformers? A Visual Analytics Attempt, arXiv 2303.13731 "
        "(importance of heads, strength by distance, patterns)",
        setting="ViTs of 6 to 12 layers on CIFAR-10 and ImageNet",
        seconds=30,
        systems=(72,),
        differs="two layers over 16 patches, told the sum of two glyphs; the importance is the loss without a head, of "
        "the metrics that the paper compares",
        leaves_out="importance by images and classes, and the pages in which the paper shows all this",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("accuracy while heads are pruned, the mean over how many, less that in random orders", "order",
             "order_random", "other random orders", above=0.1),
        Part("rank correlation of attention with distance, of planted heads that look near", "near", "near_flat",
             "planted heads that look at all alike", below=-0.9),
        Part("purity of clusters of what the autoencoder makes of planted patterns", "purity", "purity_untrained",
             "the autoencoder before it is trained", above=0.9),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "pruning": Panel("heads pruned", "accuracy"), "attention by distance": Panel("patches apart", "share"),
    }  # fmt: skip

    steps: Steps = 400

    def draw(self, seed: int) -> dict[str, Any]:
        """All figures of one seed."""
        chance = torch.Generator().manual_seed(seed)
        glyphs = 2 * torch.randn(GLYPHS, PIXELS, generator=chance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, coder = Viewer(), autoencoder()
        maps, kinds = planted(chance)
        flat = PATCHES * maps.flatten(1) - 1
        with torch.no_grad():
            before = purity(coder[:3](flat), kinds)
        adam([*model.parameters()], lambda: cross_entropy(*seen(model, chance, glyphs)), self.steps, RATE)
        adam([*coder.parameters()], lambda: mse_loss(coder(flat), flat), self.steps, RATE)
        with torch.no_grad():
            held = images(512, chance, glyphs)
            count = LAYERS * HEADS
            lost = torch.stack([cross_entropy(model(held[0], without([head])), held[1]) for head in range(count)])
            fresh = images(512, chance, glyphs)
            told = self.pruned(model, fresh, lost.argsort().tolist())
            orders = [torch.randperm(count, generator=chance).tolist() for _ in range(ORDERS)]
            half, mean = torch.tensor([self.pruned(model, fresh, one) for one in orders]).unflatten(0, (2, -1)).mean(1)
            after = purity(coder[:3](flat), kinds)
        profiles = {name: by_distance(maps[kinds == at].mean(0)) for at, name in enumerate(("near", "all alike"))}
        return {
            "measures": {
                "order": float(torch.tensor(told).mean() - mean.mean()),
                "order_random": float(half.mean() - mean.mean()),
                "near": ranked(profiles["near"]), "near_flat": ranked(profiles["all alike"]),
                "purity": after, "purity_untrained": before, "accuracy": told[0],
            },
            "lines": {
                "pruning": {"by importance": [[i, x] for i, x in enumerate(told)],
                            "in random orders": [[i, x] for i, x in enumerate(mean.tolist())]},
                "attention by distance": profiles,
            },
        }  # fmt: skip

    def pruned(self, model: Viewer, held: tuple[Tensor, Tensor], order: list[int]) -> list[float]:
        """The accuracy with none of the heads pruned, with the first of an order, the first two, and so on."""
        told = [model(held[0], without(order[:many])).argmax(-1) == held[1] for many in range(len(order) + 1)]
        return [float(one.float().mean()) for one in told]


def seen(model: Viewer, chance: torch.Generator, glyphs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of new images and what they are."""
    drawn, labels = images(ROWS, chance, glyphs)
    return model(drawn), labels


def without(heads: list[int]) -> Tensor:
    """Factors of heads [layers, heads], 0 for these."""
    kept = torch.ones(LAYERS * HEADS)
    kept[heads] = 0.0
    return kept.view(LAYERS, HEADS)


def autoencoder() -> nn.Sequential:
    """Of flat attention maps, whose first three parts encode."""
    size = PATCHES * PATCHES
    return nn.Sequential(nn.Linear(size, WIDTH), nn.GELU(), nn.Linear(WIDTH, CODES),
                         nn.Linear(CODES, WIDTH), nn.GELU(), nn.Linear(WIDTH, size))  # fmt: skip


def purity(codes: Tensor, kinds: Tensor) -> float:
    """The share of patterns that are of their cluster's most frequent kind, of as many clusters as kinds by k-means
    that starts from points far apart."""
    centres = codes[:1]
    for _ in range(KINDS - 1):
        centres = torch.cat((centres, codes[torch.cdist(codes, centres).amin(1).argmax()][None]))
    for _ in range(20):
        own = torch.cdist(codes, centres).argmin(1)
        centres = torch.stack([codes[own == one].mean(0) if bool((own == one).any()) else centres[one]
                               for one in range(KINDS)])  # fmt: skip
    most = sum(int(kinds[own == one].bincount(minlength=KINDS).max()) for one in range(KINDS))
    return most / len(kinds)


def by_distance(pattern: Tensor) -> list[list[float]]:
    """Points [distance, mean attention to a patch so far away] of a pattern [patches, patches]."""
    return [[float(far), float(pattern[far == APART].mean())] for far in APART.unique()]


def ranked(profile: list[list[float]]) -> float:
    """The rank correlation of attention and distance."""
    ranks = torch.tensor(profile).argsort(0).argsort(0).float()
    return float(torch.corrcoef(ranks.T)[0, 1])
