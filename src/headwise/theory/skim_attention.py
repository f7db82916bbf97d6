"""Attention by layout alone: one matrix from where words stand, which all layers read words by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.theory.fitting import adam, generator, share_right

LINES, COLUMNS, WORDS = 8, 12, 32  # of a page, and words
PAIRS, WIDTH, HEADS, LAYERS = 6, 32, 2, 2  # keys with a value each, on lines of their own
ROWS, TESTED, RATE, KEEP = 32, 256, 5e-3, 3  # KEEP: boxes that a mask leaves a token
Forms = tuple[Tensor, Tensor, Tensor]  # words and boxes [n, tokens(, 2)], and for each key the word of its value


class Skimmer(nn.Module):
    """Layers that read words by the attention of layout; or, where `own`, by that of their own states with layout
    added to the words, as rivals do. places: whether it sees where words stand."""

    def __init__(self, own: bool = False, places: bool = True) -> None:
        super().__init__()
        self.own, self.places, self.scored = own, places, 0
        self.words, self.line, self.column = (nn.Embedding(count, WIDTH) for count in (WORDS, LINES, COLUMNS))
        self.query, self.key, self.value, self.out = (
            nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)) for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS + 1))
        self.head = nn.Linear(WIDTH, WORDS)

    def attention(self, x: Tensor, layer: int = 0) -> Tensor:
        """[n, HEADS, tokens, tokens] of what queries and keys are made of."""
        self.scored += 1
        q, k = (one[layer](x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (self.query, self.key))
        return (q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1)

    def layout(self, boxes: Tensor) -> Tensor:
        """What is known of where words stand, [n, tokens, WIDTH]."""
        found: Tensor = self.line(boxes[..., 0]) + self.column(boxes[..., 1])
        return found if self.places else 0 * found

    def weights(self, words: Tensor, boxes: Tensor) -> Tensor:
        """The attention of the first layer."""
        place = self.layout(boxes)
        return self.attention(self.norms[0](self.words(words) + place) if self.own else place)

    def forward(self, words: Tensor, boxes: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits [n, tokens, WORDS]. seen [n, tokens, tokens]: what the mask of another model leaves to be read."""
        place, x = self.layout(boxes), self.words(words)
        x, weights = (x + place, None) if self.own else (x, self.attention(place))
        for layer in range(LAYERS):
            normed = self.norms[layer](x)
            read = self.attention(normed, layer) if weights is None else weights
            if seen is not None:
                read = read * seen[:, None] / (read * seen[:, None]).sum(-1, keepdim=True).clamp_min(1e-9)
            values = self.value[layer](normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            x = x + self.out[layer]((read @ values).transpose(1, 2).flatten(2))
        logits: Tensor = self.head(self.norms[LAYERS](x))
        return logits


@register("skim_attention")
@dataclass(frozen=True, kw_only=True)
class SkimAttention(Experiment):
    """Forms with keys on lines of their own, a value to the right of each, and words of both drawn anew on every form,
    in any order: at each key its value is asked for.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Skim-Attention",
        statement="Attention made of layout alone does not change with the words, is computed once for all layers, and "
        "pairs keys with values on forms whose words say nothing of it",
        paper="Skim-Attention: Learning to Focus via Document Layout, arXiv 2109.01078, section 4, and its code",
        setting="12 layers, six coordinates of a box, pages of DocBank",
        seconds=15,
        systems=(231,),
        differs="a box is a line and a column, 2 layers without feed-forward layers, and drawn forms; the mask of the "
        "best boxes goes to a rival that was trained without it",
        leaves_out="documents of people, and training under the mask",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("change of attention where all words are others, largest", "still", "still_own",
             "attention of words and layout together", below=1e-6),
        Part("attention matrices computed for a form, of as many as there are layers", "computed", "computed_own",
             "attention of words and layout together", below=0.6),
        Part("right values, share", "right", "right_blind", "without layout", above=0.95),
    )  # fmt: skip

    steps: Steps = 600

    def draw(self, seed: int) -> dict[str, Any]:
        """Changes, counts and right values."""
        held = forms(TESTED, generator(f"{self.name}/held", seed))
        skim, own, blind = (self.trained(seed, *how) for how in ((False, True), (True, True), (False, False)))
        with torch.no_grad():
            words, boxes = held[:2]
            others = (words + 1 + torch.arange(len(words))[:, None] % (WORDS - 1)) % WORDS
            still = {model: float((model.weights(words, boxes) - model.weights(others, boxes)).abs().max())
                     for model in (skim, own)}  # fmt: skip
            computed = {}
            for model in (skim, own):
                model.scored = 0
                model(words, boxes)
                computed[model] = model.scored / LAYERS
            best = skim.weights(words, boxes).amax(1).topk(KEEP, dim=-1).indices
            seen = torch.zeros(len(words), 2 * PAIRS, 2 * PAIRS).scatter(-1, best, 1.0)
        return {"measures": {
            "still": still[skim], "still_own": still[own], "computed": computed[skim], "computed_own": computed[own],
            "right": right_values(skim, held), "right_blind": right_values(blind, held),
            "right_own": right_values(own, held), "right_own_masked": right_values(own, held, seen),
        }}  # fmt: skip

    def trained(self, seed: int, own: bool, places: bool) -> Skimmer:
        """A model that was trained to say each key's value."""
        chance = generator(self.name, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Skimmer(own, places)

        def loss() -> Tensor:
            words, boxes, values = forms(ROWS, chance)
            return cross_entropy(keys_of(model(words, boxes), boxes).flatten(0, 1), values.flatten())

        adam([*model.parameters()], loss, self.steps, RATE)
        return model


def forms(rows: int, chance: torch.Generator) -> Forms:
    """Forms of PAIRS keys, each with a value somewhere to its right on its line, the words in any order."""
    line = torch.rand(rows, LINES, generator=chance).argsort(-1)[:, :PAIRS]
    key = torch.randint(COLUMNS // 2, (rows, PAIRS), generator=chance)
    value = COLUMNS // 2 + torch.randint(COLUMNS // 2, (rows, PAIRS), generator=chance)
    words = torch.randint(WORDS, (rows, 2 * PAIRS), generator=chance)
    boxes = torch.stack((line.repeat(1, 2), torch.cat((key, value), dim=1)), dim=-1)
    order = torch.rand(rows, 2 * PAIRS, generator=chance).argsort(-1)
    said = words[:, PAIRS:].gather(1, line.argsort(-1))  # by line
    return words.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 2)), said


def keys_of(logits: Tensor, boxes: Tensor) -> Tensor:
    """The logits [n, PAIRS, WORDS] at keys, from the first line to the last."""
    value = boxes[..., 1] >= COLUMNS // 2
    place = (boxes[..., 0] + LINES * value).argsort(-1)[:, :PAIRS]
    return logits.gather(1, place[..., None].expand(-1, -1, WORDS))


@torch.no_grad()
def right_values(model: Skimmer, held: Forms, seen: Tensor | None = None) -> float:
    """Share of keys whose value is said."""
    words, boxes, values = held
    return share_right(keys_of(model(words, boxes, seen), boxes).flatten(0, 1), values.flatten())
