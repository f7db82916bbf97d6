"""Heads that copy keep everything; the others keep a recent share, and one pair stands for all that they dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headwise.knobs import NonNegative, Share
from headwise.methods import among_best
from headwise.methods.evict import Evict, Latest
from headwise.observe import Found, LastQueries, Material, Progress, Subject, measure
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "razor")
@dataclass(frozen=True)
class Razor(Latest):
    """Echo and induction heads are protected; the rest keep `sinks` tokens, the latest ones, and the mean of the rest.

    budget: share of the tokens or number of tokens that an unprotected head keeps, its sinks among them; 0.2 is the
    paper's. least: tokens that it keeps however short the text. sinks, recent: tokens always kept.
    echo, induction: shares of the model's query heads, those of the highest scores, whose KV heads keep everything.
    """

    least: NonNegative = 0
    echo: Share = 0.01
    induction: Share = 0.14

    leaves_mean = True
    calibrates = {
        "echo": CalibrationTensor("g?", "attention to the same token one repeat earlier", "induction"),
        "induction": CalibrationTensor("g?", "attention to the token after that one", "induction"),
    }
    card = Card(
        title="RazorAttention",
        paper="RazorAttention: Efficient KV Cache Compression Through Retrieval Heads, arXiv 2407.15891, algorithm 1",
        systems=(259,),
        calibrated=True,
        frees_memory=True,
        chunking="exact",
        forgets="in unprotected heads, everything between sinks and recent tokens but its mean",
        deviations="without a calibration (`razor.echo`, `razor.induction`) no head is protected; a KV head is "
        "protected when one of its query heads is; least is 0 where the paper keeps 4000 tokens; a prompt in chunks is "
        "compensated chunk by chunk",
    )

    def tokens_of(self, seen: int) -> int:
        """What the budget means, at least `least`."""
        return max(super().tokens_of(seen), min(self.least, seen))

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Evict | None:
        """Nothing is evicted from heads of high echo or induction scores [layers, KV heads, g]."""
        shares = {"razor.echo": self.echo, "razor.induction": self.induction}
        copies = any(among_best(calibration.get(name), share, layer, head) for name, share in shares.items())
        return None if copies else self


def echo_and_induction(
    subject: Subject, tokens: int = 256, repeats: int = 4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two scores, float32 [layers, kv_heads, g] each, on random tokens repeated (2407.15891, section 3).

    The attention of the last repeat's queries to the same token one repeat earlier (echo), and to the token after that
    (induction), averaged over queries. No text is needed.
    """
    subject.geometry.size("g")  # refused before any work
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(subject.vocabulary, (1, tokens), generator=generator)
    earlier = tokens * (repeats - 2)

    def of(attention: torch.Tensor) -> torch.Tensor:
        lines = [attention.diagonal(offset=earlier + later, dim1=-2, dim2=-1)[..., :tokens] for later in (0, 1)]
        return torch.stack([line.mean(-1) for line in lines], dim=-1)

    subject.observe(latest := LastQueries(tokens, of), [block.repeat(1, repeats)])
    echo, induction = latest.noted(subject.geometry).unbind(-1)
    return echo, induction


@measure("induction", cost=8)
def measured_induction(material: Material, progress: Progress) -> Found:
    """Echo and induction scores of query heads (RazorAttention)."""
    echo, induction = echo_and_induction(material.subject)
    return {}, {"razor.echo": echo.contiguous(), "razor.induction": induction.contiguous()}
