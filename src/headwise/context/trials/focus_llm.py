"""FocusLLM: a long memory is read in chunks side by side, each of which hands one candidate token to the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from headwise.context.trials.hosts import HEADS, WIDTH, Decoder, Stored, answering
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.theory.facts import FIRST_NOISE, FIRST_QUESTION, KEYS, VALUES, asked, right, told
from headwise.theory.fitting import adam, generator

CHUNK, LOCAL, TRAINED = 16, 4, 2  # tokens of a chunk, of the local context before its question; chunks of training
TIMES, RATE = 8, 2e-3  # chunks that are read over those of training
CONTINUED = 0.5  # share of questions on the memory in training; the others ask for what the local context repeats


def candidates(model: Decoder, chunks: torch.Tensor, local: torch.Tensor, last: torch.Tensor) -> list[Stored]:
    """Of each layer, the keys and values [rows, heads, chunks, dim] of one candidate a chunk: of the last token of the
    local context [rows, tokens] read after that chunk, of [rows, chunks, tokens], by projections of its own."""
    rows, count, _ = chunks.shape
    read = torch.cat([chunks, local[:, None].expand(-1, count, -1)], dim=2).flatten(0, 1)
    _, stored = model(model.embed(read), last=last)
    return [tuple(x[:, :, 0].unflatten(0, (rows, count)).transpose(1, 2) for x in own) for own in stored]


def focused(model: Decoder, chunks: torch.Tensor, local: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The logits of the answer after the local context, before which the candidates of all chunks stand."""
    logits: torch.Tensor = model(model.embed(local), candidates(model, chunks, local, last))[0]
    return logits


@register("focus_llm")
@dataclass(frozen=True, kw_only=True)
class Focus(Experiment):
    """Trains a decoder on texts of one chunk, then alone the projections of candidate tokens on a memory of two chunks,
    and asks after facts in a memory of sixteen.

    host_steps: of the decoder's training. steps: of the projections'. prompts: of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="FocusLLM's candidate tokens",
        statement="With projections of its own for a chunk's candidate token, a frozen decoder answers questions on a "
        "memory of 8 times the trained length, in any order of its chunks; without a memory it is what it was",
        paper="FocusLLM: Scaling LLM's Context by Parallel Decoding, arXiv 2408.11745, and its code",
        setting="LLaMA-2-7B, chunks of 2,048 tokens, trained on 8,192, passkeys at 400,000",
        seconds=150,
        systems=(151,),
        differs="two layers of 64 channels and facts of one token; one answer token; the whole local context is "
        "appended to a chunk, not its last 512 tokens; where the local context holds the fact, the loss is that of "
        "repetition",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("right answers at 8 times the trained memory, share", "right", "truncated", "the local context alone",
             above=0.9),
        Part("the same", "right", "untrained", "candidates by the decoder's own projections", above=0.9),
        Part("largest change of a logit where the chunks change their order", "order", "other_chunks",
             "other chunks", below=1e-4),
        Part("largest change of a logit without a memory", "without", "with_memory", "with one", below=1e-6),
    )  # fmt: skip

    host_steps: Steps = 600
    steps: Steps = 1000
    prompts: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Answers of one decoder, before and after its candidates' projections are trained."""
        chance = generator(self.name, seed)
        model = answering(self.name, seed, self.host_steps, CHUNK + LOCAL, KEYS // 4)
        own = model.projections().detach()
        last = own.clone().requires_grad_(True)

        def loss() -> torch.Tensor:
            chunks, local, answer = remembered(64, TRAINED, chance, CONTINUED)
            return cross_entropy(focused(model, chunks, local, last), answer)

        adam([last], loss, self.steps, RATE)
        with torch.no_grad():
            return {"measures": self._measured(model, own, last.detach(), chance)}

    def _measured(
        self, model: Decoder, own: torch.Tensor, last: torch.Tensor, chance: torch.Generator
    ) -> dict[str, float]:
        chunks, local, answer = remembered(self.prompts, TIMES * TRAINED, chance, 1.0)
        short, own_local, own_answer = remembered(self.prompts, TRAINED, chance, 1.0)
        alone, logits = model.answers(local), focused(model, chunks, local, last)
        order = torch.randperm(chunks.shape[1], generator=chance)
        nothing = [(torch.zeros(len(local), HEADS, 0, WIDTH // HEADS),) * 2] * len(model.layers)

        def apart(other: torch.Tensor, one: torch.Tensor = logits) -> float:
            return float((other - one).abs().max())

        return {
            "right": right(logits, answer),
            "truncated": right(alone, answer),
            "untrained": right(focused(model, chunks, local, own), answer),
            "trained_length": right(focused(model, short, own_local, last), own_answer),
            "order": apart(focused(model, chunks[:, order], local, last)),
            "other_chunks": apart(focused(model, chunks.roll(1, 0), local, last)),
            "without": apart(model(model.embed(local), nothing)[0], alone),
            "with_memory": apart(logits, alone),
        }


def remembered(
    rows: int, chunks: int, chance: torch.Generator, continued: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A memory [rows, chunks, tokens], a local context that ends in a question [rows, tokens] and its answer [rows]:
    after a fact of the memory, in this share of the rows; after one that the local context repeats in the others."""
    texts, values = told(rows, chunks * CHUNK, min(KEYS, chunks * KEYS // 8), chance)
    question, answer = asked(texts, values, chance)
    local = torch.randint(FIRST_NOISE, FIRST_QUESTION, (rows, LOCAL), generator=chance)
    fact = (question[:, 0] - FIRST_QUESTION) * VALUES + answer
    repeats = torch.rand(rows, generator=chance) >= continued
    local[:, 0] = torch.where(repeats, fact, local[:, 0])
    return texts.unflatten(1, (chunks, CHUNK)), torch.cat([local, question], dim=1), answer
