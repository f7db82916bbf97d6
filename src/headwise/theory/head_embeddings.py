"""Heads that share one projection and differ by three learned vectors each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.layers.base import Dims, Project
from headwise.layers.project.heads import Heads
from headwise.layers.project.mhe import Embedded, Mhe
from headwise.layers.projections import linear, merged
from headwise.theory.decoder import attention, seeded
from headwise.theory.fitting import generator
from headwise.theory.lookup import WIDTH, Lookup

PATCHES = 8  # of a picture
DIMS = Dims(WIDTH, 8, 16)  # of the encoder's attention
FEW = Dims(WIDTH, 2, 10)  # plain heads with as many parameters of queries, keys and values as embedded ones


@register("head_embeddings")
@dataclass(frozen=True, kw_only=True)
class HeadEmbeddings(Experiment):
    """Drawn pictures of which one patch asks for several others at once, in an encoder of one layer.

    asks: for how many. steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Multiple-head embeddings",
        statement="One shared projection and three embeddings a head have 3 n d parameters more than a single head, "
        "are one head where embeddings are 0, and keep 93 % of the accuracy of heads with projections of their own",
        paper="Pit One Against Many: Leveraging Attention-head Embeddings for Parameter-efficient Multi-head "
        "Attention, arXiv 2310.07911, section 3",
        setting="encoders and decoders of 12 layers, GLUE, SuperGLUE, SQuAD and translation",
        seconds=300,
        systems=(204,),
        differs="its repository holds no code; one layer of 8 heads of 16 channels, and drawn pictures",
        leaves_out="language models",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("parameters more than those of a single head, over 3 n d, from 1", "extra", "extra_heads",
             "heads with projections of their own", below=1e-9),
        Part("heads beside the first where embeddings are 0, largest difference", "alike", "alike_drawn",
             "embeddings as they begin", below=1e-6),
        Part("right answers over those of heads with their own projections, embeddings multiplied", "multiplied",
             "single", "one head, eight times", above=0.93),
        Part("right answers over those of heads with their own projections, embeddings added", "added", "single",
             "one head, eight times", above=0.93),
        Part("right answers more than of two plain heads of as many parameters, embeddings multiplied, share", "gain",
             "gain_single", "one head, eight times", above=0.0),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("extra", "alike")

    asks: Annotated[int, Ge(1), Le(PATCHES - 1)] = 2
    steps: Steps = 3000

    def draw(self, seed: int) -> dict[str, Any]:
        """Parameters, differences and right answers."""
        sides: dict[str, tuple[Project, Dims, bool]] = {
            "heads": (Heads(), DIMS, False), "multiplied": (Mhe(), DIMS, False), "added": (Mhe("add"), DIMS, False),
            "single": (Mhe(), DIMS, True), "few": (Heads(), FEW, False),
        }  # fmt: skip
        task = Lookup(PATCHES, self.asks, self.steps)
        right = {name: task.right_answers(partial(Read, *side), self.name, seed)[0] for name, side in sides.items()}
        count, one = DIMS.heads * DIMS.head_dim, numbers(Heads(), Dims(WIDTH, 1, DIMS.head_dim))
        drawn = seeded(seed, lambda: Mhe().build(DIMS))
        x = torch.randn(1, PATCHES, WIDTH, generator=generator(f"{self.name}/x", seed))
        begun = unlike(drawn, x)
        with torch.no_grad():
            drawn.embeddings.zero_()
        return {"measures": {
            "extra": abs((numbers(Mhe(), DIMS) - one) / (3 * count) - 1),
            "extra_heads": abs((numbers(Heads(), DIMS) - one) / (3 * count) - 1),
            "alike": unlike(drawn, x), "alike_drawn": begun,
            **{name: right[name] / right["heads"] for name in ("multiplied", "added", "single")},
            "gain": right["multiplied"] - right["few"], "gain_single": right["single"] - right["few"],
            **{f"right_{name}": share for name, share in right.items()},
        }}  # fmt: skip


class Read(nn.Module):
    """Attention in both directions by the streams of a projection. single: embeddings are 0 and stay it."""

    def __init__(self, part: Project, dims: Dims, single: bool) -> None:
        super().__init__()
        self.project, self.out = part.build(dims), linear(dims.heads * dims.head_dim, dims.width)
        if single and isinstance(self.project, Embedded):
            self.project.embeddings.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:
        """`x [n, PATCHES, WIDTH]` -> as `x`."""
        streams, _ = self.project(x, torch.zeros(x.shape[:2], dtype=torch.int64), None)
        made: Tensor = self.out(merged(attention(streams.q, streams.k, streams.v)))
        return made


def numbers(part: Project, dims: Dims) -> int:
    """How many numbers a projection learns."""
    return sum(one.numel() for one in part.build(dims).parameters())


@torch.no_grad()
def unlike(project: nn.Module, x: Tensor) -> float:
    """How far what heads read is from what the first reads, at most."""
    streams, _ = project(x, torch.zeros(x.shape[:2], dtype=torch.int64), None)
    read = attention(streams.q, streams.k, streams.v)
    return float((read - read[:, :1]).abs().max())
