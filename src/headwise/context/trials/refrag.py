"""REFRAG: retrieved text is read as one vector a chunk, and the chunks that a policy chooses as their tokens."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from headwise.context.trials.hosts import WIDTH, Decoder
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.theory.facts import FIRST_NOISE, FIRST_QUESTION, KEYS, NOISE, VALUES, asked
from headwise.theory.fitting import adam, generator

CHUNK, CHUNKS, EXPANDED = 8, 6, 2  # tokens of a chunk; chunks of a text; of which are expanded
FULL, EMPTY = 3, 1  # facts in each chunk of one half, and of the other
ROWS, GROUP, RATE = 64, 8, 3e-3  # texts of a batch; choices a text that are compared with each other


class Refrag(nn.Module):
    """A decoder, the encoder of chunks and the policy that scores chunks by their vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, WIDTH))
        self.policy = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def vectors(self, texts: torch.Tensor) -> torch.Tensor:
        """The sum of each chunk's encoded tokens [rows, chunks, width], of texts [rows, chunks, tokens]."""
        made: torch.Tensor = self.encoder(self.decoder.embed(texts)).sum(2)
        return made

    def inputs(self, texts: torch.Tensor, question: torch.Tensor, expanded: torch.Tensor) -> torch.Tensor:
        """What the decoder reads of texts and a question [rows, 1], where as many chunks in each row are `expanded`
        [rows, chunks]: [rows, tokens + 1, width]."""
        tokens = self.decoder.embed(texts)
        parts = torch.cat([self.vectors(texts)[:, :, None], tokens], dim=2)  # a chunk's vector, then its tokens
        kept = expanded[..., None].expand(-1, -1, 1 + CHUNK) ^ (torch.arange(1 + CHUNK) == 0)
        return torch.cat([parts[kept].unflatten(0, (len(texts), -1)), self.decoder.embed(question)], dim=1)

    def losses(
        self, texts: torch.Tensor, question: torch.Tensor, answer: torch.Tensor, expanded: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each answer [rows], nats."""
        return cross_entropy(self.decoder(self.inputs(texts, question, expanded))[0], answer, reduction="none")


@register("refrag")
@dataclass(frozen=True, kw_only=True)
class Reading(Experiment):
    """Trains a small decoder on plain texts, an encoder of chunks beside it, and then a policy by the losses of what it
    chose; half of the chunks hold three facts each, the others one.

    steps: of each training. prompts: of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="REFRAG's chunks",
        statement="With a vector for each chunk of 8 tokens the loss is lower than with as many tokens of the text's "
        "end, and with the chunks that a policy expands it is lower than with as many by chance; with all expanded the "
        "decoder reads the plain prompt",
        paper="REFRAG: Rethinking RAG based Decoding, arXiv 2509.01092",
        setting="LLaMA-2-7B and RoBERTa, chunks of 8 to 32 tokens of the next paragraph's text",
        seconds=250,
        systems=(127,),
        differs="made from outlines of the paper, no official code was found; two layers of 64 channels answer "
        "questions on facts of one token; reconstruction asks for the facts of one chunk, with the decoder frozen; the "
        "policy scores each chunk by itself; what is truncated has a reader of its own, the same decoder before it "
        "learnt chunks, trained on for as long on what it is given here: the decoder of chunks itself reads ends worse "
        "than guessing, 2.08 nats. The whole chunks with a word of the question (the measure `by_words`; what BM25 "
        "chooses here, where each word is told once) leave hardly anything to lose, and beat every choice by vectors",
        leaves_out="a pretrained decoder and its text",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("loss minus that of as many tokens of the end, nats", "saved", "saved_others", "vectors of other texts",
             below=0.0),
        Part("loss with two chunks of the policy and vectors of the others, minus that of these two alone, nats",
             "beside", "beside_others", "vectors of other texts beside them", below=0.0),
        Part("loss with two chunks of the policy minus that with two by chance, nats", "chosen", "chosen_last",
             "the two that it scores lowest", below=0.0),
        Part("the largest change of a logit from the plain prompt where all are expanded", "plain", "plain_none",
             "none expanded", below=1e-5),
    )  # fmt: skip

    steps: Steps = 400
    prompts: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses of one model."""
        chance = generator(self.name, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Refrag()
        fresh = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("policy.")}
        self._read_plainly(model, chance)
        reader = deepcopy(model.decoder)
        self._read_chunks(model, chance)
        self._choose(model, chance)
        self._read_parts(model, reader, chance)
        with torch.no_grad():
            return {"measures": self._measured(model, fresh, chance) | self._rivals(model, reader, chance)}

    def _read_plainly(self, model: Refrag, chance: torch.Generator) -> None:
        step = iter(range(self.steps))

        def loss() -> torch.Tensor:
            count = grown(next(step), self.steps)
            texts, question, answer = questions(ROWS, chance, count)
            first = max(0, int(torch.randint(-2 * count * CHUNK, count * CHUNK, (1,), generator=chance)))
            return cross_entropy(
                model.decoder.answers(torch.cat([texts.flatten(1)[:, first:], question], dim=1)), answer
            )

        adam(list(model.decoder.parameters()), loss, self.steps, RATE)

    def _read_chunks(self, model: Refrag, chance: torch.Generator) -> None:
        """The encoder on single chunks; then all, on ever more chunks, a share of them expanded."""

        def one_chunk() -> torch.Tensor:
            texts, question, answer = questions(ROWS, chance, 1)
            return model.losses(texts, question, answer, torch.zeros(ROWS, 1, dtype=torch.bool)).mean()

        adam(list(model.encoder.parameters()), one_chunk, self.steps, RATE)
        step = iter(range(2 * self.steps))

        def several() -> torch.Tensor:
            count = grown(next(step), 2 * self.steps)
            texts, question, answer = questions(ROWS, chance, count)
            most = int(torch.randint(count + 1, (1,), generator=chance)) if count == CHUNKS else 0
            return model.losses(texts, question, answer, by_chance(ROWS, count, most, chance)).mean()

        adam([*model.decoder.parameters(), *model.encoder.parameters()], several, 2 * self.steps, RATE)

    def _choose(self, model: Refrag, chance: torch.Generator) -> None:
        """The policy, by the loss of each of several choices beside the mean of a text's choices."""

        def loss() -> torch.Tensor:
            texts, question, answer = (x.repeat_interleave(GROUP, 0) for x in questions(ROWS // GROUP, chance))
            with torch.no_grad():
                vectors = model.vectors(texts)
            scores = model.policy(vectors)[..., 0]
            order = torch.rand(scores.shape, generator=chance).log().neg().log().neg().add(scores.detach()).argsort(1)
            picked = order.flip(1)[:, :EXPANDED]
            with torch.no_grad():
                lost = model.losses(texts, question, answer, as_mask(picked)).unflatten(0, (-1, GROUP))
                gain = ((lost.mean(1, keepdim=True) - lost) / (lost.std(1, keepdim=True) + 1e-6)).flatten()
            total = torch.zeros(len(scores))
            for i in range(EXPANDED):  # one after the other, those that were chosen before left out
                left = scores.masked_fill(as_mask(picked[:, :i]), -torch.inf).log_softmax(1)
                total = total + left.gather(1, picked[:, i : i + 1])[:, 0]
            return -(gain * total).mean()

        adam(list(model.policy.parameters()), loss, self.steps, RATE)

    def _read_parts(self, model: Refrag, reader: Decoder, chance: torch.Generator) -> None:
        """The rivals' reader, on the end of a text, on the chunks of the policy and on those with the question's word,
        in turn; on each for as many steps as plain texts were read."""
        step = iter(range(3 * self.steps))

        def loss() -> torch.Tensor:
            texts, question, answer = questions(ROWS, chance)
            with torch.no_grad():
                told = parts_of(model, texts, question)[PARTS[next(step) % len(PARTS)]]
            return cross_entropy(reader.answers(torch.cat([told, question], dim=1)), answer)

        adam(list(reader.parameters()), loss, 3 * self.steps, RATE)

    def _rivals(self, model: Refrag, reader: Decoder, chance: torch.Generator) -> dict[str, float]:
        """What chunks as vectors save beside plain tokens that a reader of their own has learnt to read."""
        texts, question, answer = questions(self.prompts, chance)
        lost = {
            name: float(cross_entropy(reader.answers(torch.cat([told, question], dim=1)), answer))
            for name, told in parts_of(model, texts, question).items()
        }
        none = torch.zeros(self.prompts, CHUNKS, dtype=torch.bool)
        best, others = as_mask(best_of(model, texts)), texts.roll(1, 0)
        mixed = torch.where(best[..., None], texts, others)  # the chosen chunks are the text's own
        found = {name: float(model.losses(read, question, answer, expanded).mean()) for name, read, expanded in (
            ("own", texts, none), ("swapped", others, none), ("chosen", texts, best), ("mixed", mixed, best),
        )}  # fmt: skip
        return {
            "saved": found["own"] - lost["end"], "saved_others": found["swapped"] - lost["end"],
            "beside": found["chosen"] - lost["policy"], "beside_others": found["mixed"] - lost["policy"],
            "truncated": lost["end"], "by_policy": lost["policy"], "by_words": lost["words"],
            "expanded": found["chosen"],
        }  # fmt: skip

    def _measured(self, model: Refrag, fresh: dict[str, torch.Tensor], chance: torch.Generator) -> dict[str, float]:
        texts, question, answer = questions(self.prompts, chance)
        every = torch.ones(self.prompts, CHUNKS, dtype=torch.bool)
        whole = model.decoder.answers(torch.cat([texts.flatten(1), question], dim=1))
        logits = {kind: model.decoder(model.inputs(texts, question, own))[0] for kind, own in
                  (("all", every), ("none", ~every))}  # fmt: skip

        def mean(expanded: torch.Tensor) -> float:
            return float(model.losses(texts, question, answer, expanded).mean())

        def best(sign: int = 1) -> torch.Tensor:
            return as_mask((sign * model.policy(model.vectors(texts))[..., 0]).topk(EXPANDED, dim=1).indices)

        compressed, drawn = mean(~every), mean(by_chance(self.prompts, CHUNKS, EXPANDED, chance))
        chosen, full = best(), (texts < FIRST_NOISE).sum(2) == FULL
        found = {
            "chosen": mean(chosen) - drawn, "chosen_last": mean(best(-1)) - drawn,
            "full": float(full[chosen].float().mean()),
            "plain": float((logits["all"] - whole).abs().max()),
            "plain_none": float((logits["none"] - whole).abs().max()),
            "compressed": compressed, "whole": float(cross_entropy(whole, answer)),
            "inputs": float(model.inputs(texts, question, ~every).shape[1]),
        }  # fmt: skip
        model.policy.load_state_dict({name.removeprefix("policy."): own for name, own in fresh.items()})
        return found | {"chosen_untrained": mean(best()) - drawn}


def questions(
    rows: int, chance: torch.Generator, chunks: int = CHUNKS
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts [rows, chunks, tokens], half of whose chunks are full of facts, a question after one of them [rows, 1] and
    its answer [rows]."""
    texts = torch.randint(FIRST_NOISE, FIRST_NOISE + NOISE, (rows, chunks, CHUNK), generator=chance)
    values = torch.randint(VALUES, (rows, KEYS), generator=chance)
    keys = torch.rand(rows, KEYS, generator=chance).argsort(1)
    facts = keys * VALUES + values.gather(1, keys)
    full = torch.rand(rows, chunks, generator=chance).argsort(1) < max(1, chunks // 2)
    wanted = torch.where(full, FULL, EMPTY)[..., None]
    place = torch.rand(texts.shape, generator=chance).argsort(2)
    told = place < wanted
    number = told.flatten(1).cumsum(1).sub(1).clamp(min=0)
    texts = torch.where(told.flatten(1), facts.gather(1, number), texts.flatten(1))
    question, answer = asked(texts, values, chance)
    assert int(question.min()) >= FIRST_QUESTION
    return texts.unflatten(1, (chunks, CHUNK)), question, answer


PARTS = ("end", "policy", "words")


def parts_of(model: Refrag, texts: torch.Tensor, question: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is left of texts [rows, chunks, tokens], in plain tokens [rows, kept]: of the end as many tokens as there
    are chunks; the chunks that the policy chooses; those with the question's word first, the others as they come."""
    wanted = question[..., None] - FIRST_QUESTION
    hits = ((texts < FIRST_NOISE) & (texts // VALUES == wanted)).any(2).float()
    chosen = {"policy": best_of(model, texts), "words": hits.sub(torch.arange(CHUNKS) * 1e-3).topk(EXPANDED).indices}
    told = {name: texts[as_mask(own)].unflatten(0, (len(texts), -1)).flatten(1) for name, own in chosen.items()}
    return told | {"end": texts.flatten(1)[:, -CHUNKS:]}


def best_of(model: Refrag, texts: torch.Tensor) -> torch.Tensor:
    """The chunks [rows, EXPANDED] that the policy scores highest."""
    return model.policy(model.vectors(texts))[..., 0].topk(EXPANDED, dim=1).indices


def grown(step: int, steps: int) -> int:
    """How many chunks a text has: ever more in the first half of a training."""
    return min(CHUNKS, 1 + 2 * CHUNKS * step // steps)


def as_mask(picked: torch.Tensor) -> torch.Tensor:
    """Chunks [rows, picked] as a mask of all [rows, chunks]."""
    return torch.zeros(len(picked), CHUNKS, dtype=torch.bool).scatter(1, picked, True)


def by_chance(rows: int, chunks: int, count: int, chance: torch.Generator) -> torch.Tensor:
    """So many chunks of each row, by chance, as a mask [rows, chunks]."""
    return torch.rand(rows, chunks, generator=chance).argsort(1) < count
