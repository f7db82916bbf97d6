"""DAGCD: tokens of the passage that are being used, as attention tells, gain probability where the model is unsure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.detector import attention_of, detector, ratios
from headwise.faithful.looks import Looks
from headwise.faithful.scores import entropy
from headwise.knobs import Ids, Positive, Weight
from headwise.seams.transformers.drive import end_tokens


@register("dagcd")
@dataclass(frozen=True)
class Dagcd(Decoder):
    """Adds to the probabilities a distribution over the context's tokens that the model is using, by a detector that
    reads its attention.

    alpha: its weight, times the entropy of the next token as a share of the most there can be; the paper has 2 for base
    and 4 for chat models. heads: the detector's. rank: tokens that the model ranks worse gain nothing. ends: ids that
    stay as they are where they are the model's best, such as a line break's, beside the model's own end.
    """

    alpha: Weight = 4.0
    heads: Positive = 10
    rank: Positive = 10
    ends: Ids = ""

    card = DecoderCard(
        title="Dynamic attention-guided context decoding",
        paper="Dynamic Attention-Guided Context Decoding for Mitigating Context Faithfulness Hallucinations in Large "
        "Language Models, arXiv 2501.01059, section 3",
        costs="no pass: the attention of the detector's heads to what the cache holds",
        deviations="the detector is fitted on facts planted in the built-in novel, with answers given, and not on "
        "HotpotQA with entities found by spaCy; one penalty in place of a search over folds; heads that speak against "
        "a token's use have no weight in its share",
        systems=(138,),
    )
    needs = frozenset({"context", "attention"})
    neutral = "dagcd(alpha=0.0)"

    def prepare(self, looks: Looks) -> None:
        detector(looks.model, self.heads)

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        weight = self.alpha * entropy(logs) / math.log(logits.shape[1])
        kept = torch.tensor([*end_tokens(looks.model), *map(int, self.ends.split())], device=logits.device)
        weight = weight * ~torch.isin(logits.argmax(-1), kept)
        mixed = logs.exp() + weight[:, None] * self.used(logits, looks)
        return (mixed / mixed.sum(-1, keepdim=True)).log()

    def used(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        """The distribution [b, vocab] over tokens of the context that are used; nothing in rows where none is."""
        told, found = detector(looks.model, self.heads), torch.zeros_like(logits)
        for row, attention in enumerate(attention_of(looks, told.heads)):
            places = looks.context[row]
            different, inverse = looks.tokens[row][places].unique(return_inverse=True)
            own = ratios(attention[:, places], inverse, len(different))
            ranks = (logits[row][None] > logits[row][different][:, None]).sum(1)
            shares = told.shares(own) * told.used(own) * (ranks < self.rank)
            if float(total := shares.sum()) > 0:
                found[row, different] = shares / total
        return found
