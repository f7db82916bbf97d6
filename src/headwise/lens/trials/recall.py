"""How a fact that was learnt is recalled: heads that fetch the subject, and a last MLP that answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch

from headwise.calibrate.layerwise import decoder_layers
from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.interventions import Head, patched, recorded
from headwise.lens.look import Look, looked_at
from headwise.lens.scene import Text
from headwise.lens.ships import heads_of
from headwise.lens.stream import directions, stream
from headwise.lens.trials.hosts import BATCH, HEADS, LAYERS, VOCABULARY, WIDTH, trained
from headwise.seams.transformers.small import small_decoder

SUBJECTS, RELATIONS, ANSWERS = range(16), range(16, 20), range(20, 52)
NOISE, TOKENS = range(52, 63), 8
ATTENDS = 0.25  # of a head's attention at the last token on the subject, from which on it is said to fetch it


def facts(seed: int) -> torch.Tensor:
    """The answer of every relation and subject [relations, subjects], by chance."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(ANSWERS[0], ANSWERS[-1] + 1, (len(RELATIONS), len(SUBJECTS)), generator=chance)


def asked(rows: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise with a subject in it and a relation at the end [rows, TOKENS]; where the subject stands, which it is and
    which relation, [rows] each."""
    ids = torch.randint(NOISE[0], NOISE[-1] + 1, (rows, TOKENS), generator=chance)
    place = torch.randint(TOKENS - 1, (rows,), generator=chance)
    subject, relation = (torch.randint(len(x), (rows,), generator=chance) for x in (SUBJECTS, RELATIONS))
    ids[torch.arange(rows), place], ids[:, -1] = subject, RELATIONS[0] + relation
    return ids, place, subject, relation


@cache
def knowing_host(seed: int, steps: int) -> ModelSubject:
    """Two layers of four heads that know all facts of their seed."""

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        ids, _, subject, relation = asked(2 * BATCH, generator)
        labels = torch.full_like(ids, -100)
        labels[:, -1] = facts(seed)[relation, subject]
        return ids, labels

    return trained(small_decoder(VOCABULARY, LAYERS, HEADS, WIDTH, seed), batch, steps, seed)


@register("recall")
@dataclass(frozen=True, kw_only=True)
class Recalled(Experiment):
    """Trains a model on facts, and tells what its heads and its last MLP do as it recalls one.

    steps: of the training. prompts: of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Mechanisms of factual recall",
        statement="Heads fetch the subject to the last token, and a late MLP turns what heads wrote into the answer, "
        "as a weighted sum of their outputs tells in part",
        paper="Interpreting Key Mechanisms of Factual Recall in Transformer-Based Language Models, arXiv 2403.19521, "
        "sections 3 to 5",
        setting="GPT-2, OPT and Llama-2 on countries and capitals",
        seconds=30,
        systems=(99,),
        differs="two layers that are trained on 64 facts; one weight for each head over all prompts",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("variance of the last MLP's output that heads' outputs explain, less that of outputs of other prompts",
             "fit", "fit_shuffled", "outputs of other prompts again", above=0.02),
        Part("answers that become the other subject's as the heads that look at the subject are patched, share",
             "flips", "flips_other", "the heads that do not look at it", above=0.8),
    )  # fmt: skip

    steps: Steps = 400
    prompts: Size = 32

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of one model; and by how much the last layer's heads and MLP move the answer's logit."""
        subject, chance = knowing_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        ids, place, who, relation = asked(self.prompts, chance)
        answers = facts(seed)[relation, who]
        heads, mlp, toward = self.parts_of(subject, ids, answers)
        order = [torch.randperm(len(ids), generator=chance) for _ in range(2)]
        fit, away, far = (explained(x, mlp) for x in (heads, heads[:, order[0]], heads[:, order[1]]))
        last = heads[-HEADS:].sum(0)
        fetch = self.fetching(subject, ids[:8], place[:8])
        flips = {
            kind: self.flipped(subject, (ids, place, who, relation), facts(seed), own)
            for kind, own in (("flips", fetch), ("flips_other", [x for x in heads_of(subject) if x not in fetch]))
        }
        return {"measures": {
            "fit": fit - away,
            "fit_shuffled": far - away,
            **flips,
            "last_heads": float((last * toward).sum(-1).mean()),
            "last_mlp": float((mlp * toward).sum(-1).mean()),
            "fetching": float(len(fetch)),
        }}  # fmt: skip

    def parts_of(
        self, subject: ModelSubject, ids: torch.Tensor, answers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At the last token of every prompt: what all heads add [heads, prompts, width], what the last MLP adds
        [prompts, width], and the direction of the answer's logit [prompts, width]."""
        entered: list[torch.Tensor] = []
        last = decoder_layers(subject.model)[-1]
        hook = last.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0][0, -1].detach().clone()))
        try:
            streams = [stream(subject, row[None], [TOKENS - 1]) for row in ids]
        finally:
            hook.remove()
        heads = torch.cat([torch.cat([x.added(layer) for x in streams], dim=1) for layer in streams[0].read])
        final = torch.cat([one.final for one in streams])
        mlp = final - torch.stack(entered[-len(ids) :]) - heads[-HEADS:].sum(0)
        toward = [directions(subject, one, answer[None]) for one, answer in zip(streams, answers, strict=True)]
        return heads, mlp, torch.cat(toward)

    def fetching(self, subject: ModelSubject, ids: torch.Tensor, place: torch.Tensor) -> list[Head]:
        """The heads that look at the subject from the last token, in the mean over these prompts."""
        shares = torch.zeros(LAYERS, HEADS)
        for row, at in zip(ids, place, strict=True):

            def on_subject(look: Look, at: torch.Tensor = at) -> torch.Tensor:
                return look.to(at.expand(TOKENS))[:, -1]

            found = looked_at(subject, Text(row[None], torch.zeros(TOKENS, dtype=torch.bool)), on_subject)
            shares += torch.stack([found[layer] for layer in range(LAYERS)]) / len(ids)
        return [(layer, head) for layer, head in heads_of(subject) if shares[layer, head] > ATTENDS]

    @torch.no_grad()
    def flipped(
        self, subject: ModelSubject, told: tuple[torch.Tensor, ...], known: torch.Tensor, heads: list[Head]
    ) -> float:
        """The share of answers that become those of other subjects, as heads say what they said of these."""
        ids, place, who, relation = told
        other, instead = ids.clone(), (who + 1) % len(SUBJECTS)
        other[torch.arange(len(ids)), place] = instead
        with recorded(subject.model, heads) as outputs:
            subject.model(other, use_cache=False)
        with patched(subject.model, outputs):
            said = subject.model(ids, use_cache=False).logits[:, -1].argmax(-1)
        return float((said == known[relation, instead]).float().mean())


def explained(parts: torch.Tensor, whole: torch.Tensor) -> float:
    """The share of variance of `whole [n, width]` that a sum of `parts [parts, n, width]` explains, each of which has
    one weight, above 0 where the whole amplifies it and below where it erases."""
    centred, truth = parts - parts.mean(1, keepdim=True), whole - whole.mean(0)
    weights = torch.linalg.lstsq(centred.flatten(1).T, truth.flatten()[:, None]).solution
    left = truth.flatten() - (centred.flatten(1).T @ weights)[:, 0]
    return float(1 - left.square().sum() / truth.square().sum())
