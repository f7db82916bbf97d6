"""Worked examples that answer as wholes, of a small model trained to go on as the example of a kind did.

A document is examples, one for each kind: its steps, in order, among words that say nothing. A kind that is asked for
is to be answered by all steps of its example. While a prompt is read, its question looks at the first step alone; the
others are looked at as the answer comes to them. Examples are longer than the neighbourhoods by which methods widen
what they keep, and of unlike lengths. Layers and weights are those of the `lookup` hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import cross_entropy

from headwise.claims.hosts import Document, Stage, add_host
from headwise.claims.hosts.small import WIDTH, WINDOW, learn, model_of, start
from headwise.claims.hosts.trained import Trained
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.shapes import Mark

KINDS, PLACES, VALUES, NOISE = 16, 4, 10, 64
ASKING = KINDS * PLACES * VALUES  # ids: steps by kind, place and value, then questions by kind and place, then noise
NOISES = ASKING + KINDS * PLACES
VOCABULARY = NOISES + NOISE
LENGTHS = (24, 40)  # of an example, in tokens
ASKED = 8  # kinds asked for, of a document
SHORT, STEPS, ROWS = 400, 600, 8  # of training, the steps on few short examples, and all


@dataclass(frozen=True)
class Shots(Trained):
    """full: the layer that sees all tokens, of `layers`."""

    layers: int = 6
    full: int = 4

    def untrained(self) -> PreTrainedModel:
        """A model whose embeddings begin as sums of kind, place and value."""
        full = [layer == self.full for layer in range(self.layers)]
        model = model_of(full, VOCABULARY, 2, 2048, self.seed)
        embedding = start(model, KINDS * PLACES, VALUES)
        with torch.no_grad():
            kind, place = (0.03 * torch.randn(count, WIDTH) for count in (KINDS, PLACES))
            own = (kind[:, None] + place).flatten(0, 1)
            embedding[:ASKING] += own.repeat_interleave(VALUES, 0)
            embedding[ASKING:NOISES] += own
        return model

    def train(self, model: PreTrainedModel) -> None:
        """Train on few short examples, then on more and longer ones, with questions about all of them."""
        random, optimizer = Random(self.seed), torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
            kinds, lengths = (random.choice((2, 3, 4)), (4, 6)) if step < SHORT else (random.choice((8, 16)), (6, 40))
            texts = [written(random, lengths, kinds, kinds * max(lengths)) for _ in range(ROWS)]
            asked = torch.stack([torch.cat([torch.cat(pair) for pair in asks]) for _, _, asks in texts])
            logits = model(torch.cat((torch.stack([ids for ids, _, _ in texts]), asked), 1)).logits
            said = logits[:, -asked.shape[1] - 1 : -1].unflatten(1, (kinds, PLACES + 1))[:, :, 1:]
            answers = asked.unflatten(1, (kinds, PLACES + 1))[:, :, 1:]
            loss = cross_entropy(said.flatten(0, 2), answers.flatten())
            learn(model, optimizer, loss)

    def stage(self, model: PreTrainedModel) -> Stage:
        return Solving(model)


class Solving(Stage):
    """The trained model and its documents, whose examples are marked."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def document(self, number: int, share: float = 1.0) -> Document:
        low, high = (max(PLACES, round(share * length)) for length in LENGTHS)
        ids, ends, asks = written(Random(f"shots/{number}"), (low, high))
        marks = tuple(Mark("example", start, end) for start, end in zip((0, *ends), ends, strict=False))
        return Document(ids[None], tuple((q[None], a[None]) for q, a in asks[:ASKED]), marks=marks)


def written(
    random: Random, lengths: tuple[int, int], kinds: int = KINDS, tokens: int = 0
) -> tuple[torch.Tensor, list[int], list[tuple[torch.Tensor, torch.Tensor]]]:
    """A document [n] of an example for each of `kinds` kinds, where each of them ends, and a question [1] with its
    answer [PLACES] about each. tokens: with noise in front, so that it has as many."""
    examples, asks = [], []
    for kind in random.sample(range(KINDS), kinds):
        own = [random.randrange(NOISES, VOCABULARY) for _ in range(random.randint(*lengths))]
        steps = [(kind * PLACES + place) * VALUES + random.randrange(VALUES) for place in range(PLACES)]
        for spot, step in zip(sorted(random.sample(range(len(own)), PLACES)), steps, strict=True):
            own[spot] = step
        examples.append(own)
        asks.append((torch.tensor([ASKING + kind * PLACES]), torch.tensor(steps)))
    random.shuffle(asks)
    before = [random.randrange(NOISES, VOCABULARY) for _ in range(tokens - sum(map(len, examples)))]
    ends = torch.tensor([len(own) for own in examples]).cumsum(0) + len(before)
    return torch.tensor([*before, *(token for own in examples for token in own)]), ends.tolist(), asks


for _name, _seed, _full in (("shots_late", 1, 4), ("shots_middle", 2, 2)):
    add_host(
        Shots(
            _name,
            f"a small model of 6 layers trained from seed {_seed} to go on as the example of a kind did; only layer "
            f"{_full} sees more than {WINDOW} tokens, and an example's later steps are looked at after the prompt",
            asks=128,
            seed=_seed,
            full=_full,
        )
    )
