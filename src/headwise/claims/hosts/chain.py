"""Long generations whose early results are used again and again, of a small model trained to look facts up in them.

A prompt of noise is read; what follows comes as a generation does, a few tokens at a time. Facts are told in it, and a
class that is asked for is to be answered by its value, which the text never says again: only a method that keeps the
fact's own tokens can answer. Classes, values and noise are those of the `lookup` hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from torch.nn.functional import cross_entropy

from headwise.claims.hosts import Document, Stage, add_host
from headwise.claims.hosts.lookup import ASKING, CLASSES, VALUES, VOCABULARY
from headwise.claims.hosts.small import WINDOW, learn, model_of, start
from headwise.claims.hosts.trained import Trained
from headwise.seams.transformers.cache import PreTrainedModel

PROMPT, TOKENS = 48, 768  # so long that facts outlive several evictions, each a lot to a control that draws
TRAINED_WRITTEN = 3  # equal tokens of a fact in training; in documents it is one, which no lot keeps so easily
SPACE = 6  # tokens from one fact to the next
TOLD, GAP = 6, 12  # facts of a phase, and tokens from one question of the text to the next
FULL = (False, False, True, True)  # layers that see all tokens
STEPS, ROWS = 300, 8


@dataclass(frozen=True)
class Chain(Trained):
    """phases: how often new facts are told and asked for, and those before retired. asked: questions about one
    document, all in its last phase."""

    generates: ClassVar[bool] = True

    phases: int = 1
    asked: int = 6

    def untrained(self) -> PreTrainedModel:
        """The model before its training, first layers with a window of WINDOW tokens."""
        model = model_of(FULL, VOCABULARY, 1, 2 * TOKENS, self.seed)
        start(model, CLASSES, VALUES)
        return model

    def train(self, model: PreTrainedModel) -> None:
        """Train on such texts of one to three phases."""
        random, optimizer = Random(self.seed), torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 6e-3 * min(1.0, (step + 1) / 10, 2 * (STEPS - step) / STEPS)
            texts = [written(random, random.randint(1, 3), TRAINED_WRITTEN) for _ in range(ROWS)]
            places = [(row, place, value) for row, (_, asks) in enumerate(texts) for place, value in asks]
            rows, at, values = torch.tensor(places).T
            loss = cross_entropy(model(torch.stack([ids for ids, _ in texts])).logits[rows, at], values)
            learn(model, optimizer, loss)

    def stage(self, model: PreTrainedModel) -> Stage:
        return Generating(self, model)


class Generating(Stage):
    """The trained model and its texts: what comes after the prompt, up to where an answer is due, is the question."""

    def __init__(self, host: Chain, model: PreTrainedModel) -> None:
        self.host, self.model = host, model

    def document(self, number: int, share: float = 1.0) -> Document:
        ids, asks = written(Random(f"chain/{number}"), self.host.phases, 1)
        last = [ask for ask in asks if ask[0] > TOKENS - (TOKENS - PROMPT) // (2 * self.host.phases)]
        chosen = Random(number).sample(last, min(self.host.asked, len(last)))
        chains = tuple((ids[None, PROMPT : place + 1], torch.tensor([[value]])) for place, value in sorted(chosen))
        return Document(ids[None, :PROMPT], chains)


def written(random: Random, phases: int, copies: int) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """A text [TOKENS] with facts of `copies` equal tokens, and its questions: where each stands, and the value that
    answers it."""
    ids = torch.tensor([random.randrange(ASKING + CLASSES, VOCABULARY) for _ in range(TOKENS)])
    classes, asks, length = random.sample(range(CLASSES), TOLD * phases), [], (TOKENS - PROMPT) // phases
    for phase in range(phases):
        first = PROMPT + phase * length
        told = [kind * VALUES + random.randrange(VALUES) for kind in classes[phase * TOLD : (phase + 1) * TOLD]]
        for place, value in enumerate(told):
            ids[first + SPACE * place :][:copies] = value
        for turn, place in enumerate(range(first + SPACE * TOLD + GAP, first + length, GAP)):
            value = told[turn % TOLD]
            ids[place] = ASKING + value // VALUES
            asks.append((place, value))
    return ids, asks


for _name, _phases, _told in (
    ("chain_reused", 1, "facts told at its beginning are asked for to its end, so that a window has lost them"),
    ("chain_retired", 2, "new facts take the place of those before, so that what was attended to most is of no use"),
):
    add_host(
        Chain(
            _name,
            f"a small model of 4 layers, the first two with a window of {WINDOW} tokens, that reads a long generation: "
            f"{_told}; no answer is ever written again",
            asks=64,
            phases=_phases,
        )
    )
