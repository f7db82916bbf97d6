"""As many heads in one layer as in several, on short texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Seeds, Size, Steps, register
from headwise.layers.base import Dims
from headwise.layers.feeds import Gated
from headwise.layers.layer import AttentionLayer
from headwise.theory.decoder import operations, seeded
from headwise.theory.fitting import adam, generator
from headwise.theory.pieces import drawn, held

WIDTH, HEAD, HIDDEN, RATE = 32, 8, 64, 3e-3
SHAPES = {"deep": (4, 2, 1), "wide": (1, 8, 1), "thin": (1, 2, 1), "fed": (1, 8, 4)}  # layers, heads, times the network
KINDS = {"softmax": "rope", "window": "rope | local(8)", "linear": "linear"}
LETTERS = [ord(one) for one in "aeot"]
CLASSES = 4


def common(pieces: Tensor) -> Tensor:
    """Which of four letters comes most often."""
    return torch.stack([(pieces == letter).sum(1) for letter in LETTERS]).argmax(0)


def emptier(pieces: Tensor) -> Tensor:
    """Whether the first half has more blanks than the second."""
    first, second = ((half == ord(" ")).sum(1) for half in pieces.chunk(2, dim=1))
    return (first > second).long()


TASKS = (common, emptier)


class Reader(nn.Module):
    """Layers of one kind of attention over a text, the mean of whose states tells its class."""

    def __init__(self, sentence: str, layers: int, heads: int, times: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.layers = nn.ModuleList(AttentionLayer(sentence, Dims(WIDTH, heads, HEAD)) for _ in range(layers))
        self.wide = nn.ModuleList(Gated(WIDTH, times * HIDDEN) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * layers + 1))
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [batch, tokens]` -> logits [batch, CLASSES]."""
        return self.read(self.embed(ids))

    def read(self, x: Tensor) -> Tensor:
        """Logits of inputs `x [batch, tokens, WIDTH]`."""
        for place, (layer, wide) in enumerate(zip(self.layers, self.wide, strict=True)):
            x = x + layer(self.norms[2 * place](x))[0]
            x = x + wide(self.norms[2 * place + 1](x))
        logits: Tensor = self.out(self.norms[-1](x).mean(1))
        return logits


@register("wide_attention")
@dataclass(frozen=True, kw_only=True)
class WideAttention(Experiment):
    """Trains readers of one wide layer and of four narrow ones, with as many heads in all, on two questions about
    short texts and with three kinds of attention.

    tokens: of a text. batch, steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Wide attention",
        statement="With as many heads in all, one layer answers short texts within a point of what a deep model does, "
        "over several kinds of attention, with fewer parameters and operations",
        paper="Wide Attention Is The Way Forward For Transformers?, arXiv 2210.00640",
        setting="48 heads in 6 layers or in one, four text tasks, 10 kinds of attention; 0.3 points above on average",
        seconds=120,
        systems=(98,),
        differs="8 heads in 4 layers or in one; pieces of a novel in bytes, read causally; what is asked can be "
        "counted: the commonest of four letters, which half has more blanks",
        leaves_out="latency on a CPU, in whose place operations are counted",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("right answers of one wide layer less the deep one's, mean of 6", "wide", "thin",
             "one layer with the heads of one narrow layer", above=-0.01),
        Part("parameters over the deep one's", "parameters", "parameters_fed",
             "one wide layer whose network is as large as all of the deep one's", below=0.9),
        Part("operations on a text over the deep one's", "operations", "operations_fed",
             "one wide layer whose network is as large as all of the deep one's", below=0.9),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "right answers: softmax, window, linear": Panel("kind of attention", "right answers, mean of both questions")
    }

    seeds: Seeds = 3

    tokens: Size = 32
    batch: Size = 16
    steps: Steps = 200

    def draw(self, seed: int) -> dict[str, Any]:
        """Right answers of all readers of one seed, and their sizes."""
        shapes = ("deep", "wide", "thin")
        right = {
            shape: [[self.right(kind, shape, task, seed) for task in TASKS] for kind in KINDS.values()]
            for shape in shapes
        }
        mean = {shape: float(torch.tensor(right[shape]).mean()) for shape in shapes}
        built = {shape: self.reader("rope", shape, seed) for shape in SHAPES}
        sizes = {shape: sum(one.numel() for one in model.parameters()) for shape, model in built.items()}
        text = torch.zeros(1, self.tokens, WIDTH)
        counted = {shape: operations(model.read, text) for shape, model in built.items()}
        return {
            "measures": {
                "wide": mean["wide"] - mean["deep"], "thin": mean["thin"] - mean["deep"], "deep": mean["deep"],
                "parameters": sizes["wide"] / sizes["deep"], "parameters_fed": sizes["fed"] / sizes["deep"],
                "operations": counted["wide"] / counted["deep"], "operations_fed": counted["fed"] / counted["deep"],
            },
            "lines": {next(iter(self.panels)): {
                shape: [[place, sum(row) / len(row)] for place, row in enumerate(right[shape])] for shape in shapes
            }},
        }  # fmt: skip

    def reader(self, sentence: str, shape: str, seed: int) -> Reader:
        """A reader from the start of its seed."""
        return seeded(seed, lambda: Reader(sentence, *SHAPES[shape]))

    def right(self, sentence: str, shape: str, task: Any, seed: int) -> float:
        """The share of held-out pieces that a reader answers after training."""
        chance, model = generator(f"{self.name}/{task.__name__}", seed), self.reader(sentence, shape, seed)

        def loss() -> Tensor:
            pieces = drawn(self.batch, self.tokens - 1, chance)
            return F.cross_entropy(model(pieces), task(pieces))

        adam(list(model.parameters()), loss, self.steps, RATE)
        with torch.no_grad():
            pieces = torch.cat(held(2 * self.tokens - 1).chunk(2, dim=1))
            return float((model(pieces).argmax(-1) == task(pieces)).float().mean())
