"""Heads of a circuit by the codes that a sparse autoencoder gives their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.interventions import ablated
from headwise.lens.ships import heads_of
from headwise.lens.stream import stream
from headwise.lens.trials.hosts import pretrained
from headwise.theory.fitting import adam, generator

RUN, FILLER = 6, 20  # tokens of a run that is read twice, and of what stands between
KNOWN = 16  # prompts by which it is told which heads a circuit has
NEEDED = 0.02  # share of the answer that goes with a head of the circuit
RATE, SPARSE = 1e-3, 0.02  # of the autoencoder's training


def prompt(vocabulary: int, repeated: bool, chance: torch.Generator) -> tuple[Tensor, int]:
    """Random tokens [1, n] that end in a run which stands in them before, or does not; and what followed that."""
    drawn = torch.randperm(vocabulary - 1, generator=chance)[: 2 * RUN + FILLER + 1] + 1
    run, other, after, filler = drawn.split((RUN, RUN, 1, FILLER))
    return torch.cat((torch.zeros(1, dtype=torch.int64), run, after, filler, run if repeated else other))[None], int(
        after
    )


def coded(outputs: Tensor, features: int, steps: int, chance: torch.Generator) -> Tensor:
    """The strongest feature of each of `outputs [n, heads, width]`, by an autoencoder that is trained on them."""
    x = outputs.flatten(0, 1)
    x = (x - x.mean(0)) / x.std()
    encode = (torch.randn(features, x.shape[1], generator=chance) / x.shape[1] ** 0.5).requires_grad_()
    decode = encode.detach().clone().requires_grad_()
    bias = torch.zeros(features, requires_grad=True)

    def loss() -> Tensor:
        found = (x @ encode.T + bias).relu()
        return (found @ decode - x).square().mean() + SPARSE * found.sum(-1).mean()

    adam((encode, decode, bias), loss, steps, RATE)
    return (x @ encode.T + bias).relu().argmax(-1).detach().unflatten(0, outputs.shape[:2])


def only_in(positive: Tensor, negative: Tensor) -> Tensor:
    """By head, how many codes of `positive [n, heads]` none of `negative [m, heads]` has, [heads]."""
    pairs = zip(positive.T.tolist(), negative.T.tolist(), strict=True)
    return torch.tensor([float(len(set(one) - set(other))) for one, other in pairs])


def area(scores: Tensor, members: Tensor) -> float:
    """The area under the curve of true against false positives: how often a member's score is above another's."""
    ahead = scores[members][:, None] - scores[~members]
    return float(((ahead > 0).float() + 0.5 * (ahead == 0).float()).mean())


@register("codes")
@dataclass(frozen=True, kw_only=True)
class Codes(Experiment):
    """Finds the heads that copy by the codes which their outputs have on few prompts, half of which can be copied.

    model: a pretrained one. prompts: of each kind. features: of the autoencoder. steps: of its training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Circuits by discrete codes",
        statement="Codes of heads' outputs that occur only on prompts which need a circuit tell which heads are of it, "
        "by 10 prompts of each kind and without patching",
        paper="Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in Language Models, arXiv "
        "2405.12522",
        setting="GPT-2 Small on indirect objects, greater-than and docstrings; 5 to 10 prompts train 300 features",
        seconds=30,
        systems=(189,),
        differs="the circuit is of copying, and its heads those without each of which a fiftieth of the answer goes; "
        "outputs are those at the last place, and all prompts train the autoencoder that gives them codes",
        leaves_out="edges of a circuit",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("area under the curve of heads found against the heads whose ablation costs the answer", "area",
             "area_mixed", "both kinds of prompts mixed", above=0.9),
        Part("the same, less that by how far the mean outputs on both kinds lie apart", "gain", "gain_mixed",
             "both kinds of prompts mixed", above=0.0),
    )  # fmt: skip

    model: str = "embedded"
    prompts: Size = 10
    features: Size = 64
    steps: Steps = 300

    def draw(self, seed: int) -> dict[str, Any]:
        """Areas of one set of prompts."""
        subject, chance, members = pretrained(self.model), generator(self.name, seed), circuit(self.model)
        said = []
        for repeated in (True, False):
            for _ in range(self.prompts):
                ids, _ = prompt(subject.vocabulary, repeated, chance)
                found = stream(subject, ids, [ids.shape[1] - 1])
                said.append(torch.cat([found.added(layer)[:, 0] for layer in found.read]))
        outputs = torch.stack(said)
        codes = coded(outputs, self.features, self.steps, chance)
        measures = {"heads": float(members.sum())}
        for name, order in (("", torch.arange(len(said))), ("_mixed", torch.randperm(len(said), generator=chance))):
            (yes, no), (far, near) = codes[order].split(self.prompts), outputs[order].split(self.prompts)
            measures[f"area{name}"] = area(only_in(yes, no), members)
            apart = area((far.mean(0) - near.mean(0)).norm(dim=-1), members)
            measures |= {f"gain{name}": measures[f"area{name}"] - apart, f"apart{name}": apart}
        return {"measures": measures}


@cache
@torch.no_grad()
def circuit(model: str) -> Tensor:
    """Whether each head of a model is one without which what it copies goes in part, [heads]."""
    subject, chance = pretrained(model), generator("circuit", 0)
    asked = [prompt(subject.vocabulary, True, chance) for _ in range(KNOWN)]
    ids, answers = torch.cat([ids for ids, _ in asked]), torch.tensor([[answer] for _, answer in asked])

    def score() -> float:
        told = subject.model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return float((told.gather(1, answers)[:, 0] - told.mean(-1)).mean())

    whole, lost = score(), []
    for head in heads_of(subject):
        with ablated(subject.model, [head]):
            lost.append(1 - score() / whole)
    return torch.tensor(lost) > NEEDED
