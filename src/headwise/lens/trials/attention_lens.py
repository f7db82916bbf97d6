"""Trained lenses of single heads beside the logit lens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.calibrate.subject import ModelSubject
from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.lens.attention_lens import divergence, trained_lens
from headwise.lens.stream import stream
from headwise.lens.trials.hosts import HALF, VOCABULARY, copying_host, leading_head, twice

HELD = 16  # texts that lenses are judged on
BEST = 10  # tokens of a lens among which the head's own has to be


@register("attention_lens")
@dataclass(frozen=True, kw_only=True)
class Lenses(Experiment):
    """Trains a lens for every head of a model that copies, and reads texts by it that it was not trained on.

    steps: of the model's training. lens_steps: of each lens's. texts: that lenses are trained on.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention Lens",
        statement="A trained lens reads a head's output as the model's next token better than the output matrix itself "
        "does, and shows which tokens a head speaks of",
        paper="Attention Lens: A Tool for Mechanistically Interpreting the Attention Head Information Retrieval "
        "Mechanism, arXiv 2310.16270, sections 2 and 3",
        setting="GPT2-Small, lenses of 38 million weights each",
        seconds=40,
        systems=(199,),
        differs="two layers that copy; at the tokens that can be foretold; the logit lens goes through the last norm",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("heads whose lens is nearer to the model than the logit lens is, share", "nearer",
             "nearer_shuffled", "a lens trained on outputs of other places", above=0.99),
        Part("places where the copying head's lens has the copied token among its ten best, share", "tops",
             "tops_shuffled", "its lens trained on other places", above=0.9),
    )  # fmt: skip

    steps: Steps = 150
    lens_steps: Steps = 150
    texts: Size = 256

    def draw(self, seed: int) -> dict[str, Any]:
        """Divergences of all heads of one model, and the ranks of the copying one."""
        subject, chance = copying_host(seed, self.steps), torch.Generator().manual_seed(seed + 1000)
        told, logits, _ = read(subject, self.texts, chance)
        held, truth, targets = read(subject, HELD, chance)
        norm: torch.nn.Module = subject.model.base_model.norm  # type: ignore[assignment]
        head = leading_head(subject, "induction", 1)
        found: dict[str, list[float]] = {}
        for one, outputs in told.items():
            order = torch.randperm(len(outputs), generator=chance)
            lenses = [trained_lens(x, logits, self.lens_steps, seed) for x in (outputs, outputs[order])]
            own = divergence(truth, subject.model.lm_head(norm(held[one])))
            for kind, lens in zip(("", "_shuffled"), lenses, strict=True):
                told_by = held[one] @ lens
                found.setdefault(f"nearer{kind}", []).append(float(divergence(truth, told_by) < own))
                found.setdefault(f"divergence{kind}", []).append(float(divergence(truth, told_by)))
                if one == head:
                    found[f"tops{kind}"] = [tops(told_by, targets)]
            found.setdefault("divergence_own", []).append(float(own))
        return {"measures": {name: sum(one) / len(one) for name, one in found.items()}}


@torch.no_grad()
def read(
    subject: ModelSubject, texts: int, chance: torch.Generator
) -> tuple[dict[tuple[int, int], torch.Tensor], torch.Tensor, torch.Tensor]:
    """By head, what it adds at all places of texts whose next token can be foretold [n, width]; the model's logits
    there [n, vocabulary], and the tokens that follow [n]."""
    rows = twice(VOCABULARY - 1, HALF, texts, chance)
    streams = [stream(subject, row[None], torch.arange(HALF, 2 * HALF - 1)) for row in rows]
    added: dict[tuple[int, int], torch.Tensor] = {}
    for layer in streams[0].read:
        outputs = torch.cat([one.added(layer) for one in streams], dim=1)
        added |= {(layer, head): own for head, own in enumerate(outputs)}
    return added, torch.cat([one.logits for one in streams]), rows[:, HALF + 1 :].flatten()


def tops(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The share of places where the target is among the best tokens."""
    return float((logits.topk(BEST).indices == targets[:, None]).any(-1).float().mean())
