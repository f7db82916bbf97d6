"""Questions with lettered choices: which heads give the letter, and what those that read it compare."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.interventions import Head
from headwise.lens.ships import heads_of
from headwise.lens.tracing import Contrast, Patch, brought_back, traced
from headwise.lens.trials.hosts import BATCH, trained
from headwise.observe import LayerAttention
from headwise.seams.transformers.small import small_decoder

LETTERS, THINGS, CHOICES = range(16), range(16, 40), 4
BEGIN, VOCABULARY = 40, 41
LAYERS, HEADS, WIDTH = 2, 10, 80
TENTH = LAYERS * HEADS // 10  # of the heads
RANK = 3  # directions that queries and keys are left
LISTED = slice(1, 2 * CHOICES + 1)  # places of letters and things
LAST = 2 * CHOICES + 1  # the place at which a letter is said

Asked = tuple[Tensor, Tensor]  # ids [rows, LAST + 1] and which choice is right [rows]
Basis = dict[Head, tuple[Tensor, Tensor]]  # directions [dim, RANK] of a head's queries, and of its keys


def listed(rows: int, chance: torch.Generator, random: bool) -> tuple[Tensor, Tensor]:
    """BEGIN and lettered things, each after its letter [rows, LAST], and an order of the choices [rows, CHOICES].
    Letters are the first four in order, or with `random` any four."""
    things = torch.rand(rows, len(THINGS), generator=chance).argsort(1)[:, :CHOICES] + THINGS[0]
    letters = torch.rand(rows, len(LETTERS), generator=chance).argsort(1)[:, :CHOICES]
    if not random:
        letters = torch.arange(CHOICES).expand(rows, -1)
    pairs = torch.stack((letters, things), dim=-1).flatten(1)
    order = torch.rand(rows, CHOICES, generator=chance).argsort(1)
    return torch.cat((torch.full((rows, 1), BEGIN), pairs), dim=1), order


def asked(rows: int, chance: torch.Generator, random: bool) -> Asked:
    """Choices, and one of their things again, of which the letter is to be said."""
    ids, order = listed(rows, chance, random)
    return torch.cat((ids, ids.gather(1, 2 + 2 * order[:, :1])), dim=1), order[:, 0]


def letter(ids: Tensor, right: Tensor) -> Tensor:
    """The letter [rows] of the right choice."""
    return ids.gather(1, 1 + 2 * right[:, None])[:, 0]


@cache
def choosing_host(seed: int, steps: int) -> ModelSubject:
    """A model that answers by letter; it learns on all four things in turn, half of the time with any letters."""

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        halves = [listed(BATCH, generator, random) for random in (False, True)]
        ids, order = (torch.cat(one) for one in zip(*halves, strict=True))
        labels = torch.full((len(ids), LAST + CHOICES), -100)
        labels[:, LAST:] = ids.gather(1, 1 + 2 * order)
        return torch.cat((ids, ids.gather(1, 2 + 2 * order)), dim=1), labels

    return trained(small_decoder(VOCABULARY, LAYERS, HEADS, WIDTH, seed), batch, steps, seed)


@register("choices")
@dataclass(frozen=True, kw_only=True)
class Choices(Experiment):
    """Trains a model on lettered choices, traces which heads give the letter, and leaves those of the last layer
    among them three directions of queries and keys.

    steps: of the training. prompts: questions of a draw, of each kind; as many again tell the directions.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Circuits of multiple choice",
        statement="A tenth of the heads gives the letter of an answer; those that read it compare queries and keys in "
        "a subspace of three directions, which costs nothing where letters stand in order and more where they are any",
        paper="Does Circuit Analysis Interpretability Scale? Evidence from Multiple Choice Capabilities in Chinchilla, "
        "arXiv 2307.09458, on output nodes and on correct letter heads",
        setting="Chinchilla 70B on MMLU, 45 output nodes",
        seconds=180,
        systems=(82,),
        differs="two layers of ten heads that choose what was named before, and learn any letters as well as those "
        "in order; nodes are heads, found on some prompts and tried on others; keys are projected at all of the list",
        leaves_out="feed-forward layers as nodes, the values of heads, and direct attribution of logits",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("what a tenth of the heads brings back of the answer, patched where the letter is said", "few",
             "few_random", "as many random heads", above=0.9),
        Part("accuracy that three directions cost where letters stand in order", "costs", "costs_random",
             "three random directions", below=0.01),
        Part("accuracy that the same directions cost where letters are any, less that where they stand in order",
             "other", "other_random", "three random directions", above=0.0),
    )  # fmt: skip
    steps: Steps = 1200
    prompts: Size = 128

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of one model."""
        subject, chance = choosing_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        found, tried = (contrasts(*asked(max(2, self.prompts // 8), chance, random=False)) for _ in range(2))
        heads = heads_of(subject)
        each = sum(traced(subject.model, one, [Patch(head, (LAST,)) for head in heads]) for one in found)
        few = [heads[at] for at in torch.as_tensor(each).topk(TENTH).indices.tolist()]
        random = [heads[at] for at in torch.randperm(len(heads), generator=chance)[:TENTH].tolist()]
        shares = [sum(brought_back(subject.model, one, some, (LAST,)) for one in tried) / len(tried)
                  for some in (few, random)]  # fmt: skip
        reading = [head for head in few if head[0] == LAYERS - 1] or few[:1]
        own = bases(subject, asked(self.prompts, chance, random=False)[0], reading)
        drawn = {head: tuple(torch.linalg.qr(torch.randn(one.shape, generator=chance)).Q for one in pair)
                 for head, pair in own.items()}  # fmt: skip
        known = {kind: asked(self.prompts, chance, random=kind == "any") for kind in ("order", "any")}
        whole = {kind: accuracy(subject, *given, {}) for kind, given in known.items()}
        costs = {(name, kind): whole[kind] - accuracy(subject, *given, basis)
                 for name, basis in (("own", own), ("drawn", drawn)) for kind, given in known.items()}  # fmt: skip
        return {"measures": {
            "few": shares[0], "few_random": shares[1],
            "costs": costs["own", "order"], "costs_random": costs["drawn", "order"],
            "other": costs["own", "any"] - costs["own", "order"],
            "other_random": costs["drawn", "any"] - costs["drawn", "order"],
            "accuracy": whole["order"], "accuracy_any": whole["any"], "reading": float(len(reading)),
        }}  # fmt: skip


def contrasts(ids: Tensor, right: Tensor) -> list[Contrast]:
    """Questions beside the same with the thing of the next choice asked for."""
    wrong = (right + 1) % CHOICES
    other = ids.clone()
    other[:, LAST] = ids.gather(1, 2 + 2 * wrong[:, None])[:, 0]
    answers = zip(letter(ids, right).tolist(), letter(ids, wrong).tolist(), strict=True)
    return [Contrast(one[None], two[None], *pair) for one, two, pair in zip(ids, other, answers, strict=True)]


@torch.no_grad()
def accuracy(subject: ModelSubject, ids: Tensor, right: Tensor, basis: Basis) -> float:
    """The share of questions that are answered rightly where queries at the end and keys of the list lie in bases."""

    def attention(one: LayerAttention) -> Tensor:
        q, k = one.q.clone(), one.k.clone()
        for (layer, head), (queries, keys) in basis.items():
            if layer == one.layer:
                q[:, head, LAST] = q[:, head, LAST] @ queries @ queries.T
                k[:, head, LISTED] = k[:, head, LISTED] @ keys @ keys.T
        return replace(one, q=q, k=k).full()

    said = torch.cat([subject.logits(row[None], torch.tensor([LAST]), attention).argmax(-1) for row in ids])
    return float((said == letter(ids, right)).float().mean())


@torch.no_grad()
def bases(subject: ModelSubject, rows: Tensor, heads: list[Head]) -> Basis:
    """The directions of highest singular values of heads' queries at the end and of their keys of the list."""
    seen: dict[Head, list[tuple[Tensor, Tensor]]] = {head: [] for head in heads}

    def attention(one: LayerAttention) -> Tensor:
        for layer, head in heads:
            if layer == one.layer:
                seen[layer, head].append((one.q[0, head, LAST:], one.k[0, head, LISTED]))
        return one.full()

    for row in rows:
        subject.hidden(row[None], torch.tensor([LAST]), attention)
    return {head: (leading(q for q, _ in pairs), leading(k for _, k in pairs)) for head, pairs in seen.items()}


def leading(vectors: Iterable[Tensor]) -> Tensor:
    """Their first RANK right singular vectors, [dim, RANK]."""
    return torch.linalg.svd(torch.cat(tuple(vectors)), full_matrices=False).Vh[:RANK].T
