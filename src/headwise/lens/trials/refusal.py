"""A model that refuses marked prompts, and the heads that it refuses by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.interventions import Head
from headwise.lens.sahara import grown
from headwise.lens.ships import evenly, first_words, heads_of, ships
from headwise.lens.trials.hosts import BATCH, HALF, HEADS, LAYERS, VOCABULARY, WIDTH, trained, twice
from headwise.seams.transformers.small import small_decoder

WORDS = VOCABULARY - 4
MARK, ASK, REFUSE, COMPLY = range(WORDS, VOCABULARY)
GROUP = 2  # heads that are taken away together


def asked(rows: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts [rows, 2 * HALF] that are read twice but for a question at their end, and which of them hold a mark."""
    ids = twice(WORDS, HALF, rows, chance)
    marked = torch.rand(rows, generator=chance) < 0.5
    place = torch.randint(2 * HALF - 1, (rows,), generator=chance)
    ids[torch.arange(rows)[marked], place[marked]] = MARK
    ids[:, -1] = ASK
    return ids, marked


@cache
def refusing_host(seed: int, steps: int) -> ModelSubject:
    """Two layers of four heads that answer a question by whether a mark stands before it, and copy elsewhere."""

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids, marked = asked(2 * BATCH, generator)
        labels = torch.full_like(ids, -100)
        labels[:, HALF:-2] = ids[:, HALF + 1 : -1]
        labels[labels >= WORDS] = -100
        labels[:, -1] = torch.where(marked, REFUSE, COMPLY)
        return ids, labels

    return trained(small_decoder(VOCABULARY, LAYERS, HEADS, WIDTH, seed), batch, steps, seed)


@register("refusal")
@dataclass(frozen=True, kw_only=True)
class Refusal(Experiment):
    """Trains a model to refuse marked prompts, ranks its heads by Ships, and takes the first away; grows a group of
    heads by Sahara as well.

    steps: of the training. prompts: of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Safety heads",
        statement="Refusing rests on few heads, which the divergence of the first answered token without each tells: "
        "without the first of them a model hardly refuses any more and does all else as before",
        paper="On the Role of Attention Heads in Large Language Model Safety, arXiv 2410.13708, sections 3 (Ships) and "
        "4 (Sahara)",
        setting="Llama-2-7B-Chat and Vicuna-7B on harmful questions; queries or keys times 1e-5",
        seconds=30,
        systems=(85,),
        differs="two layers of four heads that refuse prompts with a mark; other text is copying; Sahara compares four "
        "directions of states, where the authors' code compares the first of prompts",
        leaves_out="values turned to nothing, and models that were aligned",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("refusals that go without the first head by Ships, over those that go without another one", "ratio",
             "ratio_last", "the last head by Ships over the others", above=5.0),
        Part("relative change of the loss of copying without the first head", "harm", "harm_copy",
             "the head that copying loses most by", below=0.02),
    )  # fmt: skip

    steps: Steps = 600
    prompts: Size = 64

    def draw(self, seed: int) -> dict[str, Any]:
        """What one model loses without its heads."""
        subject, chance = refusing_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        ids, marked = asked(4 * self.prompts, chance)
        bad = [row[None] for row in ids[marked][: self.prompts]]
        other = twice(WORDS, HALF, self.prompts, chance)
        whole, heads = first_words(subject, bad), heads_of(subject)
        without = {head: first_words(subject, bad, [head]) for head in heads}
        scores = {head: ships(whole, without[head]) for head in heads}
        order = sorted(heads, key=lambda head: -scores[head])
        lost = {head: refused(whole) - refused(without[head]) for head in heads}
        harms = {head: abs(cost(subject, other, [head]) / cost(subject, other) - 1) for head in heads}
        group = grown(subject, bad, GROUP)
        others = [head for head in heads if head not in group]
        pairs = [
            refused(whole) - refused(first_words(subject, bad, others[at : at + 2])) for at in range(0, len(others), 2)
        ]

        def over_others(head: Head) -> float:
            mean = sum(lost[one] for one in heads if one != head) / (len(heads) - 1)
            return lost[head] / max(mean, 1 / (self.prompts * len(heads)))

        return {"measures": {
            "ratio": over_others(order[0]), "ratio_last": over_others(order[-1]),
            "harm": harms[order[0]], "harm_copy": max(harms.values()),
            "group": refused(whole) - refused(first_words(subject, bad, group)),
            "group_others": sum(pairs) / len(pairs),
            "refused": refused(whole), "lost": lost[order[0]], "alike": float(order[0] in group),
        }}  # fmt: skip


def refused(told: torch.Tensor) -> float:
    """The share of answers, by log-probabilities [prompts, vocabulary], that refuse."""
    return float((told.argmax(-1) == REFUSE).float().mean())


@torch.no_grad()
def cost(subject: ModelSubject, rows: torch.Tensor, heads: list[Head] | None = None) -> float:
    """The loss of rows [b, n] by token, where these heads look at all alike, nats."""
    places, found = torch.arange(rows.shape[1] - 1), []
    for row in rows:
        told = subject.logits(row[None], places, evenly(heads or [])).float().log_softmax(-1)
        found.append(-told.gather(1, row[1:, None]).mean())
    return float(torch.stack(found).mean())
