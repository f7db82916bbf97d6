"""Questions with lettered choices: which nodes give the letter, and what the head that reads it compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.lens.interventions import Head
from headwise.lens.ships import heads_of
from headwise.lens.tracing import Contrast, Patch, brought_back, traced
from headwise.lens.trials.hosts import BATCH, trained
from headwise.observe import LayerAttention
from headwise.seams.transformers.small import small_decoder

LETTERS, THINGS, CHOICES = range(16), range(16, 40), 4
ASK, VOCABULARY = 40, 41
LAYERS, HEADS, WIDTH = 3, 8, 64
RANK = 3  # directions of queries and of keys that are left to the head


def asked(rows: int, chance: torch.Generator, random: bool) -> tuple[Tensor, Tensor]:
    """Questions [rows, 2 * CHOICES + 2]: a thing, lettered choices of which one is it, and ASK; and which choice it is
    [rows]. Letters are the first four in order, or with `random` any four."""
    things = torch.rand(rows, len(THINGS), generator=chance).argsort(1)[:, :CHOICES] + THINGS[0]
    letters = torch.rand(rows, len(LETTERS), generator=chance).argsort(1)[:, :CHOICES]
    if not random:
        letters = torch.arange(CHOICES).expand(rows, -1)
    right = torch.randint(CHOICES, (rows,), generator=chance)
    listed = torch.stack((letters, things), dim=-1).flatten(1)
    return torch.cat((things.gather(1, right[:, None]), listed, torch.full((rows, 1), ASK)), dim=1), right


def letter(ids: Tensor, right: Tensor) -> Tensor:
    """The letter [rows] of the right choice."""
    return ids.gather(1, 1 + 2 * right[:, None])[:, 0]


@cache
def choosing_host(seed: int, steps: int) -> ModelSubject:
    """Three layers of eight heads that answer by letter; half of their questions have letters by chance."""

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        halves = [asked(BATCH, generator, random) for random in (False, True)]
        ids = torch.cat([ids for ids, _ in halves])
        labels = torch.full_like(ids, -100)
        labels[:, -1] = torch.cat([letter(*one) for one in halves])
        return ids, labels

    return trained(small_decoder(VOCABULARY, LAYERS, HEADS, WIDTH, seed), batch, steps, seed)


@register("choices")
@dataclass(frozen=True, kw_only=True)
class Choices(Experiment):
    """Trains a model on lettered choices, traces what gives the letter, and leaves its main head three directions.

    steps: of the training. prompts: of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Circuits of multiple choice",
        statement="Few nodes give the letter of an answer, and the head that reads it compares queries and keys in a "
        "subspace of three directions, which fits letters in order and random letters less",
        paper="Does Circuit Analysis Interpretability Scale? Evidence from Multiple Choice Capabilities in Chinchilla, "
        "arXiv 2307.09458, on the circuit and on correct letter heads",
        setting="Chinchilla 70B on MMLU, 45 nodes, rank 3",
        seconds=60,
        systems=(82,),
        differs="three layers of eight heads that choose what was named before; nodes are heads, patched where the "
        "letter is said; of the queries and keys that the lowest-rank subspace is of, those of held-out questions",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("share of the answer that a tenth of the heads bring back where the letter is said", "few", "few_random",
             "as many random heads", above=0.9),
        Part("accuracy that the main head's subspace of three directions costs", "costs", "costs_random",
             "three random directions", below=0.01),
        Part("accuracy that the same subspace costs where letters are random, less that where they are in order",
             "other", "other_random", "three random directions", above=0.02),
    )  # fmt: skip
    seeds: Seeds = 3

    steps: Steps = 300
    prompts: Size = 32

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of one model."""
        subject, chance = choosing_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        ids, right = asked(self.prompts, chance, random=False)
        contrasts = [contrast(ids[one], int(right[one])) for one in range(8)]
        heads, last = heads_of(subject), ids.shape[1] - 1
        each = torch.stack([
            traced(subject.model, one, [Patch(head, (last,)) for head in heads]) for one in contrasts
        ]).mean(0)  # fmt: skip
        count = len(heads) // 10
        few = [heads[at] for at in each.topk(count).indices.tolist()]
        random = [heads[at] for at in torch.randperm(len(heads), generator=chance)[:count].tolist()]
        shares = [sum(brought_back(subject.model, one, some, (last,)) for one in contrasts) / len(contrasts)
                  for some in (few, random)]  # fmt: skip
        known = {name: asked(self.prompts, chance, random=name == "random") for name in ("in order", "random")}
        own = bases(subject, asked(self.prompts, chance, random=False)[0], few[0])
        drawn = tuple(torch.linalg.qr(torch.randn(one.shape, generator=chance)).Q for one in own)
        costs = {
            (kind, name): accuracy(subject, *known[name]) - accuracy(subject, *known[name], few[0], basis)
            for kind, basis in (("own", own), ("drawn", drawn)) for name in known
        }  # fmt: skip
        return {"measures": {
            "few": shares[0], "few_random": shares[1],
            "costs": costs["own", "in order"], "costs_random": costs["drawn", "in order"],
            "other": costs["own", "random"] - costs["own", "in order"],
            "other_random": costs["drawn", "random"] - costs["drawn", "in order"],
            "accuracy": accuracy(subject, *known["in order"]), "accuracy_random": accuracy(subject, *known["random"]),
        }}  # fmt: skip


def contrast(ids: Tensor, right: int) -> Contrast:
    """A question [n] beside the same with the thing of the next choice asked for."""
    wrong = (right + 1) % CHOICES
    other = ids.clone()
    other[0] = ids[2 + 2 * wrong]
    return Contrast(ids[None], other[None], int(ids[1 + 2 * right]), int(ids[1 + 2 * wrong]))


@torch.no_grad()
def accuracy(
    subject: ModelSubject, ids: Tensor, right: Tensor, head: Head | None = None, basis: tuple[Tensor, ...] = ()
) -> float:
    """The share of questions that are answered rightly, where the queries and keys of a head lie in bases
    [dim, RANK]."""

    def attention(one: LayerAttention) -> Tensor:
        if head is None or one.layer != head[0]:
            return one.full()
        q, k = one.q.clone(), one.k.clone()
        for states, base in zip((q, k), basis, strict=True):
            states[:, head[1]] = states[:, head[1]] @ base @ base.T
        return replace(one, q=q, k=k).full()

    last = torch.tensor([ids.shape[1] - 1])
    said = torch.cat([subject.logits(row[None], last, attention).argmax(-1) for row in ids])
    return float((said == letter(ids, right)).float().mean())


@torch.no_grad()
def bases(subject: ModelSubject, rows: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """The directions [dim, RANK] of highest singular values of a head's queries at the last place and of its keys at
    all choices."""
    queries, keys = [], []

    def attention(one: LayerAttention) -> Tensor:
        if one.layer == head[0]:
            queries.append(one.q[0, head[1], -1:])
            keys.append(one.k[0, head[1], 1:-1])
        return one.full()

    for row in rows:
        subject.hidden(row[None], torch.tensor([len(row) - 1]), attention)
    found = [torch.linalg.svd(torch.cat(some), full_matrices=False).Vh[:RANK].T for some in (queries, keys)]
    return found[0], found[1]
