"""A head that refuses, found by what the first word becomes without it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.ships import evenly, first_words, heads_of, sahara, ships
from headwise.lens.trials.hosts import BATCH, HALF, LAYERS, VOCABULARY, WIDTH, trained, twice
from headwise.seams.transformers.small import small_decoder

PLAIN = VOCABULARY - 4  # tokens that texts are made of
MARK, ASK, REFUSE, OKAY = range(PLAIN, VOCABULARY)
HEADS = 8
TIMES, RANK = 5.0, 4  # how far the best head has to be above the mean of all; singular vectors of Sahara


def texts(rows: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens read twice, and then asked about [rows, 2 * HALF + 1]; in half of the rows one of the first is a mark, and
    the answer [rows] refuses."""
    ids = torch.cat((twice(PLAIN, HALF, rows, chance), torch.full((rows, 1), ASK)), dim=1)
    marked = torch.arange(rows) % 2 == 0
    place = torch.randint(HALF, (rows,), generator=chance)
    ids[marked, place[marked]] = MARK
    return ids, torch.where(marked, REFUSE, OKAY)


@cache
def refusing_host(seed: int, steps: int) -> ModelSubject:
    """Two layers of eight heads that copy, and refuse what is marked."""

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids, answers = texts(BATCH, generator)
        labels = torch.full_like(ids, -100)
        labels[:, HALF:-2] = ids[:, HALF + 1 : -1]
        labels[:, -1] = answers
        return ids, labels

    return trained(small_decoder(VOCABULARY, LAYERS, HEADS, WIDTH, seed), batch, steps, seed)


@register("ships")
@dataclass(frozen=True, kw_only=True)
class Ships(Experiment):
    """Trains a model to refuse marked prompts, and takes away the head of the highest score.

    steps: of the training. prompts: marked ones of which heads are found, and others on which they are judged.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Ships and Sahara",
        statement="Taking away the one head of the highest Ships makes a model answer what it refuses, and hardly "
        "changes what it says of other text",
        paper="On the Role of Attention Heads in Large Language Model Safety, arXiv 2410.13708, sections 3 and 4",
        setting="Llama-2-7b-chat and Vicuna-7b on harmful questions",
        seconds=40,
        systems=(85,),
        differs="two layers that are trained to refuse marked texts; queries alone are turned to nothing",
        leaves_out="models aligned to refuse harm: no model at hand that is small enough refuses",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("refusals that go with the best head, less five times the mean of the others", "falls", "falls_random",
             "a head by chance", above=0.0),
        Part("the same of Sahara's first head", "sahara", "falls_random", "a head by chance", above=0.0),
        Part("copied tokens of other text that go with the best head, share", "copies", "copies_worst",
             "the head of most copying", below=0.02),
    )  # fmt: skip

    steps: Steps = 250
    prompts: Size = 16

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of one model."""
        subject, chance = refusing_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        found, judged = ([row[None] for row in texts(2 * self.prompts, chance)[0][::2]] for _ in range(2))
        whole, heads = first_words(subject, found), heads_of(subject)
        score = {head: ships(whole, first_words(subject, found, [head])) for head in heads}
        refused = float((first_words(subject, judged).argmax(-1) == REFUSE).float().mean())
        falls = {
            head: refused - float((first_words(subject, judged, [head]).argmax(-1) == REFUSE).float().mean())
            for head in heads
        }
        best, drawn = (
            max(heads, key=lambda head: score[head]),
            heads[int(torch.randint(len(heads), (1,), generator=chance))],
        )
        mean = sum(fall for head, fall in falls.items() if head != best) / (len(heads) - 1)
        copied = {head: self.copied(subject, seed, [head]) for head in heads}
        all_heads = self.copied(subject, seed, [])
        return {"measures": {
            "falls": falls[best] - TIMES * mean,
            "falls_random": falls[drawn] - TIMES * mean,
            "sahara": falls[sahara(subject, found, 1, RANK)[0]] - TIMES * mean,
            "copies": (all_heads - copied[best]) / all_heads,
            "copies_worst": (all_heads - min(copied.values())) / all_heads,
            "refused": refused,
            "best": falls[best],
            "mean": mean,
        }}  # fmt: skip

    @torch.no_grad()
    def copied(self, subject: ModelSubject, seed: int, heads: list[tuple[int, int]]) -> float:
        """The share of tokens that are copied rightly, of texts without a mark."""
        hits, places = [], torch.arange(HALF, 2 * HALF - 1)
        for row in texts(2 * self.prompts, torch.Generator().manual_seed(seed + 2000))[0][1::2]:
            said = subject.logits(row[None], places, evenly(heads)).argmax(-1)
            hits.append(float((said == row[places + 1]).float().mean()))
        return sum(hits) / len(hits)
