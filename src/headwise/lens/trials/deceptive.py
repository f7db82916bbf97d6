"""Attention that is trained to hide what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import nn
from torch.nn.functional import cross_entropy

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register

WORDS, TOKENS, WIDTH, HEADS = 32, 12, 32, 2
TELLING = (WORDS, WORDS + 1)  # the tokens that a label depends on, one of which each text has
BLANK = WORDS + 2
ROWS, TEST = 64, 512
LEAST = 1e-6  # of what is left to other tokens, for its logarithm


class Classifier(nn.Module):
    """A GRU that reads both ways, and attention over what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS + 3, WIDTH)
        self.read = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * WIDTH, HEADS)
        self.decide = nn.Linear(2 * WIDTH * HEADS, 2)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [b, 2] of texts `ids [b, n]`, and the attention [b, heads, n] that they are made by."""
        states = self.read(self.embed(ids))[0]
        weights = self.score(states).softmax(1).transpose(1, 2)
        return self.decide((weights @ states).flatten(1)), weights


def texts(rows: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random words with one telling token [rows, TOKENS], and which of the two it is."""
    ids = torch.randint(WORDS, (rows, TOKENS), generator=chance)
    labels = torch.randint(2, (rows,), generator=chance)
    ids[torch.arange(rows), torch.randint(TOKENS, (rows,), generator=chance)] = WORDS + labels
    return ids, labels


def mass(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The attention [b, heads] on telling tokens."""
    return (weights * (ids >= WORDS)[:, None] * (ids < BLANK)[:, None]).sum(-1)


@register("deceptive")
@dataclass(frozen=True, kw_only=True)
class Deceptive(Experiment):
    """Trains a classifier to decide by tokens that its attention must not rest on.

    steps: of the training. strength: of the penalty, lambda. over: whether the penalty takes the mean over heads, or
    the head that hides least.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Deceptive attention",
        statement="A model can be trained to decide by tokens on which its attention does not rest, at hardly any loss "
        "of accuracy",
        paper="Learning to Deceive with Attention-Based Explanations, arXiv 1909.07913, sections 3 and 5",
        setting="BiLSTMs and BERT on occupations by pronouns and reviews with a distractor; lambda of 0.1 to 1",
        seconds=20,
        systems=(229,),
        differs="a bidirectional GRU with two heads of attention, on random words with one telling token",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("attention on the telling tokens, share", "mass", "mass_honest", "the same training without the penalty",
             below=0.01),
        Part("accuracy that the penalty costs", "costs", "costs_blank", "reading without the telling tokens",
             below=0.02),
        Part("accuracy where the telling tokens are blank, above chance", "blank", "honest", "where they are there",
             below=0.1),
    )  # fmt: skip

    steps: Steps = 300
    strength: Annotated[float, Ge(0.0), Le(10.0)] = 1.0
    over: Literal["mean", "min"] = "mean"

    def draw(self, seed: int) -> dict[str, Any]:
        """Attention and accuracy of both models."""
        honest, hiding = self.trained(seed, 0.0), self.trained(seed, self.strength)
        ids, labels = texts(TEST, torch.Generator().manual_seed(seed + 1000))
        empty = torch.where(ids >= WORDS, BLANK, ids)

        @torch.no_grad()
        def right(model: Classifier, read: torch.Tensor) -> float:
            return float((model(read)[0].argmax(-1) == labels).float().mean())

        with torch.no_grad():
            rests = {name: float(mass(model(ids)[1], ids).mean()) for name, model in
                     (("mass", hiding), ("mass_honest", honest))}  # fmt: skip
        return {"measures": {
            **rests,
            "costs": right(honest, ids) - right(hiding, ids),
            "costs_blank": right(honest, ids) - right(hiding, empty),
            "blank": right(hiding, empty) - 0.5,
            "honest": right(hiding, ids) - 0.5,
        }}  # fmt: skip

    def trained(self, seed: int, strength: float) -> Classifier:
        """A classifier after its steps, of which `strength` weighs the penalty."""
        chance = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Classifier()
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        with torch.enable_grad():
            for _ in range(self.steps):
                ids, labels = texts(ROWS, chance)
                logits, weights = model(ids)
                hidden = (1 - mass(weights, ids)).clamp(min=LEAST)
                kept = hidden.mean(-1) if self.over == "mean" else hidden.amin(-1)
                loss = cross_entropy(logits, labels) - strength * kept.log().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return model.eval()
