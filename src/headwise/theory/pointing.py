"""Attention's weights as the answer itself: a recurrent model that points at what it was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss, pad

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Steps, register
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block
from headwise.layers.score.additive import Additive
from headwise.theory.decoder import seeded
from headwise.theory.fitting import adam, generator

WIDTH, ROWS, TESTED, RATE = 64, 64, 256, 5e-3
SIZES, LARGER, LIST = (5, 10), 12, 15  # numbers that are sorted in training, and never trained; places of a list


@register("pointing")
@dataclass(frozen=True, kw_only=True)
class Pointing(Experiment):
    """Five to ten numbers, in any order, whose places are said from that of the least number to that of the largest.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Pointer networks",
        statement="A decoder whose answer is its attention over the inputs says nothing but places of inputs, sorts "
        "numbers of the trained sizes, and goes on at a larger size, where one that answers from a list of places "
        "fails",
        paper="Pointer Networks, arXiv 1506.03134, section 2.3",
        setting="LSTMs of 256 to 512 channels, hulls, triangulations and tours of 5 to 50 points",
        seconds=120,
        systems=(22,),
        differs="numbers are sorted, and no hulls found; GRUs of 64 channels; the most likely place is said, without "
        "a beam",
        leaves_out="convex hulls, triangulations and tours",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("probability of places that are no input's, largest", "outside", "outside_list", "a list of places",
             below=1e-9),
        Part("right places at 5 to 10 numbers, share", "right", "right_list", "a list of 15 places", above=0.9),
        Part("right places at 12 numbers, share", "larger", "larger_list", "a list of 15 places", above=0.5),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("outside",)

    steps: Steps = 2500
    seeds: Seeds = 3

    def draw(self, seed: int) -> dict[str, Any]:
        """Right places of decoders that point, and that answer from a list."""
        models = {how: self.trained(not how, seed) for how in ("", "_list")}
        chance = generator(f"{self.name}/held", seed)
        sizes = [*range(SIZES[0], SIZES[1] + 1), LARGER, LIST]
        held = {size: torch.rand(TESTED, size, generator=chance) for size in sizes}
        found: dict[str, float] = {}
        with torch.no_grad():
            for how, model in models.items():
                right = {size: float((model.said(x) == x.argsort(-1)).float().mean()) for size, x in held.items()}
                found |= {f"larger{how}": right.pop(LARGER), f"largest{how}": right.pop(LIST)}
                found[f"right{how}"] = sum(right.values()) / len(right)
                x = held[SIZES[0]]
                found[f"outside{how}"] = float(model(x, x.argsort(-1)).exp()[..., SIZES[0] :].sum(-1).max())
        return {"measures": found}

    def trained(self, points: bool, seed: int) -> Sorter:
        """A model that was taught the places in their order, by those before."""
        chance, model = generator(self.name, seed), seeded(seed, lambda: Sorter(points))

        def loss() -> Tensor:
            size = int(torch.randint(SIZES[0], SIZES[1] + 1, (), generator=chance))
            x = torch.rand(ROWS, size, generator=chance)
            places = x.argsort(-1)
            return nll_loss(model(x, places).flatten(0, 1), places.flatten())

        adam([*model.parameters()], loss, self.steps, RATE)
        return model


class Sorter(nn.Module):
    """A GRU reads numbers, another says their places: by its attention, where it points, or from what that read, as
    one of a list."""

    def __init__(self, points: bool) -> None:
        super().__init__()
        self.reads, self.says = nn.GRU(1, WIDTH, batch_first=True), nn.GRU(1, WIDTH, batch_first=True)
        first = Additive().learned(Dims(WIDTH, 1, WIDTH), StreamShape(1, 1, 1, WIDTH, WIDTH))
        self.learned = nn.ParameterDict({name: nn.Parameter(one) for name, one in first.items()})
        self.list = None if points else nn.Linear(2 * WIDTH, LIST)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Logarithms of the probabilities of LIST places [n, size, LIST], each after the places before it."""
        inputs, state = self.reads(x[..., None])
        before = torch.cat((-torch.ones(len(x), 1), x.gather(1, places[:, :-1])), 1)
        return self.answers(self.says(before[..., None], state)[0], inputs)

    def answers(self, asks: Tensor, inputs: Tensor) -> Tensor:
        """What is said after states `asks [n, count, WIDTH]`, from states of inputs [n, size, WIDTH]."""
        seen = torch.ones(len(asks), 1, asks.shape[1], inputs.shape[1], dtype=torch.bool)
        block = Block(asks[:, None], inputs[:, None], seen, seen[0, 0].long(), {}, dict(self.learned.items()), 1.0)
        scores = Additive().scores(block)[:, 0]
        if self.list is None:
            gap = LIST - inputs.shape[1]
            return pad(scores.log_softmax(-1), (0, gap), value=-torch.inf)
        read = scores.softmax(-1) @ inputs
        return self.list(torch.cat((asks, read), -1)).log_softmax(-1)

    def said(self, x: Tensor) -> Tensor:
        """The places that it says by itself, [n, size]; one that is none counts as the last."""
        inputs, state = self.reads(x[..., None])
        before, found = -torch.ones(len(x), 1), []
        for _ in range(x.shape[1]):
            asks, state = self.says(before[..., None], state)
            found.append(self.answers(asks, inputs).argmax(-1))
            before = x.gather(1, found[-1].clamp_max(x.shape[1] - 1))
        return torch.cat(found, 1)
