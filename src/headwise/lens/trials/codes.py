"""A circuit found by codes of what heads write, without patching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.codes import auc, positive_share, trained_encoder
from headwise.lens.interventions import Head, ablated
from headwise.lens.stream import stream
from headwise.lens.trials.hosts import HALF, VOCABULARY, copying_host, twice

HELD = 64  # texts by which the circuit is told by leaving heads out


@register("codes")
@dataclass(frozen=True, kw_only=True)
class Codes(Experiment):
    """Tells the heads that copy by the codes of what they write of texts that repeat and of texts that do not.

    steps: of the model's training. sae_steps: of the autoencoder's. features: of it. prompts: of each kind.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Circuits by a discrete autoencoder",
        statement="Heads whose codes occur on prompts of a task alone are those of its circuit, as a few prompts tell, "
        "without any patching",
        paper="Sparse Autoencoders Enable Scalable and Reliable Circuit Identification in Language Models, arXiv "
        "2405.12522, sections 3 and 4",
        setting="GPT-2 Small and toy models on greater-than, indirect objects and docstrings; 5 to 10 prompts of each "
        "kind, ROC-AUC",
        seconds=30,
        systems=(189,),
        differs="heads that copy, of the last token's outputs; the circuit is the heads that cost more than the mean",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("ROC-AUC of the heads of the circuit by their share of positive codes", "auc", "auc_mixed",
             "prompts of both kinds mixed", above=0.9),
    )  # fmt: skip

    steps: Steps = 150
    sae_steps: Steps = 200
    features: Size = 64
    prompts: Size = 10

    def draw(self, seed: int) -> dict[str, Any]:
        """The area for one model."""
        subject, chance = copying_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        repeats = twice(VOCABULARY - 1, HALF, self.prompts, chance)
        other = torch.stack([torch.randperm(VOCABULARY - 1, generator=chance)[: 2 * HALF] for _ in range(self.prompts)])
        outputs = torch.stack([self.written(subject, row[: 2 * HALF - 3]) for row in (*repeats, *other)])
        outputs = outputs / outputs.square().mean().sqrt()
        codes = trained_encoder(outputs.flatten(0, 1), self.features, self.sae_steps, seed).codes(outputs)
        members = self.circuit(subject, chance)
        order = torch.randperm(len(codes), generator=chance)
        return {"measures": {
            "auc": auc(positive_share(codes[: self.prompts], codes[self.prompts :]), members),
            "auc_mixed": auc(positive_share(*codes[order].chunk(2)), members),
            "members": float(members.sum()),
        }}  # fmt: skip

    def written(self, subject: ModelSubject, ids: torch.Tensor) -> torch.Tensor:
        """What each head adds at the last token, [heads, width], layer by layer."""
        found = stream(subject, ids[None], [len(ids) - 1])
        return torch.cat([found.added(layer)[:, 0] for layer in found.read])

    @torch.no_grad()
    def circuit(self, subject: ModelSubject, chance: torch.Generator) -> torch.Tensor:
        """The heads without which copying costs more than without the mean head, in nats, bool [heads]."""
        ids = twice(VOCABULARY - 1, HALF, HELD, chance)

        def loss(heads: list[Head]) -> float:
            with ablated(subject.model, heads):
                logits = subject.model(ids, use_cache=False).logits[:, HALF:-1]
            return float(cross_entropy(logits.flatten(0, 1), ids[:, HALF + 1 :].flatten()))

        layers, whole = subject.geometry.layers, loss([])
        heads = [(layer, head) for layer, one in enumerate(layers) for head in range(one.query_heads)]
        costs = torch.tensor([loss([head]) - whole for head in heads])
        return costs > costs.mean()
