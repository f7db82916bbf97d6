"""DeCoRe: against what the model would say without the heads that fetch from the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, listed_heads, register
from headwise.faithful.looks import Looks
from headwise.faithful.measured import retrieval_heads
from headwise.faithful.scores import contrasted, entropy
from headwise.knobs import Positive, Weight
from headwise.seams.transformers.beside import Head, check_heads


@register("decore")
@dataclass(frozen=True)
class Decore(Decoder):
    """Weighs the model's logits against those with its retrieval heads masked, the more the less sure it is.

    alpha: the weight, times the entropy of the next token in nats. heads: how many are masked, the best by retrieval
    score. named: these instead, as '12.3 14.0', layer and query head. cap: most that alpha times the entropy may be.
    """

    alpha: Weight = 1.0
    heads: Positive = 16
    named: str = ""
    cap: Weight = 100.0

    card = DecoderCard(
        title="Decoding by contrasting retrieval heads",
        paper="DeCoRe: Decoding by Contrasting Retrieval Heads to Mitigate Hallucinations, arXiv 2410.18860, section 2",
        costs="one more pass over the newest token, over the same cache",
        deviations="the official code masks over a copy of the cache, into which masked passes write their own keys "
        "and values; here each masked pass reads the model's own and stores nothing, which is the same for the first "
        "new token, saves the copy, and differs by what was written from then on. Heads are ranked by scores of this "
        "model on planted facts; 16 are masked by default, about the share of 50 of Llama 3 8B's 1024",
        systems=(209,),
    )
    needs = frozenset({"again"})
    neutral = "decore(alpha=0.0)"

    def prepare(self, looks: Looks) -> None:
        check_heads(looks.geometry, self._masked(looks))

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        weight = (self.alpha * entropy(logs)).clamp(max=self.cap)[:, None]
        return contrasted(logs, looks.masked(self._masked(looks)).log_softmax(-1), weight)

    def _masked(self, looks: Looks) -> tuple[Head, ...]:
        return listed_heads(self.named) if self.named else retrieval_heads(looks.model, self.heads)
