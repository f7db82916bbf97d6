"""Attention with three and two matrices in the place of four, and with one that mixes places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.layers.project.optimised import Sliced
from headwise.layers.projections import Linears, linear, merged, split
from headwise.theory.decoder import attention, seeded
from headwise.theory.fitting import generator
from headwise.theory.lookup import WIDTH, Lookup

HEADS, PATCHES = 4, 16  # of the encoders, and of a picture
KINDS = ("standard", "optimised", "efficient", "super", "uniform")


@register("optimised_attention")
@dataclass(frozen=True, kw_only=True)
class OptimisedAttention(Experiment):
    """Layers of one head that are folded into layers of fewer matrices, and encoders of drawn pictures, one patch of
    which asks what another shows.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Optimised, efficient and super attention",
        statement="Without value matrix, and without that of keys, a layer has 3 d^2 and 2 d^2 parameters and, of one "
        "head, says what any standard layer says; with a matrix over places in their stead it answers as often as "
        "standard attention",
        paper="You Need to Pay Better Attention, arXiv 2403.01643, sections 3.1 to 3.3",
        setting="MNIST, CIFAR-100, ImageNet, IMDB and Amazon reviews, translation",
        seconds=300,
        systems=(179,),
        differs="no official code was found, the form of super attention was held beside a sketch by others; heads of "
        "super attention are 4, without the layer norm that the paper may have before it, and drawn pictures",
        leaves_out="photographs and reviews, and the causal form of super attention",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("parameters of optimised attention from 3 d^2, and of efficient from 2 d^2, most", "size", "size_standard",
             "standard attention", below=1e-9),
        Part("parameters of super attention from 2 d^2 + n^2", "size_super", "size_standard_super",
             "standard attention", below=1e-9),
        Part("a standard layer of one head beside optimised attention into which it is folded, largest difference",
             "folded", "folded_heads", "a layer of two heads", below=1e-5),
        Part("the same of efficient attention", "folded_twice", "folded_twice_heads", "a layer of two heads",
             below=1e-5),
        Part("right answers of super attention more than of standard, share", "super", "efficient",
             "efficient attention, without the matrix over places", above=0.0),
        Part("right answers of optimised attention more than of standard, share", "optimised", "uniform",
             "equal weights of all patches", above=-0.01),
        Part("right answers of efficient attention more than of standard, share", "efficient", "uniform",
             "equal weights of all patches", above=-0.01),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("size", "size_super", "folded", "folded_twice")

    steps: Steps = 1500

    def draw(self, seed: int) -> dict[str, Any]:
        """Parameters, differences and right answers."""
        task = Lookup(PATCHES, 1, self.steps)
        right = {kind: task.right_answers(partial(Few, kind), self.name, seed)[0] for kind in KINDS}
        counts = {kind: sum(one.numel() for one in Few(kind).parameters()) for kind in KINDS}
        real = [layer_size(text) for text in ("heads", "optimised", "optimised('keys')")]
        square, places = WIDTH**2, PATCHES**2
        return {"measures": {
            "size": max(abs(real[1] / square - 3), abs(real[2] / square - 2)),
            "size_standard": abs(real[0] / square - 3),
            "size_super": abs(counts["super"] / (2 * square + places) - 1),
            "size_standard_super": abs(counts["standard"] / (2 * square + places) - 1),
            **{kind: right[kind] - right["standard"] for kind in KINDS[1:]}, "right": right["standard"],
            **self.folds(seed),
        }}  # fmt: skip

    @torch.no_grad()
    def folds(self, seed: int) -> dict[str, float]:
        """How far a layer's outputs are from those of layers into which its matrices are folded."""
        x = torch.randn(64, PATCHES, WIDTH, generator=generator(f"{self.name}/x", seed))
        found = {}
        for heads, name in ((1, ""), (2, "_heads")):
            dims = Dims(WIDTH, heads, WIDTH // heads)
            layer = seeded(seed, partial(AttentionLayer, "heads", dims))
            wanted = layer(x)[0]
            for keys, said in ((False, "folded"), (True, "folded_twice")):
                found[said + name] = float((folded(layer, dims, keys)(x)[0] - wanted).abs().max())
        return found


def folded(layer: AttentionLayer, dims: Dims, keys: bool) -> AttentionLayer:
    """A layer without a matrix of values, nor of keys where `keys` is, that says what `layer` of one head says."""
    made = AttentionLayer("optimised('keys')" if keys else "optimised", dims)
    old, new = layer.project, made.project
    assert isinstance(old, Linears) and isinstance(new, Sliced)
    new.q.weight.copy_(old.k.weight.T @ old.q.weight if keys else old.q.weight)
    if new.k is not None:
        new.k.weight.copy_(old.k.weight)
    made.out.o.weight.copy_(layer.out.o.weight @ old.v.weight)
    return made


def layer_size(text: str) -> int:
    """Numbers that a layer of four heads learns."""
    return sum(one.numel() for one in AttentionLayer(text, Dims(WIDTH, HEADS, WIDTH // HEADS)).parameters())


class Few(nn.Module):
    """Attention in both directions: with all matrices; without that of values ("optimised"); nor of keys
    ("efficient"); with one over places in their stead ("super"); or with equal weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.out = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH)
        self.k = linear(WIDTH, WIDTH) if kind in ("standard", "optimised", "uniform") else nn.Identity()
        self.v = linear(WIDTH, WIDTH) if kind in ("standard", "uniform") else nn.Identity()
        self.places = nn.Parameter(torch.eye(PATCHES)) if kind == "super" else None

    def forward(self, x: Tensor) -> Tensor:
        """`x [n, PATCHES, WIDTH]` -> as `x`."""
        values = x if self.places is None else self.places @ x
        q, k, v = (split(one, HEADS) for one in (self.q(x), self.k(x), self.v(values)))
        made: Tensor = self.out(merged(attention(0 * q if self.kind == "uniform" else q, k, v)))
        return made
